"""Log-probabilities kept on disk: what a model was asked once about a text is never computed again."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cotune.models.kept import Kept
from cotune.protocols import LogProbs

_FORM = struct.Struct("<dq")
_SOME = 500
"""Pairs computed between two writes, so that a stopped audit loses little; whole comparisons of 20 pairs."""

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sums:
    """See `cotune.protocols.LogProbs`."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


class ScoreCache:
    """A file of log-probabilities by model, context and target."""

    def __init__(self, path: Path, note: Callable[[str], None] = lambda _: None) -> None:
        self._kept = Kept(path, "scores", note)

    def log_probs(self, fingerprint: str, pairs: Pairs, compute: Callable[[Pairs], LogProbs]) -> Sums:
        """Of each pair, out of the file or computed.

        Args:
            fingerprint: of all that a log-probability depends on besides the pair.
            pairs: (context, target).
            compute: gives those that are missing; it is called with some hundreds at a time.
        """
        keys = [_key(fingerprint, pair) for pair in pairs]
        found = {key: _FORM.unpack(value) for key, value in self._kept.get(keys).items()}
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in found}
        todo = list(missing.items())
        for start in range(0, len(todo), _SOME):
            some = todo[start : start + _SOME]
            new = compute([pair for _, pair in some])
            values = zip(new.sums.tolist(), new.counts.tolist(), strict=True)
            fresh = {key: (float(s), int(c)) for (key, _), (s, c) in zip(some, values, strict=True)}
            self._kept.put({key: _FORM.pack(*value) for key, value in fresh.items()})
            found |= fresh
        rows = [found[key] for key in keys]
        return Sums(
            np.array([row[0] for row in rows], np.float64), np.array([row[1] for row in rows], np.int64)
        )


def _key(fingerprint: str, pair: tuple[str, str]) -> bytes:
    named = json.dumps(["score", 1, fingerprint, *pair])
    return hashlib.sha256(named.encode()).digest()
