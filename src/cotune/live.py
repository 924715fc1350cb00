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
        except BaseException:
            _harmless(lambda: lines.close(is_whole=False))
            raise
        _harmless(lambda: lines.close(is_whole=True))


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
    pace = progress.tokens_per_second(now)
    traffic = f"up {amount(progress.up_bytes)}, down {amount(progress.down_bytes)}"
    texts = [(clock, ""), (f"{pace:,.0f} tokens/s, {traffic}" if pace else traffic, "")]
    texts += [(f"loss {_losses(progress)}", "")] if progress.losses else []
    texts += [(progress.note, "yellow")] if progress.note else []
    lines = [Text(text, style=style, no_wrap=True, overflow="ellipsis") for text, style in texts]
    return Group(Text(head, style="bold", no_wrap=True, overflow="ellipsis"), bar, *lines)


class _Lines:
    """Plain lines: one a finished phase and one a finished round, but few; a sign of life in a long phase."""

    def __init__(self, console: Console, progress: Progress, clock: Clock) -> None:
        self.console, self.progress, self.clock = console, progress, clock
        self.phase_line = self.round_line = float("-inf")  # when the last one was written
        self.notes: list[str] = []

    def hear(self, event: Event) -> None:
        now, progress = self.clock(), self.progress
        if progress.round and _ends_round(progress, event) and now - self.round_line >= LINE_EVERY_SECONDS:
            self.round_line = now
            self._write(_round_line(progress, now))
        progress.hear(event, now)
        self.notes += [progress.note] if event.facts.get("note") else []
        is_done = progress.total > 0 and progress.done >= progress.total
        is_long = now - max(self.phase_line, progress.phase_began) >= HEARTBEAT_SECONDS
        if (is_done or self.notes or is_long) and now - self.phase_line >= LINE_EVERY_SECONDS:
            self.phase_line = now
            self._write(_phase_line(progress, now))

    def close(self, is_whole: bool) -> None:
        self._write(_last_line(self.progress, self.clock(), is_whole))

    def _write(self, text: str) -> None:
        more = f" (and {len(self.notes) - 1} more)" if len(self.notes) > 1 else ""
        text += f", note: {self.notes[-1]}{more}" if self.notes else ""
        self.notes = []
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def _screen(console: Console, progress: Progress, clock: Clock) -> Iterator[Listener]:
    """A live view that a thread redraws; every finished round leaves one line above it."""
    lock, stop = threading.RLock(), threading.Event()
    display = Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=console.stderr,
    )

    def draw() -> None:
        with lock:
            display.update(view(progress, clock()), refresh=True)

    def hear(event: Event) -> None:
        with lock:
            now = clock()
            if _ends_round(progress, event):
                _print_line(console, _round_line(progress, now))
            progress.hear(event, now)

    def redraw() -> None:
        while not stop.wait(REFRESH_SECONDS):
            _harmless(draw)

    thread = threading.Thread(target=redraw, name="cotune-live", daemon=True)
    is_whole = False
    try:
        _harmless(display.start)
        _harmless(draw)
        thread.start()
        yield lambda event: _harmless(lambda: hear(event))
        is_whole = True
    finally:
        stop.set()
        try:
            thread.join(timeout=2.0)
            _harmless(draw)
        finally:
            _harmless(display.stop)  # gives the cursor and standard error back
        _harmless(lambda: _print_line(console, _last_line(progress, clock(), is_whole)))


def _print_line(console: Console, text: str) -> None:
    console.print(Text(text, no_wrap=True, overflow="ellipsis"))


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


def _ends_round(progress: Progress, event: Event) -> bool:
    return bool(progress.phase) and event.round != progress.round


def _round_line(progress: Progress, now: float) -> str:
    return ", ".join([f"{_round(progress)}: {duration(now - progress.round_began)}", *_facts(progress)])


def _last_line(progress: Progress, now: float, is_whole: bool) -> str:
    if is_whole:
        return _round_line(progress, now)
    when = f"in {_round(progress)}" if progress.round else _round(progress)
    where = f", {printable(progress.phase)} {_steps(progress)}".rstrip() if progress.phase else ""
    return f"stopped {when}{where}, after {duration(now - progress.began)}"


def _phase_line(progress: Progress, now: float) -> str:
    where = f"{_round(progress)}, {printable(progress.phase)} {_steps(progress)}".rstrip()
    pace = progress.tokens_per_second(now)
    parts = [f"{where}: {duration(now - progress.phase_began)}", *_facts(progress)]
    parts += [f"{pace:,.0f} tokens/s"] if pace else []
    return ", ".join([*parts, _left(progress, now)])


def _facts(progress: Progress) -> list[str]:
    loss = [f"loss {_losses(progress)}"] if progress.losses else []
    return [*loss, f"up {amount(progress.up_bytes)}, down {amount(progress.down_bytes)}"]


def _left(progress: Progress, now: float) -> str:
    seconds = progress.seconds_left(now)
    if seconds is None:
        return "time left not known yet"
    step = 1 if seconds < 20 else 5 if seconds < 300 else 60  # no more digits than an estimate deserves
    rounded = max(step, step * round(seconds / step))
    return f"about {rounded} s left" if rounded < 120 else f"about {duration(rounded)} left"


def _losses(progress: Progress) -> str:
    return " ".join(f"{printable(name)} {value:.3g}" for name, value in progress.losses.items())


def _steps(progress: Progress) -> str:
    share = f"{progress.done}/{progress.total}" if progress.total else ""
    if not progress.clients_done:
        return share
    of = f" of {progress.plan.num_clients}" if progress.plan.num_clients else ""
    return f"{share} ({len(progress.clients_done)}{of} clients)"
