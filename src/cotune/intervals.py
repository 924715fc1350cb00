"""Numbers with their uncertainty: percentile bootstrap, exact binomial, sign flips, area under the curve.

Every interval is a 95 percent one. Values go in without NaN; randomness comes in as a generator.
Bootstrap: Efron 1979, percentile interval. Binomial: Clopper and Pearson 1934.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cotune.examined import Estimate
from cotune.records import Array

TAILS = (2.5, 97.5)
"""Percentiles between which 95 of 100 draws lie."""
AT_ONCE = 2_000_000
"""Numbers held at once when means are drawn (16 MB)."""

Values = Sequence[float] | Array
Statistic = Callable[[list[Array]], float]
"""Of the groups, each an array whose first axis are its observations; NaN: there is none."""


def estimate(value: float, draws: Array, n: int) -> Estimate:
    """A value with the interval of its bootstrap draws; NaN is no value, and n < 2 gives no interval."""
    if np.isnan(value):
        return Estimate(None, None, None, n)
    kept = draws[~np.isnan(draws)]
    if n < 2 or not len(kept):
        return Estimate(float(value), None, None, n)
    low, high = np.percentile(kept, TAILS)
    return Estimate(float(value), float(low), float(high), n)


def bootstrap_mean(values: Values, rng: np.random.Generator, draws: int = 2000) -> Estimate:
    """Mean of some values [n]; no value for none of them, no interval for one."""
    data = np.asarray(values, np.float64)
    n = len(data)
    if n < 2:
        return Estimate(float(data[0]) if n else None, None, None, n)
    step = max(1, AT_ONCE // n)
    parts = [min(step, draws - start) for start in range(0, draws, step)]
    means = np.concatenate([data[rng.integers(0, n, (part, n))].mean(axis=1) for part in parts])
    return estimate(float(data.mean()), means, n)


def bootstrap_of(
    groups: Sequence[Array], statistic: Statistic, rng: np.random.Generator, draws: int = 2000
) -> Estimate:
    """A statistic of several groups, whose observations are drawn anew inside each group.

    No value if a group is empty or the statistic is NaN; no interval if every group holds one observation.
    Draws for which the statistic is NaN are left out of the interval.
    """
    data = [np.asarray(group) for group in groups]
    sizes = [len(group) for group in data]
    n = sum(sizes)
    value = float(statistic(data)) if n and all(sizes) else float("nan")
    if np.isnan(value):
        return Estimate(None, None, None, n)
    if max(sizes) < 2:
        return Estimate(value, None, None, n)
    rows = [rng.integers(0, size, (draws, size)) for size in sizes]
    again = [
        statistic([group[row[draw]] for group, row in zip(data, rows, strict=True)]) for draw in range(draws)
    ]
    return estimate(value, np.array(again, np.float64), n)


def set_means(groups: Sequence[Array]) -> Array:
    """Unweighted mean of the means of sets [n of the set, k]: [k]."""
    found: Array = np.mean([group.mean(axis=0) for group in groups], axis=0)
    return found


def redrawn_set_means(groups: Sequence[Array], rng: np.random.Generator, draws: int = 2000) -> Array:
    """`set_means` of sets whose rows are drawn anew, each within itself: [draws, k].

    One draw holds for all columns, so that what is computed of several of them keeps their dependence.
    """
    means = [_shares(len(group), rng, draws) @ group for group in groups]
    found: Array = np.mean(means, axis=0)
    return found


def proportion(successes: int, n: int) -> Estimate:
    """Share of successes with the exact interval, which covers the truth at least 95 times of 100."""
    if n == 0:
        return Estimate(None, None, None, 0)
    found = _binomial(successes, n).proportion_ci(0.95, "exact")
    return Estimate(successes / n, float(found.low), float(found.high), n)


def above_chance(successes: int, n: int, chance: float) -> float:
    """Probability of at least so many successes by chance alone: exact, one-sided; 1 for no trials."""
    if n == 0:
        return 1.0
    return float(_binomial(successes, n, chance, "greater").pvalue)


def difference_p(a: Values, b: Values, rng: np.random.Generator, draws: int = 2000) -> float:
    """Two-sided p-value of the mean of a - b, for values [n] each that belong together one by one.

    Signs of the differences are flipped at random; the signs seen count as one of the draws, so that the
    p-value is never 0 and never too small (Phipson and Smyth 2010). 1 for no values.
    """
    differences = _differences(a, b)
    n = len(differences)
    if n == 0:
        return 1.0
    step = max(1, AT_ONCE // n)
    seen, as_far = abs(float(differences.sum())), 0
    slack = 1e-12 * float(np.abs(differences).sum())  # equal sums differ by rounding
    for start in range(0, draws, step):
        signs = 2.0 * rng.integers(0, 2, (min(step, draws - start), n)) - 1.0
        as_far += int((np.abs(signs @ differences) >= seen - slack).sum())
    return (1 + as_far) / (1 + draws)


def auc(positive: Values, negative: Values) -> float:
    """Probability that a positive value is above a negative one, ties one half; NaN if one side is empty."""
    high, low = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    if not (len(high) and len(low)):
        return float("nan")
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * len(low)))


def bootstrap_auc(
    positive: Values, negative: Values, rng: np.random.Generator, draws: int = 2000
) -> Estimate:
    """`auc` with both sides drawn anew; no value if one side is empty."""
    high, low = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    n = len(high) + len(low)
    if not (len(high) and len(low)):
        return Estimate(None, None, None, n)
    below = np.pad(np.cumsum(_shares(len(low), rng, draws), axis=1), ((0, 0), (1, 0)))
    left, right = (np.searchsorted(low, high, side) for side in ("left", "right"))
    areas = (_shares(len(high), rng, draws) * (below[:, left] + below[:, right])).sum(axis=1) / 2
    return estimate(auc(positive, negative), areas, n)


def _shares(n: int, rng: np.random.Generator, draws: int) -> Array:
    """How much each of n observations weighs in each draw of n of them: [draws, n], rows of sum 1."""
    rows = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    found: Array = np.bincount(rows.ravel(), minlength=draws * n).reshape(draws, n) / n
    return found


def _binomial(successes: int, n: int, chance: float = 0.5, alternative: str = "two-sided") -> Any:
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # slow to import

    return binomtest(successes, n, chance, alternative)


def _differences(a: Values, b: Values) -> Array:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"values are not paired: {first.shape} and {second.shape}")
    return first - second
