"""Who is awaited: `status.json` in a run's folder, for anybody who looks on from another terminal.

The file says what is going on; whether somebody still works on the run is told by a lock that the system lets
go of when the process ends, however it ends. Times in it are shown to people, and nothing depends on them.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cotune import report, whole
from cotune.changes import number
from cotune.config import load
from cotune.endings import NAMED, names
from cotune.errors import ConfigError
from cotune.records import Event, Listener
from cotune.tables import duration, printable

STATUS, LOCK = "status.json", "running.lock"
EVERY_SECONDS = 1.0
CLAIMS = 10
"""Times that a lock is tried for."""

Facts = dict[str, Any]


class Waiting:
    """What has happened so far, event by event. Pure bookkeeping: time is an argument, in seconds since 1970.

    Facts it understands: `asked` (clients; an exchange begins), `deadline` (seconds until they are late),
    `client` (it has answered, or with `kind` and `note`: it has not, why).
    """

    def __init__(self, now: float) -> None:
        self.round, self.num_rounds, self.phase = 0, 0, ""
        self.began = self.since = now
        self.deadline: float | None = None
        self.asked: frozenset[str] = frozenset()
        self.answered: set[str] = set()
        self.failed: dict[str, tuple[str, str]] = {}
        self._seen: set[str] = set()

    def hear(self, event: Event, now: float) -> bool:
        """Take one event in; whether something begins that somebody may wait for."""
        facts = event.facts
        is_new = event.round != self.round or event.phase not in self._seen
        if event.round != self.round:
            self.failed = {}
        if "asked" in facts:
            wait = number(facts.get("deadline"))
            self.asked, self.answered, self._seen = frozenset(facts["asked"]), set(), set()
            self.deadline = None if wait is None else now + wait
            self.failed = {name: why for name, why in self.failed.items() if name not in self.asked}
            is_new = True
        self.round, self.num_rounds = event.round, event.num_rounds
        if event.phase != self.phase:
            self.phase, self.since = event.phase, now
        self._seen.add(event.phase)
        if facts.get("kind"):
            self.failed[str(facts.get("client"))] = (str(facts["kind"]), str(facts.get("note", "")))
        elif facts.get("client"):
            self.answered.add(str(facts["client"]))
        return is_new

    @property
    def awaited(self) -> list[str]:
        """Clients that were asked, and of whom nothing has come yet."""
        return sorted(self.asked - self.answered - self.failed.keys())

    def facts(self, now: float) -> Facts:
        """What stands in `status.json`."""
        awaited = self.awaited
        failures: dict[str, list[str]] = {}
        for client, (kind, _) in sorted(self.failed.items()):
            failures.setdefault(kind, []).append(client)
        return {
            "pid": os.getpid(),
            "host": platform.node(),
            "began": self.began,
            "at": now,
            "round": self.round,
            "num_rounds": self.num_rounds,
            "phase": self.phase,
            "since": self.since,
            "asked": len(self.asked),
            "answered": len(self.asked & self.answered),
            "awaited": awaited[:NAMED],
            "num_awaited": len(awaited),
            "deadline": self.deadline if awaited else None,
            "failures": failures,
            "reasons": {name: why for name, (_, why) in sorted(self.failed.items())[:NAMED]},
        }


@contextmanager
def watched(folder: Path, clock: Callable[[], float] = time.time) -> Iterator[Listener]:
    """Keep `status.json` while the block lasts; yields the listener to hand every `Event` to.

    It is written when something begins, else at most once a second. That it cannot be written is nobody's
    concern; that somebody else works on the same run is.

    Args:
        folder: of the run; it may appear later than this begins.
        clock: seconds since 1970.

    Raises:
        ConfigError: another process works on the run.
    """
    keeper, stop = _Keeper(folder, clock), threading.Event()

    def write_now_and_then() -> None:
        while not stop.wait(EVERY_SECONDS):
            keeper.write_changes()

    thread = threading.Thread(target=write_now_and_then, name="cotune-status", daemon=True)
    keeper.claim()
    thread.start()
    ended = "done"
    try:
        yield keeper.hear
    except BaseException as error:
        is_asked = isinstance(error, KeyboardInterrupt)
        ended = "interrupted" if is_asked else f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        stop.set()
        thread.join(timeout=2 * EVERY_SECONDS)
        keeper.close(ended)


class _Keeper:
    """Writes what is heard; two threads may ask it to."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.folder, self.clock = folder, clock
        self.waiting, self.is_changed = Waiting(clock()), False
        self.lock = threading.RLock()
        self.claimed: IO[str] | None = None

    def claim(self) -> None:
        """Take the run, once it is there."""
        if self.claimed is None and (self.folder / report.CONFIG).is_file():
            self.claimed = _claim(self.folder)

    def hear(self, event: Event) -> None:
        self.claim()
        with self.lock:
            self.is_changed = True
            if self.waiting.hear(event, self.clock()):
                self.write_changes()

    def write_changes(self) -> None:
        with self.lock:
            if self.is_changed:
                self._write("")

    def close(self, ended: str) -> None:
        with self.lock:
            self._write(ended)
            if self.claimed is not None:
                self.claimed.close()

    def _write(self, ended: str) -> None:
        self.is_changed = False
        if self.claimed is None:
            return
        with suppress(OSError):
            facts = {**self.waiting.facts(self.clock()), "ended": ended}
            whole.write(self.folder / STATUS, json.dumps(facts))


