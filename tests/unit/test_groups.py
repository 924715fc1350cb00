"""Groups by density: equal to the library's, defined at every edge, and linear for many points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN

from cotune import groups
from cotune.errors import DataError


def blobs(sizes, dimensions=4, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 4, (len(sizes), dimensions))
    topic = np.repeat(np.arange(len(sizes)), sizes)
    return (middles[topic] + rng.normal(0, spread, (len(topic), dimensions))).astype(np.float32), topic


def same_partition(one, other):
    """Whether two labelings mean the same groups."""
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def test_labels_are_those_of_the_library():
    points, _ = blobs([20, 15, 30, 9])
    labels, weights = groups.density_groups(points, 3, seed=0)
    found = HDBSCAN(min_cluster_size=3, copy=True).fit(points)
    np.testing.assert_array_equal(labels, found.labels_)
    np.testing.assert_allclose(weights, found.probabilities_)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_points_are_noise(number):
    labels, weights = groups.density_groups(np.ones((number, 3), np.float32), 2, seed=0)
    assert labels.tolist() == [-1] * number
    assert weights.tolist() == [0.0] * number


def test_points_that_are_all_alike_are_one_group():
    labels, weights = groups.density_groups(np.ones((7, 3), np.float32), 2, seed=0)
    assert labels.tolist() == [0] * 7
    assert weights.tolist() == [1.0] * 7


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_with_its_row(wrong):
    points = np.ones((5, 2))
    points[3, 1] = wrong
    with pytest.raises(DataError, match="row 3 "):
        groups.density_groups(points, 2, seed=0)


def test_centres_are_weighted_means():
    points = np.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0], [5.0, 1.0]])
    labels, weights = np.array([0, 0, -1, 1]), np.array([1.0, 0.5, 0.0, 1.0])
    np.testing.assert_allclose(groups.centres(points, labels, weights), [[2 / 3, 0.0], [5.0, 1.0]])


def test_the_nearest_member_is_a_member():
    points = np.array([[0.0], [1.0], [1.1], [4.0]])
    labels = np.array([0, 0, 1, 1])
    assert groups.nearest(points, labels, np.array([[1.05], [3.0]])).tolist() == [1, 3]


@given(st.integers(2, 40), st.integers(0, 1000))
def test_the_nearest_member_by_brute_force(number, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(number, 3))
    labels = np.unique(rng.integers(0, 4, number), return_inverse=True)[1]
    middle = groups.centres(points, labels, np.ones(number))
    for group, row in enumerate(groups.nearest(points, labels, middle)):
        distances = np.where(labels == group, np.square(points - middle[group]).sum(1), np.inf)
        assert distances[row] * (1 - groups.ROUNDING) <= distances.min()


@given(st.integers(0, 1000))
def test_of_two_equally_near_the_first_is_taken_whichever_way_they_were_rounded(seed):
    """Two members of a group are equally far from its centre but for the last bits of how they were read."""
    rng = np.random.default_rng(seed)
    points = np.repeat(rng.normal(size=(2, 64)), 2, axis=0)
    points[1::2] += 0.1
    labels = np.array([0, 0, 1, 1])
    for _ in range(5):
        read = (points * (1 + rng.normal(scale=1e-7, size=points.shape))).astype(np.float32)
        middle = groups.centres(read, labels, np.ones(4))
        assert groups.nearest(read, labels, middle).tolist() == [0, 2]


def test_many_points_are_cut_into_cells_and_topics_stay_together(monkeypatch):
    monkeypatch.setattr(groups, "CELL", 400)
    points, topic = blobs([40] * 50, dimensions=8, spread=0.01)
    labels, _ = groups.density_groups(points, 5, seed=0)
    assert (labels >= 0).mean() > 0.95
    pure = [len(set(topic[labels == group])) == 1 for group in range(labels.max() + 1)]
    assert np.mean(pure) > 0.9
    again, _ = groups.density_groups(points, 5, seed=0)
    np.testing.assert_array_equal(labels, again)


def test_no_cell_has_more_points_than_are_clustered_in_one_go(monkeypatch):
    """So the cost of all pairs is bounded for each cell, and grows with the number of cells."""
    monkeypatch.setattr(groups, "CELL", 300)
    sizes, hdbscan = [], groups._hdbscan
    monkeypatch.setattr(
        groups, "_hdbscan", lambda points, *more: sizes.append(len(points)) or hdbscan(points, *more)
    )
    groups.density_groups(np.random.default_rng(0).normal(size=(2000, 4)), 2, seed=0)
    assert max(sizes) <= 300
    assert sum(sizes) == 2000


def test_progress_is_told_at_the_start_and_after_each_cell(monkeypatch):
    monkeypatch.setattr(groups, "CELL", 300)
    told = []
    points = np.random.default_rng(0).normal(size=(1000, 4))
    groups.density_groups(points, 2, 0, lambda *at: told.append(at))
    assert told[0] == (0, 1000)
    assert told[-1] == (1000, 1000)
    assert len(told) > 4
    assert told == sorted(told)
