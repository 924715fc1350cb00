"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from cotune.live import live, view
from cotune.progress import Plan, Progress
from cotune.records import Event

PLAN = Plan("fedcollm", num_rounds=3, num_clients=4)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def event(index: int, phase: str, done: int, total: int, **facts: Any) -> Event:
    return Event(index, 3, phase, done, total, facts)


def recorded() -> Iterator[tuple[float, Event]]:
    """Three rounds of 30 seconds after 4 of evaluation: seconds since the start, and what happened."""
    yield 0.0, event(0, "evaluate", 0, 2)
    yield 4.0, event(0, "evaluate", 2, 2)
    for index in (1, 2, 3):
        at = 4.0 + 30.0 * (index - 1)
        yield at, event(index, "tune", 0, 4)
        for done in (1, 2, 3, 4):
            facts = {
                "client": f"c{done}",
                "tokens": 1000,
                "loss_slm": 2.0 / done,
                "up_bytes": 1000,
                "down_bytes": 2000,
            }
            yield at + 5.0 * done, event(index, "tune", done, 4, **facts)
        yield at + 20.0, event(index, "gather", 1, 1)
        yield at + 20.0, event(index, "co-tune", 0, 3)
        yield at + 29.0, event(index, "co-tune", 3, 3, loss_llm=0.5, tokens=900)
        yield at + 30.0, event(index, "checkpoint", 1, 1)


def played(terminal: bool, width: int = 80, events: list[tuple[float, Event]] | None = None) -> str:
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, _environ={"TERM": "xterm"})
    with live(console, PLAN, clock) as listener:
        for at, what in recorded() if events is None else events:
            clock.now = 100.0 + at
            listener(what)
    assert console.file is file
    return file.getvalue()


def test_plain_lines_hold_no_control_codes_and_are_few() -> None:
    lines = played(terminal=False).splitlines()
    assert not any(ord(c) < 32 for line in lines for c in line)
    assert len(lines) <= 94 / 3
    loss_and_bytes = "loss slm 0.5 llm 0.5, up 8.0 kB, down 16.0 kB"
    tune, cotune, whole = [line for line in lines if line.startswith("round 2 of 3")]
    assert tune.startswith(
        f"round 2 of 3, tune 4/4 (4 of 4 clients): 20 s, {loss_and_bytes}, 200 tokens/s, about "
    )
    assert cotune.startswith(f"round 2 of 3, co-tune 3/3: 9.0 s, {loss_and_bytes}, 100 tokens/s, about ")
    assert whole == f"round 2 of 3: 30 s, {loss_and_bytes}"
    assert lines[0].startswith("before training, evaluate 2/2: 4.0 s")
    assert lines[-1].startswith("round 3 of 3: 30 s")


def test_fast_rounds_do_not_flood_the_log() -> None:
    events = [(0.01 * i, event(i, "tune", 1, 1)) for i in range(1, 1001)]
    lines = played(terminal=False, events=events).splitlines()
    assert 4 <= len(lines) <= 10  # ten seconds


def test_a_long_phase_gives_a_sign_of_life() -> None:
    events = [(float(i), event(1, "tune", i, 600)) for i in range(120)]
    lines = played(terminal=False, events=events).splitlines()
    assert 5 <= len(lines) <= 8
    assert "tune 40/600" in lines[1]


def test_every_note_is_told_once_and_as_text() -> None:
    events = [(0.0, event(1, "tune", 0, 2))]
    events += [(float(i), event(1, "tune", i, 9, client="[b]\x1b[31mfood", note="late")) for i in (4, 5, 6)]
    events += [(20.0, event(1, "tune", 9, 9))]
    text = played(terminal=False, events=events)
    assert "note: [b] [31mfood: late\n" in text
    assert text.count("note:") == 2
    assert "(and 1 more)" in text
    assert "\x1b" not in text


def test_a_terminal_sees_rounds_phases_and_the_cursor_again() -> None:
    text = played(terminal=True)
    assert text.count("\x1b[?25l") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    for line in ("before training: 4.0 s", "round 1 of 3: 30 s", "round 2 of 3: 30 s", "round 3 of 3: 30 s"):
        assert text.count(line) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_passes_through_and_the_cursor_is_back(terminal: bool) -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=terminal, width=80, _environ={"TERM": "xterm"})

    def interrupted() -> None:
        with live(console, PLAN, clock) as listener:
            listener(event(2, "tune", 1, 4))
            clock.now += 7.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = file.getvalue()
    assert "stopped in round 2 of 3, tune 1/4, after 7.0 s" in text
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") == int(terminal)
    assert console.file is file


