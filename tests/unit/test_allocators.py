"""Allocators that learn nothing: each does what its card says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cotune import plugins
from cotune.allocators.uncertainty import uncertainties
from cotune.pool import Attempts
from pools import pool

LOSSES = arrays.arrays(
    np.float64, st.tuples(st.just(2), st.integers(0, 20)), elements=st.floats(0, 9) | st.just(math.nan)
)


def chosen(name, view, **options):
    return plugins.load("allocator", name, options).choose(view, {})


def gap(losses, **options):
    losses = np.asarray(losses, np.float64)
    return chosen("loss_gap", pool(losses.shape[1], losses_=losses), **options)


def doubt(answers, steps=(), **options):
    return chosen("uncertainty", pool(len(answers), attempts=Attempts(answers, steps)), **options)


def test_everything_takes_everything():
    assert chosen("everything", pool(4)).rows.tolist() == [0, 1, 2, 3]


def test_random_keeps_its_share_and_draws_anew_in_every_round():
    found = [chosen("random", pool(50, round=round)).rows.tolist() for round in (1, 1, 2)]
    assert len(found[0]) == 15
    assert found[0] == found[1] != found[2]
    assert len(chosen("random", pool(50), keep=0.5).rows) == 25


def test_random_gives_every_item_the_same_chance():
    drawn = np.concatenate([chosen("random", pool(10, seed=seed)).rows for seed in range(500)])
    assert np.allclose(np.bincount(drawn) / 500, 0.3, atol=0.07)


def test_the_gap_keeps_what_the_peer_predicts_strictly_better_widest_first():
    found = gap([[1.0, 2.0, 3.0, 1.0, math.nan], [0.9, 2.0, 1.0, 4.0, 0.0]])
    assert found.rows.tolist() == [2, 0]
    assert np.allclose(found.scores, [0.1, 0, 2, -3, math.nan], equal_nan=True)


@given(losses=LOSSES)
def test_the_gap_is_its_definition_and_two_equal_models_teach_each_other_nothing(losses):
    own, peer = losses
    assert set(gap(losses).rows.tolist()) == {i for i in range(len(own)) if peer[i] < own[i]}
    assert not len(gap([own, own]).rows)


@given(losses=LOSSES)
def test_no_item_teaches_both_sides(losses):
    ours, theirs = gap(losses).rows, gap(losses[::-1]).rows
    assert not set(ours.tolist()) & set(theirs.tolist())


def test_the_gap_can_be_capped_and_bears_losses_without_end():
    losses = [np.full(10, 5.0), np.arange(10.0)]
    assert gap(losses).rows.tolist() == [0, 1, 2, 3, 4]
    assert gap(losses, most=0.2).rows.tolist() == [0, 1]
    assert gap([[math.inf, math.inf, 1.0], [1.0, math.inf, math.inf]]).rows.tolist() == [0]


def test_uncertainty_is_the_entropy_of_answers_plus_that_along_the_way():
    answers = [["A", "A", "A", "A"], ["A", "B", "A", "B"], ["A", "B", "C", None]]
    steps = [np.array([[0.5, 0.5], [1.0, 0.0]]), np.zeros((0, 2)), np.array([[0.25, 0.25, 0.5]])]
    log2 = math.log(2)
    # u2 = 0, log 2, log 4; u1 = (log 2 + 0) / 2, none, 1.5 log 2
    assert np.allclose(uncertainties(Attempts(answers, steps), 3), [0.5 * log2, log2, 3.5 * log2])
    assert np.allclose(uncertainties(Attempts(answers), 3), [0, log2, 2 * log2])
    assert doubt(answers, steps, keep=0.67).rows.tolist() == [2, 1]


def test_a_student_that_always_says_the_same_is_certain():
    sure = np.array([[0.0, 1.0, 0.0]] * 4)
    found = doubt([["B"] * 5, [None] * 5, ["C"]], [sure] * 3)
    assert found.scores.tolist() == [0, 0, 0]
    assert not np.signbit(found.scores).any()


def test_items_that_are_equally_uncertain_are_drawn_and_not_taken_from_the_start():
    firsts = set()
    for seed in range(20):
        view = pool(10, seed=seed, attempts=Attempts([["A"]] * 10))
        rows = chosen("uncertainty", view, keep=0.2).rows.tolist()
        assert len(rows) == 2
        firsts.add(rows[0])
    assert len(firsts) > 3


def test_uncertainty_never_takes_more_than_its_share_nor_what_has_no_score():
    wild = np.array([[math.nan, 1.0]])
    found = doubt([["A"], ["A"], ["A"]], [wild, wild, np.array([[0.5, 0.5]])], keep=1)
    assert found.rows.tolist() == [2]
    assert len(doubt([["A", "B"]] * 10).rows) == 3


@pytest.mark.parametrize("name", ["random", "uncertainty"])
def test_an_empty_pool_and_one_item(name):
    assert [len(chosen(name, pool(n)).rows) for n in (0, 1)] == [0, 1]
