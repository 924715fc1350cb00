"""The guards of a run in their order, as both sides use them.

On a client an update goes through every guard, then is packed by the last one if it packs. On the server
single updates are unpacked, or, under a masked sum, their mean is; then the mean goes through every guard
in the same order, and is added to the adapter that had been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from cotune.errors import WireError
from cotune.guarding import Guard, Packing, Sender, Total, Update
from cotune.records import Adapter, Array, Round
from cotune.shelf import Shelf

Secret = Callable[[str], bytes]
"""Name of a client, or `server` -> 32 bytes that only it knows."""
SERVER = "server"


@dataclass(frozen=True, slots=True)
class Guards:
    """Guards by name, in their order. `shelf`: where clients keep what a guard notes."""

    guards: Mapping[str, Guard]
    secret: Secret
    shelf: Shelf

    @property
    def bound(self) -> float | None:
        """Largest size of one value that leaves a client; None: no guard bounds it."""
        found = [guard.bound for guard in self.guards.values() if guard.bound is not None]
        return found[-1] if found else None

    @property
    def packing(self) -> Packing | None:
        """The last guard, if it packs."""
        last = next(reversed(list(self.guards.values())), None)
        return cast("Packing", last) if hasattr(last, "pack") else None

    def leaving(self, update: Update, client: str, round: Round) -> Update:
        """What leaves a client in place of its update; guards' notes are kept."""
        for name, guard in self.guards.items():
            known = self.shelf.newest(client, name, round.index)
            memo = known.arrays if known else {}
            update, kept = guard.outgoing(update, Sender(client, round, self.secret(client), memo))
            if kept:
                self.shelf.put(client, name, round.index, {}, kept)
                self.shelf.trim(client, name)
        if self.packing is None:
            return update
        return replace(update, arrays=self.packing.pack(update.arrays, round))

    def unpacked(
        self, arrays: Mapping[str, Array], round: Round, like: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Arrays as they were before they were packed.

        Raises:
            WireError: they do not fit `like`.
        """
        if self.packing is not None:
            return self.packing.unpack(arrays, round, like)
        for name in sorted(arrays.keys() | like.keys()):
            if name not in arrays or name not in like:
                raise WireError(f"other arrays than were sent, first difference {name!r}")
            came, sent = arrays[name], like[name]
            if came.shape != sent.shape or came.dtype != sent.dtype:
                raise WireError(f"{name}: {came.dtype}{came.shape}, expected {sent.dtype}{sent.shape}")
        return arrays

    def arrived(self, sent: Adapter, mean: Mapping[str, Array], round: Round, num_replies: int) -> Adapter:
        """The adapter after a round: the one that was sent and the mean of updates, guarded."""
        for guard in self.guards.values():
            mean = guard.incoming(mean, Total(round, num_replies, self.secret(SERVER)))
        return sent.with_arrays(
            {name: (array + mean[name]).astype(array.dtype) for name, array in sent.arrays.items()}
        )
