"""The Flower transport on a grid in memory: every way in which a client may fail has its own word."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from cotune import remote
from cotune.answering import Desk
from cotune.codec import encode
from cotune.envelope import Envelope, Head, read_head, seal, unseal
from cotune.errors import DataError, RunError, WireError
from cotune.records import Failure, Message
from cotune.remote import Patience, Roster
from cotune.transports import flower
from cotune.transports.flower import Flower

NAMES = ("ann", "bob", "cid")
RUN = "0123456789abcdef"
KEYS = {name: Ed25519PrivateKey.generate() for name in ("server", "mallory", *NAMES)}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items() if name != "mallory"}


def node_pem():
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


NODES = {name: node_pem() for name in NAMES}
ID = {name: 100 + number for number, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """What Flower's own process sets before an app runs."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1, raising=False)
    monkeypatch.setattr(TaskIdentity, "_task_id", 2, raising=False)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1, raising=False)


class Clock:
    """Time passes only in sleep; `at` runs things when their time has come."""

    def __init__(self):
        self.time, self.due = 0.0, []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        for entry in sorted(self.due, key=lambda e: e[0]):
            if entry[0] <= self.time:
                self.due.remove(entry)
                entry[1]()

    def at(self, when, what):
        self.due.append((when, what))


def echo(message):
    return Message(message.client, message.round, message.action, message.arrays, {"was": message.facts})


def desk(name, handle=echo, **changes):
    values = {"client": name, "run": RUN, "identity": KEYS[name], "keys": {"server": PUBLIC["server"]}}
    return Desk(**{**values, "handle": handle, **changes})


class Grid:
    """Nodes that answer after a while; `answers[name]` may be a desk, a function, or None for silence."""

    def __init__(self, clock, **answers):
        self.clock = clock
        self.online = dict.fromkeys(NAMES, 1)  # name -> how often it was started
        self.answers = {name: desk(name) for name in NAMES} | answers
        self.delay = dict.fromkeys(NAMES, 0.5)
        self.pushed, self.ready, self.strangers = [], {}, []

    def get_nodes(self):
        made = [(ID[name], NODES[name], str(times)) for name, times in self.online.items()]
        made += [(900 + i, pem, "1") for i, pem in enumerate(self.strangers)]
        return [
            SimpleNamespace(node_id=i, public_key=pem.encode(), last_activated_at=times)
            for i, pem, times in made
        ]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
            self.pushed.append(message)
            ids.append(message.metadata.message_id)
            name = next(name for name, number in ID.items() if number == message.metadata.dst_node_id)
            self.clock.at(self.clock.time + self.delay[name], lambda m=message, n=name: self._work(m, n))
        return ids

    def _work(self, message, name):
        how = self.answers[name]
        if how is None or name not in self.online:
            return
        reply = flower.answer(message, how.reply) if isinstance(how, Desk) else how(message)
        for one in reply if isinstance(reply, list) else [reply]:
            self.ready.setdefault(message.metadata.message_id, []).append(one)

    def pull_messages(self, message_ids):
        """As Flower does: a reply comes once, an error that Flower itself found comes each time."""
        found = [reply for one in message_ids for reply in self.ready.pop(one, [])]
        for reply in found:
            if reply.has_error() and reply.error.code in remote.LOST:
                self.ready[reply.metadata.reply_to_message_id] = [reply]
        return found


@pytest.fixture
def clock():
    return Clock()


def transport(grid, notes=None, **patience):
    roster = Roster(RUN, KEYS["server"], {name: PUBLIC[name] for name in NAMES}, NODES)
    note = (notes if notes is not None else []).append
    return Flower(grid, roster, Patience(**patience), note, (grid.clock.now, grid.clock.sleep))


def questions(names=NAMES, **arrays):
    return [Message(name, 4, "tune", arrays, {"told": name}) for name in names]


def outcomes(grid, messages=None, notes=None, **patience):
    found = list(transport(grid, notes, **patience).send(messages or questions()))
    return {outcome.client: outcome for outcome, _, _ in found}, found


def failure(grid, name="bob", **patience):
    found, _ = outcomes(grid, **patience)
    assert sorted(found) == sorted(NAMES)
    assert all(isinstance(found[other], Message) for other in NAMES if other != name)
    assert isinstance(found[name], Failure)
    assert found[name].round == 4
    return found[name].kind, found[name].reason


def test_every_client_answers_its_own_message_and_bytes_are_those_of_the_codec(clock):
    messages = questions(x=np.arange(5, dtype=np.float32))
    _, found = outcomes(Grid(clock), messages)
    for sent, (reply, down, up) in zip(messages, sorted(found, key=lambda one: one[0].client), strict=True):
        assert (reply.client, reply.facts) == (sent.client, {"was": {"told": sent.client}})
        np.testing.assert_array_equal(reply.arrays["x"], sent.arrays["x"])
        assert (down, up) == (len(encode(sent)), len(encode(echo(sent))))


