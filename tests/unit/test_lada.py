"""LaDa's filter: the start by clusters, the thresholds, and that it finds what can be learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from cotune import plugins
from cotune.allocators.lada import clustered, inputs, kept, parting, per_cluster
from cotune.errors import DataError, RunError
from cotune.models import bandit
from cotune.rewards import PARTS, Rule, minmax, parts, rewards
from pools import FakeView, Party, pool, same, trained, two_kinds


def lada(**options):
    return plugins.load("allocator", "lada", options)


def learned(n=30, options=None, seed=0):
    """Memory after one round."""
    allocator = lada(**{"epochs": 2, **(options or {})})
    rows = allocator.choose(pool(n), {}).rows
    return allocator.learn(pool(n, seed=0), {}, Party(np.arange(n) % 3 == 0).train(rows, seed))


@given(
    scores=arrays.arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1)),
    threshold=st.floats(0, 0.99),
)
def test_between_a_tenth_and_six_tenths_of_the_pool_teach(scores, threshold):
    rows, n = kept(scores, threshold, 0.1, 0.6), len(scores)
    assert max(1, math.ceil(0.1 * n - 1e-9)) <= len(rows) <= max(1, math.floor(0.6 * n + 1e-9))
    assert (np.diff(scores[rows]) <= 0).all()
    left = np.setdiff1d(np.arange(n), rows)
    assert not len(left) or scores[rows].min() >= scores[left].max()
    above = int((scores > threshold).sum())
    assert len(rows) == above or not 0.1 * n <= above <= 0.6 * n


def test_the_threshold_is_above_not_at():
    scores = np.array([0.5, 0.9, 0.51, 0.2, 0.0, 0.1, 0.3, 0.4, 0.5, 0.5])
    assert kept(scores, 0.5, 0.1, 0.6).tolist() == [1, 2]
    assert kept(np.zeros(10), 0.5, 0.1, 0.6).tolist() == [0]
    assert len(kept(np.ones(10), 0.5, 0.1, 0.6)) == 6
    assert kept(np.zeros(1), 0.5, 0.1, 0.6).tolist() == [0]


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(RunError, match=r"score of pool row 1 is nan.*lower allocator.epochs"):
        kept(np.array([0.1, np.nan]), 0.5, 0.1, 0.6)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_clusters_give_the_budget_exactly_and_each_one_if_it_reaches(sizes, share, seed):
    likeness = np.random.default_rng(seed).uniform(-1, 1, len(sizes))
    budget = math.ceil(share * sum(sizes))
    taken = per_cluster(likeness, np.array(sizes), budget)
    assert taken.sum() == budget
    assert (taken <= sizes).all()
    assert taken.min() >= 1 if budget >= len(sizes) else taken.max() <= 1


def test_clusters_give_in_proportion_to_their_likeness():
    sizes = np.full(4, 100)
    assert per_cluster(np.array([0.6, 0.3, 0.1, -0.5]), sizes, 40).tolist() == [23, 12, 4, 1]
    assert per_cluster(np.zeros(4), sizes, 40).tolist() == [10] * 4
    # the first has only 3; what it cannot give goes to the next two, in proportion
    assert per_cluster(np.array([0.6, 0.2, 0.1, 0.0]), np.array([3, 100, 100, 100]), 34).tolist() == [
        3, 20, 10, 1,
    ]  # fmt: skip


def blobs(seed=0, each=20, centres=3):
    """Groups far apart, [centres * each, 6], and whose is whose."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(centres), each)
    x = 20 * np.eye(centres, 6)[owner] + rng.standard_normal((len(owner), 6)) + 100
    return x.astype(np.float32), owner


def test_a_client_starts_with_what_is_like_its_own_data_and_the_server_with_all_alike():
    x, owner = blobs()
    own = x[owner == 1][:5] + 0.1
    now = FakeView(x, own)
    rows = lada(clusters=3).choose(now, {}).rows
    assert np.bincount(owner[rows], minlength=3).tolist() == [1, 16, 1]
    rows = lada(clusters=3).choose(FakeView(x), {}).rows
    assert np.bincount(owner[rows]).tolist() == [6, 6, 6]


