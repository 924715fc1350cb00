"""The weighted mean against NumPy and against Flower's formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.aggregators.mean import Mean

FLOATS = st.floats(-1e6, 1e6, width=32)
UPDATES = st.integers(1, 4).flatmap(
    lambda n: st.lists(
        st.tuples(st.lists(FLOATS, min_size=n, max_size=n), st.floats(1e-3, 1e3)), min_size=1, max_size=6
    )
)


def fold(updates) -> np.ndarray:
    return Mean().fold(({"x": np.array(v, np.float32)}, w) for v, w in updates)["x"]


@given(UPDATES)
def test_mean_is_numpys_average(updates):
    values, weights = np.array([v for v, _ in updates], np.float32), [w for _, w in updates]
    expected = np.average(values.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(fold(updates), expected, rtol=1e-6, atol=1e-6)


@given(UPDATES, st.randoms())
def test_the_order_does_not_matter(updates, random):
    shuffled = list(updates)
    random.shuffle(shuffled)
    np.testing.assert_allclose(fold(updates), fold(shuffled), rtol=1e-6, atol=1e-6)


@given(st.lists(FLOATS, min_size=1, max_size=4), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_equal_updates_are_their_own_mean(values, weights):
    found = fold([(values, weight) for weight in weights])
    np.testing.assert_allclose(found, np.array(values, np.float32), rtol=1e-6)


@given(UPDATES, st.floats(0.1, 100))
def test_only_the_proportion_of_weights_counts(updates, factor):
    scaled = [(v, w * factor) for v, w in updates]
    np.testing.assert_allclose(fold(updates), fold(scaled), rtol=1e-5, atol=1e-4)


@given(UPDATES)
def test_a_double_weight_is_two_clients(updates):
    first, *rest = updates
    doubled = [(first[0], 2 * first[1]), *rest]
    np.testing.assert_allclose(fold(doubled), fold([first, *updates]), rtol=1e-5, atol=1e-4)


@given(UPDATES)
def test_the_mean_lies_between_the_smallest_and_the_largest(updates):
    values = np.array([v for v, _ in updates], np.float32)
    slack = 1e-6 * np.abs(values).max() + 1e-30
    assert (fold(updates) >= values.min(0) - slack).all()
    assert (fold(updates) <= values.max(0) + slack).all()


def test_flowers_formula():
    """flwr.server.strategy.aggregate: sum of arrays times examples, over the sum of examples."""
    results = [([np.array([1.0, 3.0], np.float32), np.array([[2.0]], np.float32)], 10),
               ([np.array([4.0, 0.0], np.float32), np.array([[8.0]], np.float32)], 30)]  # fmt: skip
    total = sum(n for _, n in results)
    expected = [sum(layer * n for layer, n in zip(layers, (10, 30), strict=True)) / total
                for layers in zip(*[arrays for arrays, _ in results], strict=True)]  # fmt: skip
    found = Mean().fold(({"a": arrays[0], "b": arrays[1]}, n) for arrays, n in results)
    # (1 x 10 + 4 x 30) / 40 = 3.25; (3 x 10 + 0) / 40 = 0.75; (2 x 10 + 8 x 30) / 40 = 6.5
    assert found["a"].tolist() == expected[0].tolist() == [3.25, 0.75]
    assert found["b"].tolist() == expected[1].tolist() == [[6.5]]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_the_type_stays_and_the_updates_are_not_changed(kind):
    given = {"x": np.array([1, 2], kind)}
    found = Mean().fold([(given, 3.0), ({"x": np.array([3, 4], kind)}, 1.0)])
    assert found["x"].dtype == kind
    assert found["x"].tolist() == [1.5, 2.5]
    assert given["x"].tolist() == [1, 2]


def test_large_values_do_not_overflow():
    large = np.array([3e38], np.float32)
    assert fold([(large, 1e15), (large, 1e15)]) == large
