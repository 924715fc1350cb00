"""Policies: whatever the scores are, rows are valid; and each rule does what its paper says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cotune import plugins
from cotune.policies import staged, two_phase
from cotune.protocols import Stage
from cotune.ranking import count_of

ALL = plugins.names("policy")
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
SCORES = arrays.arrays(np.float64, st.integers(0, 60), elements=NUMBERS)
DISTINCT = st.lists(st.floats(-1e6, 1e6), max_size=50, unique=True).map(
    lambda found: np.array(found, np.float64)
)


def stage(round: int = 1, num_rounds: int = 1, used: Any = (), seed: int = 0) -> Stage:
    """`used` are rows by the round in which they were chosen."""
    used = {index: np.array(rows, np.int64) for index, rows in dict(used).items()}
    return Stage(round, num_rounds, np.random.default_rng(seed), used)


def chosen(name: str, scores: Any, now: Stage | None = None, **options: Any) -> Any:
    return plugins.load("policy", name, options).choose(np.asarray(scores, np.float64), now or stage())


@pytest.mark.parametrize("name", ALL)
@given(scores=SCORES, rounds=st.integers(1, 7), seed=st.integers(0, 9))
def test_rows_are_in_range_without_repeats_and_never_without_a_score(name, scores, rounds, seed):
    before = scores.copy()
    for round in range(1, rounds + 1):
        rows = chosen(name, scores, stage(round, rounds, seed=seed))
        again = chosen(name, scores, stage(round, rounds, seed=seed))
        assert rows.dtype == np.int64
        assert np.array_equal(rows, again)
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(np.flatnonzero(~np.isnan(scores)).tolist())
    assert np.array_equal(before, scores, equal_nan=True)


@pytest.mark.parametrize(
    "name", ["floor", "cut_at_one", "top_k", "band", "staged", "everything", "two_phase"]
)
@given(scores=DISTINCT, seed=st.integers(0, 9))
def test_the_same_rows_are_chosen_in_any_order_of_the_data(name, scores, seed):
    order = np.random.default_rng(seed).permutation(len(scores))
    assert set(order[chosen(name, scores[order])].tolist()) == set(chosen(name, scores).tolist())


@pytest.mark.parametrize("name", ["top_k", "quantile_bins", "inverse_propensity"])
@given(scores=SCORES, keep=st.floats(1e-6, 1))
def test_the_budget_is_kept_and_used_up(name, scores, keep):
    usable = int((~np.isnan(scores)).sum())
    expected = min(usable, max(1, int(keep * len(scores) + 0.5)))
    assert len(chosen(name, scores, keep=keep)) == expected


def test_a_share_is_the_nearest_number_and_at_least_one():
    counts = [
        count_of(keep, total) for keep, total in [(0.015, 15_000), (0.1, 4), (0.5, 3), (1, 7), (0.5, 0)]
    ]
    assert counts == [225, 1, 2, 7, 0]


def test_floor_and_cut_keep_the_order_of_the_rows_and_what_lies_on_the_edge():
    scores = [1.0, -1.0, np.nan, 3.0, 0.0]
    assert chosen("floor", scores).tolist() == [0, 3, 4]
    assert chosen("floor", scores, at=1).tolist() == [0, 3]
    assert chosen("cut_at_one", scores).tolist() == [0, 1, 4]
    assert chosen("everything", scores).tolist() == [0, 1, 3, 4]


def test_top_k_begins_at_its_end_and_breaks_ties_by_row():
    scores = [1.0, 3.0, 3.0, 0.0, np.nan, 0.0]
    assert chosen("top_k", scores, keep=0.5).tolist() == [1, 2, 0]
    assert chosen("top_k", scores, keep=0.5, end="low").tolist() == [3, 5, 0]


@given(scores=DISTINCT.filter(len), low=st.floats(0, 0.9), width=st.floats(0.05, 1))
def test_a_band_leaves_out_both_ends(scores, low, width):
    high = min(1.0, low + width)
    rows = chosen("band", scores, low=low, high=high)
    assert rows.tolist() == sorted(rows)
    below = np.searchsorted(np.sort(scores), scores[rows].min())
    above = np.searchsorted(np.sort(scores), scores[rows].max()) + 1
    assert below == int(low * len(scores))
    assert len(rows) == above - below == max(1, int(high * len(scores)) - below)


def test_a_band_whose_ends_are_crossed_is_refused():
    with pytest.raises(ValueError, match=r"low is 0.8 and high 0.2"):
        plugins.config_class("policy", "band")(low=0.8, high=0.2)


def test_quantile_bins_take_equally_many_from_each_part():
    scores = np.random.default_rng(0).permutation(100).astype(float)
    rows = chosen("quantile_bins", scores, keep=0.42, bins=10)
    per_bin = np.bincount((scores[rows] // 10).astype(int), minlength=10)
    assert per_bin.tolist() == [4] * 8 + [5, 5]
    assert rows.tolist() != chosen("quantile_bins", scores, stage(seed=1), keep=0.42, bins=10).tolist()


def test_inverse_propensity_draws_by_one_over_the_score():
    scores = np.array([1.0, 2.0, 4.0, 4.0])
    policy = plugins.load("policy", "inverse_propensity", {"keep": 0.25})
    first = [policy.choose(scores, stage(seed=seed))[0] for seed in range(4000)]
    assert np.allclose(np.bincount(first) / 4000, [0.5, 0.25, 0.125, 0.125], atol=0.03)


def test_inverse_propensity_prefers_low_scores_below_zero_as_well():
    scores = np.array([-5.0, 0.0, 5.0, 20.0])
    policy = plugins.load("policy", "inverse_propensity", {"keep": 0.25})
    first = [policy.choose(scores, stage(seed=seed))[0] for seed in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert all(counts[:-1] > counts[1:])
    equal = [policy.choose(np.zeros(2), stage(seed=seed))[0] for seed in range(400)]
    assert 0.4 < np.mean(equal) < 0.6


@given(number=st.integers(0, 40), rounds=st.integers(1, 12), stages=st.integers(1, 5), seed=st.integers(0, 9))
def test_stages_are_disjoint_and_cover_everything(number, rounds, stages, seed):
    rng = np.random.default_rng(seed)
    policy = plugins.load("policy", "staged", {"stages": stages})
    used: list[int] = []
    by_round: dict[int, Any] = {}
    sizes = []
    for round in range(1, rounds + 1):
        if policy.due(round, rounds):
            scores = rng.standard_normal(number)  # scored anew by a model that has changed
            rows = policy.choose(scores, stage(round, rounds, by_round))
            assert not set(rows) & set(used)
            left = sorted(set(range(number)) - set(used) - set(rows.tolist()))
            assert not left or not len(rows) or scores[rows].min() >= scores[left].max()
            used += rows.tolist()
            by_round[round] = rows
            sizes.append(len(rows))
    assert sorted(used) == list(range(number))
    assert len(sizes) == min(stages, rounds)
    assert max(sizes) - min(sizes) <= 1


def test_a_stage_that_chooses_again_has_used_only_what_stages_before_it_chose_last():
    """Four rounds, two stages; a selector before this one changes the pool in each round."""
    scores = np.arange(8.0)
    first, again = {1: [7, 6, 5, 4]}, {1: [7, 6, 5, 4], 2: [7, 6, 1, 0]}
    assert chosen("staged", scores, stage(1, 4), stages=2).tolist() == [7, 6, 5, 4]
    assert chosen("staged", scores, stage(2, 4, first), stages=2).tolist() == [7, 6, 5, 4]
    assert chosen("staged", scores, stage(3, 4, again), stages=2).tolist() == [5, 4, 3, 2]
    assert chosen("staged", scores, stage(4, 4, {**again, 3: [5, 4, 3, 2]}), stages=2).tolist() == [
        5,
        4,
        3,
        2,
    ]
    assert chosen("staged", scores, stage(4, 4), stages=2).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_every_stage_has_its_share_of_the_rounds():
    assert [staged.stage_of(round, 9, 3) for round in range(1, 10)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [staged.stage_of(round, 2, 3) for round in (1, 2)] == [1, 2]
    policy = plugins.load("policy", "staged", {})
    assert [round for round in range(1, 11) if policy.due(round, 10)] == [1, 5, 8]


def test_two_phases_use_two_policies_and_say_when_they_change():
    scores = np.arange(10.0)
    found = [chosen("two_phase", scores, stage(round, 4)).tolist() for round in range(1, 5)]
    assert found[0] == found[1] == [9, 8, 7, 6, 5]
    assert found[2] == found[3] == [0, 1, 2, 3, 4]
    policy = plugins.load("policy", "two_phase", {})
    assert [round for round in range(1, 5) if policy.due(round, 4)] == [1, 3]
    assert policy.due(1, 1)


@given(rounds=st.integers(2, 60), until=st.floats(0.01, 0.99))
def test_both_phases_have_a_round_where_there_are_two(rounds, until):
    assert 1 <= two_phase.last_of_first(rounds, until) < rounds


def test_the_policies_of_the_phases_are_checked():
    config = plugins.config_class("policy", "two_phase")
    made = config(first="quantile_bins", then={"name": "top_k", "keep": 0.2})
    assert made.first.options == {"keep": 0.1, "bins": 10}
    assert made.then.options == {"keep": 0.2, "end": "high"}
    with pytest.raises(ValueError, match=r"top_k.kep: unknown key.*Did you mean 'keep'"):
        config(first={"name": "top_k", "kep": 0.2})
