"""The fault matrix: what is done to a run, and whether it ends as documented.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --out benchmarks/results/faults.json --table docs/faults.md

`--only WORD` runs the cells whose name holds the word. Processes are forked from one that has imported
everything and computed nothing, which saves the seconds of importing.

Each cell is a real run of a tiny model in a process of its own: a federated selector, an allocator, co-tuning
and audits, three clients, three rounds. The process ends itself (SIGKILL), or is denied something, at a named
place of round 2; the run is then resumed in another process and compared with one that nothing stopped: lines
of rounds.jsonl, results.json (both without times and memory), adapters, and every file that the server and
the clients keep, byte by byte. Where steps of the round were finished, nobody may be asked for them again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: threads would not survive the fork
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fault_cells import (
    ASKED,
    EVERYTHING,
    PLAIN,
    WHEN,
    Cell,
    Fault,
    at,
    endings,
    fails,
    follow,
    killings,
    strangers,
)
from rich.console import Console

import tiny
from cotune import launch, report, subject
from cotune.errors import CotuneError
from cotune.federation import Federation

LIMIT_SECONDS = 120
TIMES = frozenset({
    "seconds", "phases", "seconds_longest", "seconds_tuning", "saved_seconds", "tune_seconds",
    "epoch_seconds", "peak_memory_bytes", "versions", "cut", "notes",
})  # fmt: skip
"""Keys that tell of the process, not of the result; `cut` and `notes` count from the last start on."""
LIKE = {"whole": "that nothing stopped", "plain": "that nothing befell", "silent": "in which it sent nothing"}


def without(value: Any, keys: frozenset[str]) -> Any:
    """A JSON value without some keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(one, keys) for key, one in value.items() if key not in keys}
    return [without(one, keys) for one in value] if isinstance(value, list) else value


def differences(one: Path, other: Path, ignored: frozenset[str] = frozenset()) -> str:
    """The first thing in which two runs differ; empty if they are equal."""
    ignored = ignored | TIMES
    lines = [[without(r, ignored) for r in report.read_rounds(folder)] for folder in (one, other)]
    for first, second in zip(*lines, strict=False):
        odd = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        if odd:
            return f"round {first['round']}: other {', '.join(odd)}"
    if len(lines[0]) != len(lines[1]):
        return f"{len(lines[1])} rounds, not {len(lines[0])}"
    found = [without(report.read_results(folder), ignored) for folder in (one, other)]
    odd = [key for key in found[0] if found[0][key] != found[1].get(key)]
    if odd:
        return f"results.json: other {', '.join(odd)}"
    for part in ("adapters", "clients", "server"):
        trees = [
            {p.relative_to(f): p.read_bytes() for p in (f / part).rglob("*") if p.is_file()}
            for f in (one, other)
        ]
        trees = [{p: data for p, data in tree.items() if p.suffix != ".part"} for tree in trees]
        odd = [str(path) for path in {**trees[0], **trees[1]} if trees[0].get(path) != trees[1].get(path)]
        if odd:
            return f"{part}: other {sorted(odd)[0]}"
    return "" if (other / report.PAGE).is_file() else "no report"


