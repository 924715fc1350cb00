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
import sys
from pathlib import Path
from cotune import build, config, session

class Done(Exception):
    pass

def listen(event):
    if event.phase == "tune" and event.done >= 1 and "loss_slm" in event.facts:
        raise Done

ones = [f"data.sources.{i}.test_rows=0" for i in range(4)]
ready = build.session(config.load(Path("configs/quickstart.yaml"), ones), Path(sys.argv[1]), listen)
try:
    session.run(ready, Path(sys.argv[1]))
except Done:
    pass
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
        times = [seconds([sys.executable, "-m", "cotune", name]) for _ in range(options.turns)]
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
