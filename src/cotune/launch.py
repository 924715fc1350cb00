"""Start and resume runs: folders, signals, the live view, and the files around a session."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from cotune import config as configs
from cotune import report, whole
from cotune.config import Config
from cotune.errors import ConfigError, CotuneError, Interrupted, Paused, RunError
from cotune.live import live
from cotune.parties import Parties
from cotune.progress import Plan
from cotune.records import Event, Listener
from cotune.waiting import watched

CONFIG = "config.yaml"


def start(path: Path, overrides: Sequence[str], out: Path | None, console: Console) -> dict[str, Any]:
    """A new run.

    Args:
        path: configuration file.
        overrides: `path=value` strings.
        out: folder that does not exist yet or is empty; by default a free name under `runs/`.
        console: where progress is shown.

    Raises:
        ConfigError: the configuration is wrong or the folder is in use; nothing was written.
    """
    config = configs.load(path, overrides)
    folder = out or _free_folder(path.stem)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        holds = "a run" if (folder / CONFIG).is_file() else "something else"
        cure = f"Go on with it: cotune resume {folder} . Or g" if (folder / CONFIG).is_file() else "G"
        raise ConfigError(f"--out {folder}: in use, it holds {holds}. {cure}ive another name.")
    return run(config, folder, console)


def resume(folder: Path, console: Console) -> dict[str, Any]:
    """Go on with the run in `folder`.

    Raises:
        ConfigError: there is no run, or its checkpoints belong to another experiment.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: no run to resume, {CONFIG} is missing. Start one: cotune run CONFIG")
    config = configs.load(path)
    if _is_done(config, folder):
        if not (folder / report.PAGE).is_file():
            report.render(folder)
        console.print(f"{folder}: all {config.rounds} rounds are done, nothing to resume", highlight=False)
        return report.read_results(folder)
    return run(config, folder, console)


def _is_done(config: Config, folder: Path) -> bool:
    """Whether the folder holds the results of all rounds of this very configuration."""
    if not (folder / report.RESULTS).is_file():
        return False
    results = report.read_results(folder)
    return (results.get("fingerprint"), results.get("rounds")) == (configs.fingerprint(config), config.rounds)


def run(config: Config, folder: Path, console: Console, parties: Parties | None = None) -> dict[str, Any]:
    """Build, run and report; what goes wrong is told with the command that resumes.

    `parties`: clients on other machines; by default all live in this process.
    """
    from cotune import build, session

    first = 1 + max((r["round"] for r in report.read_rounds(folder)), default=0)
    plan = Plan(config.strategy.name, config.rounds, first_round=first)
    with _stoppable(folder), _resumable(folder), watched(folder) as noted:
        with live(console, plan) as shown:
            ready = build.session(config, folder, _both(shown, noted), _teller(console), parties)
            _prepare(config, folder)
            results = session.run(ready, folder)
        report.render(folder)
    console.print(f"report: {folder / report.PAGE}", highlight=False)
    return results


def _both(first: Listener, second: Listener) -> Listener:
    """Hears every event twice."""

    def hear(event: Event) -> None:
        first(event)
        second(event)

    return hear


def _prepare(config: Config, folder: Path) -> None:
    """The folder and the resolved configuration, once everything has been found to be usable."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    if not path.is_file():
        whole.write(path, configs.dump(config))


def _teller(console: Console) -> Callable[[str], None]:
    return lambda note: console.print(note, style="dim", highlight=False)


def _free_folder(stem: str) -> Path:
    number = 1
    while True:
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return folder
        number += 1


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run at once; the last checkpoint is whole."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # not an Exception, so that nothing on the way up takes it for a failure

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as stopped:
        if (folder / "checkpoints").is_dir():
            raise Interrupted(f"interrupted. Go on with: cotune resume {folder}") from stopped
        raise Interrupted("interrupted before anything was saved") from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """What is not a user's mistake becomes one line, the traceback goes to a file in the run's folder."""
    try:
        yield
    except Paused as error:
        raise RunError(f"{error}. Go on with: cotune resume {folder}") from error
    except CotuneError:
        raise
    except Exception as error:
        if not (folder / CONFIG).is_file():
            raise
        log = folder / "error.log"
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S\n") + traceback.format_exc() + "\n")
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{reason} (details in {log}). Go on with: cotune resume {folder}") from error


def evaluate_model(
    model: tuple[str, Path | None], task: str, data: str | None, limit: int | None, metric: str | None = None
) -> dict[str, Any]:
    """Score a model on a task.

    Args:
        model: name, folder or hub id; and the folder of a PEFT adapter, if any.
        task: a task's name.
        data: its rows, by default its own.
        limit: first rows only.
        metric: how it is scored, by default in the task's own way.

    Returns:
        The metric's numbers, `n` and `seconds` (of scoring alone).
    """
    from cotune import data as datasets
    from cotune.evaluate import evaluate
    from cotune.models import causal_lm, zoo
    from cotune.models.lora import load_stack
    from cotune.table import metric_of

    scored_by = metric_of(task, metric, "--metric")
    examples = datasets.load_examples(task, data, limit)
    folder = Path(zoo.resolve(model[0]))
    lm = causal_lm.load(folder, zoo.fingerprint(folder))
    if model[1] is not None:
        stack, adapter = load_stack(lm, model[1])
        stack.load([adapter])
    began = time.perf_counter()
    found = evaluate(lm, examples, scored_by, tokens=configs.RuntimeConfig().score_tokens)
    seconds = time.perf_counter() - began
    return {"task": task, "model": model[0], **found, "seconds": round(seconds, 3)}