def test_the_nearest_to_a_centre_are_taken_and_the_nearest_of_each_cluster_come_first():
    x, owner = blobs()
    rows = clustered(x, x[:0], 9, 3, np.random.default_rng(0))
    assert sorted(owner[rows[:3]]) == sorted(owner[rows[3:6]]) == [0, 1, 2]
    moved = x - x.mean(axis=0)
    directions = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    for group in range(3):
        inside = np.flatnonzero(owner == group)
        away = np.square(directions[inside] - directions[inside].mean(axis=0)).sum(axis=1)
        assert set(inside[np.argsort(away)[:3]]) == set(rows[owner[rows] == group])


def test_the_start_takes_three_tenths_rounded_up_and_has_no_scores():
    for n in (1, 2, 7, 10, 61):
        found = lada().choose(pool(n), {})
        assert len(found.rows) == math.ceil(0.3 * n - 1e-9)
        assert np.isnan(found.scores).all()


def test_a_pool_with_fewer_items_than_clusters_or_none_that_differ():
    assert len(lada(clusters=50).choose(pool(10), {}).rows) == 3
    alike = np.ones((40, 5), np.float32)
    assert len(lada().choose(FakeView(alike), {}).rows) == 12
    assert len(lada().choose(FakeView(alike, alike[:3]), {}).rows) == 12
    two = np.repeat(np.eye(2, 5, dtype=np.float32), 20, axis=0)
    rows = lada().choose(FakeView(two), {}).rows
    assert np.bincount(rows // 20).tolist() == [6, 6]


def test_of_items_that_are_all_alike_the_bounds_still_hold():
    allocator = lada(epochs=1)
    now = FakeView(np.ones((40, 5), np.float32))
    memory = allocator.learn(now, {}, trained([0, 1], [1.0, 2.0]))
    found = allocator.choose(now, memory)
    assert np.isfinite(found.scores).all()  # rounding may tell them apart
    assert 4 <= len(found.rows) <= 24


def test_an_empty_pool_chooses_nothing():
    found = lada().choose(pool(0), {})
    assert (len(found.rows), len(found.scores)) == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_contexts_that_are_not_numbers_are_refused(bad):
    now = pool(30)
    now.contexts_[4, 2] = bad
    for remembered in ({}, {"rows": np.arange(2)}):
        with pytest.raises(DataError, match="row 4"):
            lada().choose(now, remembered)
    with pytest.raises(DataError, match="row 4"):
        lada().learn(now, {}, trained([0], [0.0]))
    own = np.full((2, 12), bad, np.float32)
    with pytest.raises(DataError, match="row 0"):
        lada().choose(pool(30, own_data_=own), {})


def test_the_networks_see_contexts_around_zero_and_of_size_one():
    x = inputs(FakeView(1000 * np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) + 7e3))
    assert np.allclose(x.mean(axis=0), 0, atol=1e-5)
    assert math.isclose(np.square(x).mean(), 1, rel_tol=1e-4)


def test_what_is_remembered_is_every_record_the_last_batch_and_both_networks():
    allocator, memory, seen = lada(epochs=1, alpha_reward=0.5), {}, []
    known = last = None
    for round in (1, 2, 3):
        records = Party(np.arange(30) % 2 == 0).train(np.arange(round, round + 9), round)
        new, last = parts(records, Rule(), last)
        known = new.after(known) if known else new
        seen.append(records.rows)
        memory = allocator.learn(pool(30, round=round), memory, records)
    assert memory["rows"].tolist() == np.concatenate(seen).tolist()
    assert np.array_equal(memory["rewards"], rewards(known, Rule(alpha=0.5)))
    assert memory["last"].tolist() == [last]
    names = {name.split(".")[0] for name in memory}
    assert names == {"rows", "rewards", *PARTS, "last", "exploit", "explore"}


def test_the_scores_are_those_of_the_networks_from_0_to_1():
    memory, now = learned(), pool(30, round=2)
    for weight in (0.0, 0.1, 2.0):
        found = lada(lambda_explore=weight).choose(now, memory)
        assert np.array_equal(found.scores, minmax(bandit.score(memory, inputs(now), weight)))
        assert (found.scores.min(), found.scores.max()) == (0, 1)


def made(records, rule):
    return rewards(parts(records, rule, None)[0], rule)


