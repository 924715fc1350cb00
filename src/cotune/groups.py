"""Groups of points by density, and where each group's centre lies.

Paper: Campello et al. 2013 (HDBSCAN), https://doi.org/10.1007/978-3-642-37456-2_14, as scikit-learn has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cotune.errors import DataError

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]
Tick = Callable[[int, int], None]
"""Told how many points are grouped, of how many."""

CELL = 8_000
"""Points that are clustered in one go. HDBSCAN compares all pairs, so that more are first cut into cells."""
ROUNDING = 1e-5
"""Share of a squared distance that float32 features may differ by from one stack size to another."""


def density_groups(
    points: Floats, minimum: int, seed: int, tick: Tick = lambda *_: None
) -> tuple[Labels, npt.NDArray[np.float64]]:
    """HDBSCAN labels and memberships.

    More than `CELL` points are first cut into cells by bisecting k-means, and each cell is clustered on its
    own: the cost then grows with the number of points and no longer with its square; a group that lies across
    the border of two cells becomes two.

    Args:
        points: [n, dimensions], finite.
        minimum: points that make a group, 2 or more; HDBSCAN's `min_cluster_size`.
        seed: of the cut into cells; without it the result does not depend on chance.
        tick: told at the start, and after each cell.

    Returns:
        Labels [n], 0, 1, ... or -1 for noise; and memberships [n] from 0 to 1, 0 for noise. Fewer points than
        `minimum` are all noise; points that are all alike are one group.

    Raises:
        DataError: a value is not finite; says in which row.
    """
    check_finite(points)
    if len(points) < max(2, minimum):
        return np.full(len(points), -1), np.zeros(len(points))
    if (points == points[0]).all():
        return np.zeros(len(points), np.int64), np.ones(len(points))
    labels, weights = np.full(len(points), -1), np.zeros(len(points))
    taken = done = 0
    tick(0, len(points))
    for rows in _cells(points, seed):
        own, weights[rows] = _hdbscan(points[rows], minimum)
        labels[rows] = np.where(own < 0, -1, own + taken)
        taken += own.max(initial=-1) + 1
        done += len(rows)
        tick(done, len(points))
    return labels, weights


def centres(points: Floats, labels: Labels, weights: npt.NDArray[np.float64]) -> Floats:
    """Membership-weighted mean of each group, [groups, dimensions]; noise has none."""
    number = int(labels.max(initial=-1)) + 1
    inside = labels >= 0
    total = np.zeros((number, points.shape[1]))
    np.add.at(total, labels[inside], points[inside] * weights[inside, None])
    mass = np.bincount(labels[inside], weights[inside], number)
    found: Floats = (total / np.maximum(mass, 1e-12)[:, None]).astype(points.dtype)
    return found


def nearest(points: Floats, labels: Labels, to: Floats) -> Labels:
    """For each group the row of the member nearest to `to` [groups, dimensions]; the first one in a tie.

    Nearer by less than a rounding is a tie: the same rows read in stacks of another size differ by as much.
    """
    best = np.full(len(to), -1)
    distance = np.full(len(to), np.inf)
    for row in np.flatnonzero(labels >= 0).tolist():
        group = labels[row]
        away = float(np.square(points[row] - to[group]).sum())
        if away < distance[group] * (1 - ROUNDING):
            best[group], distance[group] = row, away
    return best


def check_finite(points: Floats) -> None:
    """Refuse features that cannot be compared.

    Raises:
        DataError: a value is not finite; says in which row.
    """
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(wrong):
        raise DataError(
            f"features: row {wrong[0]} (and {len(wrong) - 1} more) holds a value that is not finite; "
            "expected numbers. The model that made them overflowed: read in float32 (runtime.dtype) or name "
            "another model."
        )


def _cells(points: Floats, seed: int) -> list[Labels]:
    if len(points) <= CELL:
        return [np.arange(len(points))]
    from sklearn.cluster import BisectingKMeans

    number = -(-len(points) // (CELL // 2))
    cut = BisectingKMeans(number, random_state=seed, bisecting_strategy="largest_cluster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than cells
        labels = cut.fit_predict(points)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(labels, minlength=number))[:-1])
    return [part[start : start + CELL] for part in parts for start in range(0, len(part), CELL)]


def _hdbscan(points: Floats, minimum: int) -> tuple[Labels, npt.NDArray[np.float64]]:
    from sklearn.cluster import HDBSCAN

    if len(points) < max(2, minimum):
        return np.full(len(points), -1), np.zeros(len(points))
    found = HDBSCAN(min_cluster_size=max(2, minimum), copy=True).fit(points)
    return found.labels_.astype(np.int64), np.nan_to_num(found.probabilities_)
