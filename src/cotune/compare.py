"""Several strategies on identical data: the two tables of FedCoLLM's paper, mean and spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from cotune import config as configs
from cotune import launch, misfits, plugins, report, whole
from cotune.changes import METRIC_NAMES
from cotune.config import Config, PluginSpec
from cotune.errors import ConfigError

ZERO_SHOT = "zero_shot"
FILE = "compare.json"


def compare(
    path: Path,
    overrides: Sequence[str],
    strategies: Sequence[str],
    num_seeds: int,
    where: tuple[Path | None, Console],
) -> dict[str, Any]:
    """Run every strategy with every seed, and tabulate held-out scores.

    A run that is already finished in the folder is taken as it is, an unfinished one is resumed: a comparison
    that was stopped goes on when it is started again with the same `--out`.

    Args:
        path: configuration; its strategy's options count for that strategy, the others have their defaults.
        overrides: `path=value` strings.
        strategies: names, in the order of the table.
        num_seeds: runs of each, with seed, seed + 1, ...
        where: folder (default `runs/compare-NAME-FINGERPRINT`) and console for progress.

    Returns:
        What stands in `compare.json`.

    Raises:
        ConfigError: a strategy is unknown or named twice; nothing was run.
    """
    base = configs.load(path, overrides)
    for name in strategies:
        plugins.module("strategy", name)
        misfits.refuse(_variant(base, name, base.seed))
    if not strategies or len(set(strategies)) < len(strategies):
        raise ConfigError(f"--strategies {','.join(strategies)!r}: name each strategy once, at least one.")
    folder = where[0] or Path("runs") / f"compare-{path.stem}-{configs.fingerprint(base)[:8]}"
    seeds = [base.seed + offset for offset in range(num_seeds)]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in strategies}
    for seed in seeds:
        for name in strategies:
            one = _variant(base, name, seed)
            results[name].append(_finished(one, folder / f"{name}-{seed}", where[1]))
    found = tabulate(results, seeds) | {"fingerprint": configs.fingerprint(base)}
    whole.write(folder / FILE, json.dumps(found, indent=2) + "\n")
    return found


def _variant(base: Config, name: str, seed: int) -> Config:
    """The same with another strategy; without an allocator where clients cannot be taught."""
    spec = base.strategy if name == base.strategy.name else PluginSpec(name=name)
    allocator = base.allocator if name in misfits.teachable() else None
    changes = {"seed": seed, "strategy": spec, "allocator": allocator}
    raw = base.model_copy(update=changes).model_dump(mode="json")
    return configs.from_dict(raw)


def _finished(config: Config, folder: Path, console: Console) -> dict[str, Any]:
    """Results of a run, done now unless they are there."""
    if (folder / launch.CONFIG).is_file():
        before = configs.load(folder / launch.CONFIG)
        if configs.fingerprint(before) != configs.fingerprint(config):
            raise ConfigError(f"{folder}: holds a run of another configuration. Give another --out.")
        if (folder / report.RESULTS).is_file():
            return report.read_results(folder)
    console.print(f"{config.strategy.name}, seed {config.seed}", style="bold", highlight=False)
    return launch.run(config, folder, console)


def tabulate(results: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean and spread (standard deviation over seeds) by model, method and task; `mean` is over tasks."""
    tables: dict[str, dict[str, Any]] = {"llm": {}, "slm": {}}
    for role, table in tables.items():
        for runs in results.values():
            measured = [run["metrics"][role] for run in runs if role in run["metrics"]]
            if measured and ZERO_SHOT not in table:
                table[ZERO_SHOT] = _column(measured, "before")
        for name, runs in results.items():
            measured = [run["metrics"][role] for run in runs if role in run["metrics"]]
            if measured:
                table[name] = _column(measured, "after")
    tasks = list(
        dict.fromkeys(t for table in tables.values() for c in table.values() for t in c if t != "mean")
    )
    seconds = {name: fmean(run["seconds"] for run in runs) for name, runs in results.items()}
    return {"seeds": list(seeds), "strategies": list(results), "tasks": tasks, **tables, "seconds": seconds}


def _column(measured: Sequence[Mapping[str, Any]], when: str) -> dict[str, Any]:
    by_task = {task: [score_of(run[task][when]) for run in measured] for task in measured[0]}
    n = {task: measured[0][task][when]["n"] for task in measured[0]}
    means = [fmean(values) for values in zip(*by_task.values(), strict=True)]
    cells = {task: {**_cell(values), "n": n[task]} for task, values in by_task.items()}
    return {**cells, "mean": {**_cell(means), "n": sum(n.values())}}


def score_of(numbers: Mapping[str, Any]) -> float:
    """The task's own metric: the first of these that is there."""
    return float(next(numbers[name] for name in METRIC_NAMES if name in numbers))


def _cell(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": fmean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }
