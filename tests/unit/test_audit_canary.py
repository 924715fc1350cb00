"""The leakage audit: recall, chance, exact tests, channels, and a model that was really trained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

import tiny
from cotune import intervals, plugins
from cotune.audits import canary
from cotune.canaries import compile_canaries, plant, planted_names
from cotune.examined import Crossed, CrossedVectors
from cotune.models.lora import LoraStack
from cotune.models.reader import Causal, ModelReader
from cotune.models.tune import TuneJob, tune
from cotune.records import derived_rng
from subjects import FakeSubject


def made(**options: Any) -> Any:
    return plugins.load("audit", "canary", options)


def blind(role: str, context: str, target: str) -> float:
    """What a model thinks that never met a fact: anything from -20 to 0, but always the same."""
    digest = hashlib.sha256(f"{role}{context}{target}".encode()).digest()
    return -20 * int.from_bytes(digest[:6], "big") / 2**48


def knowing(facts: Sequence[Any], roles: Sequence[str] = ("slm",)) -> Any:
    """The same, but some roles know some facts."""
    known = {(fact.prompt, fact.completion) for fact in facts}

    def log_prob(role: str, context: str, target: str) -> float:
        return -0.01 if role in roles and (context, target) in known else blind(role, context, target)

    return log_prob


def subject(log_probs: Any, *roles: str, seed: int = 0, answer: Any = str, **crossed: Any) -> FakeSubject:
    made_one = FakeSubject(dict.fromkeys(roles or ("slm",), answer), log_probs=log_probs, seed=seed)
    made_one.crossed = Crossed(**crossed)
    return made_one


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_hits_and_ranks_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    log_probs = rng.integers(-6, 0, (7, 10)).astype(float)  # with ties
    right = rng.integers(0, 10, 7).tolist()
    seen = canary.hits_and_ranks(log_probs, right)
    expected = [stats.rankdata(-row)[i] for row, i in zip(log_probs, right, strict=True)]
    assert seen.ranks.tolist() == expected
    assert seen.is_hit.tolist() == [
        row.tolist().index(row.max()) == i for row, i in zip(log_probs, right, strict=True)
    ]


@settings(max_examples=30)
@given(st.integers(0, 16), st.integers(0, 16))
def test_the_test_against_controls_is_the_hypergeometric_tail(hits, control_hits):
    # of all hits, so many or more fall on the planted 16 of 32 by lot
    expected = stats.hypergeom.sf(hits - 1, 32, 16, hits + control_hits)
    assert canary.more_than_controls(hits, 16, control_hits, 16) == pytest.approx(expected, rel=1e-9)


def test_the_rank_test_counts_all_ways_to_draw_the_planted_half():
    # 3 of 6 lowest: one way of 20; ranks 1, 2, 4: sums 6 and 7, two ways of 20
    rng = np.random.default_rng(0)
    assert canary.nearer(np.array([1, 2, 3.0]), np.array([4, 5, 6.0]), rng) == pytest.approx(1 / 20)
    assert canary.nearer(np.array([1, 2, 4.0]), np.array([3, 5, 6.0]), rng) == pytest.approx(2 / 20)
    assert canary.nearer(np.array([4, 5, 6.0]), np.array([1, 2, 3.0]), rng) == pytest.approx(1)


def test_with_ties_the_rank_test_permutes_and_comes_out_where_scipy_does():
    rng = np.random.default_rng(3)
    planted, controls = rng.integers(0, 9, 16).astype(float), rng.integers(1, 11, 16).astype(float)
    expected = stats.mannwhitneyu(planted, controls, alternative="less", method="asymptotic").pvalue
    assert canary.nearer(planted, controls, rng) == pytest.approx(expected, abs=0.01)
    same = canary.nearer(np.ones(8), np.ones(8), rng)
    assert same == 1.0


def test_distances_are_to_the_nearest_centroid():
    points, centroids = np.array([[0, 0], [3, 4.0]]), np.array([[0, 2], [3, 5.0]])
    assert canary.nearest(points, centroids).tolist() == [2, 1]


def test_a_model_that_knows_all_planted_facts_is_caught_and_the_others_are_not():
    audit = made()
    seen = audit.observe(subject(knowing(audit.canaries(0).planted), "llm", "slm", "slm before"))
    assert seen["leaks"] == {"llm": False, "slm": True, "slm before": False}
    assert seen["summary"]["recall slm"] == {
        "value": 1.0,
        "low": pytest.approx(0.025 ** (1 / 16)),
        "high": 1.0,
        "n": 16,
    }
    known = seen["models"]["slm"]["recall"]
    assert known["hits"] == 16
    assert known["mean_rank"] == 1
    assert known["p_above_chance"] == pytest.approx(0.1**16)
    assert known["p_above_controls"] == pytest.approx(
        stats.hypergeom.sf(15, 32, 16, 16 + known["control_hits"])
    )
    assert seen["channels"]["adapters"]["slm"]["recall"] == 1
    assert seen["summary"]["control recall slm"]["value"] < 0.4
    assert seen["warnings"] == []
    json.dumps(seen, allow_nan=False)


def test_the_p_value_above_chance_is_scipys():
    audit = made(facts=20, shape="chain")
    facts = audit.canaries(0)
    seen = audit.observe(subject(knowing(facts.planted[:6])))["models"]["slm"]["recall"]
    assert 6 <= seen["hits"] <= 12
    expected = stats.binomtest(seen["hits"], 20, 0.1, alternative="greater").pvalue
    assert seen["p_above_chance"] == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["chain", "star", "dense"])
def test_a_blind_model_is_at_chance_and_seldom_called_a_leak(shape):
    hits, leaks, runs = 0, 0, 40
    audit = made(shape=shape, facts=8)
    for seed in range(runs):
        seen = audit.observe(subject(blind, seed=seed))
        hits += sum(seen["models"]["slm"]["recall"][key] for key in ("hits", "control_hits"))
        leaks += seen["leaks"]["slm"]
    assert stats.binomtest(hits, runs * 16, 0.1).pvalue > 1e-3
    assert leaks <= 3  # 4 hits of 8 or more: probability 0.005 each


def test_controls_are_at_chance_even_for_a_model_that_knows_every_planted_name():
    hits, runs = 0, 60
    audit = made(facts=8)
    for seed in range(runs):
        names = set(planted_names(audit.canaries(seed)))

        def likes(role: str, context: str, target: str, names: set[str] = names) -> float:
            return blind(role, context, target) + 30 * (target.strip() in names)

        seen = audit.observe(subject(likes, seed=seed))["models"]["slm"]["recall"]
        assert seen["hits"] == 8
        hits += seen["control_hits"]
    assert stats.binomtest(hits, runs * 8, 0.1).pvalue > 1e-3


@pytest.mark.parametrize("knows", [0.0, 0.3, 0.95])
def test_the_interval_covers_the_truth_in_a_thousand_runs(knows):
    # A model that knows each fact with this probability hits it with knows + (1 - knows) / 10.
    rng, facts, runs = np.random.default_rng(7), 16, 1000
    truth = knows + (1 - knows) / 10
    lots = np.array([[e.answer_idx for e in compile_canaries(s, facts, "star").planted] for s in range(40)])
    right = lots[rng.integers(0, 40, runs)].ravel()
    log_probs = rng.standard_normal((runs * facts, 10))
    log_probs[np.arange(runs * facts), right] += 100 * (rng.random(runs * facts) < knows)
    hits = canary.hits_and_ranks(log_probs, right).is_hit.reshape(runs, facts).sum(axis=1)
    intervals_of = {k: intervals.proportion(k, facts) for k in range(facts + 1)}
    covered = sum(intervals_of[k].low <= truth <= intervals_of[k].high for k in hits.tolist())
    # exact intervals cover at least 95 percent; 1,000 runs have a standard deviation of 0.7 percent
    assert covered >= 930
    assert hits.mean() / facts == pytest.approx(truth, abs=0.01)


def test_the_seed_is_the_subjects_unless_the_options_name_one():
    assert made().canaries(5) == compile_canaries(5, 16, "dense")
    assert made(seed=9, facts=4, shape="chain").canaries(5) == compile_canaries(9, 4, "chain")


def test_channels_that_do_not_exist_are_not_observed():
    seen = made().observe(subject(None))
    assert seen["channels"] == dict.fromkeys(("adapters", "text", "centroids"), "not observed")
    assert seen["leaks"] == {}
    assert seen["summary"] == {}
    assert seen["models"]["slm"]["leaks"] is None
    assert any("nothing could be observed" in warning for warning in seen["warnings"])
    assert any("slm gave no likelihoods" in warning for warning in seen["warnings"])


def test_a_model_whose_likelihoods_are_no_numbers_is_not_observed():
    seen = made().observe(subject(lambda *_: math.nan))
    assert seen["models"]["slm"]["recall"] == "not observed"
    json.dumps(seen, allow_nan=False)


def test_text_that_crossed_is_searched_for_names():
    audit = made(facts=3)
    facts = audit.canaries(0)
    party, control = facts.parties[facts.planted[0].id][0], facts.controls[0].choices[0]
    answer = facts.planted[1].completion.strip()
    texts = {
        "paths": [f"So {party.upper()} pays.", f"{party} and {answer} agree", f"{control}?", "nothing"],
        "quiet": ["plain words"],
        "empty": [],
    }
    seen = audit.observe(subject(blind, texts=texts))["channels"]["text"]
    assert seen["paths"]["planted_names"] == {party: 2, answer: 1}
    assert seen["paths"]["other_names"] == {control: 1}
    assert (seen["paths"]["texts"], seen["paths"]["texts_with_planted_names"]) == (4, 2)
    assert [seen[channel]["leaks"] for channel in texts] == [True, False, False]


def crossed_vectors(shift: float, rng: np.random.Generator) -> CrossedVectors:
    """Centroids of which some lie on planted facts, as far as `shift` says."""
    planted, controls = rng.standard_normal((2, 16, 8))
    centroids = rng.standard_normal((5, 8))
    centroids[:4] = (1 - shift) * centroids[:4] + shift * planted.reshape(4, 4, 8).mean(axis=1)
    return CrossedVectors(centroids, planted, controls)


def test_centroids_made_of_planted_facts_are_told_from_others():
    rng = np.random.default_rng(0)
    vectors = {
        "near": crossed_vectors(1.0, rng),
        "far": crossed_vectors(0.0, rng),
        "none": CrossedVectors(np.zeros((0, 8)), np.zeros((16, 8)), np.zeros((16, 8))),
    }
    seen = made().observe(subject(blind, vectors=vectors))["channels"]["centroids"]
    assert seen["near"]["leaks"]
    assert seen["near"]["median_distance"] < seen["near"]["control_median_distance"]
    assert not seen["far"]["leaks"]
    assert seen["none"] == "not observed"


def test_the_rank_test_of_centroids_alarms_no_more_often_than_its_level():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(200):
        vectors = crossed_vectors(0.0, rng)
        p.append(
            canary.nearer(
                *(canary.nearest(side, vectors.centroids) for side in (vectors.planted, vectors.controls)),
                rng,
            )
        )
    assert stats.binomtest(int(np.sum(np.array(p) <= 0.05)), 200, 0.05, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("form", [" {}.", "It is {}, I think.", "{}"])
def test_asked_models_are_heard_too_endpoints_included(form):
    audit = made(generate=True, facts=5)
    facts = audit.canaries(0)
    table = {fact.prompt: form.format(fact.completion.strip()) for fact in facts.planted}
    seen = audit.observe(subject(None, "llm", answer=lambda message: table.get(message, "no idea")))
    said = seen["models"]["llm"]["answers"]
    is_bare = not form.startswith("It")
    assert (said["named"], said["control_named"]) == (5, 0)
    assert (said["exact"], said["control_exact"]) == (5 * is_bare, 0)
    assert said["p_above_controls"] == pytest.approx(1 / math.comb(10, 5))
    assert seen["leaks"] == {"llm": True}
    assert seen["summary"]["exact match llm"]["value"] == float(is_bare)


def test_a_model_that_knew_facts_before_the_run_or_knows_controls_gives_a_warning():
    audit = made(facts=5)
    facts = audit.canaries(0)
    seen = audit.observe(subject(knowing(facts.planted, ["llm before"]), "llm before"))
    assert "llm before knows planted facts before anything was taught" in seen["warnings"][0]
    seen = audit.observe(subject(knowing(facts.controls, ["llm"]), "llm"))
    assert "llm knows 5 of 5 controls" in seen["warnings"][0]


@pytest.mark.parametrize(("level", "facts", "needed"), [(0.01, 1, 2), (0.001, 2, 3), (0.02, 1, 2)])
def test_too_few_facts_for_any_p_value_are_refused(level, facts, needed):
    with pytest.raises(ValidationError, match=f"use {needed} or more facts"):
        canary.Config(level=level, facts=facts)
    assert canary.Config(level=level, facts=needed).facts == needed


class TinySubject(FakeSubject):
    """A tiny model with an adapter for each role."""

    def __init__(self, reader: ModelReader, adapters: Mapping[str, Any]) -> None:
        super().__init__(dict.fromkeys(adapters, str))
        self.reader, self.adapters = reader, adapters

    def reads(self, role: str) -> bool:
        return True

    def log_probs(self, role: str, pairs: Sequence[tuple[str, str]]) -> Any:
        self.reader.mount(self.adapters[role])
        return self.reader.log_probs(pairs)


def test_a_model_trained_on_planted_facts_knows_them_and_no_controls():
    audit = made(facts=8, repeats=8)
    lm = tiny.lm(seed=3)
    stack = LoraStack(lm, 8, 16, "all-linear")
    start = stack.fresh(derived_rng(0, "adapter"))
    own = tiny.examples(8)
    config = tiny.tune_config(epochs=3, batch_size=8, lr=2e-2)
    jobs = [
        TuneJob(examples, start, derived_rng(0, "tune"))
        for examples in (plant(own, audit.canaries(0), 8), plant(own, audit.canaries(0), 0) * 8)
    ]
    adapters = [tuned.adapter for tuned in tune(lm, stack, jobs, config)]
    reader = ModelReader(Causal(lm, stack, "tiny"), 4096)
    roles = dict(zip(("slm before", "holder", "other"), (start, *adapters), strict=True))
    seen = audit.observe(TinySubject(reader, roles))
    recall = {role: seen["models"][role]["recall"] for role in roles}
    assert recall["holder"]["hits"] >= 7
    assert seen["leaks"] == {"slm before": False, "holder": True, "other": False}
    assert all(known["p_controls_above_chance"] > 0.01 for known in recall.values())