def test_large_arrays_and_all_types_of_the_codec_pass_unchanged(clock):
    rng = np.random.default_rng(0)
    arrays = {"large": rng.standard_normal((3 << 20,), np.float32)}  # 12 MiB: more than one piece of Flower's
    arrays["half"] = np.arange(7, dtype=np.float16)
    found, _ = outcomes(Grid(clock), questions(["ann"], **arrays))
    for name, array in arrays.items():
        assert found["ann"].arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found["ann"].arrays[name], array)


def test_replies_come_as_they_are_ready_not_in_the_order_of_the_questions(clock):
    grid = Grid(clock)
    grid.delay |= {"ann": 9.0, "bob": 1.0, "cid": 4.0}
    _, found = outcomes(grid)
    assert [reply.client for reply, _, _ in found] == ["bob", "cid", "ann"]


def test_a_client_that_does_not_answer_in_time_is_late(clock):
    assert failure(Grid(clock, bob=None), deadline=30.0) == ("late", "no reply within 30 s")
    assert 30 <= clock.time < 32


def test_a_client_whose_node_is_away_is_late_and_the_deadline_need_not_pass(clock):
    grid = Grid(clock)
    del grid.online["bob"]
    kind, reason = failure(grid, deadline=600.0, absence=20.0)
    assert (kind, reason) == ("late", "its node has not been connected for 20 s")
    assert clock.time < 30


def test_who_was_away_long_is_not_waited_for_again_but_asked_when_back(clock):
    grid = Grid(clock)
    del grid.online["bob"]
    made = transport(grid, absence=20.0)
    assert [o for o, _, _ in made.send(questions()) if isinstance(o, Failure)]
    began = clock.time
    assert [o.client for o, _, _ in made.send(questions()) if isinstance(o, Failure)] == ["bob"]
    assert clock.time - began < 3
    grid.online["bob"] = 2
    clock.sleep(1.5)
    assert all(isinstance(o, Message) for o, _, _ in made.send(questions()))


def test_a_node_that_was_started_anew_is_asked_again(clock):
    grid = Grid(clock)
    grid.answers["bob"] = None  # it takes the message and dies
    clock.at(5.0, lambda: grid.answers.update(bob=desk("bob")))
    clock.at(5.0, lambda: grid.online.update(bob=2))
    found, _ = outcomes(grid, deadline=60.0)
    assert isinstance(found["bob"], Message)
    assert [m.metadata.dst_node_id for m in grid.pushed].count(ID["bob"]) == 2
    assert clock.time < 10


def test_a_node_that_always_dies_is_not_asked_for_ever(clock):
    grid = Grid(clock, bob=None)
    for when in range(2, 40, 4):
        clock.at(float(when), lambda when=when: grid.online.update(bob=when))
    assert failure(grid, deadline=50.0)[0] == "late"
    assert [m.metadata.dst_node_id for m in grid.pushed].count(ID["bob"]) == flower.MOST_TRIES


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "could not be loaded"),
        (2, "raised an error"),
        (77, "error 77"),
    ],
)
def test_an_error_of_flower_is_a_crash_in_words(clock, code, words):
    grid = Grid(clock, bob=lambda m: FlowerMessage(Error(code, "why\nand more"), reply_to=m))
    kind, reason = failure(grid)
    assert kind == "crashed"
    assert words in reason
    assert reason.endswith(": why")


@pytest.mark.parametrize(("code", "words"), [(4, "its reply was lost"), (8, "the process that answers died")])
def test_a_lost_message_is_sent_again_and_given_up_after_some_tries(clock, code, words):
    def lose(message):
        return FlowerMessage(Error(code, "gone"), reply_to=message)

    grid = Grid(clock, bob=lose)
    kind, reason = failure(grid)
    assert (kind, len([m for m in grid.pushed if m.metadata.dst_node_id == ID["bob"]])) == ("crashed", 3)
    assert words in reason
    again = Grid(Clock())
    calls = []
    again.answers["bob"] = lambda m: (
        calls.append(m) or (lose(m) if len(calls) < 2 else flower.answer(m, desk("bob").reply))
    )
    found, _ = outcomes(again)
    assert isinstance(found["bob"], Message)