def status(folder: Path) -> Facts:
    """What goes on in a run's folder, whether or not a process works on it.

    Returns:
        `state` (running, stopped or done), `folder`, `rounds_done`, `num_rounds`, `checkpoint` (`round` and
        `at`, or None), and what stands in `status.json`, if it is there.

    Raises:
        ConfigError: there is no run.
    """
    path = folder / report.CONFIG
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no run here, {report.CONFIG} is missing. Name the folder that `cotune run` wrote to."
        )
    found = _read(folder / STATUS)
    rounds, lines = load(path).rounds, report.read_rounds(folder)
    results = _read(folder / report.RESULTS)
    is_done = results.get("rounds") == rounds or results.get("status") == "stopped"
    state = "running" if _is_claimed(folder) else "done" if is_done else "stopped"
    return {
        **found,
        "folder": str(folder),
        "state": state,
        "num_rounds": rounds,
        "rounds_done": max((line["round"] for line in lines), default=0),
        "checkpoint": _checkpoint(folder),
    }


def describe(facts: Mapping[str, Any], now: float | None = None) -> str:
    """The same in a few lines, and what to do next; `now` in seconds since 1970."""
    now = time.time() if now is None else now
    folder, state = facts["folder"], facts["state"]
    if state == "done":
        done = f"{facts['rounds_done']} of {facts['num_rounds']} rounds"
        return f"{folder}: done, {done}\nsee: {folder}/{report.PAGE}"
    lines = [_where(facts, now), *(_whom(facts, now) if state == "running" else ()), *_failures(facts)]
    kept = facts["checkpoint"]
    lines += [f"last checkpoint: round {kept['round']}, {_ago(kept['at'], now)} ago"] if kept else []
    if state == "stopped":
        lines += [f"go on with: cotune resume {folder}"]
    return "\n".join(map(printable, lines))


def _claim(folder: Path) -> IO[str]:
    """An open file with a lock on it, which lasts as long as the file is open and the process lives.

    Raises:
        ConfigError: another process has it.
    """
    import fcntl

    file = (folder / LOCK).open("a+", encoding="utf-8")
    for _ in range(CLAIMS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)  # it may only be somebody who looks whether it is taken
        except OSError:
            return file  # no locks on this file system: the run goes on without
        else:
            return file
    file.close()
    raise ConfigError(
        f"{folder}: process {_read(folder / STATUS).get('pid')} works on this run. See how far it is with "
        f"`cotune status {folder}`, or end it first."
    )


def _is_claimed(folder: Path) -> bool:
    import fcntl

    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _checkpoint(folder: Path) -> Facts | None:
    """Round and time of the newest checkpoint."""
    newest = max((folder / "checkpoints").glob("*.ckpt"), default=None)
    if newest is None:
        return None
    with suppress(OSError, ValueError):
        return {"round": int(newest.stem), "at": newest.stat().st_mtime}
    return None


def _where(facts: Mapping[str, Any], now: float) -> str:
    """The line that says how far the run is."""
    is_alive = facts["state"] == "running"
    who = f"process {facts['pid']} on {facts['host']}" if "pid" in facts else "its process"
    head = f"{facts['folder']}: {'running' if is_alive else 'stopped'}"
    if not facts.get("phase"):
        return f"{head}, {who}, nothing begun yet" if is_alive else head
    place = f"round {facts['round']} of {facts['num_rounds']}, {facts['phase']}"
    if is_alive:
        return f"{head}, {who}, {place} since {_ago(facts['since'], now)}"
    ended = facts.get("ended") or f"{who} is gone"
    return f"{head} in {place}: {ended}"


def _whom(facts: Mapping[str, Any], now: float) -> list[str]:
    """The line that says who is awaited."""
    if not facts.get("asked"):
        return []
    if not facts["num_awaited"]:
        return [f"nobody is awaited, all {facts['asked']} have been heard"]
    line = f"awaited: {names(facts['awaited'], facts['num_awaited'])}"
    line += f"; {facts['answered']} of {facts['asked']} answered"
    wait = facts["deadline"]
    return [line if wait is None else f"{line}; late in {duration(max(0.0, wait - now))}"]


def _failures(facts: Mapping[str, Any]) -> list[str]:
    found = facts.get("failures") or {}
    return [f"{kind}: {names(clients)}" for kind, clients in found.items()]


def _ago(then: float, now: float) -> str:
    """How long ago; a clock that was set back shows as no time at all."""
    return duration(max(0.0, now - then))


def _read(path: Path) -> Facts:
    """A JSON object; empty if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
