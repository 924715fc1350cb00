"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere.

The display only listens. Whatever goes wrong with it (a closed pipe, a tiny window) stays in here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cotune.progress import Plan, Progress
from cotune.records import Event, Listener
from cotune.tables import amount, duration, printable

REFRESH_SECONDS = 0.25
LINE_EVERY_SECONDS = 3.0
HEARTBEAT_SECONDS = 20.0

Clock = Callable[[], float]


@contextlib.contextmanager
def live(console: Console, plan: Plan, clock: Clock = time.monotonic) -> Iterator[Listener]:
    """Show a run on `console` while the block lasts; yields the listener to hand every `Event` to.

    The listener never raises. What it expects in the facts of an event is told in `cotune.progress`.

    Args:
        console: where to show it. A terminal gets a live view, anything else plain lines.
        plan: what is known before the run starts.
        clock: seconds that only grow.
    """
    progress = Progress(plan, clock())
    with _unbreakable(console):
        if console.is_terminal and not console.is_dumb_terminal:
            with _screen(console, progress, clock) as listener:
                yield listener
            return
        lines = _Lines(console, progress, clock)
        try:
            yield lambda event: _harmless(lambda: lines.hear(event))
        finally:
            _harmless(lines.close)


def view(progress: Progress, now: float) -> RenderableType:
    """The live view: at most six lines."""
    plan = progress.plan
    head = f"{printable(plan.title)}  {_round(progress)}"
    clock = f"{duration(now - progress.began)} gone, {_left(progress, now)}"
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        Text(f"{printable(progress.phase) or 'starting':<10}"),
        ProgressBar(total=max(progress.total, 1), completed=progress.done, width=24),
        Text(_steps(progress)),
    )
    rows = [Text(head, style="bold"), bar, Text(clock)]
    pace = progress.tokens_per_second(now)
    traffic = f"up {amount(progress.up_bytes)}, down {amount(progress.down_bytes)}"
    rows.append(Text(f"{pace:,.0f} tokens/s, {traffic}" if pace else traffic))
    if progress.losses:
        rows.append(Text(f"loss {_losses(progress)}"))
    if progress.note:
        rows.append(Text(progress.note, style="yellow"))
    for row in rows:
        if isinstance(row, Text):
            row.no_wrap, row.overflow = True, "ellipsis"
    return Group(*rows)


class _Lines:
    """Plain lines: one a finished phase or round, and a sign of life in a long phase."""

    def __init__(self, console: Console, progress: Progress, clock: Clock) -> None:
        self.console, self.progress, self.clock = console, progress, clock
        self.last = float("-inf")
        self.is_open = False  # something happened that no line has told yet

    def hear(self, event: Event) -> None:
        now, progress = self.clock(), self.progress
        if progress.phase and event.round != progress.round and self.is_open:
            self._say(f"round {progress.round} ends, {duration(now - progress.round_began)}", now)
        note = progress.note
        progress.hear(event, now)
        self.is_open = True
        ended = progress.total > 0 and progress.done >= progress.total
        if ended or progress.note != note:
            self._say(self._line(now), now)
        elif now - max(self.last, progress.phase_began) >= HEARTBEAT_SECONDS:
            self._say(self._line(now), now)

    def close(self) -> None:
        now = self.clock()
        if self.is_open:
            self.last = float("-inf")
            self._say(self._line(now), now)

    def _line(self, now: float) -> str:
        progress = self.progress
        pace = progress.tokens_per_second(now)
        parts = [
            f"{_round(progress)}: {printable(progress.phase)} {_steps(progress)}",
            duration(now - progress.phase_began),
            f"loss {_losses(progress)}" if progress.losses else "",
            f"{pace:,.0f} tokens/s" if pace else "",
            f"up {amount(progress.up_bytes)}, down {amount(progress.down_bytes)}",
            _left(progress, now),
            f"note: {progress.note}" if progress.note else "",
        ]
        return ", ".join(part for part in parts if part)

    def _say(self, text: str, now: float) -> None:
        if now - self.last < LINE_EVERY_SECONDS:
            return
        self.last, self.is_open = now, False
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def _screen(console: Console, progress: Progress, clock: Clock) -> Iterator[Listener]:
    """A live view that a thread redraws; every finished round leaves one line above it."""
    lock, stop = threading.RLock(), threading.Event()
    display = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=console.stderr)

    def draw() -> None:
        with lock:
            display.update(view(progress, clock()), refresh=True)

    def hear(event: Event) -> None:
        with lock:
            now = clock()
            if progress.phase and event.round != progress.round:
                console.print(Text(_round_line(progress, now), no_wrap=True, overflow="ellipsis"))
            progress.hear(event, now)

    def redraw() -> None:
        while not stop.wait(REFRESH_SECONDS):
            _harmless(draw)

    _harmless(display.start)
    thread = threading.Thread(target=redraw, name="cotune-live", daemon=True)
    try:
        thread.start()
        yield lambda event: _harmless(lambda: hear(event))
    finally:
        stop.set()
        thread.join(timeout=2.0)
        _harmless(draw)
        _harmless(display.stop)


def _harmless(act: Callable[[], Any]) -> None:
    """Do it; a display that fails must not stop a run. Ctrl-C still does."""
    with contextlib.suppress(Exception):
        act()


class _Unbreakable:
    """A file whose writes never fail: once one has, the rest goes nowhere."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._is_broken = file, False

    def write(self, text: str) -> int:
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _try(self, act: Callable[[], object]) -> None:
        if self._is_broken:
            return
        try:
            act()
        except (OSError, ValueError):  # ValueError: the file is closed, or its encoding lacks a character
            self._is_broken = True


@contextlib.contextmanager
def _unbreakable(console: Console) -> Iterator[None]:
    """Writes of the console cannot fail in the block: rich answers a broken pipe by ending the process."""
    file = console.file
    console.file = cast("IO[str]", _Unbreakable(file))
    try:
        yield
    finally:
        console.file = file


def _round(progress: Progress) -> str:
    if progress.round == 0:
        return "before training"
    return f"round {progress.round} of {progress.plan.num_rounds}"


def _round_line(progress: Progress, now: float) -> str:
    parts = [f"{_round(progress)}: {duration(now - progress.round_began)}"]
    parts += [f"loss {_losses(progress)}"] if progress.losses else []
    parts += [f"up {amount(progress.up_bytes)}, down {amount(progress.down_bytes)}"]
    return ", ".join(parts)


def _left(progress: Progress, now: float) -> str:
    seconds = progress.seconds_left(now)
    return (
        "time left not known yet"
        if seconds is None
        else f"about {duration(max(1.0, float(round(seconds))))} left"
    )


def _losses(progress: Progress) -> str:
    return " ".join(f"{printable(name)} {value:.3g}" for name, value in progress.losses.items())


def _steps(progress: Progress) -> str:
    share = f"{progress.done}/{progress.total}" if progress.total else ""
    if not progress.clients_done:
        return share
    of = f" of {progress.plan.num_clients}" if progress.plan.num_clients else ""
    return f"{share} ({len(progress.clients_done)}{of} clients)"