def test_a_node_that_is_killed_and_comes_back_later_is_asked_once_more(clock):
    """Flower says that the node is gone each time it is asked, until nobody asks for that message."""
    grid = Grid(clock)

    def die(message):
        del grid.online["bob"]
        return FlowerMessage(Error(5, "offline"), reply_to=message)

    def come_back():
        grid.online["bob"] = 2
        grid.answers["bob"] = desk("bob")

    grid.answers["bob"] = die
    clock.at(40.0, come_back)
    notes = []
    found, _ = outcomes(grid, notes=notes, absence=60.0)
    assert isinstance(found["bob"], Message)
    assert notes == ["bob: its SuperNode is gone; it is asked again once it is connected"]
    assert len([m for m in grid.pushed if m.metadata.dst_node_id == ID["bob"]]) == 2


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError("4 GiB"), "out-of-memory", "not enough memory"),
        (OutOfMemoryError("CUDA"), "out-of-memory", "not enough memory"),
        (RuntimeError("CUDA error: out of memory"), "out-of-memory", "not enough memory"),
        (ValueError("the secret row"), "crashed", "ValueError; see the log on its machine"),
        (DataError("row 3: 'the secret row'"), "crashed", "its data cannot be used"),
        (RunError("the disk is full\nand more"), "crashed", "the disk is full"),
        (WireError("another base"), "rejected", "another base"),
    ],
)
def test_what_happens_on_a_client_is_told_by_kind_without_its_text(clock, capsys, error, kind, words):
    def fail(_):
        raise error

    found = failure(Grid(clock, bob=desk("bob", fail)))
    capsys.readouterr()
    assert found[0] == kind
    assert words in found[1]
    assert "secret" not in found[1]
    assert "\n" not in found[1]


def test_a_reply_that_another_client_signed_is_rejected(clock):
    def as_ann(message):
        return flower.answer(message, desk("bob", client="bob", identity=KEYS["mallory"]).reply)

    kind, reason = failure(Grid(clock, bob=as_ann))
    assert (kind, "that party did not sign it" in reason) == ("rejected", True)


def envelope_of(message):
    return flower.unpacked(message.content)


def forged(message, sender, payload=None, **changes):
    """A reply as `sender` would sign it, to bob's question."""
    head = read_head(envelope_of(message).text)
    made = Head(**{**vars_of(head.answered()), "sender": sender, **changes})
    body = payload if payload is not None else encode(Message(sender, 4, "tune", {}, {}))
    return FlowerMessage(flower.packed(seal(made, body, KEYS[sender])), reply_to=message)


def vars_of(head):
    return {name: getattr(head, name) for name in head.__slots__}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda m: forged(m, "ann"), "the reply of 'bob' claims to be of 'ann'"),
        (lambda m: forged(m, "bob", encode(Message("ann", 4, "tune", {}, {}))), "claims to be of 'ann'"),
        (lambda m: forged(m, "bob", exchange="f" * 32), "another question"),
        (lambda m: forged(m, "bob", run="another"), "it is of run 'another'"),
        (lambda m: forged(m, "bob", receiver="ann"), "it is meant for 'ann'"),
        (lambda m: forged(m, "bob", b"rubbish"), "expected 8 to"),
        (lambda m: FlowerMessage(RecordDict(), reply_to=m), "not an envelope"),
        (lambda m: forged(m, "mallory"), "who is not registered"),
    ],
)
def test_a_reply_that_must_not_count_is_rejected_and_its_client_named(clock, how, words):
    kind, reason = failure(Grid(clock, bob=how))
    assert kind == "rejected"
    assert words in reason


def test_a_reply_from_another_node_is_rejected(clock):
    def from_elsewhere(message):
        reply = flower.answer(message, desk("bob").reply)
        reply.metadata.__dict__["_src_node_id"] = ID["ann"]
        return reply

    kind, reason = failure(Grid(clock, bob=from_elsewhere))
    assert (kind, reason) == ("rejected", f"it came from node {ID['ann']}, who was not asked")


def test_of_two_replies_to_one_question_the_first_counts(clock):
    def twice(message):
        return [flower.answer(message, desk("bob").reply), flower.answer(message, desk("bob").reply)]

    notes = []
    found, all_of_them = outcomes(Grid(clock, bob=twice), notes=notes)
    assert isinstance(found["bob"], Message)
    assert len(all_of_them) == 3
    assert any("answered what was not asked" in note for note in notes)


def test_a_replayed_reply_of_an_earlier_exchange_is_rejected(clock):
    kept = []

    def answering(message):
        kept.append(flower.answer(message, desk("bob").reply))
        return FlowerMessage(kept[0].content, reply_to=message)

    grid = Grid(clock, bob=answering)
    made = transport(grid)
    assert all(isinstance(o, Message) for o, _, _ in made.send(questions()))
    [bob] = [o for o, _, _ in made.send(questions()) if o.client == "bob"]
    assert (bob.kind, "another question" in bob.reason) == ("rejected", True)


