"""The fault matrix: what is done to a run, and whether it ends as documented.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --out benchmarks/results/faults.json --table docs/faults.md

`--embedded` and `--deployed` run one half, and keep what the files say of the other; `--only WORD` runs the
embedded cells whose name holds the word. Processes are forked from one that has imported everything and
computed nothing, which saves the seconds of importing.
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
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: threads would not survive the fork
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fault_deployed
from fault_cells import (
    ASKED,
    EVERYTHING,
    HOW_IT_FAILED,
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
from fault_deployed import Oracle
from fault_parties import Trial, free_ports, through
from rich.console import Console

import tiny
from cotune import config as configs
from cotune import deploy_party, launch, report, subject
from cotune.errors import CotuneError
from cotune.federation import Federation

EMBEDDED = """
Each cell is a real run of a tiny model in a process of its own: a federated selector, an allocator, co-tuning
and audits, three clients, three rounds. The process ends itself (SIGKILL), or is denied something, at a named
place of round 2; the run is then resumed in another process and compared with one that nothing stopped: lines
of rounds.jsonl, results.json (both without times and memory), adapters, and every file that the server and
the clients keep, byte by byte. Where steps of the round were finished, nobody may be asked for them again.
"""
DEPLOYED = """
Four deployments of a tiny model on loopback, TLS on: a SuperLink, the server's process, and for each of
three clients a SuperNode and the process that answers. In three of them somebody is killed (SIGKILL) up to
three times a round, each time in the phase that `status.json` names; `server` is the process that runs the
federation, `client` all processes of a client's machine, `both` these together. What was killed is started
again as its start script does. Each round and the end must be those of an embedded run that nothing stopped:
lines of rounds.jsonl and results.json (without times, memory, traffic and attempts, as what is lost is sent
again), adapters, and the clients' own files. In the fourth, where a client is late after 30 s, one client is
cut off, halted or away; each round must end, name it, and be full once it is back. What a cut swallows is
never sent again by TCP, as its connections are closed at the end of the cut. The end must be that of an
embedded run in which the client sent nothing in the same rounds. Seconds are those from the blow until the
run went on, with all that had to start again; in the fourth deployment those from the end of the absence to
the end of the first full round.
"""
PARTS = {"embedded": ("One process", EMBEDDED), "deployed": ("A process for every party", DEPLOYED)}
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


def differences(
    one: Path,
    other: Path,
    ignored: frozenset[str] = frozenset(),
    parts: Collection[str] = ("adapters", "clients", "server"),
) -> str:
    """The first thing in which two runs differ; empty if they are equal. `parts`: folders of them."""
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
    for part in parts:
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

    def raw(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration, as `start` uses it."""
        return tiny.raw_config(self.folder / "small", **self._with_few(options))

    def prepare(self) -> None:
        """The models."""
        (self.folder / "small").mkdir()
        subject.ENCODER = "./none"  # looked for in no hub; answers are compared by the tiny model itself
        assert in_process(lambda: tiny.raw_config(self.folder / "small"), self.folder / "small.log") == 0

    def compare_with(self, runs: Sequence[tuple[str, Mapping[str, Any], Fault | None]]) -> None:
        """Make runs that others are compared with."""
        for name, options, fault in runs:
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


def embedded(bench: Bench, only: str) -> list[dict[str, Any]]:
    """Rows of the cells in which a run has one process."""
    bench.compare_with([
        ("whole", EVERYTHING, None),
        ("half", EVERYTHING, partial(at, Federation, "begin", "before", round=WHEN - 1)),
        ("plain", PLAIN, None),
        ("silent", PLAIN, fails("crashed")),
    ])  # fmt: skip
    cells, found = [c for c in (*killings(), *endings(), *strangers()) if only in c.name], []
    for number, cell in enumerate(cells, start=1):
        found.append(bench.judge(number, cell))
        _tell(found[-1])
    return found


