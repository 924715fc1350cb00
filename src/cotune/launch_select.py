"""`cotune select`: the question from the command line, progress, and the files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from cotune import coreset
from cotune import map as maps
from cotune.coreset import Coreset, Question
from cotune.errors import ConfigError
from cotune.overrides import plain_value
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
        specs[-1][name] = plain_value(value)
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
    with Shown(console) as shown:
        found, source, chart = coreset.choose(asked, shown.note, shown.tell)
        if out is not None:
            shown.tell("writing", 0, 1)
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


@dataclass(frozen=True, slots=True)
class _Work:
    """One kind of work: since when, how much is done, and of how much."""

    began: float
    done: int
    total: int

    def words(self, what: str, now: float) -> str:
        """For a line; empty if it is done, or was begun just now."""
        if self.done >= self.total or now - self.began < QUICK:
            return ""
        left = duration((now - self.began) * (self.total - self.done) / self.done) if self.done else ""
        return f"{what} {self.done / self.total:.0%}" + (f", about {left} left" if left else "")


class _Bars(Progress):
    """A bar with the time left for what takes long; nothing for what is quick."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """What rich draws, some ten times a second."""
        yield self.make_tasks_table([t for t in self.tasks if not t.finished and (t.elapsed or 0) >= QUICK])


class Shown:
    """Progress on a console: bars on a terminal, else a line now and then.

    A thread shows what was told last, so that something is seen even while nothing new can be told.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.works, self.what = console, dict[str, _Work](), ""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bars = _Bars(*columns, console=console, transient=True) if console.is_terminal else None
        self.tasks: dict[str, TaskID] = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Shown:
        if self.bars:
            self.bars.start()
        else:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()
        else:
            self.stop.set()
            self.thread.join()

    def note(self, text: str) -> None:
        """Something is being prepared."""
        self.console.print(text, style="dim", markup=False, highlight=False)

    def tell(self, what: str, done: int, total: int) -> None:
        """So much of some work is done; the same work begins anew where less is done than before."""
        known = self.works.get(what)
        is_new = known is None or done < known.done
        began = time.monotonic() if known is None or is_new else known.began
        self.works[what], self.what = _Work(began, done, total), what
        if self.bars:
            self._draw(self.bars, what, is_new)

    def _draw(self, bars: Progress, what: str, is_new: bool) -> None:
        work = self.works[what]
        if what not in self.tasks:
            self.tasks[what] = bars.add_task(what)
        if is_new:
            bars.reset(self.tasks[what])
        for name, task in self.tasks.items():
            bars.update(task, visible=name == what)
        bars.update(self.tasks[what], completed=work.done, total=work.total)

    def _write(self) -> None:
        while not self.stop.wait(PLAIN_EVERY):
            work = self.works.get(self.what)
            words = work.words(self.what, time.monotonic()) if work else ""
            if words:
                self.console.print(words, highlight=False)
