"""Noise against the normal distribution, its limits by hand, and what it depends on."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from cotune.masks import masked
from cotune.noise import REACH, gaussian, noised, normal

SECRET = bytes(range(32))
ZEROS = {"a": np.zeros((200, 50), np.float32), "b": np.zeros(10_000, np.float32)}


def test_the_numbers_are_normal():
    """One key in 100,000 would fail; mean, tails and shape are all in the Kolmogorov-Smirnov distance."""
    found = gaussian(SECRET, 200_001)
    assert len(found) == 200_001
    assert kstest(found, "norm").pvalue > 1e-5
    low, high = chi2.ppf([1e-6, 1 - 1e-6], len(found))
    assert low < (found**2).sum() < high


def test_both_halves_of_a_pair_are_unrelated():
    found = gaussian(SECRET, 200_000).reshape(2, -1)
    for power in (1, 2):
        assert abs(np.corrcoef(found[0] ** power, found[1] ** power)[0, 1]) < 5 / math.sqrt(100_000)


def test_hand_computed_words():
    """Words 2^63 and 2^61: u = 1/2, so the radius is sqrt(2 ln 2); an eighth of a turn has cos = sin."""
    expected = math.sqrt(2 * math.log(2)) * math.sqrt(0.5)
    np.testing.assert_allclose(normal(np.array([2**63, 2**61], np.uint64)), [expected, expected], rtol=1e-12)


def test_no_number_is_beyond_reach():
    """The smallest word gives the largest radius: sqrt(2 * 65 ln 2)."""
    words = np.array([0, 0, 2**64 - 1, 0, 2**63, 2**64 - 1], np.uint64)
    found = normal(words)
    assert found[0] == pytest.approx(math.sqrt(130 * math.log(2)), rel=1e-12)
    assert np.abs(found).max() < REACH < found[0] + 0.01
    assert np.isfinite(found).all()


def test_noise_has_the_stated_deviation_and_shapes():
    found = noised(ZEROS, 0.37, SECRET, ("test",))
    assert {name: array.shape for name, array in found.items()} == {"a": (200, 50), "b": (10_000,)}
    assert all(array.dtype == np.float32 for array in found.values())
    values = np.concatenate([array.ravel() for array in found.values()]) / 0.37
    low, high = chi2.ppf([1e-6, 1 - 1e-6], values.size)
    assert low < (values.astype(float) ** 2).sum() < high


def test_the_same_again_is_the_same_and_anything_else_is_unrelated():
    first = noised(ZEROS, 1.0, SECRET, ("client", "1"))
    again = noised({name: ZEROS[name] for name in ("b", "a")}, 1.0, SECRET, ("client", "1"))
    assert all((first[name] == again[name]).all() for name in ZEROS)
    nearly = {**ZEROS, "a": ZEROS["a"] + np.float32(1e-30)}
    others = [
        noised(ZEROS, 1.0, bytes(32), ("client", "1")),
        noised(ZEROS, 1.0, SECRET, ("client", "2")),
        noised(ZEROS, 1.0, SECRET, ("client1", "")),
        noised(ZEROS, math.nextafter(1.0, 2.0), SECRET, ("client", "1")),
        noised(nearly, 1.0, SECRET, ("client", "1")),
        {"a": first["b"].reshape(200, 50), "b": first["a"].ravel()},
    ]
    for other in others:
        for name in ZEROS:
            assert abs(np.corrcoef(first[name].ravel(), other[name].ravel())[0, 1]) < 5 / 100


def test_the_noise_is_the_cipher_and_nothing_else():
    """Taken off with the same words of the key stream, nothing is left but rounding to the grid."""
    words = masked([np.zeros(1000, "<u8")], [SECRET])[0]
    assert (gaussian(SECRET, 1000) == normal(words)).all()


@pytest.mark.parametrize("deviation", [1.0, 0.7, 3e-5, 1e4])
def test_results_stand_on_a_grid_that_does_not_depend_on_the_values(deviation):
    values = np.random.default_rng(0).normal(0, deviation, 5000).astype(np.float32)
    step = 2.0 ** (math.floor(math.log2(deviation)) - 16)
    found = noised({"a": values}, deviation, SECRET, ())["a"].astype(np.float64)
    assert (np.mod(found, step) == 0).all()
    assert 2.0**-17 < step / deviation <= 2.0**-16
    assert not (np.mod(values.astype(np.float64), step) == 0).all()


def test_no_noise_leaves_everything_as_it_is():
    values = {"a": np.array([0.1, 1e-30], np.float32)}
    assert (noised(values, 0.0, SECRET, ())["a"] == values["a"]).all()


def test_a_million_numbers_take_less_than_a_fifth_of_a_second():
    began = time.process_time()
    gaussian(SECRET, 1_000_000)
    assert time.process_time() - began < 0.2
