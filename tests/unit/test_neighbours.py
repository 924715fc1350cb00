"""The ring, and how many neighbours it needs."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from cotune.errors import ConfigError
from cotune.neighbours import PRIVACY_BITS, SUCCESS_BITS, neighbours, plan, ring

NAMES = [f"c{i}" for i in range(30)]


@given(st.integers(2, 40), st.integers(1, 19))
def test_neighbours_are_mutual_and_as_many_as_asked_for(count, half):
    k = min(2 * half, count - 1)
    order = [f"c{i}" for i in range(count)]
    found = {name: neighbours(order, place, k) for place, name in enumerate(order)}
    for name, near in found.items():
        assert len(set(near)) == len(near) == k
        assert name not in near
        assert all(name in found[other] for other in near)


def test_neighbours_stand_next_on_either_side():
    assert neighbours("abcdefgh", 1, 4) == ("h", "a", "c", "d")
    assert neighbours("abcd", 1, 3) == ("a", "c", "d")


def test_the_ring_follows_from_the_seed_alone_and_seeds_differ():
    assert ring(NAMES, b"one") == ring(reversed(NAMES), b"one")
    assert ring(NAMES, b"one") != ring(NAMES, b"two")
    assert sorted(ring(NAMES, b"one")) == sorted(NAMES)


def test_every_place_on_the_ring_is_as_likely():
    """Place of one client over 3,000 seeds and 30 places: 100 each, standard deviation 9.8."""
    counts = [0] * 30
    for seed in range(3000):
        counts[ring(NAMES, seed.to_bytes(4, "big")).index("c7")] += 1
    assert max(abs(count - 100) for count in counts) < 5 * 9.8


@pytest.mark.parametrize(("dropout", "corruption"), [(0.05, 0.0), (0.15, 0.05), (0.1, 0.2)])
def test_both_tails_are_scipys_and_within_the_limits(dropout, corruption):
    n = 1000
    found = plan(n, dropout, corruption)
    k, t, rest = found.num_neighbours, found.threshold, n - found.dropped
    too_few_live = n * hypergeom.cdf(t - 1, n - 1, n - 1 - found.dropped, k)
    cut_off = 2 * rest * hypergeom.sf(t - 2 - k // 2, rest - 1, found.corrupt, k // 2)
    assert found.success_failure == pytest.approx(too_few_live, rel=1e-6)
    assert found.privacy_failure == pytest.approx(cut_off, rel=1e-6)
    assert found.success_failure <= 2**-SUCCESS_BITS
    assert found.privacy_failure <= 2**-PRIVACY_BITS
    assert k % 2 == 0
    assert 1 + k // 2 < t <= k


def test_two_fewer_neighbours_would_not_do():
    """Every threshold of a ring of 24 neighbours breaks one limit or the other; 26 is the plan."""
    assert plan(1000, 0.05, 0.0).num_neighbours == 26
    for t in range(1, 25):
        lives = 1000 * hypergeom.cdf(t - 1, 999, 949, 24) <= 2**-SUCCESS_BITS
        assert not (lives and t - 1 - 12 > 0)


@given(st.integers(3, 200), st.sampled_from([0, 0.05, 0.1, 0.2]), st.sampled_from([0, 0.05, 0.1, 0.2]))
def test_two_lists_cannot_both_be_signed_and_who_stays_can_open(n, dropout, corruption):
    try:
        found = plan(n, dropout, corruption)
    except ConfigError:
        return
    assert 2 * found.quorum > n + found.corrupt  # honest clients sign once, the others twice
    assert found.quorum <= n - found.dropped
    assert found.corrupt < found.threshold
    assert found.minimum - found.corrupt >= 2
    assert (found.dropped, found.corrupt) == tuple(int(Fraction(str(x)) * n) for x in (dropout, corruption))


def test_a_consortium_of_three_with_one_drop_out():
    found = plan(3, 0.34, 0.0)
    assert (found.num_neighbours, found.threshold, found.quorum, found.minimum) == (2, 2, 2, 2)


def test_more_privacy_takes_more_neighbours():
    assert plan(1000, 0.15, 0.05, 80).num_neighbours > plan(1000, 0.15, 0.05).num_neighbours


@pytest.mark.parametrize(
    ("n", "dropout", "corruption"), [(3, 0.34, 0.34), (10, 0.5, 0), (1, 0, 0), (4, 0, 0.75)]
)
def test_what_cannot_be_tolerated_is_refused(n, dropout, corruption):
    with pytest.raises(ConfigError, match="enlarge the cohort"):
        plan(n, dropout, corruption)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_from_0_to_below_1(share):
    with pytest.raises(ConfigError, match="dropout"):
        plan(10, share, 0.0)
