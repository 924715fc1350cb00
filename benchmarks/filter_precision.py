"""LaDa's filter where the truth is known: how much of what it keeps is what a student can learn from.

    python benchmarks/filter_precision.py --seeds 6 --out benchmarks/results/filter_precision.json

The pool is made by reasoning-gym: ten kinds of problems, 30 of each. Three kinds are learnable for student A,
three others for student B, drawn anew with each seed; the filters see the questions' features under a real
model and nothing of the kinds. How the students learn is simulated: a step on a learnable item raises its
margin and the probe, on another item it lowers them, both under noise that is as large as the effect.
Random choice keeps 0.3. "swapped" trains each student's filter further with the other one's truth.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cotune import gym, plugins
from cotune.config import RuntimeConfig
from cotune.pool import Trained
from cotune.pool_view import ModelView
from cotune.readers import Readers
from cotune.records import Example, Round

KINDS = [
    "basic_arithmetic",
    "caesar_cipher",
    "course_schedule",
    "gcd",
    "leg_counting",
    "letter_counting",
    "spell_backward",
    "simple_geometry",
    "syllogism",
    "number_sequence",
]
EACH, LEARNABLE, ROUNDS = 30, 3, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="whose features the filters see")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    reader = Readers(options.model, RuntimeConfig(), print)(options.model)
    found = [one_seed(seed, reader) for seed in range(1, options.seeds + 1)]
    text = json.dumps({"model": options.model, "kinds": KINDS, "seeds": found}, indent=2)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")


def one_seed(seed: int, reader: Any) -> dict[str, Any]:
    """Precision by round for both students, and after the roles were changed."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(KINDS))
    kinds = np.repeat(np.arange(len(KINDS)), EACH)
    truth = {"A": np.isin(kinds, drawn[:LEARNABLE]), "B": np.isin(kinds, drawn[LEARNABLE : 2 * LEARNABLE])}
    pool = [
        Example(id=f"{kind}-{i}", prompt=row["question"], completion=f" {row['answer']}")
        for kind in KINDS
        for i, (_, row) in enumerate(gym.rows(f"gym:{kind}?size={EACH}&seed={seed}"))
    ]
    view = ModelView(pool, (), Round(1, ROUNDS, seed, ()), "", reader)
    allocator = plugins.load("allocator", "lada", {})
    found: dict[str, Any] = {}
    for student, fits in truth.items():
        other = truth["B" if student == "A" else "A"]
        memory, precisions, kept = learned(allocator, replace(view, owner=student), {}, fits)
        _, swapped, _ = learned(allocator, replace(view, owner=student), memory, other, ROUNDS)
        found[student] = {"precision": precisions, "kept": kept, "swapped": swapped}
    return {"seed": seed, **found}


def learned(
    allocator: Any, view: ModelView, memory: Any, fits: Any, before: int = 0
) -> tuple[Any, list[float], list[int]]:
    """Rounds of choosing and learning; the share of each choice that is learnable, and its size."""
    precisions, sizes = [], []
    for index in range(before + 1, before + ROUNDS + 2):
        now = replace(view, now=Round(index, 2 * ROUNDS + 1, view.now.seed, ()))
        rows = allocator.choose(now, memory).rows
        precisions.append(round(float(fits[rows].mean()), 4) if len(rows) else 0.0)
        sizes.append(len(rows))
        memory = allocator.learn(now, memory, trained(rows, fits, now.rng))
    return memory, precisions, sizes


def trained(rows: Any, fits: Any, rng: np.random.Generator, batch: int = 8) -> Trained:
    """What is seen while a student learns from these items."""
    order = rng.permutation(rows)
    signs = np.where(fits[order], 1.0, -1.0)
    batches = np.arange(len(order)) // batch
    gains = [signs[batches == number].mean() for number in range(batches[-1] + 1)] if len(order) else []
    probe = 1 / (1 + np.exp([0.0, -sum(gains)]))
    margins = 3 * signs + 3 * rng.standard_normal(len(order))
    log_probs = -signs + rng.standard_normal(len(order))
    return Trained(order, batches, margins, log_probs, probe)


if __name__ == "__main__":
    main()
