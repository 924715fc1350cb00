"""`cotune select`: the question from the command line, progress, and the files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cotune import config as configs
from cotune import coreset
from cotune import map as maps
from cotune.coreset import Coreset, Question
from cotune.errors import ConfigError
from cotune.tables import duration

PLAIN_EVERY = 10.0
"""Seconds between two lines of progress where the output is no terminal."""
QUICK = 2.0
"""What is done sooner shows no progress."""


def methods(names: str, options: Sequence[str]) -> list[dict[str, Any]]:
    """Selectors joined by commas as `{name: ..., option: ...}`; options belong to the last one.

    Raises:
        ConfigError: an option is not `name=value`, or there is no selector.
    """
    specs: list[dict[str, Any]] = [{"name": name.strip()} for name in names.split(",") if name.strip()]
    if not specs:
        raise ConfigError(f"--method {names!r}: name at least one selector; see cotune plugins")
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--set {option!r}: expected option=value, e.g. --set min_group=5")
        specs[-1][name] = configs.plain_value(value)
    return specs


def partition(kind: str, clients: int) -> str:
    """`iid` or `dirichlet:ALPHA[:KEY]` with the number of clients in its place; several clients are iid."""
    if clients == 1:
        return kind
    head, _, tail = ("iid" if kind == "one" else kind).partition(":")
    if head not in ("iid", "dirichlet"):
        raise ConfigError(
            f"--clients {clients}: {head} has as many clients as its key has values; leave it out"
        )
    return ":".join(filter(None, (head, str(clients), tail)))


def select(asked: Question, out: Path | None, console: Console) -> Coreset:
    """Choose, and write the files if there is a folder for them.

    Raises:
        ConfigError: the folder is in use; nothing was written.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: in use. Give the name of a new folder.")
    with _Shown(console) as shown:
        found, source, chart = coreset.choose(asked, shown.note, shown.tick)
    if out is not None:
        coreset.write(out, found, source, maps.render(chart))
    return found


def sentence(found: Coreset, out: Path) -> str:
    """What happened, in two lines."""
    facts = found.facts
    length = facts["length"]
    took = duration(sum(facts["seconds"].values()))
    cut = (
        f"; {facts['cut']} examples were longer than the model reads and lost their start"
        if facts["cut"]
        else ""
    )
    return (
        f"{facts['selected']:,} of {facts['total']:,} examples of {len(found.clients):,} clients "
        f"({facts['selected'] / facts['total']:.2%}) in {took}; {length['saved']:,} of {length['all']:,} "
        f"{length['unit']} saved{cut}\n{out / 'coreset.jsonl'}  {out / 'map.html'}"
    )


class _Shown:
    """A bar with the time left on a terminal, else a line now and then; nothing for what is quick."""

    def __init__(self, console: Console) -> None:
        self.console, self.began, self.last = console, 0.0, 0.0
        columns = (TextColumn("reading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task: Any = None

    def __enter__(self) -> _Shown:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def note(self, text: str) -> None:
        """Something is being prepared."""
        self.console.print(text, style="dim", highlight=False)

    def tick(self, done: int, total: int) -> None:
        """So many texts are read."""
        now = time.monotonic()
        if self.began == 0.0 or done <= 1:
            self.began = self.last = now
        if self.bar:
            self._draw(done, total, now)
        elif now - self.last >= PLAIN_EVERY:
            left = (now - self.began) * (total - done) / max(done, 1)
            self.console.print(f"read {done / total:.0%}, about {duration(left)} left", highlight=False)
            self.last = now

    def _draw(self, done: int, total: int, now: float) -> None:
        assert self.bar is not None
        if self.task is None and now - self.began < QUICK and done < total:
            return
        if self.task is None:
            self.task = self.bar.add_task("", total=total)
        self.bar.update(self.task, completed=done, total=total)