def test_options_reach_the_reward():
    records = Party(np.arange(30) % 2 == 0).train(np.arange(20), 0)
    batchwise = learned(options={"alpha_reward": 0.0, "reward_from": "batches"})["rewards"]
    assert len(set(batchwise.tolist())) <= 2  # one value a batch of 8: 9 records
    itself = lada(alpha_reward=1.0, epochs=1).learn(pool(30), {}, records)["rewards"]
    assert np.allclose(itself, made(records, Rule(alpha=1.0)))
    batch = {"alpha_reward": 0.6, "scaled": "batch"}
    printed = lada(epochs=1, **batch).learn(pool(30), {}, records)["rewards"]
    assert np.allclose(printed, made(records, Rule(0.6, scaled="batch")))
    literal = {"loss_sign": "exp_pos", "reward_from": "batches", "beta": 0.7, "alpha_reward": 0.2}
    found = lada(epochs=1, **literal).learn(pool(30), {}, records)["rewards"]
    assert np.allclose(found, made(records, Rule(0.2, 0.7, "exp_pos", "batches")))


def test_options_that_contradict_each_other_are_refused():
    config = plugins.config_class("allocator", "lada")
    with pytest.raises(ValidationError, match=r"least is 0.7 and most 0.6"):
        config(least=0.7)
    with pytest.raises(ValidationError, match=r"exp_pos is made of batches; set reward_from to batches"):
        config(loss_sign="exp_pos")
    with pytest.raises(ValidationError, match=r"batches count nothing while alpha_reward is 1; set it below"):
        config(reward_from="batches")


def test_it_reads_a_probe_only_where_its_reward_does():
    assert "probe" not in lada().needs
    assert "probe" in lada(alpha_reward=0.5).needs
    assert "probe" not in lada(alpha_reward=0.5, reward_from="batches").needs


def test_the_same_seed_makes_the_same_filter_and_another_one_another():
    allocator = lada(epochs=1)
    records = Party(np.arange(30) % 2 == 0).train(np.arange(9), 1)
    found = [allocator.learn(FakeView(pool(30).contexts_, seed=seed), {}, records) for seed in (3, 3, 4)]
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def rounds(seed, role=1, num_rounds=3, **options):
    """Share of the items that fit among those chosen after some rounds, and the share chosen."""
    x, fits = two_kinds(80, 0.3, seed)
    allocator, party, memory = lada(**options), Party(fits, role), {}
    for round in range(1, num_rounds + 1):
        rows = allocator.choose(FakeView(x, seed=seed, round=round), memory).rows
        memory = allocator.learn(
            FakeView(x, seed=seed + 50, round=round), memory, party.train(rows, seed + round)
        )
    rows = allocator.choose(FakeView(x, seed=seed, round=num_rounds + 1), memory).rows
    return fits[rows].mean(), len(rows) / len(x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_three_rounds_it_finds_what_can_be_learned_and_random_does_not(seed):
    precision, share = rounds(seed)
    assert precision >= 0.8
    assert share >= 0.2
    x, fits = two_kinds(80, 0.3, seed)
    drawn = [plugins.load("allocator", "random", {}).choose(FakeView(x, seed=s), {}).rows for s in range(50)]
    assert abs(np.mean([fits[rows].mean() for rows in drawn]) - 0.3) < 0.05


def test_swapped_roles_swap_the_choice():
    assert rounds(0, role=-1)[0] <= 0.1


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_either_part_of_the_reward_alone_is_better_than_chance(alpha):
    assert rounds(0, alpha_reward=alpha)[0] >= 0.45


@settings(max_examples=40)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=30))
def test_the_parting_is_the_cut_that_leaves_least_variance_within(values):
    scores = np.array(values, float) / 50

    def within(cut):
        sides = (scores[scores > cut], scores[scores <= cut])
        return sum(len(side) * side.var() for side in sides if len(side))

    assert within(parting(scores)) <= min(within(cut) for cut in scores) + 1e-9


def test_two_groups_are_parted_between_them_and_equal_scores_are_one():
    assert parting(np.array([0.0, 0.3, 0.58, 0.5, 0.9, 1.0])) == 0.58
    assert parting(np.full(4, 0.7)) == 0.7
    assert len(kept(np.r_[np.zeros(60), 0.3 * np.ones(10), 0.95 * np.ones(30)], None, 0.1, 0.6)) == 30
