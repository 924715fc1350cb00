"""A round goes on after what was recorded of it; what is torn or made from something else is done again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from cotune import journal as journals
from cotune.aggregators.mean import Mean
from cotune.errors import RunError
from cotune.federation import Federation
from cotune.journal import Journal, Kept, Ledger, exchange, phase
from cotune.protocols import Gathered, State
from cotune.records import Adapter, Failure, Message, Round
from faulty import Scripted

CLIENTS = ("ann", "bob")
ROUND = Round(2, 3, 7, CLIENTS)


def adapter(value: float, base: str = "tiny") -> Adapter:
    return Adapter(
        {"q.lora_A": np.full((2, 3), value, np.float32), "q.lora_B": np.eye(3, dtype=np.float32)}, base, 2, 4
    )


STATE = State(adapter(1.0), adapter(2.0), {"other": adapter(3.0)}, 0.25)


def answer(message: Message) -> list[Message]:
    """A number of its own in the clear, or an update."""
    mine = 1.0 + CLIENTS.index(message.client)
    if "adapter" not in message.facts:
        return [Message(message.client, message.round, message.action, {"x": np.full(2, mine)}, {"n": mine})]
    facts = {"weight": 1.0, "sums": {"clients": 1.0, "loss": mine}, "adapter": message.facts["adapter"]}
    arrays = {name: array + np.float32(mine) for name, array in message.arrays.items()}
    return [Message(message.client, message.round, message.action, arrays, facts)]


class Server:
    """A federation with a journal, and what it heard and was told; another one is the same run resumed."""

    def __init__(self, folder: Path, answers=answer, fingerprint: str = "f") -> None:
        self.network = Scripted(CLIENTS, answers)
        self.notes: list[str] = []
        self.heard: list[Message] = []
        self.federation = Federation(self.network, Mean(), lambda _: None)
        self.federation.journal = Journal(folder / "checkpoints", fingerprint, self.notes.append)
        self.federation.overhear = self.heard.append

    @property
    def asked(self) -> list[tuple[str, str]]:
        return [(message.client, message.action) for message in self.network.seen]

    def begin(self, state: State = STATE, round: Round = ROUND) -> Server:
        self.federation.begin(round, state)
        return self

    def steps(self) -> list[object]:
        """A whole round: two questions, a sum, a phase of the server, a phase in which clients are asked."""
        do, now = self.federation, ROUND
        first = do.ask("choose", None, now, {client: {"to": client} for client in CLIENTS})
        second = do.ask("exchange", adapter(0.5), now)
        gathered = do.gather("tune", adapter(1.0), now)

        def measure():
            replies = do.ask("evaluate", None, now)
            do.refuse(replies[0], "odd")
            return STATE.replace(distil=0.1), {"metrics": [reply.facts["n"] for reply in replies]}

        taught = do.once(
            "co-tune", STATE, lambda: (STATE.replace(slm=gathered.adapter), {"losses": {"slm": 0.1}})
        )
        measured = do.once("evaluate", taught[0], measure)
        return [first, second, gathered, taught, measured, do.take_ledger()]


def same(one: object, other: object) -> bool:
    """Equal, arrays by value and type; a ledger without its seconds."""
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if isinstance(one, Ledger):
        return (one.traffic, one.failures) == (other.traffic, other.failures)
    if isinstance(one, list | tuple) and not hasattr(one, "_fields"):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if hasattr(type(one), "__dataclass_fields__"):
        names = type(one).__dataclass_fields__
        return type(one) is type(other) and all(same(getattr(one, n), getattr(other, n)) for n in names)
    return one == other


def records(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("round-*/*.msg"))


def test_what_is_recorded_is_not_asked_again(tmp_path):
    first = Server(tmp_path).begin()
    done = first.steps()
    again = Server(tmp_path).begin()
    assert same(done, again.steps())
    assert len(first.asked) == 8
    assert again.asked == []
    assert [path.name for path in records(tmp_path)] == [f"{n:04d}.msg" for n in range(6)]
    assert again.notes == ["round 2 goes on after what was recorded of it"]


def test_the_comparison_of_these_tests_sees_a_difference():
    assert same(STATE, STATE.replace(distil=0.25))
    assert not same(STATE, STATE.replace(distil=0.5))
    assert not same([adapter(1.0)], [adapter(1.5)])
    assert not same(Ledger(up_bytes=1), Ledger())


@pytest.mark.parametrize("kept", range(7))
def test_a_round_goes_on_after_any_of_its_records(tmp_path, kept):
    """As if it had been killed before the next record was whole: the others of it are not there yet."""
    whole = Server(tmp_path / "whole").begin()
    done = whole.steps()
    Server(tmp_path / "torn").begin().steps()
    order = [0, 1, 2, 3, 5, 4]  # the question inside the last phase is recorded before that phase is
    for number in order[kept:]:
        records(tmp_path / "torn")[0].with_name(f"{number:04d}.msg").unlink()
    again = Server(tmp_path / "torn").begin()
    assert same(done, again.steps())
    per_record = [whole.asked[0:2], whole.asked[2:4], whole.asked[4:6], [], whole.asked[6:8], []]
    assert again.asked == [one for part in per_record[kept:] for one in part]
    assert same(whole.heard, again.heard)


def test_a_replayed_phase_is_heard_too_and_counts_once(tmp_path):
    first = Server(tmp_path).begin()
    *_, ledger = first.steps()
    again = Server(tmp_path).begin()
    *_, replayed = again.steps()
    assert [reply.action for reply in again.heard] == ["choose"] * 2 + ["exchange"] * 2 + ["evaluate"] * 2
    assert replayed.traffic == ledger.traffic == {
        "up_bytes": 800, "down_bytes": 80, "clear_bytes": 600, "gathered_bytes": 200,
    }  # fmt: skip
    assert replayed.failures == [Failure("ann", 2, "rejected", "odd")]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("number", [1, 5])
def test_a_torn_record_is_done_again_with_all_after_it(tmp_path, number, damage):
    whole = Server(tmp_path).begin()
    done = whole.steps()
    path = records(tmp_path)[number]
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    path.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b""}[damage])
    again = Server(tmp_path).begin()
    assert same(done, again.steps())
    assert again.asked == whole.asked[2:] if number == 1 else whole.asked[6:]
    assert any("is done again, and all after it" in note for note in again.notes)
    assert Server(tmp_path).begin().steps()  # what was written anew holds


@pytest.mark.parametrize(
    "other",
    [
        lambda do: do.ask("pick", None, ROUND),
        lambda do: do.gather("choose", None, ROUND),
        lambda do: do.ask("choose", adapter(1.0), ROUND),
        lambda do: do.ask("choose", None, Round(2, 3, 7, ("ann",))),
        lambda do: do.ask("choose", None, ROUND, {client: {"to": "other"} for client in CLIENTS}),
    ],
)
def test_a_record_of_something_else_is_not_used(tmp_path, other):
    Server(tmp_path).begin().steps()
    again = Server(tmp_path).begin()
    other(again.federation)
    assert again.asked != []
    assert "made from something else" in again.notes[0]
    assert len(records(tmp_path)) == 1


@pytest.mark.parametrize(
    ("state", "fingerprint"),
    [(STATE.replace(distil=1.0), "f"), (STATE.replace(slm=adapter(1.1)), "f"), (STATE, "g")],
)
def test_records_of_another_state_or_experiment_are_not_used(tmp_path, state, fingerprint):
    whole = Server(tmp_path).begin()
    whole.steps()
    again = Server(tmp_path, fingerprint=fingerprint).begin(state)
    again.steps()
    assert again.asked == whole.asked


def test_a_record_after_one_that_came_out_differently_is_not_used(tmp_path):
    """The second question does not name the first answer; it was still asked after another one."""
    Server(tmp_path).begin().steps()
    records(tmp_path)[0].unlink()

    def odd(message: Message) -> list[Message]:
        [reply] = answer(message)
        return [Message(reply.client, reply.round, reply.action, reply.arrays, {**reply.facts, "odd": 1})]

    again = Server(tmp_path, odd).begin()
    again.federation.ask("choose", None, ROUND, {client: {"to": client} for client in CLIENTS})
    again.federation.ask("exchange", adapter(0.5), ROUND)
    assert len(again.asked) == 4


def test_records_go_when_the_next_round_begins_and_when_the_run_ends(tmp_path):
    server = Server(tmp_path).begin()
    server.steps()
    server.begin(round=Round(3, 3, 7, CLIENTS))
    assert records(tmp_path) == []
    server.federation.ask("choose", None, Round(3, 3, 7, CLIENTS))
    assert [path.parent.name for path in records(tmp_path)] == ["round-000003"]
    server.federation.journal.end()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_records_of_a_later_round_outlive_a_step_back(tmp_path):
    """The newest checkpoint was torn: its round is done again; the one after it had begun already."""
    whole = Server(tmp_path).begin()
    done = whole.steps()
    back = Server(tmp_path).begin(round=Round(1, 3, 7, CLIENTS))
    back.federation.ask("choose", None, Round(1, 3, 7, CLIENTS))
    back.federation.take_ledger()
    back.begin()
    assert same(done, back.steps())
    assert len(back.asked) == 2


def test_no_single_update_is_written(tmp_path):
    server = Server(tmp_path).begin()
    gathered = server.federation.gather("tune", adapter(1.0), ROUND)
    data = records(tmp_path)[0].read_bytes()
    np.testing.assert_array_equal(gathered.adapter.arrays["q.lora_A"], np.full((2, 3), 2.5, np.float32))
    assert gathered.adapter.arrays["q.lora_A"].tobytes() in data
    for mine in (2.0, 3.0):
        assert np.full((2, 3), mine, np.float32).tobytes() not in data


def test_a_sum_without_an_adapter_and_a_failed_one_come_back_as_they_were(tmp_path):
    def sums(message: Message) -> list[Message | Failure]:
        if message.client == "bob":
            return [Failure("bob", message.round, "late", "no answer")]
        return [
            Message(message.client, message.round, message.action, {}, {"weight": 1.0, "sums": {"a": 0.1}})
        ]

    found = [Server(tmp_path, sums).begin().federation for _ in range(2)]
    assert [one.gather("learn", None, ROUND) for one in found] == [Gathered(None, {"a": 0.1}, 1)] * 2
    assert [one.ledger.failures for one in found] == [[Failure("bob", 2, "late", "no answer")]] * 2
    found[1].minimum = found[0].minimum = 2
    assert (
        found[0].gather("tune", None, ROUND) == found[1].gather("tune", None, ROUND) == Gathered(None, {}, 1)
    )


def test_time_that_was_spent_before_counts(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(journals.time, "monotonic", lambda: clock[0])

    def slow() -> Kept:
        clock[0] += 30
        return Kept(state=STATE)

    first, again = (Journal(tmp_path / "checkpoints", "f") for _ in range(2))
    first.begin(2, STATE)
    first.once(phase("co-tune", STATE), slow)
    began = again.now()
    again.begin(2, STATE)
    again.once(phase("co-tune", STATE), slow)
    assert again.now() - began == 30
    assert clock[0] == 130


def test_a_full_disk_ends_the_run_and_harms_no_record(tmp_path, monkeypatch):
    server = Server(tmp_path).begin()
    server.federation.ask("choose", None, ROUND)
    before = {path: path.read_bytes() for path in records(tmp_path)}

    def fsync(_number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(
            RunError, match=r"0001.msg: cannot be written \(No space.*Free [\d,]+ bytes"
        ) as caught:
            server.federation.ask("exchange", adapter(0.5), ROUND)
    assert str(caught.value).endswith(f"cotune resume {tmp_path}")
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()
    }
    again = Server(tmp_path).begin()
    again.federation.ask("choose", None, ROUND)
    again.federation.ask("exchange", adapter(0.5), ROUND)
    assert [action for _, action in again.asked] == ["exchange"] * 2


def test_a_phase_that_fails_leaves_no_record(tmp_path):
    server = Server(tmp_path).begin()

    def stop() -> tuple[State, dict[str, float]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.federation.once("co-tune", STATE, stop)
    assert records(tmp_path) == []


def test_without_a_folder_everything_is_done_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.begin(1, STATE)
    step = exchange("ask", "choose", None, CLIENTS)
    assert [journal.once(step, lambda n=n: Kept(facts={"n": n})).facts["n"] for n in (1, 2)] == [1, 2]
    journal.end()
    assert list(tmp_path.iterdir()) == []
