"""What a party keeps between steps and rounds: a file a name and round, written whole or not at all.

Nothing in it ever travels. A step that is done again after a crash writes the same file again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotune import whole
from cotune.choices import client_folder
from cotune.codec import decode, encode
from cotune.records import Adapter, Array, Message, adapter_header, adapter_of

KEPT = 3
"""Rounds of which a party keeps what it makes anew in each: a run may go on from the checkpoint before the
newest while a later round had begun."""

_ROUND = re.compile(r"(\d{6})\.msg")


@dataclass(frozen=True, slots=True)
class Shelf:
    """`owner` is a client: its own things on its side, on the server the things about it. `room` is what they
    are kept for."""

    folder: Path
    room: str = "teaching"

    def put(
        self, owner: str, name: str, round: int, facts: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> None:
        """Keep some facts and arrays under a name."""
        path = self._folder(owner, name) / f"{round:06d}.msg"
        whole.write(path, encode(Message(owner, round, name, arrays, dict(facts))))

    def get(self, owner: str, name: str, round: int) -> Message | None:
        """What was kept in exactly this round."""
        path = self._folder(owner, name) / f"{round:06d}.msg"
        return decode(path.read_bytes()) if path.is_file() else None

    def newest(self, owner: str, name: str, before: int) -> Message | None:
        """What was kept last before a round."""
        older = [index for index in self._rounds(owner, name) if index < before]
        return self.get(owner, name, older[-1]) if older else None

    def put_adapter(self, owner: str, name: str, round: int, adapter: Adapter) -> None:
        """Keep an adapter under a name."""
        self.put(owner, name, round, {"adapter": adapter_header(adapter)}, adapter.arrays)

    def adapter(self, owner: str, name: str, before: int) -> Adapter | None:
        """The one that was kept last before a round."""
        kept = self.newest(owner, name, before)
        return adapter_of(kept) if kept else None

    def trim(self, owner: str, name: str) -> None:
        """Drop all but the newest `KEPT` rounds of a name."""
        for index in self._rounds(owner, name)[:-KEPT]:
            (self._folder(owner, name) / f"{index:06d}.msg").unlink()

    def _rounds(self, owner: str, name: str) -> list[int]:
        folder = self._folder(owner, name)
        names = [path.name for path in folder.glob("*.msg")] if folder.is_dir() else []
        return sorted(int(found[1]) for found in map(_ROUND.fullmatch, names) if found)

    def _folder(self, owner: str, name: str) -> Path:
        return client_folder(self.folder, owner) / self.room / name
