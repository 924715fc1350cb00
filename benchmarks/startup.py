"""How fast cotune starts: `--help`, `schema`, and the first training step of a cached model.

python benchmarks/startup.py --out benchmarks/results/startup.json

Whole processes, from start to end or to the first finished training step of the quickstart, without
held-out questions, because the evaluation before training takes as long as there are questions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

FIRST_STEP = """
import os
import sys
from cotune import cli, progress

hear = progress.Progress.hear

def watch(self, event, now):
    if event.phase == "tune" and event.done >= 1 and "loss_slm" in event.facts:
        os._exit(0)  # reached: what the interpreter tidies up afterwards is not waited for
    hear(self, event, now)

progress.Progress.hear = watch
none_held_out = [f"--set=data.sources.{i}.test_rows=0" for i in range(4)]
sys.argv = ["cotune", "run", "configs/quickstart.yaml", "--out", sys.argv[1] + "/run", *none_held_out]
cli.main()
sys.exit("no training step was made")
"""


def seconds(command: list[str]) -> float:
    """Wall time of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """All three, several times each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    found: dict[str, object] = {"command": "python benchmarks/startup.py"}
    for name in ("--help", "schema"):
        times = [seconds([str(Path(sys.executable).with_name("cotune")), name]) for _ in range(options.turns)]
        found[name] = {"median": median(times), "min": min(times), "max": max(times), "aim": 0.4}
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            times.append(seconds([sys.executable, "-c", FIRST_STEP, folder]))
    found["first_training_step"] = {"median": median(times), "min": min(times), "max": max(times), "aim": 10}
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
