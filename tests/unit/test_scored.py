"""The selector out of parts: chains of policies, what is sent where, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import plugins, scored
from cotune.errors import DataError, RunError
from cotune.protocols import Client, Gathered, Given, SelectorParts, Stage, State
from cotune.records import Adapter, Example, Message, Round
from cotune.scored import Recipe, Scored
from subjects import FakeLogProbs

SLM = Adapter({"w.lora_B.weight": np.ones((2, 1), np.float32)}, "abc", 1, 1.0)


@dataclass
class FakeReader:
    """The log-probability of an answer is minus its id, plus what is mounted; alone it is -10."""

    name: str
    mounted: list[Any] = field(default_factory=list)
    fingerprint: str = "fake"

    def mount(self, adapter: Any) -> None:
        self.mounted.append(adapter)

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> FakeLogProbs:
        sums = [-float(prompt[1:]) if prompt else -10.0 for prompt, _ in pairs]
        return FakeLogProbs(np.array(sums), np.ones(len(pairs), np.int64))

    def features(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Any:
        return np.array([np.random.default_rng(list(text.encode())).standard_normal(4) for text in texts])


class Models:
    """Remembers which models were asked for."""

    def __init__(self) -> None:
        self.readers: dict[str, FakeReader] = {}

    def __call__(self, name: str) -> FakeReader:
        return self.readers.setdefault(name, FakeReader(name))


def made(models: Models | None = None, **recipe: Any) -> Scored:
    return Scored(Recipe(**recipe), SelectorParts(models or Models(), 4))


def client(name: str, numbers: Sequence[int], round: int = 1, completion: str = "a") -> Client:
    examples = [Example(id=f"{name}{n}", prompt=f"q{n}", completion=completion) for n in numbers]
    return Client(name, examples, Round(round, 4, 3, (name,)))


class Wire:
    """Both verbs, straight to the client half; every client counts 1 in the mean."""

    def __init__(self, selector: Scored, clients: Sequence[Client], changes: Any = None) -> None:
        self.selector, self.people, self.changes = selector, clients, changes or {}
        self.sent: list[tuple[str, Any]] = []
        self.refused: list[tuple[str, str]] = []
        self.chosen: dict[str, list[int]] = {}

    def gather(self, action: str, adapter: Any, round: Round) -> Gathered:
        self.sent.append((action, adapter))
        if not self.people:
            return Gathered(None, {}, 0)
        given = [Given(adapter, {})] * len(self.people)
        replies = self.selector.client_step(action, given, self.people)
        assert all(reply.weight == 1 and not reply.facts and not reply.arrays for reply in replies)
        means = {n: np.mean([r.adapter.arrays[n] for r in replies], axis=0) for n in adapter.arrays}
        return Gathered(adapter.with_arrays(means), {}, len(replies))

    def ask(self, action: str, adapter: Any, round: Round, told: Any = None) -> list[Message]:
        self.sent.append((action, adapter))
        replies = self.selector.client_step(action, [Given(adapter, {})] * len(self.people), self.people)
        assert all(reply.adapter is None and not reply.arrays for reply in replies)
        for person, reply in zip(self.people, replies, strict=True):
            self.chosen[person.id] = list(reply.chosen)
        found = zip(self.people, replies, strict=True)
        return [Message(p.id, 1, action, facts=self.changes.get(p.id, r.facts)) for p, r in found]

    def refuse(self, reply: Message, reason: str) -> None:
        self.refused.append((reply.client, reason))

    def progress(self, *_: Any, **__: Any) -> None:
        pass


def select(selector: Scored, *people: Client, slm: Any = SLM, changes: Any = None) -> tuple[Any, Wire]:
    wire = Wire(selector, people, changes)
    return selector.server_select(State(slm=slm), Round(1, 4, 3, tuple(p.id for p in people)), wire), wire


FLOOR = ("floor", {"at": 0})
TOP = ("top_k", {"keep": 0.5})


def test_policies_follow_one_another_on_what_is_left():
    selector = made(score="ira", policies=(FLOOR, TOP))
    counts, wire = select(selector, client("a", [12, 3, 9, 11, 0, 2, 10]), client("b", [20, 30]))
    assert wire.chosen == {"a": [4, 5, 1], "b": []}  # IRA is 10 - n; 5 of 7 pass, 3 of these are kept
    assert counts == {"a": 3, "b": 0}


@given(
    numbers=st.lists(st.integers(0, 99), max_size=30),
    used=st.sets(st.integers(0, 29)),
    low=st.integers(0, 100),
)
def test_used_rows_are_those_of_the_client_also_behind_another_policy(numbers, used, low):
    scores = np.array(numbers, np.float64)
    policies = [plugins.load("policy", "floor", {"at": low}), plugins.load("policy", "staged", {"stages": 2})]
    rng = np.random.default_rng(0)
    rows = scored.chain(policies, scores, Stage(2, 2, rng, {1: np.array(sorted(used), np.int64)})).tolist()
    assert set(rows) == {row for row, score in enumerate(numbers) if score >= low and row not in used}


def test_the_adapter_goes_to_clients_whose_own_model_is_read():
    models = Models()
    _, wire = select(made(models, score="ira"), client("a", [1, 2]))
    assert wire.sent == [("pick", SLM)]
    assert models.readers["slm"].mounted == [SLM]


@pytest.mark.parametrize(
    "recipe", [{"score": "ira", "model": "frozen"}, {"score": "random"}, {"score": "zip"}]
)
def test_nothing_is_sent_for_a_frozen_model_or_none(recipe):
    models = Models()
    counts, wire = select(made(models, **recipe), client("a", [1, 2]))
    assert wire.sent == [("pick", None)]
    assert counts == {"a": 2}
    assert set(models.readers) == ({"frozen"} if "model" in recipe else set())
    assert all(reader.mounted == [None] for reader in models.readers.values())


def test_a_score_with_sums_reaches_the_clients_as_their_exact_sum_under_the_bare_model():
    models = Models()
    options = {"tables": 3, "buckets": 16}
    selector = made(models, score="density", options=options, policies=(TOP,))
    people = [client("a", range(7)), client("b", range(7, 9)), client("c", [])]
    counts, wire = select(selector, *people)
    assert counts == {"a": 4, "b": 1, "c": 0}
    (share, template), (pick, total) = wire.sent
    assert (share, pick) == ("share", "pick")
    assert not template.arrays["counts"].any()
    assert total.base == template.base == "score:density"
    assert set(total.arrays) == {"counts"}
    whole = plugins.load("score", "density", options).share(
        [scored.Pool([e for p in people for e in p.examples], np.random.default_rng(0))], FakeReader("x")
    )
    assert np.array_equal(total.arrays["counts"], whole[0]["counts"])
    assert set(models.readers["slm"].mounted) == {None}


@given(parts=st.lists(st.lists(st.integers(0, 10**9), min_size=5, max_size=5), min_size=1, max_size=300))
def test_sums_of_whole_numbers_survive_their_mean(parts):
    found = scored.summed({"x": np.mean(np.array(parts, np.float64), axis=0)}, len(parts))
    assert np.array_equal(found["x"], np.array(parts).sum(axis=0))


def digits(*fingerprints: str) -> Any:
    return sum(scored.fingerprint_digits(fingerprint) for fingerprint in fingerprints)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=9))
def test_models_are_accepted_if_and_only_if_all_are_the_same(fingerprints):
    if len(set(fingerprints)) == 1:
        scored.refuse_other_models(digits(*fingerprints), Recipe("density"))
    else:
        with pytest.raises(RunError, match=f"of {len(fingerprints)} clients at least"):
            scored.refuse_other_models(digits(*fingerprints), Recipe("density"))


def test_a_refused_sum_says_how_many_differ_and_what_helps():
    with pytest.raises(RunError, match=r"'density': of 5 clients at least 2 .*Give every client the same"):
        scored.refuse_other_models(digits("a", "a", "b", "a", "b"), Recipe("density"))


def test_of_a_fingerprint_only_whole_numbers_that_add_up_are_sent():
    found = digits("mine", "mine", "mine")
    assert found.shape == (8, 16)
    assert np.array_equal(np.sort(found, axis=1), [[0] * 15 + [3]] * 8)


def test_without_enough_replies_nobody_picks():
    counts, wire = select(made(score="density"))
    assert counts == {}
    assert [action for action, _ in wire.sent] == ["share"]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"selected": 3, "total": 2},
        {"selected": -1, "total": 2},
        {"selected": True, "total": 2},
        {"selected": 1.0, "total": 2},
        {"selected": "1", "total": 2},
    ],
)
def test_counts_that_cannot_be_are_refused(facts):
    counts, wire = select(made(score="random"), client("a", [1]), client("b", [1, 2]), changes={"a": facts})
    assert counts == {"b": 2}
    assert [name for name, _ in wire.refused] == ["a"]
    assert "0 <= selected <= total" in wire.refused[0][1]


def test_rows_without_an_answer_are_named_with_the_scores_that_still_work():
    people = [client("a", range(4), completion=" \n"), client("b", [1], completion="a")]
    with pytest.raises(DataError) as caught:
        select(made(score="ifd"), *people)
    assert "score 'ifd': 4 examples have no answer ('a0', 'a1', 'a2', ...)" in str(caught.value)
    assert "needs none: density, random, zip." in str(caught.value)
    for name in ("density", "random", "zip"):
        assert select(made(score=name), *people)[0] == {"a": 4, "b": 1}


def test_a_score_that_reads_without_saying_so_is_told():
    with pytest.raises(RunError, match="asked for log_probs, which its NEEDS does not name"):
        scored.NoReader("mine").log_probs([])
    with pytest.raises(RunError, match="it knows share and pick"):
        made(score="random").client_step("propose", [], [])


def due(selector: Scored, rounds: int = 6) -> list[int]:
    return [i for i in range(1, rounds + 1) if selector.is_due(Round(i, rounds, 0, ()))]


def test_when_it_is_due_and_who_is_asked():
    once, always, third = (made(score="random", every=every) for every in (0, 1, 3))
    assert [due(one) for one in (once, always, third)] == [[1], [1, 2, 3, 4, 5, 6], [1, 4]]
    assert [one.asks_all for one in (once, always, third)] == [True, False, True]
    stages = made(score="random", policies=(("staged", {}),), every=1)
    phases = made(score="random", policies=(FLOOR, ("two_phase", {})), every=0)
    assert [due(one) for one in (stages, phases)] == [[1, 3, 5], [1, 4]]
    assert stages.asks_all
    assert phases.asks_all


@given(seed=st.integers(0, 99))
def test_the_same_round_chooses_the_same_and_another_client_something_else(seed):
    selector = made(score="random", policies=(TOP,))
    people = [
        Client(name, client("x", range(40)).examples, Round(1, 4, seed, ("a", "b"))) for name in ("a", "b")
    ]
    first, again = (select(selector, *people)[1].chosen for _ in range(2))
    assert first == again
    assert first["a"] != first["b"]
    assert select(selector, people[1])[1].chosen["b"] == first["b"]
