"""Epsilon against formulas and accountants that work another way; the budget; what a statement must say."""

from __future__ import annotations

import json
import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy.optimize import brentq
from scipy.stats import norm

from cotune.errors import ConfigError
from cotune.privacy import (
    Besides,
    Budget,
    Release,
    check_grid,
    noise_for,
    not_covered,
    releases_of,
    spent,
    widened,
    would_spend,
)

DELTA = 1e-5
ALL = tuple("abcdefghij")


def balle_wang(multiplier: float, delta: float) -> float:
    """Theorem 8 of Balle and Wang 2018, solved for epsilon."""

    def gap(epsilon: float) -> float:
        low, high = 0.5 / multiplier - epsilon * multiplier, -0.5 / multiplier - epsilon * multiplier
        return float(norm.cdf(low) - math.exp(epsilon) * norm.cdf(high)) - delta

    return float(brentq(gap, 0, 200, xtol=1e-12))


def of(*multipliers: float, cohort: tuple[str, ...] = ALL, sampled: int | None = None) -> list[Release]:
    return [Release(i, z, len(cohort), cohort, sampled) for i, z in enumerate(multipliers, 1)]


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 2.3, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_one_sum_costs_what_the_formula_says(multiplier, delta):
    assert spent(of(multiplier), delta) == pytest.approx(balle_wang(multiplier, delta), rel=1e-6)


def test_many_equal_sums_cost_what_one_with_less_noise_does():
    assert spent(of(*[3.0] * 9), DELTA) == pytest.approx(balle_wang(3.0 / 3, DELTA), rel=1e-6)


def test_sums_of_different_noise():
    """1/4 + 1/16 + 1/16 = 3/8."""
    assert spent(of(2.0, 4.0, 4.0), DELTA) == pytest.approx(balle_wang(math.sqrt(8 / 3), DELTA), rel=1e-6)


def test_the_ledger_agrees_with_dp_accountings_accountants():
    """The same events: a privacy loss distribution rounds up by a little, Renyi divergences are above it."""
    multipliers = [1.1, 1.1, 2.0, 0.9, 4.0]
    found = spent(of(*multipliers), DELTA)
    event = dp.ComposedDpEvent([dp.GaussianDpEvent(z) for z in multipliers])
    exact = pld.PLDAccountant(dp.NeighboringRelation.REPLACE_SPECIAL, 1e-3).compose(event).get_epsilon(DELTA)
    renyi = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL).compose(event)
    assert found <= exact == pytest.approx(found, abs=5e-3)
    assert found < renyi.get_epsilon(DELTA) < 1.1 * found


def test_a_client_pays_only_for_its_own_cohorts():
    releases = [
        Release(1, 1.0, 2, ("a", "b")),
        Release(2, 1.0, 2, ("c", "d")),
        Release(3, 1.0, 2, ("b", "c")),
    ]
    assert spent(releases, DELTA) == pytest.approx(balle_wang(1 / math.sqrt(2), DELTA), rel=1e-6)
    anybody = [*releases, Release(4, 1.0, 2)]
    assert spent(anybody, DELTA) == pytest.approx(balle_wang(1 / math.sqrt(3), DELTA), rel=1e-6)


def test_two_families_in_one_round_pay_apart():
    releases = [Release(1, 1.0, 2, ("a", "b"), digest="x"), Release(1, 1.0, 2, ("c", "d"), digest="y")]
    assert spent(releases, DELTA) == pytest.approx(balle_wang(1.0, DELTA), rel=1e-6)


def test_a_repeated_round_costs_nothing_if_its_sum_is_the_same_and_twice_if_not():
    first = Release(1, 1.0, 10, ALL, digest="x")
    assert spent([first, first], DELTA) == spent([first], DELTA)
    other = Release(1, 1.0, 9, ALL, digest="y")
    assert spent([first, other], DELTA) == pytest.approx(balle_wang(1 / math.sqrt(2), DELTA), rel=1e-6)
    unnamed = Release(1, 1.0, 10, ALL)
    assert spent([unnamed, unnamed], DELTA) == spent([first, other], DELTA)


def test_nothing_costs_nothing_and_no_noise_everything():
    assert spent([], DELTA) == 0
    assert spent(of(1.0, 0.0), DELTA) == math.inf
    assert would_spend(of(1.0), of(0.0)[0], DELTA) == math.inf
    assert math.isfinite(spent(of(0.01), DELTA))


def test_noise_for_an_epsilon_is_what_costs_it():
    for epsilon in (8.0, 3.0, 0.5):
        assert spent(of(*[noise_for(epsilon, DELTA, 5)] * 5), DELTA) == pytest.approx(epsilon, abs=1e-9)


