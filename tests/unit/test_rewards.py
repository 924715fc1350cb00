"""Rewards: numbers worked out by hand, and the signs that the relatives of the paper got wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cotune.errors import RunError
from cotune.pool import Trained
from cotune.rewards import (
    Rule,
    appeal,
    batch_levels,
    minmax,
    parts,
    preference,
    progress,
    rewards,
    sigmoid,
)
from pools import trained

FINITE = st.floats(-1e4, 1e4)
DEFAULT = Rule(alpha=0.5)
ITSELF, BATCH = Rule(alpha=1.0), Rule(alpha=0.0, source="batches")


def reward(found: Trained, rule: Rule = DEFAULT, last: float | None = None) -> Any:
    return rewards(parts(found, rule, last)[0], rule)


def one_batch(p: float) -> Trained:
    """A batch whose items all have the preference probability p, with beta 1."""
    return trained([0, 1], [math.log(p / (1 - p))] * 2)


def test_the_preference_is_a_sigmoid_of_the_margin():
    found = preference(np.array([0.0, 10.0, -10.0]), 0.1)
    assert np.allclose(found, [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


@given(margins=arrays.arrays(np.float64, 5, elements=FINITE), beta=st.floats(0.01, 2))
def test_swapped_roles_negate_the_margin_and_leave_the_rest_of_the_probability(margins, beta):
    assert np.allclose(preference(margins, beta) + preference(-margins, beta), 1, atol=1e-12)


def test_a_probability_is_exact_where_it_is_small():
    assert math.isclose(sigmoid(np.array([-300.0]))[0], math.exp(-300))
    assert sigmoid(np.array([-1e6, 1e6])).tolist() == [0.0, 1.0]


def test_a_batch_is_the_mean_of_its_items():
    found = trained([4, 5, 6], [0.0, math.log(3), math.log(9)], batches=[0, 0, 1])
    # p = 1/2, 3/4 | 9/10
    assert np.allclose(batch_levels(found, Rule(beta=1.0)), [0.625, 0.9])
    # exp(+loss) = 1 / p = 2, 4/3 | 10/9
    literal = Rule(beta=1.0, loss_sign="exp_pos", source="batches")
    assert np.allclose(batch_levels(found, literal), [5 / 3, 10 / 9])


def test_progress_is_relative_to_the_larger_of_two_neighbours():
    assert np.allclose(progress(np.array([0.5, 0.75, 0.6]), None), [0, 1 / 3, -0.2])
    assert np.allclose(progress(np.array([0.5, 0.75]), 0.4), [0.2, 1 / 3])
    assert progress(np.zeros(2), 0.0).tolist() == [0, 0]


@given(p=st.floats(0.01, 0.98), gain=st.floats(0.005, 0.01))
def test_the_reward_rises_when_the_preference_probability_rises(p, gain):
    rule = Rule(alpha=0.5, beta=1.0, source="batches")
    better, worse = one_batch(p + gain), one_batch(p - gain / 2)
    assert reward(better, rule, last=p)[0] > reward(one_batch(p), rule, last=p)[0]
    assert reward(worse, rule, last=p)[0] < reward(one_batch(p), rule, last=p)[0]


def test_an_improvement_of_probability_from_a_half_to_six_tenths_counts_as_one():
    # (0.6 - 0.5) / 0.6 = 1/6
    found = reward(one_batch(0.6), Rule(alpha=0.0, beta=1.0, source="batches"), last=0.5)
    assert np.allclose(found, 1 / (1 + math.exp(-1 / 6)))


def test_the_literal_sign_rewards_what_made_the_model_worse():
    literal = Rule(alpha=0.0, beta=1.0, loss_sign="exp_pos", source="batches")
    levels = [batch_levels(one_batch(p), literal)[0] for p in (0.5, 0.6)]
    assert np.allclose(levels, [2, 5 / 3])
    assert reward(one_batch(0.6), literal, last=2.0)[0] < 0.5 < reward(one_batch(0.4), literal, last=2.0)[0]


def test_the_probe_is_used_where_it_was_measured_and_the_rule_allows():
    found = trained([1, 2, 3], [0.0, 0.0, 50.0], batches=[0, 1, 1], probe=[0.5, 0.4])
    assert np.allclose(reward(found, Rule(alpha=0.0)), 1 / (1 + math.exp(0.2)))  # of the whole round
    literal = reward(found, BATCH)
    assert literal[0] == 0.5
    assert literal[1] == literal[2] > 0.5
    assert np.array_equal(reward(trained([1], [3.0]), Rule(alpha=0.0)), [0.5])


def test_the_first_batch_goes_on_from_the_last_one_of_the_round_before():
    rule = Rule(alpha=0.0, beta=1.0, source="batches")
    _, last = parts(one_batch(0.5), rule, None)
    assert math.isclose(last, 0.5)
    found = trained([0, 1], [math.log(4), math.log(1)], batches=[0, 1])
    again, last = parts(found, rule, last)
    # (0.8 - 0.5) / 0.8 and (0.5 - 0.8) / 0.8
    assert np.allclose(rewards(again, rule), sigmoid(np.array([0.375, -0.375])))
    assert math.isclose(last, 0.5)


def test_an_item_appeals_by_a_high_margin_and_an_unlikely_path_within_its_batch():
    found = trained([0, 1, 2, 3], [1.0, 3.0, 2.0, 9.0], [-1.0, -3.0, -2.0, -7.0], [0, 0, 0, 1])
    assert np.allclose(appeal(found), [0, 1, 0.5, 0.5])  # alone in its batch: a half
    mixed = trained([0, 1, 2], [0.0, 4.0, 1.0], [-2.0, -2.0, -2.0])
    assert np.allclose(appeal(mixed), [0.25, 0.75, 0.375])


def test_an_item_is_scaled_over_all_records_or_within_its_batch_as_printed():
    first = trained([0, 1], [0.0, 2.0], [-1.0, -1.0])
    second = trained([2, 3], [8.0, 10.0], [-1.0, -1.0])  # another round, in which all are better
    known = parts(second, ITSELF, None)[0].after(parts(first, ITSELF, None)[0])
    assert np.allclose(rewards(known, ITSELF), sigmoid(np.array([0.25, 0.35, 0.65, 0.75])))
    printed = Rule(alpha=1.0, scaled="batch")
    assert np.allclose(rewards(known, printed), sigmoid(np.array([0.25, 0.75, 0.25, 0.75])))


def test_alpha_weighs_the_item_against_its_batch():
    found = trained([0, 1, 2], [1.0, 3.0, 2.0], [-1.0, -3.0, -2.0], probe=[0.5, 0.6])
    itself, batch = sigmoid(np.array([0, 1, 0.5])), np.full(3, sigmoid(np.array([1 / 6]))[0])
    assert np.allclose(reward(found, ITSELF), itself)
    assert np.allclose(reward(found, Rule(alpha=0.0)), batch)
    assert np.allclose(reward(found, Rule(alpha=0.25)), 0.25 * itself + 0.75 * batch)


@given(
    values=arrays.arrays(
        np.float64, st.integers(0, 9), elements=st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_minmax_reaches_from_0_to_1_or_is_a_half(values):
    found = minmax(values)
    assert len(found) == len(values)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found == 0.5).all() or (found.min(), found.max()) == (0, 1)


@given(
    margins=arrays.arrays(np.float64, 6, elements=FINITE),
    log_probs=arrays.arrays(np.float64, 6, elements=st.floats(-50, 0)),
    alpha=st.floats(0, 1),
    sign=st.sampled_from(["exp_neg", "exp_pos"]),
)
def test_rewards_lie_between_what_the_two_sigmoids_can_say(margins, log_probs, alpha, sign):
    found = trained(range(6), margins, log_probs, [0, 0, 1, 1, 1, 4])
    rule = Rule(alpha=alpha, loss_sign=sign, source="batches")
    known, last = parts(found, rule, None)
    earned = rewards(known, rule)
    assert ((earned > 0.268) & (earned < 0.732)).all()
    assert math.isfinite(last)


@pytest.mark.parametrize("name", ["margins", "log_probs"])
def test_what_is_not_a_number_is_refused_with_its_row(name):
    values = {"margins": [0.0, 0.0], "log_probs": [0.0, 0.0]} | {name: [0.0, np.nan]}
    with pytest.raises(RunError, match=r"pool row 7 .*is nan.*lower its tune.lr"):
        reward(trained([3, 7], **values))


@pytest.mark.parametrize("probe", [[0.5], [0.5, 0.5, 0.5], [0.5, np.inf]])
def test_a_probe_that_is_not_a_number_before_and_one_after_is_refused(probe):
    with pytest.raises(RunError, match="expected a number before the round and one after it"):
        reward(trained([3, 7], [0.0, 0.0], batches=[0, 1], probe=probe))
