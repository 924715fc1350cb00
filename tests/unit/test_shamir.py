"""Shares: by hand, at random, and what too few of them say."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cotune.errors import WireError
from cotune.shamir import LIMBS, PRIME, SHARE_BYTES, join, split

SECRET = (5).to_bytes(32, "little")


def test_by_hand():
    """Limb 0 is 5 + 7x + 3x^2: at 1, 2, 3 it is 15, 31, 53; all others are 0 + 7x + 3x^2: 10, 26, 48."""
    coefficients = iter([3] * LIMBS + [7] * LIMBS)  # highest power first

    def randomness(size: int) -> bytes:
        return np.array([next(coefficients) for _ in range(size // 4)], "<u4").tobytes()

    shares = split([SECRET], 3, [1, 2, 3], randomness)
    numbers = [np.frombuffer(holder[0], "<u4").tolist() for holder in shares]
    assert numbers == [[15] + [10] * 8, [31] + [26] * 8, [53] + [48] * 8]
    # weights at 0: 2*3/((2-1)(3-1)) = 3, 1*3/((1-2)(3-2)) = -3, 1*2/((1-3)(2-3)) = 1: 45 - 93 + 53 = 5
    assert join([1, 2, 3], [holder[0] for holder in shares]) == SECRET


def lagrange(points: list[int], values: list[int]) -> int:
    """The value at 0 in Python's integers."""
    total = 0
    for i, value in zip(points, values, strict=True):
        above = below = 1
        for j in points:
            above, below = (above * j, below * (j - i)) if j != i else (above, below)
        total += value * above * pow(below, -1, PRIME)
    return total % PRIME


@given(st.integers(1, 30), st.integers(0, 10), st.randoms(use_true_random=False))
def test_any_threshold_shares_give_every_secret_back(threshold, more, chance: random.Random):
    points = chance.sample(range(1, 5000), threshold + more)
    secrets = [bytes(32), b"\xff" * 32, chance.randbytes(32)]
    shares = split(secrets, threshold, points, chance.randbytes)
    chosen = chance.sample(range(len(points)), threshold)
    for place, secret in enumerate(secrets):
        given_shares = [shares[i][place] for i in chosen]
        assert join([points[i] for i in chosen], given_shares) == secret
        first = [int.from_bytes(share[:4], "little") for share in given_shares]
        assert lagrange([points[i] for i in chosen], first) == int.from_bytes(secret, "little") % 2**30


def test_fewer_than_the_threshold_say_nothing():
    """Two of three shares of two very different secrets: limb 0 falls into 64 bins alike for both."""
    for secret in (bytes(32), b"\xff" * 32):
        drawn = [split([secret], 3, [1, 2, 3], random.Random(i).randbytes)[:2] for i in range(3000)]
        limbs = np.array([[np.frombuffer(holder[0], "<u4")[0] for holder in two] for two in drawn])
        bins = (limbs.astype(np.uint64) * 8 // PRIME).astype(int)
        assert chisquare(np.bincount(bins[:, 0] * 8 + bins[:, 1], minlength=64)).pvalue > 1e-4


def test_every_secret_fits_what_too_few_holders_see():
    """For one share of two, each secret has a coefficient that explains it: none can be ruled out."""
    share = int.from_bytes(split([SECRET], 2, [4, 9], random.Random(0).randbytes)[0][0][:4], "little")
    for guess in (0, 5, 2**30 - 1, 123_456):
        slope = (share - guess) * pow(4, -1, PRIME) % PRIME
        assert (guess + slope * 4) % PRIME == share


def test_too_few_or_wrong_shares_do_not_give_the_secret():
    shares = split([SECRET], 4, [1, 2, 3, 4], random.Random(1).randbytes)
    with pytest.raises(WireError, match="belong to no secret"):
        join([1, 2, 3], [holder[0] for holder in shares[:3]])
    wrong = [shares[1][0], *[holder[0] for holder in shares[1:]]]
    with pytest.raises(WireError, match="belong to no secret"):
        join([1, 2, 3, 4], wrong)


@pytest.mark.parametrize("share", [b"short", b"\xff" * SHARE_BYTES])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(WireError, match=r"expected|not below"):
        join([1, 2], [bytes(SHARE_BYTES), share])


@pytest.mark.parametrize(
    ("secrets", "threshold", "points"),
    [
        ([b"short"], 1, [1]),
        ([SECRET], 3, [1, 2]),
        ([SECRET], 0, [1]),
        ([SECRET], 1, [1, 1]),
        ([SECRET], 1, [0]),
    ],
)
def test_what_cannot_be_split_is_refused(secrets, threshold, points):
    with pytest.raises(ValueError, match=r"secret has|threshold|points"):
        split(secrets, threshold, points, os.urandom)


def test_a_drawn_number_that_is_the_prime_is_drawn_again():
    drawn = iter([b"\xff" * 4 * LIMBS, *[b"\x01\0\0\0" * LIMBS] * 2])
    shares = split([bytes(32)], 2, [1, 2], lambda size: next(drawn)[:size])
    assert np.frombuffer(shares[0][0], "<u4").tolist() == [1] * LIMBS
