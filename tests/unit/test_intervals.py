"""Estimates, intervals and tests against scipy, scikit-learn and simulated truths."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from cotune import intervals
from cotune.examined import Estimate
from cotune.records import derived_rng


def rng(*words: str) -> np.random.Generator:
    return derived_rng(7, "intervals", *words)


def test_a_mean_has_the_interval_that_scipy_finds():
    values = rng("values").gamma(2.0, size=80)
    found = intervals.bootstrap_mean(values, rng("draws"), 20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=rng("theirs")
    )
    assert found.value == pytest.approx(values.mean())
    assert found.n == 80
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_none_and_one_value_have_no_interval():
    assert intervals.bootstrap_mean([], rng()) == Estimate(None, None, None, 0)
    assert intervals.bootstrap_mean([0.25], rng()) == Estimate(0.25, None, None, 1)
    one = [np.array([0.25])]
    assert intervals.bootstrap_of(one, lambda g: g[0].mean(), rng()) == Estimate(0.25, None, None, 1)
    empty = [np.array([1.0, 2.0]), np.array([])]
    assert intervals.bootstrap_of(empty, lambda g: g[0].mean(), rng()) == Estimate(None, None, None, 2)
    assert intervals.bootstrap_of([], lambda g: 1.0, rng()) == Estimate(None, None, None, 0)


def test_the_same_generator_gives_the_same_interval():
    values = rng("values").random(30)
    assert intervals.bootstrap_mean(values, rng("a")) == intervals.bootstrap_mean(values, rng("a"))
    assert intervals.bootstrap_mean(values, rng("a")) != intervals.bootstrap_mean(values, rng("b"))


def test_drawing_in_parts_when_there_are_many_values(monkeypatch):
    values = rng("values").random(50)
    monkeypatch.setattr(intervals, "AT_ONCE", 170)  # three draws at a time
    found = intervals.bootstrap_mean(values, rng("draws"), 2000)
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 50**0.5, abs=0.01)
    again = intervals.difference_p(values, values[::-1], rng("signs"), 400)
    assert 0.2 < again <= 1  # a row and its mirror differ by nothing in the mean


def test_groups_are_drawn_within_themselves():
    """Means of means: each group's own spread counts, not the distance between the groups."""
    groups = [np.array([0.0, 0.0, 0.0]), np.array([9.0, 9.0])]
    found = intervals.bootstrap_of(groups, lambda g: float(np.mean([one.mean() for one in g])), rng())
    assert found == Estimate(4.5, 4.5, 4.5, 5)


def test_set_means_agree_with_the_general_bootstrap():
    groups = [rng("a").random((40, 2)), rng("b").random((9, 2))]
    drawn = intervals.redrawn_set_means(groups, rng("drawn"), 4000)
    assert drawn.shape == (4000, 2)
    for column in (0, 1):
        own = [group[:, column] for group in groups]
        slow = intervals.bootstrap_of(own, lambda g: (g[0].mean() + g[1].mean()) / 2, rng("slow"), 4000)
        fast = intervals.estimate(float(intervals.set_means(groups)[column]), drawn[:, column], 49)
        assert (fast.value, fast.n) == (pytest.approx(slow.value), slow.n)
        assert (fast.low, fast.high) == (
            pytest.approx(slow.low, abs=0.01),
            pytest.approx(slow.high, abs=0.01),
        )


def test_columns_are_drawn_together():
    rows = rng("rows").random((20, 1))
    drawn = intervals.redrawn_set_means([np.hstack([rows, rows + 1.0])], rng("drawn"), 100)
    assert drawn[:, 1] - drawn[:, 0] == pytest.approx(np.ones(100))


def test_draws_without_a_value_are_left_out_of_the_interval():
    def over_zero(groups):
        return 1.0 / groups[0].mean() if groups[0].any() else float("nan")

    found = intervals.bootstrap_of([np.array([0.0, 1.0])], over_zero, rng())
    assert found == Estimate(2.0, 1.0, 2.0, 2)
    assert intervals.bootstrap_of([np.zeros(3)], over_zero, rng()) == Estimate(None, None, None, 3)


@given(n=st.integers(1, 60), share=st.floats(0, 1), chance=st.floats(0.01, 0.99))
@settings(max_examples=25, deadline=None)
def test_a_proportion_is_clopper_and_pearsons(n, share, chance):
    k = round(share * n)
    found = intervals.proportion(k, n)
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert (found.value, found.n) == (k / n, n)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert intervals.above_chance(k, n, chance) == pytest.approx(stats.binom.sf(k - 1, n, chance))


