"""What selectors have chosen for each client, kept on the client's own side between steps and rounds.

One small file a client, selector and round, written whole or not at all; nothing in it ever travels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from cotune import whole
from cotune.codec import decode, encode
from cotune.records import Array, Message

Rows = npt.NDArray[np.int64]

_ROUND = re.compile(r"(\d{6})\.rows")


def client_folder(folder: Path, client: str) -> Path:
    """Where a client keeps what it keeps, whatever characters its name has."""
    return folder / quote(client, safe=" ").replace(".", "%2E")


@dataclass(frozen=True, slots=True)
class Choices:
    """Selectors are numbered in the order in which they narrow each other's choice."""

    folder: Path
    num_selectors: int

    def note(self, client: str, number: int, round: int, memo: Mapping[str, Array]) -> None:
        """Keep what a selector's next step in this round needs."""
        self._write(self._folder(client, number) / f"{round:06d}.memo", memo)

    def memo(self, client: str, number: int, round: int) -> Mapping[str, Array]:
        """What the selector noted last in this round; empty for nothing."""
        path = self._folder(client, number) / f"{round:06d}.memo"
        return decode(path.read_bytes()).arrays if path.is_file() else {}

    def choose(self, client: str, number: int, round: int, rows: Sequence[int]) -> None:
        """Keep the chosen rows of the client's examples; memos of rounds before have done their work."""
        folder = self._folder(client, number)
        self._write(folder / f"{round:06d}.rows", {"rows": np.asarray(rows, np.int64)})
        for path in folder.glob("*.memo"):
            if path.name < f"{round:06d}.memo":
                path.unlink()

    def pool(self, client: str, number: int, round: int, num_examples: int) -> Rows:
        """The rows that selector `number` may choose from: all, or what the one before it has chosen."""
        if number == 0:
            return np.arange(num_examples)
        chosen = self._newest(client, number - 1, round)
        return np.arange(0) if chosen is None else chosen

    def rows(self, client: str, round: int, num_examples: int) -> Rows:
        """The rows that the client trains on in this round: those that are left after the last selector."""
        return self.pool(client, self.num_selectors, round, num_examples)

    def used(self, client: str, number: int, round: int) -> dict[int, Rows]:
        """Rows that selector `number` has chosen, by the round before this one in which it did."""
        folder = self._folder(client, number)
        return {index: self._read(folder, index) for index in self._rounds(folder) if index < round}

    def _newest(self, client: str, number: int, round: int) -> Rows | None:
        folder = self._folder(client, number)
        rounds = [index for index in self._rounds(folder) if index <= round]
        return self._read(folder, max(rounds)) if rounds else None

    def _folder(self, client: str, number: int) -> Path:
        return client_folder(self.folder, client) / f"select-{number}"

    @staticmethod
    def _rounds(folder: Path) -> list[int]:
        names = [path.name for path in folder.glob("*.rows")] if folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _ROUND.fullmatch(name)))

    @staticmethod
    def _read(folder: Path, round: int) -> Rows:
        rows: Rows = decode((folder / f"{round:06d}.rows").read_bytes()).arrays["rows"]
        return rows

    @staticmethod
    def _write(path: Path, arrays: Mapping[str, Array]) -> None:
        whole.write(path, encode(Message("", 0, "keep", arrays)))
