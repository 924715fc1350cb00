"""What stands between a client's training and the wire: guards, which see an update before it leaves.

A guard is one class with a client half (`outgoing`) and a server half (`incoming`). Several work one after
the other, in the order of the configuration; the last one may also pack arrays into fewer bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cotune.records import Array, Round

if TYPE_CHECKING:
    import numpy as np

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Update:
    """What training has changed at one client: `arrays` float32 by name, the tuned adapter minus the one that
    was sent; its weight in the mean; and numbers that are added up."""

    arrays: Mapping[str, Array]
    weight: float = 1.0
    sums: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sender:
    """A client as its guards see it.

    secret: 32 bytes that nobody else knows; memo: arrays that the same guard kept when it ran last.
    """

    client: str
    round: Round
    secret: bytes = field(repr=False)
    memo: Mapping[str, Array] = field(default_factory=dict)


def secret_rng(secret: bytes, *purpose: str) -> np.random.Generator:
    """A generator that depends on a secret and the given words, and on nothing else.

    Whatever it hides must depend on the words: the same stream over two values tells their difference.
    """
    import numpy as np

    words = b"".join(len(word.encode()).to_bytes(4, "big") + word.encode() for word in purpose)
    digest = hashlib.blake2b(words, key=secret, digest_size=32).digest()
    return np.random.Generator(np.random.Philox(np.frombuffer(digest, dtype=np.uint64)[:2]))


@dataclass(frozen=True, slots=True)
class Total:
    """A mean over clients, as the server half of a guard sees it.

    secret: 32 bytes that only the server knows.
    """

    round: Round
    num_replies: int
    secret: bytes = field(repr=False)


class Guard(Protocol):
    """Two halves: of the client, before its update leaves; of the server, once the mean is known."""

    @property
    def bound(self) -> float | None:
        """Largest size of one value of what `outgoing` returns; None: it sets no bound."""

    def outgoing(self, update: Update, sender: Sender) -> tuple[Update, Mapping[str, Array]]:
        """What leaves in place of `update`, and what the guard keeps for the client's next round."""

    def incoming(self, mean: Mapping[str, Array], total: Total) -> dict[str, Array]:
        """What the server uses in place of the mean of updates."""


class Packing(Protocol):
    """A guard that also sends fewer bytes. Packed and unpacked, an outgoing update is what it was."""

    def pack(self, arrays: Mapping[str, Array], round: Round) -> dict[str, Array]:
        """Arrays as they cross the wire. Under a masked sum they are float32 and may be added up as they are,
        so every client of a round packs alike."""

    def unpack(
        self, arrays: Mapping[str, Array], round: Round, like: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Float32 arrays with the names and shapes of `like`.

        Raises:
            WireError: these are not packed arrays of that shape.
        """


@dataclass(frozen=True, slots=True)
class GuardParts:
    """What `build.py` hands to a guard.

    num_clients: who may be asked; cohort: how many are asked in a round; minimum: replies without which a
    round changes nothing; num_rounds: of the run; is_masked: sums are masked, the server sees no single
    update; before: the bound that the guards before this one set on a value.
    """

    num_clients: int
    cohort: int
    minimum: int
    num_rounds: int
    is_masked: bool = False
    before: float | None = None