def test_secret_samples_cost_what_dp_accounting_says_where_that_is_less():
    releases = of(*[1.0] * 50, sampled=1000)
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(1000, 10, dp.GaussianDpEvent(0.5))
    expected = accountant.compose(event, 50).get_epsilon(DELTA)
    assert spent(releases, DELTA) == pytest.approx(expected, rel=1e-9)
    assert expected < 0.5 * spent(of(*[1.0] * 50), DELTA)
    assert spent(of(1.0, sampled=11), DELTA) == spent(of(1.0), DELTA)  # hardly a sample: plain is less


def test_sampling_is_counted_only_where_it_helps_against_somebody():
    public, secret = Budget(1.0), Budget(1.0, secret_cohorts=1000)
    assert public.release(1, ALL, 10).sampled_from is None
    assert secret.release(1, ALL, 10).sampled_from == 1000
    assert secret.release(1, ALL, 9).sampled_from is None  # who stayed away says something of who was asked
    with pytest.raises(ConfigError, match="no gain from sampling"):
        Budget(1.0, shares=9, secret_cohorts=1000)


def test_a_release_survives_json():
    release = Release(3, 1.25, 9, ("a", "b"), 100, "abc")
    assert Release.of(json.loads(json.dumps(release.as_facts()))) == release


def run(budget: Budget, rounds: range, records: list[dict]) -> list[dict]:
    """Rounds as a session does them, until the budget stops them; everything goes through JSON."""
    for index in rounds:
        if budget.allows(records, index, ALL):
            break
        release = budget.release(index, ALL, 9, f"digest {index}")
        records.append(json.loads(json.dumps({"round": index, "privacy": budget.record(records, [release])})))
    return records


@pytest.mark.parametrize("shares", [None, 9])
def test_the_budget_stops_before_the_round_that_would_exceed_it(shares):
    budget = Budget(2.0, DELTA, 4.0, shares, minimum=9)
    affordable = max(k for k in range(20) if k == 0 or balle_wang(2.0 / math.sqrt(k), DELTA) <= 4.0)
    assert affordable == 3
    records = run(budget, range(1, 20), [])
    assert [record["round"] for record in records] == [1, 2, 3]
    assert records[-1]["privacy"]["epsilon"] == pytest.approx(balle_wang(2.0 / math.sqrt(3), DELTA))
    reason = budget.allows(records, 4, ALL)
    assert reason.startswith("round 4 could bring epsilon from 3.")
    assert "above max_epsilon 4" in reason


def test_the_budget_survives_a_resume():
    budget = Budget(2.0, DELTA, 4.0)
    before = run(budget, range(1, 3), [])
    assert len(before) == 2
    again = Budget(2.0, DELTA, 4.0)
    assert run(again, range(3, 20), before) == run(Budget(2.0, DELTA, 4.0), range(1, 20), [])


def test_clients_that_have_not_paid_may_go_on():
    budget = Budget(2.0, DELTA, 4.0)
    records = run(budget, range(1, 20), [])
    assert budget.allows(records, 4, ("somebody", "else")) is None
    assert budget.allows(records, 4, ("a", "else"))
    assert budget.allows(records, 4, ())


def test_the_budget_reckons_with_the_fewest_replies():
    """4 of 16 shares have half the noise: 1.0 costs above 4, although 2.0 would not."""
    assert balle_wang(2.0, DELTA) < 4.0 < balle_wang(1.0, DELTA)
    assert Budget(2.0, DELTA, 4.0, 16, minimum=16).allows([], 1, ALL * 2) is None
    assert "round 1" in Budget(2.0, DELTA, 4.0, 16, minimum=4).allows([], 1, ALL * 2)
    assert Budget(2.0, DELTA, None, 16, minimum=4).allows([], 1, ALL * 2) is None


def test_too_few_replies_are_recorded_with_the_noise_they_had():
    budget = Budget(2.0, DELTA, None, 16)
    facts = budget.record([], [budget.release(1, ALL, 4)])
    assert facts["epsilon"] == pytest.approx(balle_wang(1.0, DELTA))
    assert facts["releases"][0]["noise_multiplier"] == 1.0


def test_a_sum_without_noise_is_no_number_in_json():
    budget = Budget(0.0)
    facts = budget.record([], [budget.release(1, ALL, 10)])
    assert facts["epsilon"] is None
    assert "not protected" in budget.statement([{"privacy": facts}], Besides())


def test_rounds_without_a_sum_cost_nothing():
    assert releases_of([{"round": 0}, {"round": 1, "privacy": None}, {"privacy": {"releases": []}}]) == []


def test_rounding_that_lengthens_updates_is_counted():
    """(0.05, 0.05, 0.05, 0.05) rounds to steps of 0.1 as four times 0.1: 0.1 longer, sqrt(4) half steps."""
    assert widened(0.1, 4, 1.0) == pytest.approx(1.1)
    assert widened(0.1, 4, 0.5, is_random=True) == pytest.approx(1.4)
    rng = np.random.default_rng(0)
    for _ in range(100):
        update = rng.normal(size=50)
        update *= 0.7 / np.linalg.norm(update)
        rounded = np.rint(update / 0.05) * 0.05
        assert np.linalg.norm(rounded) <= 0.7 * widened(0.05, 50, 0.7)
    assert Budget(1.1, widening=1.1).release(1, ALL, 10).noise_multiplier == pytest.approx(1.0)


