"""Vectors kept on disk by key: a frozen model reads a text once, and a stopped reading goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cotune.models.kept import Kept

Floats = npt.NDArray[np.float32]


class Vectors:
    """A file of float32 vectors, see `Kept`."""

    def __init__(self, path: Path, note: Callable[[str], None] = lambda _: None) -> None:
        self._kept = Kept(path, "vectors", note)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        """Those of the keys that are there."""
        return {key: np.frombuffer(value, np.float32) for key, value in self._kept.get(keys).items()}

    def put(self, values: Mapping[bytes, Floats]) -> None:
        """Keep some vectors."""
        raw = {key: np.ascontiguousarray(value, np.float32).tobytes() for key, value in values.items()}
        self._kept.put(raw)