def deployed(bench: Bench, only: str) -> list[dict[str, Any]]:
    """Rows of the cells in which every party has processes of its own. Nothing is left of them, whatever
    happens."""
    chosen = {name: raw for name, raw in fault_deployed.OPTIONS.items() if only in f"deployed, {name}"}
    runs = {name: kills for name, kills in fault_deployed.KILLS.items() if name in chosen}
    bench.compare_with([(name, fault_deployed.OPTIONS[name], fault_deployed.one_by_one) for name in runs])
    stop, trials = threading.Event(), {}
    port = free_ports(4 * len(chosen) + 1)
    for name, options in chosen.items():
        first = port + 4 * len(trials)
        folder = bench.folder / f"deployed-{len(trials)}"
        trials[name] = Trial(configs.from_dict(bench.raw(options)), folder, first, stop)
    slow = trials.get("slow")
    wire = through(slow, fault_deployed.CLIENT, port + 4 * len(trials)) if slow else None
    oracles = {name: Oracle(bench.folder / name, differences, _plain_line) for name in trials}

    def kills(name: str) -> list[dict[str, Any]]:
        return fault_deployed.killed(trials[name], runs[name], name, oracles[name])

    began = time.monotonic()
    with deploy_party.Stopping(), ThreadPoolExecutor() as pool:
        try:
            waiting = [pool.submit(kills, name) for name in runs]
            waiting += [pool.submit(fault_deployed.cut_off, slow, wire)] if slow and wire else []
            while not all(one.done() for one in waiting):
                time.sleep(0.5)
            rows = [row for one in waiting for row in one.result()]
        finally:
            stop.set()
            for trial in trials.values():
                trial.stop()
            if wire:
                wire.close()
    if slow:
        silent = fault_deployed.silent_in(fault_deployed.hurt(slow))
        bench.compare_with([("slow", chosen["slow"], silent)])
        ignored = HOW_IT_FAILED | fault_deployed.RESENT
        rows.append(fault_deployed.ended(slow, "deployed, slow: the end", oracles["slow"], ignored, began))
    for row in rows:
        _tell(row)
    return rows


def _plain_line(line: Any) -> Any:
    return without(line, TIMES | fault_deployed.RESENT)


def _tell(row: Mapping[str, Any]) -> None:
    said = f"{row['seconds']:5.1f} s  {row['cell']}: {row['happened']}"
    print(f"{'ok ' if row['ok'] else 'NO '} {said}", flush=True)


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The matrix as a page."""
    rows = [row for part in parts.values() for row in part["rows"]]
    seconds = sum(part["seconds"] for part in parts.values())
    lines = [
        "# Faults: what is done to a run, and how it ends",
        "",
        f"{sum(row['ok'] for row in rows)} of {len(rows)} cells end as documented. Made by `make faults` in "
        f"{seconds:.0f} s; the same as JSON: `benchmarks/results/faults.json`.",
    ]
    for name, (title, words) in PARTS.items():
        if name not in parts:
            lines += ["", f"## {title}: not run to its end yet", "", words.strip()]
            continue
        found = parts[name]["rows"]
        fine = sum(row["ok"] for row in found)
        lines += ["", f"## {title}: {fine} of {len(found)} cells, {parts[name]['seconds']} s", ""]
        lines += [words.strip(), ""]
        lines += [
            "| cell | what happened | expected | as documented | s |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in found:
            is_fine = "yes" if row["ok"] else "**no**"
            cells = (row["cell"], row["happened"], row["expected"], is_fine, row["seconds"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _known(path: Path | None) -> dict[str, Any]:
    """What the file says of each part."""
    found = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    return dict(found.get("parts", {}))


def _amended(known: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A part in which some cells were run again; the others stay as they were."""
    again = {row["cell"]: row for row in rows}
    kept = [again.pop(row["cell"], row) for row in known["rows"]]
    return {**known, "rows": [*kept, *again.values()]}


def main() -> None:
    """All cells, or some of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--table", type=Path, help="Markdown")
    parser.add_argument("--embedded", action="store_true", help="only runs that have one process")
    parser.add_argument("--deployed", action="store_true", help="only runs whose parties have processes")
    parser.add_argument(
        "--only", default="", help="cells, or deployments, whose name holds this; others stay"
    )
    parser.add_argument("--keep", type=Path, help="leave the runs in this new folder")
    options = parser.parse_args()
    chosen = [name for name in PARTS if getattr(options, name)] or list(PARTS)
    parts = _known(options.out)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        os.environ["COTUNE_CACHE"] = str(folder / "cache")
        bench = Bench(folder)
        bench.prepare()
        for name in chosen:
            began = time.monotonic()
            rows = embedded(bench, options.only) if name == "embedded" else deployed(bench, options.only)
            if not rows:
                sys.exit(f"--only {options.only!r}: no such cell or deployment among the {name} ones")
            part = {"seconds": round(time.monotonic() - began), "rows": rows}
            parts[name] = _amended(parts[name], rows) if options.only and name in parts else part
    rows = [row for name in PARTS for row in parts.get(name, {"rows": []})["rows"]]
    fine = sum(row["ok"] for row in rows)
    summary = {"command": "make faults", "cells": len(rows), "ok": fine, "parts": parts}
    if options.out:
        options.out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if options.table:
        options.table.write_text(table(parts), encoding="utf-8")
    found = [row for name in chosen for row in parts[name]["rows"]]
    print(f"{sum(row['ok'] for row in found)} of {len(found)} cells end as documented")
    sys.exit(not all(row["ok"] for row in found))


if __name__ == "__main__":
    main()
