"""Vectors kept on disk by key: a frozen model reads a text once, and a stopped reading goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_AT_ONCE = 500


class Vectors:
    """A file of float32 vectors. Several processes may use it at a time; a write is whole or absent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as file, file:
            file.execute(_TABLE)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        """Those of the keys that are there."""
        found: dict[bytes, Floats] = {}
        with closing(self._open()) as file:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = file.execute(f"SELECT key, value FROM vectors WHERE key IN ({marks})", some)
                found |= {key: np.frombuffer(value, np.float32) for key, value in rows}
        return found

    def put(self, values: Mapping[bytes, Floats]) -> None:
        """Keep some vectors."""
        rows = [(key, np.ascontiguousarray(value, np.float32).tobytes()) for key, value in values.items()]
        with closing(self._open()) as file, file:
            file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)
