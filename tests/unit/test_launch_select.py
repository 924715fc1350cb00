"""What `cotune select` shows while it works, and what a choice among many clients tells of itself."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from cotune import coreset, launch_select
from cotune.launch_select import Shown
from cotune.records import Event

Told = list[tuple[str, int, int]]


def shown(work: Callable[[Shown], None], *, is_terminal: bool) -> str:
    """What stands on a console after some work; on a terminal, all that was ever drawn."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=100, color_system=None)
    with Shown(console) as view:
        work(view)
    return file.getvalue()


def three_kinds(view: Shown) -> None:
    for what in ("reading", "compressing", "drawing"):
        for done in range(3):
            view.tell(what, done, 4)
            time.sleep(0.05)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_each_kind_of_work_is_named(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(launch_select, "QUICK", 0.0)
    monkeypatch.setattr(launch_select, "PLAIN_EVERY", 0.02)
    text = shown(three_kinds, is_terminal=is_terminal)
    for what in ("reading", "compressing", "drawing"):
        assert what in text
    assert "25%" in text
    assert is_terminal or "reading 25%, about " in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(launch_select, "PLAIN_EVERY", 0.02)
    assert "%" not in shown(three_kinds, is_terminal=is_terminal)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_work_of_which_only_the_beginning_is_told_is_shown(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """Nothing can be told while many points are cut into cells, or one big cell is grouped."""
    monkeypatch.setattr(launch_select, "QUICK", 0.05)
    monkeypatch.setattr(launch_select, "PLAIN_EVERY", 0.1)

    def work(view: Shown) -> None:
        view.tell("grouping", 0, 9000)
        time.sleep(0.4)

    text = shown(work, is_terminal=is_terminal)
    assert "grouping" in text
    assert "0%" in text


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("size", [5, 0])
def test_finished_and_empty_work_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, size: int
) -> None:
    monkeypatch.setattr(launch_select, "QUICK", 0.02)
    monkeypatch.setattr(launch_select, "PLAIN_EVERY", 0.02)

    def work(view: Shown) -> None:
        view.tell("reading", size, size)
        time.sleep(0.3)

    assert "reading" not in shown(work, is_terminal=is_terminal)


def test_work_that_begins_anew_is_timed_anew() -> None:
    view = Shown(Console(file=io.StringIO()))
    view.tell("reading", 1, 9)
    first = view.works["reading"].began
    view.tell("reading", 9, 9)
    assert view.works["reading"].began == first
    view.tell("reading", 1, 9)
    assert view.works["reading"].began > first


def test_a_chunk_of_clients_is_told_as_a_part_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "CHUNK", 2)
    told: Told = []
    among = coreset._Among(5, lambda *what: told.append(what))
    among.hear(Event(1, 1, "propose", 0, 1))
    among.tell("reading", 3, 6)  # half of the first two of five
    for client in range(1, 5):
        among.hear(Event(1, 1, "propose", client, 5, {"client": str(client)}))
    among.tell("reading", 6, 6)  # all of the last one
    among.hear(Event(1, 1, "propose", 5, 5, {"client": "5"}))
    among.tell("grouping centres", 1, 3)  # the server, when all have answered
    assert [(what, done / total) for what, done, total in told] == [
        ("reading", pytest.approx(0.2)),
        ("reading", pytest.approx(1.0)),
        ("grouping centres", pytest.approx(1 / 3)),
    ]
