"""Bytes kept on disk by key: what took long to make is made once, and several processes may share it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from cotune.errors import RunError

T = TypeVar("T")
_AT_ONCE = 500
_WAIT = 60.0
"""Seconds to wait for another process."""
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
"""Damaged, no database at all, or one with other columns; the low byte of SQLite's code."""


class Kept:
    """One SQLite file. A write is whole or absent, also if the process is killed.

    A file that cannot be read as one is moved aside, never overwritten; `note` is told, and a new one begun.
    Every use holds a lock beside the file: SQLite's own does not cover a file that is renamed while in use.
    """

    def __init__(self, path: Path, table: str, note: Callable[[str], None]) -> None:
        self.path, self.table, self.note = path, table, note
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of the keys that are there."""

        def read(file: sqlite3.Connection) -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = {}
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                found |= file.execute(f"SELECT key, value FROM {self.table} WHERE key IN ({marks})", some)
            return found

        return self._with_file(read)

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep some values."""

        def write(file: sqlite3.Connection) -> None:
            file.executemany(f"INSERT OR REPLACE INTO {self.table} VALUES (?, ?)", values.items())

        self._with_file(write)

    def _with_file(self, use: Callable[[sqlite3.Connection], T]) -> T:
        """What `use` returns; a broken file is replaced once.

        Raises:
            RunError: the file can be neither used nor replaced.
        """
        try:
            with FileLock(f"{self.path}.lock", timeout=_WAIT, poll_interval=0.005):
                return self._tried(use)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(self.path, error) from error

    def _tried(self, use: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._once(use)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BROKEN:
                raise
            self._move_aside(error)
            return self._once(use)

    def _once(self, use: Callable[[sqlite3.Connection], T]) -> T:
        columns = "(key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
        with closing(sqlite3.connect(self.path, timeout=_WAIT)) as file, file:
            file.execute(f"CREATE TABLE IF NOT EXISTS {self.table} {columns}")
            return use(file)

    def _move_aside(self, error: Exception) -> None:
        number, aside = 1, self.path.with_name(f"{self.path.name}.broken")
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.broken-{number}")
        self.path.replace(aside)
        self.note(f"{self.path}: no readable cache ({error}); moved to {aside.name}, a new one is begun")


def _unusable(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path}: the cache cannot be used ({error}). Free its disk, let no other program lock it, or set "
        "COTUNE_CACHE to a folder you can write"
    )
