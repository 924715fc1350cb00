"""What private tuning costs: against the formula for all examples at once, and dp-accounting's numbers."""

from __future__ import annotations

import math
import sys

import dp_accounting as dp
import pytest
from dp_accounting import pld
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.stats import norm

from cotune.errors import ConfigError
from cotune.example_privacy import (
    PrivateConfig,
    Sampling,
    Spent,
    epsilon,
    sampling,
    total_epsilon,
)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Exact epsilon of one Gaussian mechanism (Balle and Wang 2018, theorem 8)."""

    def excess(eps: float) -> float:
        a, b = 1 / (2 * noise), eps * noise
        return float(norm.cdf(a - b) - math.exp(eps) * norm.cdf(-a - b)) - delta

    return float(brentq(excess, 0, 600))


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 10)])
def test_with_all_examples_in_every_step_it_is_that_of_one_gaussian(noise, steps):
    """T steps with deviation s tell as much as one with s / sqrt(T)."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    found = epsilon(noise, 1.0, steps, 1e-5)
    assert exact <= found <= exact + 0.01


def test_it_is_what_dp_accounting_says_of_the_same_events():
    spent = [Spent(1.1, 0.1, 10), Spent(8.0, 1.0, 2), Spent(1.1, 0.1, 20)]
    step = dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.1))

    def theirs(grid: float) -> float:
        accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, grid)
        return accountant.compose(step, 30).compose(dp.GaussianDpEvent(8.0), 2).get_epsilon(1e-6)

    assert total_epsilon(spent, 1e-6) == pytest.approx(theirs(1e-3), rel=1e-9)
    finer = theirs(3e-4)
    assert finer <= total_epsilon(spent, 1e-6) <= 1.001 * finer


def test_sampling_helps_and_steps_cost():
    assert epsilon(1.0, 0.05, 20, 1e-5) < epsilon(1.0, 0.1, 20, 1e-5) < epsilon(1.0, 0.1, 40, 1e-5)


def test_nothing_spent_and_no_noise():
    assert epsilon(1.0, 0.5, 0, 1e-5) == 0
    assert total_epsilon([], 1e-5) == 0
    assert epsilon(0.0, 0.5, 1, 1e-5) == math.inf
    assert total_epsilon([Spent(1.0, 0.5, 1), Spent(0.0, 0.5, 0)], 1e-5) < math.inf


def test_far_too_little_noise_is_answered_at_once():
    """A large number rather than minutes and gigabytes; Renyi's bound is never below the exact one."""
    exact = gaussian_epsilon(0.05, 1e-5)
    assert exact < epsilon(0.05, 1.0, 1, 1e-5) < 1.5 * exact


@pytest.mark.parametrize(
    "wrong", [(1.0, 0.0, 1, 1e-5), (1.0, 1.1, 1, 1e-5), (-1.0, 1, 1, 1e-5), (1.0, 1, 1, 1)]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected q in"):
        epsilon(*wrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((120, 8, 1.0), Sampling(8 / 120, 15)),
        ((10, 4, 1.0), Sampling(0.4, 3)),  # 10 / 4, rounded up
        ((10, 4, 0.1), Sampling(0.4, 1)),
        ((3, 8, 2.0), Sampling(1.0, 2)),  # a batch holds them all
    ],
)
def test_steps_and_probability_by_hand(given, expected):
    assert sampling(*given) == expected


def test_without_the_library_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match="pip install 'dp-accounting"):
        epsilon(1.0, 0.5, 1, 1e-5)


def test_settings_are_checked():
    assert PrivateConfig(clip=1, noise_multiplier=0, delta=1e-5).noise_multiplier == 0
    for wrong in ({"clip": 0}, {"noise_multiplier": -1}, {"delta": 0}, {"delta": 1}, {"noise": 1}):
        with pytest.raises(ValidationError):
            PrivateConfig(**{"clip": 1, "noise_multiplier": 1, "delta": 1e-5, **wrong})
