"""Rounds of choosing: who is asked, who is asked again, what stays in use, and what a run remembers of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cotune import plugins, savings
from cotune.aggregators.mean import Mean
from cotune.errors import RunError
from cotune.federation import Federation
from cotune.host import Host
from cotune.protocols import SelectorParts, State
from cotune.records import Example, Failure, Message, Round
from cotune.selection import Selection, select
from cotune.transports.inprocess import InProcess

NAMES = ("ann", "bob", "cid")
EACH = 12


class Reader:
    """Features by the text."""

    fingerprint = "one model"

    def mount(self, adapter: Any) -> None:
        pass

    def features(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Any:
        return np.array([np.random.default_rng(list(text.encode())).standard_normal(4) for text in texts])


class Lossy:
    """Loses replies of a client to an action in a round; remembers who was asked for what."""

    def __init__(self, inner: InProcess, lost: Sequence[tuple[int, str, str]]) -> None:
        self.inner, self.lost = inner, lost
        self.asked: list[tuple[int, str, str]] = []

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def send(self, messages: Sequence[Message]) -> Iterator[tuple[Message | Failure, int, int]]:
        for outcome, down, up in self.inner.send(messages):
            assert isinstance(outcome, Message)
            key = (outcome.round, outcome.action.removeprefix("select/"), outcome.client)
            self.asked.append(key)
            lost = Failure(outcome.client, outcome.round, "late", "by plan")
            yield (lost if key in self.lost else outcome), down, up

    def who(self, round: int, action: str) -> list[str]:
        return [client for index, what, client in self.asked if (index, what) == (round, action)]


class Rounds:
    """Chooses round by round; what is in use is read back from the lines of rounds.jsonl if `resumed`."""

    def __init__(self, folder: Any, *selectors: Any, lost: Any = (), minimum: int = 1) -> None:
        parts = SelectorParts(lambda _: Reader(), 9)
        self.selectors = [plugins.load("selector", name, options, parts=parts) for name, options in selectors]
        examples = {
            name: [Example(id=f"{name}{i}", prompt=f"{name}{i}", completion="a") for i in range(EACH)]
            for name in NAMES
        }
        dataset: Any = SimpleNamespace(clients=NAMES, train=examples.get)
        self.host = Host(dataset, (None, self.selectors, None), lambda *_: {}, folder, (7, 9))
        self.wire = Lossy(InProcess(self.host, 2), lost)
        self.federation = Federation(self.wire, Mean(), lambda _: None, minimum)
        self.lines: list[dict[str, Any]] = []

    def play(self, count: int = 9, resumed: bool = False) -> list[Selection]:
        found = [Selection()]
        for index in range(1, count + 1):
            before = savings.in_use(self.lines) if resumed else found[-1]
            now = Round(index, 9, 7, NAMES)
            found.append(select(self.selectors, before, State(), now, self.federation))
            line = savings.round_record(found[-1], NAMES, dict.fromkeys(NAMES, EACH), (1.0, 1.0))
            self.lines.append(json.loads(json.dumps({"round": index, "selection": line})))
        return found[1:]

    def rows(self, client: str, round: int, number: int | None = None) -> list[int]:
        last = len(self.selectors) if number is None else number
        return self.host.choices.pool(client, last, round, EACH).tolist()


def half(every: int = 0) -> tuple[str, dict[str, Any]]:
    return "random_subset", {"keep": 0.5, "every": every}


def density(every: int = 0) -> tuple[str, dict[str, Any]]:
    return "density", {"keep": 0.5, "every": every}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_client_that_failed_in_the_only_choice_is_asked_until_it_has_chosen(tmp_path, resumed):
    rounds = Rounds(tmp_path, half(), lost=[(1, "0/pick", "bob"), (2, "0/pick", "bob")])
    first, second, third, fourth = rounds.play(4, resumed)
    assert first.counts == second.counts == {"ann": 6, "cid": 6}
    assert third.counts == fourth.counts == {"ann": 6, "bob": 6, "cid": 6}
    assert [rounds.wire.who(index, "0/pick") for index in (1, 2, 3, 4)] == [list(NAMES), ["bob"], ["bob"], []]
    assert [one.is_new for one in (first, second, third, fourth)] == [True, False, False, False]
    assert third.answers == {"bob": 6}
    assert third.playing(NAMES) == NAMES
    assert rounds.lines[1]["selection"]["waiting"] == [["bob"]]
    assert [sum(line["selection"]["sat_out"] == ["bob"] for line in rounds.lines)] == [2]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_client_that_chose_nothing_is_not_asked_again(tmp_path, resumed):
    nothing = {"score": "random", "policies": [{"name": "floor", "at": 2.0}]}
    rounds = Rounds(tmp_path, ("scored", nothing))
    assert [one.counts for one in rounds.play(2, resumed)] == [dict.fromkeys(NAMES, 0)] * 2
    assert rounds.wire.who(2, "0/pick") == []


@pytest.mark.parametrize("resumed", [False, True])
def test_too_few_for_a_sum_are_asked_again_in_the_next_round(tmp_path, resumed):
    rounds = Rounds(tmp_path, density(), lost=[(1, "0/share", "bob")], minimum=3)
    first, second, third = rounds.play(3, resumed)
    assert first.counts == {}
    assert first.waiting == [list(NAMES)]
    assert second.counts == third.counts == dict.fromkeys(NAMES, 6)
    assert [rounds.wire.who(index, "0/pick") for index in (1, 2, 3)] == [[], list(NAMES), []]


@pytest.mark.parametrize("resumed", [False, True])
def test_what_was_chosen_stays_in_use_where_a_later_choice_fails(tmp_path, resumed):
    rounds = Rounds(tmp_path, density(2), lost=[(3, "0/share", "bob"), (5, "0/pick", "bob")], minimum=3)
    found = rounds.play(6, resumed)
    assert [one.counts for one in found] == [dict.fromkeys(NAMES, 6)] * 6
    assert rounds.rows("ann", 3) == rounds.rows("ann", 1) != rounds.rows("ann", 4)
    # the sum of round 3 is tried again in round 4; bob, who alone is late in round 5, has something in use
    assert [len(rounds.wire.who(index, "0/pick")) for index in range(1, 7)] == [3, 0, 0, 3, 3, 0]
    assert found[5].waiting == [[]]


def test_a_late_client_is_never_summed_alone(tmp_path):
    rounds = Rounds(tmp_path, density(), lost=[(1, "0/pick", "bob")], minimum=2)
    _, second = rounds.play(2)
    assert rounds.wire.who(2, "0/share") == list(NAMES)
    assert rounds.wire.who(2, "0/pick") == ["bob"]
    assert second.counts == dict.fromkeys(NAMES, 6)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_in_a_chain_a_late_client_goes_on_where_it_failed(tmp_path, number, resumed):
    rounds = Rounds(tmp_path, half(), half(), lost=[(1, f"{number}/pick", "bob")])
    first, second, third = rounds.play(3, resumed)
    assert first.counts == {"ann": 3, "cid": 3}
    assert second.counts == third.counts == {"ann": 3, "bob": 3, "cid": 3}
    assert [rounds.wire.who(2, f"{number}/pick") for number in (0, 1)] == [["bob"] * (number == 0), ["bob"]]
    assert rounds.wire.who(3, "0/pick") + rounds.wire.who(3, "1/pick") == []
    assert set(rounds.rows("bob", 2)) <= set(rounds.rows("bob", 2, 1))


def test_behind_one_that_has_not_answered_nobody_is_asked(tmp_path):
    rounds = Rounds(tmp_path, half(), half(1), lost=[(1, "0/pick", "bob"), (2, "0/pick", "bob")])
    found = rounds.play(3)
    assert [rounds.wire.who(index, "1/pick") for index in (1, 2, 3)] == [["ann", "cid"]] * 2 + [list(NAMES)]
    assert [one.playing(NAMES) for one in found] == [("ann", "cid")] * 2 + [NAMES]


STAGES = ("scored", {"score": "random", "policies": [{"name": "staged", "stages": 3}]})


def test_stages_behind_a_choice_in_each_round_do_not_eat_their_pool(tmp_path):
    everything = ("random_subset", {"keep": 1.0, "every": 1})
    rounds = Rounds(tmp_path, everything, STAGES)
    found = rounds.play()
    assert [one.counts for one in found] == [dict.fromkeys(NAMES, 4)] * 9
    stages = [set(rounds.rows("ann", index)) for index in range(1, 10)]
    assert len(set(map(frozenset, stages[:3]))) == 3  # scored anew each round
    assert stages[2] | stages[5] | stages[8] == set(range(EACH))  # what each stage had last


def test_stages_stay_within_the_pool_of_the_round(tmp_path):
    rounds = Rounds(tmp_path, half(1), STAGES)
    for index, one in enumerate(rounds.play(), start=1):
        assert min(one.counts.values()) > 0
        assert set(rounds.rows("ann", index)) <= set(rounds.rows("ann", index, 1))
    early = set(rounds.rows("ann", 3)) | set(rounds.rows("ann", 6))
    assert not early & set(rounds.rows("ann", 9))


def test_a_late_client_begins_its_stage_anew_even_if_it_had_chosen_unheard(tmp_path):
    rounds = Rounds(tmp_path, STAGES, lost=[(1, "0/pick", "bob")])
    found = rounds.play()
    assert [one.counts.get("bob", 0) for one in found] == [0, *[4] * 8]
    assert len({*rounds.rows("bob", 3), *rounds.rows("bob", 6), *rounds.rows("bob", 9)}) == EACH


def test_clients_that_read_with_different_models_are_refused(tmp_path, monkeypatch):
    answers = iter(["one model", "one model", "another"])
    monkeypatch.setattr(Reader, "fingerprint", property(lambda _: next(answers)))
    rounds = Rounds(tmp_path, density())
    rounds.wire.inner.chunk = 1  # each client as a process of its own
    with pytest.raises(RunError, match=r"of 3 clients at least 1 read with another model.*same slm.model"):
        rounds.play(1)