def test_a_proportion_of_nothing():
    assert intervals.proportion(0, 0) == Estimate(None, None, None, 0)
    assert intervals.above_chance(0, 0, 0.1) == 1.0
    assert intervals.above_chance(1, 10, 0.1) == pytest.approx(1 - 0.9**10)


@pytest.mark.parametrize(("n", "truth"), [(20, 0.1), (40, 0.5), (25, 0.97)])
def test_the_exact_interval_covers_the_truth_at_least_as_often_as_it_says(n, truth):
    drawn = rng("cover", str(truth)).binomial(n, truth, 1000).tolist()
    found = {k: intervals.proportion(k, n) for k in set(drawn)}
    covered = sum(found[k].low <= truth <= found[k].high for k in drawn)
    assert covered >= 930  # 950 less three standard deviations of a count at 0.95
    assert sum(found[k].high - found[k].low for k in drawn) / 1000 < 0.5  # and says something


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    draw = rng("cover")
    for sample in (lambda: draw.normal(3.0, 1.0, 30), lambda: draw.gamma(3.0, 1.0, 30)):
        found = [intervals.bootstrap_mean(sample(), draw, 200) for _ in range(1000)]
        covered = sum(one.low <= 3.0 <= one.high for one in found)
        assert 895 <= covered <= 965  # the percentile interval is somewhat too short at 30


def test_a_difference_of_values_that_are_not_paired_is_refused():
    with pytest.raises(ValueError, match="not paired"):
        intervals.difference_p([1.0], [1.0, 2.0], rng())


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.6])
def test_sign_flips_agree_with_scipys_permutation_test(shift):
    a, b = rng("a").normal(shift, 1.0, 40), rng("b").normal(0.0, 1.0, 40)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=5_000,
        random_state=rng("t"),
    )
    assert intervals.difference_p(a, b, rng("signs"), 5_000) == pytest.approx(theirs.pvalue, abs=0.025)


def test_sign_flips_at_the_ends():
    assert intervals.difference_p([], [], rng()) == 1.0
    assert intervals.difference_p([0.5] * 9, [0.5] * 9, rng()) == 1.0
    assert intervals.difference_p([2.0], [1.0], rng()) == 1.0  # one pair says nothing about the sign
    assert intervals.difference_p(np.ones(60), np.zeros(60), rng(), 999) == pytest.approx(1 / 1000)
    tenths = intervals.difference_p([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], rng(), 20_000)
    assert tenths == pytest.approx(2 / 8, abs=0.02)  # two of the eight sign patterns, rounding or not


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=12)
)
@settings(max_examples=50, deadline=None)
def test_auc_is_scikit_learns_with_ties(positive, negative):
    truth = [1] * len(positive) + [0] * len(negative)
    found = intervals.auc(positive, negative)
    assert found == pytest.approx(roc_auc_score(truth, positive + negative))
    assert found + intervals.auc(negative, positive) == pytest.approx(1.0)


def test_auc_of_one_side_alone_is_no_number():
    assert np.isnan(intervals.auc([], [1.0]))
    assert intervals.bootstrap_auc([], [1.0, 2.0], rng()) == Estimate(None, None, None, 2)


def test_the_area_is_drawn_as_the_general_bootstrap_draws_it():
    positive, negative = rng("p").integers(0, 6, 30) + 1.0, rng("n").integers(0, 6, 45) * 1.0
    fast = intervals.bootstrap_auc(positive, negative, rng("fast"), 4000)
    slow = intervals.bootstrap_of([positive, negative], lambda g: intervals.auc(*g), rng("slow"), 4000)
    assert (fast.value, fast.n) == (slow.value, slow.n)
    assert (fast.low, fast.high) == (pytest.approx(slow.low, abs=0.012), pytest.approx(slow.high, abs=0.012))


def test_auc_covers_the_truth():
    """Normal scores one standard deviation apart: the area is Phi(1 / sqrt 2)."""
    truth, draw = stats.norm.cdf(1 / 2**0.5), rng("auc")
    found = [
        intervals.bootstrap_auc(draw.normal(1.0, 1.0, 40), draw.normal(0.0, 1.0, 40), draw, 200)
        for _ in range(200)
    ]
    assert sum(one.low <= truth <= one.high for one in found) >= 176  # 188 expected less three deviations


def test_estimates_are_fast():
    values = rng("values").random(600)
    start = time.perf_counter()
    intervals.bootstrap_mean(values, rng())
    intervals.difference_p(values, values[::-1], rng())
    intervals.redrawn_set_means([values[:, None]], rng())
    intervals.bootstrap_auc(values, values[::-1], rng())
    assert time.perf_counter() - start < 3.0  # a quarter of it on an idle core
