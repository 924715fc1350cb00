"""What fewer bytes cost: bytes and error of an update, and the time to pack and unpack it.

    OMP_NUM_THREADS=1 python benchmarks/quantize.py --out benchmarks/results/quantize.json

Updates are 1,000,000 values, normal or Student's t with 3 degrees of freedom (heavy tails). `error` is the L2
norm of what one round does not send, divided by that of the update; `error_after_rounds` is the same for the
sum of 10 updates, independent ones (`random`) or ten times the same (`steady`): what was kept is sent later.
`bytes_per_value` is counted on encoded messages, less that of an empty one. Times are the best of several.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cotune.codec import encode
from cotune.guarding import GuardParts, Sender, Update
from cotune.guards.quantize import Config, Quantize, build
from cotune.packing import norm
from cotune.records import Message, Round

ROUNDS = 10
PARTS = GuardParts(num_clients=10, cohort=10, minimum=1, num_rounds=ROUNDS)


def values_of(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(size) if kind == "normal" else rng.standard_t(3, size)
    return values.astype(np.float32)


def best(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    seconds, found = [], None
    for _ in range(repeats):
        began = time.perf_counter()
        found = function()
        seconds.append(time.perf_counter() - began)
    return min(seconds), found


def after_rounds(guard: Quantize, updates: list[np.ndarray]) -> float:
    """How far the sum of what was sent is from the sum of updates."""
    memo: Any = {}
    wanted, arrived = np.zeros(len(updates[0])), np.zeros(len(updates[0]))
    for index, values in enumerate(updates, 1):
        sender = Sender("client", Round(index, ROUNDS, 0, ("client",)), bytes(32), memo)
        sent, memo = guard.outgoing(Update({"x": values}), sender)
        wanted, arrived = wanted + values, arrived + sent.arrays["x"]
    return norm(wanted - arrived) / norm(wanted)


def case(config: Config, kind: str, size: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    guard, now = build(config, PARTS), Round(1, ROUNDS, 0, ("client",))
    values = values_of(kind, size, rng)
    update = Update({"x": values})
    outgoing, (sent, _) = best(lambda: guard.outgoing(update, Sender("client", now, bytes(32))), repeats)
    pack, packed = best(lambda: guard.pack(sent.arrays, now), repeats)
    unpack, found = best(lambda: guard.unpack(packed, now, {"x": values}), repeats)
    assert np.array_equal(found["x"], sent.arrays["x"])
    empty = len(encode(Message("client", 1, "tune")))
    steady = [values] * ROUNDS
    random = [values_of(kind, size, rng) for _ in range(ROUNDS)]
    return {
        "bits": config.bits,
        "keep": config.keep,
        "values": kind,
        "bytes_per_value": (len(encode(Message("client", 1, "tune", packed))) - empty) / size,
        "error": norm(values - sent.arrays["x"]) / norm(values),
        "error_after_rounds": {"random": after_rounds(guard, random), "steady": after_rounds(guard, steady)},
        "seconds": {"outgoing": outgoing, "pack": pack, "unpack": unpack},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    cases = []
    for kind in ("normal", "heavy"):
        for bits in (8, 4):
            for keep in (1.0, 0.1):
                found = case(Config(bits=bits, keep=keep), kind, given.size, given.repeats)
                cases.append(found)
                print(json.dumps(found), flush=True)
    record = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/quantize.py --size {given.size}",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__},
        "cases": cases,
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
