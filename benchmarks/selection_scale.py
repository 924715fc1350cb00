"""How FedHDS's two clusterings grow: centres on the server, cached features on one client.

    python benchmarks/selection_scale.py --out benchmarks/results/selection_scale.json

No model: points of 16 dimensions in clusters of about 40, with some in no cluster, which are harder than
separated ones. Each size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZES = (1_000, 10_000, 100_000, 200_000, 1_000_000)


def points(number: int, seed: int = 0) -> np.ndarray:
    """[number, 16] float32: four of five in clusters of about 40, the rest anywhere."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 1, (max(2, number // 50), 16))
    found = middles[rng.integers(len(middles), size=number)] + rng.normal(0, 0.1, (number, 16))
    loose = rng.random(number) < 0.2
    found[loose] = rng.normal(0, 1.2, (int(loose.sum()), 16))
    return found.astype(np.float32)


def server(number: int) -> int:
    """Reconcile `number` centres of clients that each sent five; returns how many groups won."""
    from cotune.protocols import SelectorParts
    from cotune.records import Message, Round
    from cotune.selectors import fedhds

    selector = fedhds.build(fedhds.Config(), SelectorParts(lambda _: None, 1))
    every = points(number)
    facts = {"groups": list(range(5)), "total": 75, "model": "m"}
    sent = [
        Message(f"c{i}", 1, "propose", {"centres": every[i : i + 5]}, facts) for i in range(0, number - 4, 5)
    ]
    return sum(len(won) for won in selector.reconcile(sent, Round(1, 1, 7, ())).values())


def client(number: int) -> int:
    """Group `number` feature vectors of one client and find each group's example; returns the groups."""
    from cotune import groups

    features = points(number)
    labels, weights = groups.density_groups(features, 2, 0)
    return len(groups.nearest(features, labels, groups.centres(features, labels, weights)))


def measure(which: str, number: int) -> dict[str, float]:
    """One size in this process."""
    began = time.perf_counter()
    found = {"server": server, "client": client}[which](number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"points": number, "groups": found, "seconds": time.perf_counter() - began, "peak_bytes": peak}


def main() -> None:
    """All sizes, or one of them for the parent process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--largest", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    found: dict[str, object] = {"command": "python benchmarks/selection_scale.py"}
    for which in ("server", "client"):
        rows = []
        for number in (size for size in SIZES if size <= options.largest):
            command = [sys.executable, __file__, "--one", which, str(number)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(which, rows[-1], flush=True)
        found[which] = rows
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