class Broken(io.StringIO):
    """A pipe whose reader is gone after a few writes."""

    def __init__(self, error: Exception, good_writes: int) -> None:
        super().__init__()
        self.error, self.good_writes = error, good_writes

    def write(self, text: str) -> int:
        self.good_writes -= 1
        if self.good_writes < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed file")])
@pytest.mark.parametrize("good_writes", [0, 3])
def test_an_output_that_breaks_does_not_stop_the_run(
    terminal: bool, error: Exception, good_writes: int
) -> None:
    clock = Clock()
    file = Broken(error, good_writes)
    console = Console(file=file, force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
    heard = 0
    with live(console, PLAN, clock) as listener:
        for at, what in recorded():
            clock.now = 100.0 + at
            listener(what)
            heard += 1
    assert heard == len(list(recorded()))
    assert sys.stderr is not file


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [1, 5, 20, 300])
def test_any_width_is_survived(terminal: bool, width: int) -> None:
    assert played(terminal, width)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_event_that_makes_no_sense_does_not_stop_the_run(terminal: bool) -> None:
    bad: list[tuple[float, Event]] = [
        (0.0, event(1, "tune", 5, 0)),
        (1.0, event(1, "tune", -1, -1, tokens="many", loss_slm=float("nan"), client=None)),
        (1.0, Event(1, 3, None, None, None, None)),  # type: ignore[arg-type]
        (2.0, event(9, "dance", 7, 3, note=["x"])),
    ]
    assert played(terminal, events=bad)


def test_the_view_fits_in_eighty_columns() -> None:
    progress = Progress(Plan("f" * 100, 3, 4), 0.0)
    progress.hear(event(1, "tune", 2, 4, client="c", note="n" * 200, loss_slm=1.5, tokens=500), 10.0)
    file = io.StringIO()
    Console(file=file, width=80).print(view(progress, 12.0))
    lines = file.getvalue().splitlines()
    assert len(lines) == 6
    assert all(len(line) <= 80 for line in lines)
    assert "2/4" in lines[1]
    assert "250 tokens/s" in file.getvalue()


def played_progress(until: float) -> Progress:
    progress = Progress(PLAN, 0.0)
    for at, what in recorded():
        if at <= until:
            progress.hear(what, at)
    return progress


def test_time_left_is_not_known_before_any_work() -> None:
    assert Progress(PLAN, 0.0).seconds_left(5.0) is None


@pytest.mark.parametrize("until", [14.0, 24.0, 33.0, 34.0, 60.0, 80.0, 93.0])
def test_time_left_is_near_the_truth_from_the_first_seconds_of_training(until: float) -> None:
    left = played_progress(until).seconds_left(until)
    assert left is not None
    assert left == pytest.approx(94.0 - until, rel=0.35, abs=4.0)


def test_time_left_falls_to_nothing_at_the_end() -> None:
    assert played_progress(94.0).seconds_left(94.0) == pytest.approx(0.0, abs=2.5)


def test_a_phase_that_does_not_happen_in_every_round_counts_for_less() -> None:
    plan = Plan("x", 10, phases={"tune": 0.5, "evaluate": 0.5})
    progress = Progress(plan, 0.0)
    now = 0.0
    for index in range(1, 5):
        now += 10.0
        progress.hear(event(index, "tune", 1, 1), now)
        if index == 4:
            now += 10.0
            progress.hear(event(index, "evaluate", 1, 1), now)
            now += 5.0
    progress.hear(event(5, "tune", 0, 1), now)
    left = progress.seconds_left(now)
    assert left is not None
    assert left < 6 * 15.0  # each round counted with a whole evaluation would be 6 * 20


def test_a_resumed_run_counts_only_what_it_still_has_to_do() -> None:
    progress = Progress(Plan("x", 10, first_round=9, phases={"tune": 1.0}), 0.0)
    progress.hear(event(9, "tune", 0, 2), 0.0)
    progress.hear(event(9, "tune", 1, 2), 5.0)
    assert progress.seconds_left(5.0) == pytest.approx(5.0 + 10.0)
