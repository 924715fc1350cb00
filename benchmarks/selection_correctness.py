"""Does FedHDS pick what it means to pick? Our two modes, and the index handling of the released code.

    python benchmarks/selection_correctness.py --out benchmarks/results/selection_correctness.json

Clients with examples of eight topics, features with noise, no model. Three shares: picks that are the example
the rule means; centres that travel with the number of their own group; and for two clients drawn from the
same topics, how often a centre's nearest centre of the other client has its topic. The released code reads
features through a shuffled loader and uses the rows of that order on the unshuffled data, and it sends centre
j with the label of example j (repository zhenqincn/FedHDS at 7a243cc); both are imitated here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cotune import groups
from cotune.models.embed import shared_basis
from cotune.selectors.fedhds import _layout

TOPICS, EACH, WIDTH = 8, 60, 512


def client(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [TOPICS * EACH, WIDTH] and topics, in random order."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(0, 1, (TOPICS, WIDTH))
    topic = rng.permutation(np.repeat(np.arange(TOPICS), EACH))
    return (middles[topic] + rng.normal(0, 0.5, (len(topic), WIDTH))).astype(np.float32), topic


def points_of(mode: str, features: np.ndarray, seed: int) -> np.ndarray:
    """Where the examples lie for the clustering."""
    if mode == "shared_basis":
        return features @ shared_basis(WIDTH, 16, 0)
    return _layout(features, np.random.default_rng(seed))


def meant(points: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> list[int]:
    """For each group the member nearest to its weighted centre, by trying all members one by one."""
    found = []
    for group in range(labels.max() + 1):
        members = np.flatnonzero(labels == group)
        centre = np.average(points[members], axis=0, weights=weights[members])
        found.append(min(members, key=lambda row, centre=centre: float(np.linalg.norm(points[row] - centre))))
    return found


def shares(mode: str, seed: int) -> dict[str, float]:
    """The three shares of one client, and of it with another one."""
    sides = []
    for number in (2 * seed + 1, 2 * seed + 2):
        features, topic = client(number)
        points = points_of(mode, features, number)
        labels, weights = groups.density_groups(points, 5, 0)
        middle = groups.centres(points, labels, weights)
        rows = groups.nearest(points, labels, middle)
        sides.append((topic, labels, middle, rows, points, weights))
    topic, labels, middle, rows, points, weights = sides[0]
    shuffled = np.random.default_rng(seed).permutation(len(topic))
    other = sides[1]
    nearest = np.square(middle[:, None] - other[2][None]).sum(-1).argmin(1)
    return {
        "groups": len(rows),
        "intended": float(np.mean(rows == meant(points, labels, weights))),
        "intended_released": float(np.mean(shuffled[rows] == rows)),
        "own_number_released": float(np.mean(labels[: len(rows)] == np.arange(len(rows)))),
        "topic_agreement": float(np.mean(topic[rows] == other[0][other[3]][nearest])),
    }


def main() -> None:
    """Several pairs of clients in both modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args()
    found: dict[str, object] = {"command": "python benchmarks/selection_correctness.py"}
    for mode in ("shared_basis", "paper"):
        rows = [shares(mode, seed) for seed in range(options.pairs)]
        found[mode] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        print(mode, found[mode], flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
