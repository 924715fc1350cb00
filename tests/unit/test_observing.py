"""When a run's audits observe, what they are shown of what crossed, and what follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.audit_settings import GatesConfig
from cotune.observing import Observing, Overheard
from cotune.protocols import State
from cotune.records import Message


class Counting:
    """An audit that says which subjects it has seen."""

    def __init__(self):
        self.seen = []

    def observe(self, subject):
        self.seen.append(subject)
        value = {"value": 0.3 * len(self.seen), "low": None, "high": None, "n": 1}
        return {"summary": {"likeness.mean": value}, "warnings": []}


def observing(config=None, **every):
    audits = {name: (Counting(), number) for name, number in (every or {"likeness": 1}).items()}
    return Observing(audits, lambda *given_: given_, config)


@given(st.integers(1, 12), st.integers(1, 15))
def test_an_audit_observes_before_the_first_round_every_so_many_and_after_the_last(rounds, every):
    watch = observing(one=every, two=rounds + 1)
    seen = {index for index in range(rounds + 1) if "one" in watch.due(index, rounds)}
    assert seen == {0, rounds} | {index for index in range(1, rounds + 1) if index % every == 0}
    assert [index for index in range(rounds + 1) if "two" in watch.due(index, rounds)] == [0, rounds]


def test_only_what_is_due_is_asked():
    watch = observing(often=1, seldom=3)
    found = [list(watch.observe(State(), index, 5).get("audits", {})) for index in range(6)]
    assert found == [
        ["often", "seldom"],
        ["often"],
        ["often"],
        ["often", "seldom"],
        ["often"],
        ["often", "seldom"],
    ]
    assert len(watch.audits["seldom"][0].seen) == 3
    assert observing(seldom=3).observe(State(), 1, 5) == {}


def test_an_audit_sees_the_state_after_the_round_and_the_one_its_clients_were_asked_with():
    watch = observing()
    before, after = State(distil=0.5), State(distil=0.25)
    watch.observe(before, 0, 2)
    watch.begin(before)
    watch.observe(after, 1, 2)
    [first, second] = watch.audits["likeness"][0].seen
    assert first[:2] == (before, None)
    assert second[:2] == (after, before)


def hear(watch, *texts):
    watch.overheard.hear(Message("c", 1, "x", facts={"paths": list(texts)}))


def test_what_crossed_is_shown_to_the_next_observation_and_to_no_other():
    watch = observing(canary=2, often=1)
    hear(watch, "a")
    watch.observe(State(), 0, 4)
    hear(watch, "b")
    watch.observe(State(), 1, 4)  # another audit is due, which does not read it
    hear(watch, "c")
    watch.observe(State(), 2, 4)
    watch.observe(State(), 4, 4)
    assert [heard.texts for _, _, heard in watch.audits["canary"][0].seen] == [["a"], ["b", "c"], []]


@pytest.mark.parametrize(
    ("facts", "texts"),
    [
        ({}, []),
        ({"paths": ["x", "", "y"]}, ["x", "", "y"]),
        ({"a": {"k": [["z"], {"l": "w"}]}, "n": 3, "none": None, "yes": True}, ["k", "z", "l", "w"]),
        ({"metrics": {"task": "x"}, "adapter": {"base": "y"}}, []),
        ({"why": "z", "metrics": {"task": "x"}}, ["z"]),
    ],
)
def test_every_text_of_a_reply_is_overheard_but_numbers_names_are_not(facts, texts):
    heard = Overheard()
    heard.hear(Message("c", 1, "x", facts=facts))
    assert heard.texts == texts


def test_centres_are_overheard_and_empty_ones_are_none():
    heard = Overheard()
    for rows in (2, 0, 3):
        arrays = {"centres": np.ones((rows, 4)), "other": np.ones((9, 4))}
        heard.hear(Message("c", 1, "propose", arrays, {"model": "m"}))
    heard.hear(Message("c", 1, "propose", {"centres": np.ones(())}))  # as a broken client may send
    assert [(model, len(centres)) for model, centres in heard.take().centres] == [("m", 2), ("m", 3)]
    assert heard.take() == Overheard([], [])


def lines(watch, state, rounds):
    """The records of some rounds, and the state after each."""
    records = []
    for index in range(rounds + 1):
        metrics = {"slm": {"task": {"accuracy": 0.5}}}
        records.append({"round": index, "metrics": metrics, **watch.observe(state, index, rounds)})
        state, found = watch.follow(records, state)
        yield state.distil, [one.gate for one in found]


def test_gates_follow_from_the_rounds_so_far():
    found = list(lines(observing(GatesConfig(similarity=0.5)), State(), 4))
    assert found == [
        (1.0, []),
        (1.0, []),
        (0.5, ["similarity"]),
        (0.25, ["similarity"]),
        (0.125, ["similarity"]),
    ]


def test_without_gates_nothing_follows():
    assert list(lines(observing(), State(distil=0.75), 3)) == [(0.75, [])] * 4
