"""Guards on both sides of the wire: their order, what they keep, what leaves, and what the server adds up."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cotune.aggregators.mean import Mean
from cotune.build_guards import simulated_secret
from cotune.errors import WireError
from cotune.federation import Federation
from cotune.guarded import Guards
from cotune.guarding import Sender, Total, Update, secret_rng
from cotune.outbox import Outbox
from cotune.protocols import Reply
from cotune.records import Adapter, Message, Round, adapter_header
from cotune.shelf import Shelf
from faulty import Scripted

NOW = Round(2, 5, 7, ("ann", "bob"))
SENT = Adapter({"a": np.array([1.0, 2.0], np.float32)}, "base", 1, 2.0)


@dataclass
class Adding:
    """Adds a number on the way out and another one on the way in; notes how often it ran."""

    out: float
    back: float = 0.0
    bound: float | None = None
    seen: list = field(default_factory=list)

    def outgoing(self, update: Update, sender: Sender):
        times = float(sender.memo["times"][0]) if "times" in sender.memo else 0.0
        self.seen.append((sender.client, sender.round.index, times))
        arrays = {name: array * 2 + np.float32(self.out) for name, array in update.arrays.items()}
        return replace(update, arrays=arrays), {"times": np.array([times + 1], np.float32)}

    def incoming(self, mean, total: Total):
        self.total = total
        return {name: array + np.float32(self.back) for name, array in mean.items()}


class Halving(Adding):
    """Sends half-precision numbers under another name."""

    def pack(self, arrays, round):
        return {f"half {name}": array.astype(np.float16) for name, array in arrays.items()}

    def unpack(self, arrays, round, like):
        if arrays.keys() != {f"half {name}" for name in like}:
            raise WireError("these are no halves")
        return {name: arrays[f"half {name}"].astype(np.float32) for name in like}


def guards(tmp_path, **found) -> Guards:
    return Guards(found, simulated_secret(7), Shelf(tmp_path, "guards"))


def sent(client: str = "ann", action: str = "tune") -> Message:
    return Message(client, 2, action, SENT.arrays, {"adapter": adapter_header(SENT)})


def tuned(change: float = 0.5) -> Reply:
    return Reply(SENT.with_arrays({"a": SENT.arrays["a"] + np.float32(change)}), 3.0, {"loss": 0.25})


def test_an_update_goes_through_the_guards_in_their_order(tmp_path):
    found = guards(tmp_path, first=Adding(1.0), second=Adding(10.0))
    left = found.leaving(Update({"a": np.array([0.5], np.float32)}), "ann", NOW)
    assert left.arrays["a"].tolist() == [(0.5 * 2 + 1) * 2 + 10]


def test_what_leaves_is_the_change_and_not_the_adapter(tmp_path):
    reply = Outbox(guards(tmp_path, only=Adding(0.0))).send(sent(), tuned(), NOW)
    assert reply.arrays["a"].tolist() == [1.0, 1.0]  # twice the change of 0.5, and no 1.0 or 2.0 of SENT
    assert reply.facts == {"adapter": adapter_header(SENT), "weight": 3.0, "sums": {"loss": 0.25}}


def test_without_guards_the_adapter_itself_leaves():
    assert Outbox().send(sent(), tuned(), NOW).arrays["a"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("action", ["select/0/share", "teach/learn"])
def test_only_updates_are_guarded(tmp_path, action):
    reply = Outbox(guards(tmp_path, only=Adding(5.0))).send(sent(action=action), tuned(), NOW)
    assert reply.arrays["a"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_update_that_is_not_finite_stays_at_home(tmp_path, wrong):
    reply = Outbox(guards(tmp_path, only=Adding(0.0))).send(sent(), tuned(wrong), NOW)
    assert reply.arrays == {}
    assert "training diverged" in reply.facts["refused"]


def test_a_guard_is_given_back_what_it_kept_in_the_round_before(tmp_path):
    guard = Adding(0.0)
    found = guards(tmp_path, only=guard)
    for index in (1, 2, 2, 5):
        found.leaving(Update({}), "ann", replace(NOW, index=index))
    found.leaving(Update({}), "bob", NOW)
    assert guard.seen == [("ann", 1, 0), ("ann", 2, 1), ("ann", 2, 1), ("ann", 5, 2), ("bob", 2, 0)]


def test_a_client_keeps_the_notes_of_three_rounds(tmp_path):
    found = guards(tmp_path, only=Adding(0.0))
    for index in range(1, 9):
        found.leaving(Update({}), "ann", replace(NOW, index=index))
    assert [path.stem for path in sorted(tmp_path.rglob("*.msg"))] == ["000006", "000007", "000008"]


def federation(found: Guards, answer) -> Federation:
    network = Federation(Scripted(("ann", "bob"), answer), Mean(), lambda _: None)
    network.guards = found
    return network


def test_the_server_adds_the_mean_of_changes_to_what_it_had_sent(tmp_path):
    guard = Halving(0.0, back=100.0)
    found = guards(tmp_path, only=guard)
    change = {"ann": 0.5, "bob": 1.5}
    network = federation(found, lambda m: [Outbox(found).send(m, tuned(change[m.client]), NOW)])
    gathered = network.gather("tune", SENT, NOW)
    assert gathered.adapter.arrays["a"].tolist() == [1 + 2 + 100, 2 + 2 + 100]
    assert gathered.adapter.arrays["a"].dtype == np.float32
    assert gathered.sums == {"loss": 0.5}
    assert (guard.total.round, guard.total.num_replies) == (NOW, 2)


def test_packed_rubbish_is_named_and_left_out(tmp_path):
    found = guards(tmp_path, only=Halving(0.0))

    def answer(message):
        reply = Outbox(found).send(message, tuned(), NOW)
        return [replace(reply, arrays={"b": np.zeros(2)}) if message.client == "bob" else reply]

    network = federation(found, answer)
    gathered = network.gather("tune", SENT, NOW)
    assert gathered.num_replies == 1
    assert [(f.client, f.kind, f.reason) for f in network.ledger.failures] == [
        ("bob", "rejected", "these are no halves")
    ]


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "other arrays than were sent, first difference 'a'"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(1)}, "first difference 'b'"),
        ({"a": np.zeros(3, np.float32)}, "a: float32(3,), expected float32(2,)"),
        ({"a": np.zeros(2, np.float64)}, "a: float64(2,)"),
    ],
)
def test_unpacked_updates_must_fit_what_was_sent(tmp_path, arrays, problem):
    with pytest.raises(WireError, match=re.escape(problem)):
        guards(tmp_path, only=Adding(0.0)).unpacked(arrays, NOW, SENT.arrays)


def test_a_refusal_is_a_failure_with_its_reason(tmp_path):
    found = guards(tmp_path, only=Adding(0.0))
    network = federation(found, lambda m: [Outbox(found).send(m, tuned(np.nan), NOW)])
    assert network.gather("tune", SENT, NOW).adapter is None
    assert {(f.client, f.kind) for f in network.ledger.failures} == {("ann", "rejected"), ("bob", "rejected")}
    assert all("training diverged" in f.reason for f in network.ledger.failures)


def test_the_bound_is_that_of_the_last_guard_that_sets_one(tmp_path):
    assert guards(tmp_path, a=Adding(0, bound=2.0), b=Adding(0, bound=1.0), c=Adding(0)).bound == 1.0
    assert guards(tmp_path, a=Adding(0)).bound is None


def test_a_secret_and_words_decide_a_stream():
    def draw(secret: bytes = b"s" * 32, *words: str):
        return tuple(secret_rng(secret, *(words or ("ann", "1", "noise"))).random(4))

    assert draw() == draw()
    others = [draw(b"t" * 32), draw(b"s" * 32, "bob", "1", "noise"), draw(b"s" * 32, "ann", "2", "noise")]
    assert len({draw(), *others}) == 4


def test_words_of_a_purpose_do_not_run_together():
    assert secret_rng(b"s" * 32, "ab", "c").random() != secret_rng(b"s" * 32, "a", "bc").random()


def test_simulated_secrets_differ_by_seed_and_party():
    found = {simulated_secret(seed)(party) for seed in (1, 2) for party in ("ann", "bob", "server")}
    assert len(found) == 6
    assert {len(secret) for secret in found} == {32}


def test_masked_steps_are_refused_where_sums_are_not_masked():
    [reply] = Outbox().answer([Message("ann", 1, "secure/keys")])
    assert "sums are not masked" in reply.facts["refused"]