def in_process(do: Callable[[], Any], log: Path) -> int:
    """Do something in a process of its own; its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        _child(do, log)
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


def _child(do: Callable[[], Any], log: Path) -> None:
    number, code = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 0
    os.dup2(number, 1)
    os.dup2(number, 2)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    try:
        do()
    except CotuneError as error:
        print(f"cotune: {error}")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


@dataclass(frozen=True)
class Bench:
    """Where the runs are made."""

    folder: Path

    def start(self, name: str, options: Mapping[str, Any], fault: Fault | None = None) -> int:
        """Start a run with a fault; the exit code."""

        def do() -> None:
            out = self.folder / name
            os.environ["RUN"] = str(out)
            config = out.with_suffix(".yaml")
            config.write_text(tiny.write_config(self.folder / "small", **self._with_few(options)).read_text())
            follow()
            if fault:
                fault()
            launch.start(config, [], out, Console(stderr=True))
            (self.folder / "modules").write_text("\n".join(sys.modules))

        return in_process(do, self.folder / f"{name}.log")

    def resume(self, name: str, fault: Fault | None = None) -> int:
        """Resume it; the exit code."""

        def do() -> None:
            os.environ["RUN"] = str(self.folder / name)
            follow()
            if fault:
                fault()
            launch.resume(self.folder / name, Console(stderr=True))

        return in_process(do, self.folder / f"{name}.log")

    def _with_few(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fewer public items: most of the time goes into paths about them."""
        sources = tiny.raw_config(self.folder / "small")["data"]["sources"]
        return {"data__sources": [{**source, "public_rows": 3} for source in sources], **options}

    def prepare(self) -> None:
        """The models, and the runs that others are compared with."""
        (self.folder / "small").mkdir()
        subject.ENCODER = "./none"  # looked for in no hub; answers are compared by the tiny model itself
        assert in_process(lambda: tiny.raw_config(self.folder / "small"), self.folder / "small.log") == 0
        for name, options, fault in (
            ("whole", EVERYTHING, None),
            ("half", EVERYTHING, partial(at, Federation, "begin", "before", round=WHEN - 1)),
            ("plain", PLAIN, None),
            ("silent", PLAIN, fails("crashed")),
        ):
            code = self.start(name, options, fault)
            if code != (-signal.SIGKILL if name == "half" else 0):
                sys.exit(f"{name}: exit code {code}\n{(self.folder / f'{name}.log').read_text()}")
            self._import_what_it_did()

    def _asked_again(self, name: str, cell: Cell) -> str:
        """Whether clients were asked for what had been recorded when the process was killed."""
        path = self.folder / name / ASKED
        tries = path.read_text().split("start\n")[1:] if path.is_file() else []
        again = [action for actions in tries[1:] for action in actions.split() if action in cell.finished]
        return f"asked again: {', '.join(again)}" if again else ""

    def _import_what_it_did(self) -> None:
        """Modules that a run imports late, so that the next process finds them imported."""
        path = self.folder / "modules"
        for name in path.read_text().split() if path.is_file() else ():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        path.unlink(missing_ok=True)

    def judge(self, number: int, cell: Cell) -> dict[str, Any]:
        """Run a cell; what happened, and whether that is what is documented."""
        name, began = f"cell-{number:03d}", time.monotonic()
        if cell.is_early:
            codes, wanted = [self.start(name, cell.options, cell.fault)], list(cell.codes)
        else:
            shutil.copytree(self.folder / "half", self.folder / name)
            codes, wanted = [self.resume(name, cell.fault)], list(cell.codes)
        try:
            problem = cell.check(self.folder / name)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if cell.again:
            codes.append(self.resume(name, cell.again))
            wanted.append(cell.again_code)
        if codes[-1]:
            codes.append(self.resume(name))
            wanted.append(0)
        problem = problem or self._asked_again(name, cell)
        if codes != wanted:
            problem = f"exit codes {codes}, not {wanted}"
        elif not problem and cell.like:
            problem = differences(self.folder / cell.like, self.folder / name, cell.ignored)
        ended = ", then ".join(map(_ended, codes))
        alike = f"equal to the run {LIKE[cell.like]}" if cell.like else ""
        return {
            "cell": cell.name,
            "happened": "; ".join(filter(None, (ended, problem or alike))),
            "expected": cell.expected,
            "ok": not problem,
            "seconds": round(time.monotonic() - began, 1),
        }


def _ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def table(found: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """The matrix as a page."""
    fine = sum(row["ok"] for row in found)
    lines = [
        "# Faults: what is done to a run, and how it ends",
        "",
        f"{fine} of {len(found)} cells end as documented. Made by `make faults` in {seconds:.0f} s; "
        "the same as JSON: `benchmarks/results/faults.json`.",
        "",
        __doc__.strip().split("\n\n")[-1],
        "",
        "| cell | what happened | expected | as documented | s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found:
        is_fine = "yes" if row["ok"] else "**no**"
        cells = (row["cell"], row["happened"], row["expected"], is_fine, row["seconds"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """All cells, or some of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--table", type=Path, help="Markdown")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--keep", type=Path, help="leave the runs in this new folder")
    options = parser.parse_args()
    cells = [c for c in (*killings(), *endings(), *strangers()) if options.only in c.name]
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        os.environ["COTUNE_CACHE"] = str(folder / "cache")
        bench = Bench(folder)
        bench.prepare()
        for number, cell in enumerate(cells, start=1):
            row = bench.judge(number, cell)
            found.append(row)
            print(
                f"{'ok ' if row['ok'] else 'NO '} {row['seconds']:5.1f} s  {cell.name}: {row['happened']}",
                flush=True,
            )
    seconds = time.monotonic() - began
    fine = sum(row["ok"] for row in found)
    summary = {
        "command": "make faults",
        "cells": len(found),
        "ok": fine,
        "seconds": round(seconds),
        "rows": found,
    }
    if options.out:
        options.out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if options.table:
        options.table.write_text(table(found, seconds), encoding="utf-8")
    print(f"{fine} of {len(found)} cells end as documented, {seconds:.0f} s")
    sys.exit(fine != len(found))


if __name__ == "__main__":
    main()