def test_who_is_not_registered_is_neither_asked_nor_sent_anything(clock):
    grid, notes = Grid(clock), []
    grid.strangers = [node_pem()]
    found, _ = outcomes(grid, questions((*NAMES, "eve")), notes)
    assert (found["eve"].kind, found["eve"].reason) == ("rejected", "it is not registered")
    assert {m.metadata.dst_node_id for m in grid.pushed} == set(ID.values())
    assert [note for note in notes if "900" in note] == [
        "node 900 is not registered with this deployment: nothing is sent to it"
    ]


def test_waiting_names_whom_it_awaits_and_hears_what_they_say(clock):
    grid, notes = Grid(clock), []
    del grid.online["bob"]
    del grid.online["cid"]
    clock.at(3.0, lambda: grid.online.update(bob=1))
    clock.at(6.0, lambda: grid.online.update(cid=1))
    found = transport(grid, notes).wait(2, 60.0)
    assert sorted(found) == list(NAMES)
    assert found["ann"].action == "hello"
    assert notes == [
        "waiting for bob, cid (1 of 3 are connected)",
        "waiting for cid (2 of 3 are connected)",
    ]


def test_after_a_time_a_quorum_is_enough_and_less_is_not(clock):
    grid, notes = Grid(clock), []
    del grid.online["cid"]
    assert sorted(transport(grid, notes).wait(2, 10.0)) == ["ann", "bob"]
    with pytest.raises(RunError, match="after 10 s 2 of 3 clients are connected, 3 are needed; missing: cid"):
        transport(grid).wait(3, 10.0)


def test_who_has_another_configuration_does_not_count_for_the_quorum(clock):
    grid, notes = Grid(clock, bob=desk("bob", run="f" * 16)), []
    assert sorted(transport(grid, notes).wait(2, 10.0)) == ["ann", "cid"]
    assert any(note.startswith("bob rejected: it is of run 'ffffffffffffffff'") for note in notes)
    with pytest.raises(RunError, match="2 clients can take part, 3 are needed"):
        transport(grid).wait(3, 10.0)


def test_a_client_obeys_the_server_only():
    asked = []
    bob = desk("bob", lambda m: asked.append(m) or echo(m))
    question = encode(Message("bob", 1, "tune", {}, {}))

    def told(head, key="server", payload=question):
        reply = bob.reply(seal(head, payload, KEYS[key]))
        found = unseal(reply, "server", RUN, PUBLIC)
        assert found.exchange == head.exchange
        return found.failure, found.reason

    good = Head("server", "bob", RUN, "e1")
    assert told(good) == ("", "")
    assert len(asked) == 1
    assert "did not sign it" in told(good, key="ann")[1]
    assert "who is not registered" in told(Head("ann", "bob", RUN, "e2"), key="ann")[1]
    assert "meant for 'ann'" in told(Head("server", "ann", RUN, "e3"))[1]
    assert "different configurations" in told(Head("server", "bob", "other", "e4"))[1]
    of_ann = encode(Message("ann", 1, "tune", {}, {}))
    assert told(good, payload=of_ann) == ("rejected", "a message for 'ann' came to 'bob'")
    assert len(asked) == 1


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"x" * 20_000, b'{"sender": 1}', b"[" * 9_000])
def test_rubbish_in_place_of_a_head_is_refused(text):
    found = unseal(desk("bob").reply(Envelope(text, b"", b"")), "server", RUN, PUBLIC)
    assert found.failure == "rejected"


def test_a_changed_byte_anywhere_breaks_the_signature():
    made = seal(Head("bob", "server", RUN, "e"), b"payload", KEYS["bob"])
    assert unseal(made, "server", RUN, PUBLIC).sender == "bob"
    for other in (
        Envelope(made.text.replace(b'"e"', b'"f"'), made.signature, made.payload),
        Envelope(made.text, made.signature, b"Payload"),
        Envelope(made.text, bytes(64), made.payload),
        Envelope(made.text, b"", made.payload),
    ):
        with pytest.raises(WireError, match="did not sign it"):
            unseal(other, "server", RUN, PUBLIC)


def test_bytes_of_bfloat16_travel_as_they_are_in_pieces_of_flower_s():
    numbers = torch.arange(4 << 20, dtype=torch.float32).to(torch.bfloat16)  # 8 MiB: NumPy has no such type
    bits = numbers.view(torch.uint8).numpy().tobytes()
    content = flower.packed(Envelope(b"t", b"s", bits))
    pieces = {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    assert max(map(len, pieces.values())) < 6 << 20
    assert flower.unpacked(inflate_object_from_contents(content.object_id, pieces)).payload == bits