def lattice_delta(deviation: float, shift: float, offsets: tuple[float, ...], epsilon: float) -> float:
    """delta of the sum of rounded shares: exact, by convolution of the chances of whole numbers."""
    wide = np.arange(-60, 61)

    def chances(value: float) -> np.ndarray:
        return np.diff(norm.cdf((np.append(wide, 61) - 0.5 - value) / deviation))

    others = np.ones(1)
    for offset in offsets:
        others = np.convolve(others, chances(offset))
    with_it, without = np.convolve(others, chances(shift)), np.convolve(others, chances(0.0))
    both = [(with_it, without), (without, with_it)]
    return max(float(np.maximum(p - math.exp(epsilon) * q, 0).sum()) for p, q in both)


@pytest.mark.parametrize("shift", [3.3, 5.0, 8.5])
@pytest.mark.parametrize("offsets", [(0.37, -1.21), (0.5, 0.5), (0.0, 0.0)])
def test_rounded_shares_are_as_private_as_a_rounded_sum_on_a_fine_grid(shift, offsets):
    """Step 1, each of 3 shares of deviation 2: the exact delta is not above that of the Gaussian."""
    multiplier = 2.0 * math.sqrt(3) / shift
    for epsilon in (0.5, 2.0, 4.0):
        low, high = 0.5 / multiplier - epsilon * multiplier, -0.5 / multiplier - epsilon * multiplier
        gaussian = norm.cdf(low) - math.exp(epsilon) * norm.cdf(high)
        assert lattice_delta(2.0, shift, offsets, epsilon) <= gaussian + 1e-12


def test_rounded_shares_on_a_coarse_grid_are_not_and_the_grid_is_refused():
    """Shares of deviation 0.2 on steps of 1 vanish, so that 0.9 and 0 are told apart as 1 and 0 are."""
    multiplier, epsilon = 0.2 * math.sqrt(3) / 0.9, 3.0
    low, high = 0.5 / multiplier - epsilon * multiplier, -0.5 / multiplier - epsilon * multiplier
    gaussian = norm.cdf(low) - math.exp(epsilon) * norm.cdf(high)
    assert lattice_delta(0.2, 0.9, (0.0, 0.0), epsilon) > 1.4 * gaussian
    with pytest.raises(ConfigError, match="at most half"):
        check_grid(1.0, 0.1)
    with pytest.raises(ConfigError, match="at most half"):
        check_grid(1.0, 1.99)
    check_grid(1.0, 2.0)


def test_what_is_not_covered_follows_from_what_was_sent():
    assert not_covered(Besides()) == ["who is asked, who replies and who fails"]
    assert not_covered(Besides(["tune"])) == not_covered(Besides())
    actions = ["select/0/propose", "select/12/pick", "teach/exchange", "evaluate", "tune", "dance"]
    found = not_covered(Besides(actions, losses=True, example_counts=True, audits=["rse", "canary"]))
    for words in ("centres", "reasoning paths", "scores", "'dance'", "losses", "audit of canary"):
        assert sum(words in one for one in found) == 1, words
    assert sum("how many examples" in one for one in found) == 1
    assert not any("rse" in one or "tune" in one for one in found)
    assert any("how many examples" in one for one in not_covered(Besides(example_counts=True)))


@pytest.mark.parametrize("action", ["upload", "select/0/share", "teach/choose", "teach/learn"])
def test_every_other_action_is_named(action):
    assert len(not_covered(Besides([action]))) == 2


def test_the_statement_is_one_sentence_with_all_that_matters():
    budget = Budget(1.5, DELTA, None, shares=18, corrupt=1, away=2, minimum=18)
    releases = [budget.release(index, ALL * 2, 19) for index in (1, 2)]
    records = [{"privacy": budget.record([], releases)}]
    found = budget.statement(records, Besides(["evaluate"]), is_simulated=True)
    assert found.endswith(".")
    assert ". " not in found
    assert (
        f"epsilon {math.ceil(100 * balle_wang(1.5 / math.sqrt(2), DELTA)) / 100:.2f} at delta 1e-05" in found
    )
    for words in (
        "One client's whole data",
        "zeros",
        "clients in equal shares",
        "1 of a round's clients may tell",
        "2 may stay",
    ):
        assert words in found
    for words in ("follows the protocol", "no gain from sampling", "simulation", "not covered", "scores"):
        assert words in found
    central = Budget(1.5).statement(records, Besides())
    assert "the server is trusted" in central
    assert "simulation" not in central


def test_a_missing_library_is_named_with_its_cure(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'dp-accounting"):
        spent(of(1.0), DELTA)
