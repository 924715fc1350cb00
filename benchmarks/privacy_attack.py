"""Membership inference on masked sums with distributed noise: how well can one tell that a client took part?

    OMP_NUM_THREADS=1 python benchmarks/privacy_attack.py --out benchmarks/results/privacy_attack.json

The worst case: the attacker sees the opened sum of every round, knows every other client's update and what
the client in question would have sent (always the same direction, at the full clipping norm), but nobody's
secret. Half of the trials have the client's updates in them, half have zeros in their place. By Neyman and
Pearson nothing beats the projection of all sums on the client's updates; a threshold is chosen on half of the
trials and measured on the other half.

Updates go through the real guard and the real fixed-point sum modulo 2^bits. A masked sum opens to exactly
that, so the masks are left out. As many clients reply as the noise is calibrated for, and no more. The case
without noise shows that the attack works where it can.

Bound on the advantage (true minus false positives) of any attack under (epsilon, delta):
(e^epsilon - 1 + 2 delta) / (e^epsilon + 1); of the Gaussian mechanism it really is, 2 Phi(1 / (2 z)) - 1.
`epsilon_at_least` is the largest epsilon that the measured rates rule out, at 95 percent.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta, norm

from cotune.fixed_point import Grid
from cotune.guarding import GuardParts, Sender, Update
from cotune.guards.clip_noise import ClipNoise, Config, build
from cotune.privacy import check_grid, noise_for, spent
from cotune.records import Round

CLIP = 1.0
DROPOUT = 0.1
BITS = 32
TAIL = 0.0125
"""Both tails of both rates together leave 95 percent."""


def guard_for(epsilon: float | None, delta: float, size: argparse.Namespace) -> ClipNoise:
    """The guard with which a client in all rounds pays epsilon; None: no noise."""
    multiplier = noise_for(epsilon, delta, size.rounds) if epsilon else 0.0
    config = Config(clip=CLIP, noise_multiplier=multiplier, where="distributed", delta=delta, dropout=DROPOUT)
    fewest = math.ceil((1 - DROPOUT) * size.clients)
    return build(config, GuardParts(size.clients, size.clients, fewest, size.rounds, is_masked=True))


def observed(how: ClipNoise, victim: np.ndarray | None, size: argparse.Namespace, rng: Any) -> float:
    """The attacker's statistic in one trial: the sums, less what it knows, on the victim's direction."""
    direction = np.ones(size.values, np.float32) / math.sqrt(size.values)
    total = 0.0
    grid = Grid(BITS, how.bound, size.clients)
    for index in range(1, size.rounds + 1):
        known = rng.normal(size=(how.shares - 1, size.values)).astype(np.float32)
        known /= np.linalg.norm(known, axis=1, keepdims=True)  # at the clipping norm, as is the victim's
        updates = [np.zeros_like(direction) if victim is None else victim, *known]
        words = np.zeros(size.values, np.uint32)
        for number, update in enumerate(updates):
            sender = Sender(f"client-{number}", Round(index, size.rounds, 7, ()), rng.bytes(32))
            sent, _ = how.outgoing(Update({"x": update}), sender)
            words += grid.encode(sent.arrays["x"])
        total += float((grid.decode(words) - known.sum(axis=0, dtype=np.float64)) @ direction)
    return total


def best_threshold(member: np.ndarray, other: np.ndarray) -> float:
    """The threshold with the largest advantage."""
    values = np.sort(np.concatenate([member, other]))
    gains = [(member >= value).mean() - (other >= value).mean() for value in values]
    return float(values[int(np.argmax(gains))])


def rate(hits: int, n: int) -> tuple[float, float, float]:
    """A share with its exact interval."""
    low = float(beta.ppf(TAIL, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - TAIL, hits + 1, n - hits)) if hits < n else 1.0
    return hits / n, low, high


def case(epsilon: float | None, size: argparse.Namespace, rng: Any) -> dict[str, Any]:
    """Trials with and without the victim, and what the attack makes of them."""
    how = guard_for(epsilon, size.delta, size)
    grid = Grid(BITS, how.bound, size.clients)
    if epsilon:
        check_grid(grid.step, how.deviation)
    victim = np.full(size.values, 100.0, np.float32)  # far too long: it is clipped
    member = np.array([observed(how, victim, size, rng) for _ in range(size.trials)])
    other = np.array([observed(how, None, size, rng) for _ in range(size.trials)])
    half = size.trials // 2
    threshold = best_threshold(member[:half], other[:half])
    found, n = (member[half:] >= threshold, other[half:] >= threshold), size.trials - half
    (tpr, tpr_low, tpr_high), (fpr, fpr_low, fpr_high) = (rate(int(hits.sum()), n) for hits in found)
    facts: dict[str, Any] = {
        "noise_multiplier": how.config.noise_multiplier,
        "true_positives": tpr,
        "false_positives": fpr,
        "advantage": {"value": tpr - fpr, "low": tpr_low - fpr_high, "high": tpr_high - fpr_low},
    }
    if not epsilon:
        return facts
    released = [how.budget.release(index, ("victim",), how.shares) for index in range(1, size.rounds + 1)]
    stated = spent(released, size.delta)
    multiplier = how.config.noise_multiplier / math.sqrt(size.rounds)
    odds = [(tpr_low - size.delta, fpr_high), (1 - fpr_high - size.delta, 1 - tpr_low)]
    bound = (math.exp(stated) - 1 + 2 * size.delta) / (math.exp(stated) + 1)
    return facts | {
        "epsilon": stated,
        "bound": bound,
        "bound_of_this_mechanism": float(2 * norm.cdf(0.5 / multiplier) - 1),
        "epsilon_at_least": max(0.0, *(math.log(a / b) for a, b in odds if a > 0 and b > 0)),
        "keeps_the_bound": bool(tpr_high - fpr_low <= bound),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="with the client, and again without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--values", type=int, default=64)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    size = parser.parse_args()
    rng, began = np.random.default_rng(size.seed), time.perf_counter()
    cases = {f"epsilon {size.epsilon:g}": case(size.epsilon, size, rng), "no noise": case(None, size, rng)}
    settings = {name: value for name, value in vars(size).items() if name != "out"}
    text = json.dumps(
        {"settings": settings, "cases": cases, "seconds": time.perf_counter() - began}, indent=1
    )
    print(text)
    if size.out:
        size.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
