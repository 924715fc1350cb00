"""Aggregators that few lying clients cannot move: against NumPy, SciPy and Krum written out; attacked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cotune import robust
from cotune.aggregators import krum, median, trimmed_mean
from cotune.aggregators.krum import Krum
from cotune.aggregators.median import Median
from cotune.aggregators.trimmed_mean import TrimmedMean
from cotune.errors import WireError

ALL = [
    Median(),
    TrimmedMean(trimmed_mean.Config(trim=0.2)),
    Krum(krum.Config(num_rejected=1)),
    Krum(krum.Config(num_rejected=2, keep=3)),
]
EACH = pytest.mark.parametrize("aggregator", ALL, ids=["median", "trimmed_mean", "krum", "multi_krum"])
SEEDS = st.integers(0, 2**32)


def fold(aggregator, rows, weights=None) -> np.ndarray:
    """[clients, values] through two arrays of different shape."""
    rows = np.asarray(rows)
    updates = [{"b": row[1:], "a": row[:1].reshape(1, 1)} for row in rows]
    found = aggregator.fold(zip(updates, weights or [1.0] * len(rows), strict=True))
    assert (list(found), found["a"].shape) == (["b", "a"], (1, 1))
    return np.concatenate([found["a"].ravel(), found["b"]])


def normal(seed: int, clients: int, values: int = 9, kind=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((clients, values)).astype(kind)


@given(SEEDS, st.integers(3, 12))
def test_the_median_is_numpys(seed, clients):
    rows = normal(seed, clients)
    expected = np.median(rows.astype(np.float64), axis=0).astype(np.float32)
    assert fold(Median(), rows).tolist() == expected.tolist()


@given(SEEDS, st.integers(3, 30), st.sampled_from([0.01, 0.1, 0.29, 0.3, 0.45]))
def test_the_trimmed_mean_is_scipys(seed, clients, trim):
    rows = normal(seed, clients)
    share = max(trim, 1 / clients) + 1e-9  # at least one is cut; SciPy cuts none of so few
    expected = scipy.stats.trim_mean(rows.astype(np.float64), share, axis=0)
    np.testing.assert_allclose(fold(TrimmedMean(trimmed_mean.Config(trim=trim)), rows), expected, rtol=2e-6)


def written_out(rows: np.ndarray, rejected: int, keep: int) -> np.ndarray:
    """Krum as the paper prints it: for each, the sum of squared distances to its n - f - 2 closest."""
    clients = len(rows)
    scores = []
    for i in range(clients):
        far = sorted(sum((float(x) - float(y)) ** 2 for x, y in zip(rows[i], rows[j], strict=True))
                     for j in range(clients) if j != i)  # fmt: skip
        scores.append(sum(far[: clients - rejected - 2]))
    best = sorted(range(clients), key=scores.__getitem__)[:keep]
    return rows[best].astype(np.float64).mean(0)


@given(SEEDS, st.integers(7, 10), st.sampled_from([(0, 1), (1, 1), (2, 1), (2, 3), (1, 6)]))
def test_krum_is_krum(seed, clients, options):
    rejected, keep = options
    rows = normal(seed, clients)
    found = fold(Krum(krum.Config(num_rejected=rejected, keep=keep)), rows)
    np.testing.assert_allclose(found, written_out(rows, rejected, keep), rtol=1e-6)


def test_by_hand():
    """Of 1, 2, 4, 8, 100: median 4; without the ends (2 + 4 + 8) / 3; scores with f = 1, so 2 neighbours:
    1: 1 + 9, 2: 1 + 4, 4: 4 + 9, 8: 16 + 36; 2 is the lowest, then 1."""
    rows = [[float(x)] * 2 for x in (1, 2, 4, 8, 100)]
    assert fold(Median(), rows).tolist() == [4, 4]
    assert fold(TrimmedMean(trimmed_mean.Config()), rows).tolist() == [14 / 3] * 2
    assert fold(Krum(krum.Config()), rows).tolist() == [2, 2]
    assert fold(Krum(krum.Config(keep=2)), rows).tolist() == [1.5, 1.5]


@EACH
@given(seed=SEEDS)
def test_the_order_of_clients_changes_no_bit(aggregator, seed):
    rng = np.random.default_rng(seed)
    rows = rng.choice([-2.5, -0.0, 0.0, 1.0, 1e-3, 3.7], (8, 5)).astype(np.float32)  # many are tied
    rows[rng.integers(8)] = rows[rng.integers(8)]
    found = fold(aggregator, rows)
    assert fold(aggregator, rng.permutation(rows)).tobytes() == found.tobytes()
    large = normal(seed, 8, 300) * np.float32(1e3)
    assert fold(aggregator, rng.permutation(large)).tobytes() == fold(aggregator, large).tobytes()


def test_krum_with_equal_scores_takes_the_smaller_whatever_the_order():
    """Of three, the closest two always have the same score."""
    rows = np.array([[0, 5], [0, 4], [9, 9]], np.float32)
    for order in itertools.permutations(range(3)):
        assert fold(Krum(krum.Config(num_rejected=0)), rows[list(order)]).tolist() == [0, 4]


@EACH
@given(seed=SEEDS, shift=st.integers(-1000, 1000))
def test_moving_all_moves_the_result_as_far(aggregator, seed, shift):
    rows = np.random.default_rng(seed).integers(-50, 50, (7, 6)).astype(np.float64)  # sums are exact
    np.testing.assert_allclose(fold(aggregator, rows + shift), fold(aggregator, rows) + shift, atol=1e-9)


@EACH
def test_weights_change_nothing(aggregator):
    rows = normal(0, 7)
    assert fold(aggregator, rows, [1e15, *[1e-3] * 6]).tolist() == fold(aggregator, rows).tolist()


RUBBISH = ["huge", "negative", "turned", "one", "spread"]


def attacked(kind: str, honest: np.ndarray, num: int, rng) -> np.ndarray:
    rubbish = {
        "huge": np.full((num, honest.shape[1]), 1e6),
        "negative": np.full((num, honest.shape[1]), -1e6),
        "turned": np.repeat(-20 * honest.mean(0, keepdims=True), num, 0),
        "one": np.eye(num, honest.shape[1]) * 1e6,
        "spread": rng.standard_normal((num, honest.shape[1])) * 1e4,
    }[kind]
    return rng.permutation(np.concatenate([honest, rubbish.astype(np.float32)]))


@pytest.mark.parametrize("kind", RUBBISH)
@given(seed=SEEDS, num=st.integers(1, 3))
def test_rubbish_cannot_leave_the_honest_range(kind, seed, num):
    rng = np.random.default_rng(seed)
    honest = (1 + 0.3 * rng.standard_normal((num + 3, 6))).astype(np.float32)
    rows = attacked(kind, honest, num, rng)
    withstand = [
        Median(),
        TrimmedMean(trimmed_mean.Config(trim=num / len(rows))),
        Krum(krum.Config(num_rejected=num)),
        Krum(krum.Config(num_rejected=num, keep=len(honest))),
    ]
    for aggregator in withstand:
        found = fold(aggregator, rows)
        assert (honest.min(0) <= found).all(), aggregator
        assert (found <= honest.max(0)).all(), aggregator
    mean = rows.mean(0)
    assert not ((honest.min(0) <= mean) & (mean <= honest.max(0))).all()


def test_more_rubbish_than_stated_does_move_a_trimmed_mean():
    rows = np.concatenate([normal(0, 8), np.full((2, 9), 1e6, np.float32)])
    assert fold(TrimmedMean(trimmed_mean.Config(trim=0.1)), rows).min() > 1e5
    assert abs(fold(TrimmedMean(trimmed_mean.Config(trim=0.2)), rows)).max() < 4


def test_krum_tells_close_updates_far_from_zero_apart():
    """A distance from squares of 1e6 would be lost in their rounding."""
    rows = np.float32(2**20) + np.array([[0, 0], [0.125, 0], [0.25, 0], [0.5, 0], [9, 9]], np.float32)
    found = fold(Krum(krum.Config()), rows) - 2**20
    assert found.tolist() == [0.125, 0]


@EACH
def test_blocks_of_columns_change_nothing(aggregator, monkeypatch):
    rows = normal(4, 7, 200, np.float64)
    whole = fold(aggregator, rows)
    monkeypatch.setattr(robust, "BLOCK", 7 * 13)
    np.testing.assert_allclose(fold(aggregator, rows), whole, rtol=1e-12)


@EACH
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_types_shapes_and_arguments_stay(aggregator, kind):
    shapes = {"scalar": (), "none": (0, 4), "square": (2, 2)}
    rng = np.random.default_rng(0)
    drawn = {name: np.asarray(rng.standard_normal((7, *s))).astype(kind) for name, s in shapes.items()}
    updates = [{name: np.asarray(array[k]) for name, array in drawn.items()} for k in range(7)]
    before = [{name: array.copy() for name, array in one.items()} for one in updates]
    found = aggregator.fold((one, 1.0) for one in updates)
    assert {n: (a.shape, a.dtype) for n, a in found.items()} == {n: (s, kind) for n, s in shapes.items()}
    for old, new in zip(before, updates, strict=True):
        assert all(np.array_equal(old[name], new[name]) for name in shapes)


def test_large_values_do_not_overflow():
    rows = np.full((7, 3), 3e38, np.float32)
    rows[0] *= -1
    for aggregator in ALL:
        assert fold(aggregator, rows).tolist() == rows[1].tolist()


@pytest.mark.parametrize(
    ("aggregator", "needed"),
    [
        (Median(), 3),
        (TrimmedMean(trimmed_mean.Config(trim=0.4)), 3),
        (Krum(krum.Config(num_rejected=2)), 7),
        (Krum(krum.Config(num_rejected=0)), 3),
        (Krum(krum.Config(num_rejected=1, keep=9)), 10),
    ],
)
def test_too_few_updates_are_refused_with_the_cure(aggregator, needed):
    assert aggregator.minimum == needed
    fold(aggregator, normal(0, needed))
    message = rf"{needed - 1} updates; .* needs at least {needed}\. Raise cohort\.minimum to {needed}"
    with pytest.raises(WireError, match=message):
        fold(aggregator, normal(0, needed - 1))


def test_a_cut_of_half_is_refused():
    with pytest.raises(ValueError, match="less than half"):
        robust.middle_mean(np.zeros((2, 4)), 2)


def test_all_say_that_they_read_single_updates():
    assert all(module.NEEDS_SINGLE for module in (median, trimmed_mean, krum))
