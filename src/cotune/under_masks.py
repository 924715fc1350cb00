"""`gather` under masks: the clients keep what they have made, and only sums of it are ever opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cotune.cohorts import Asked
from cotune.guarded import Guards
from cotune.masked_gather import Journal, MaskedSums, Outcome
from cotune.masked_terms import Settings, Sum
from cotune.protocols import TUNE, Gathered
from cotune.records import Adapter, Array, Facts, Message, Round
from cotune.secure_messages import Registry


class Exchanging(Protocol):
    """The federation, as far as masked sums need it."""

    def asking(
        self, action: str, adapter: Adapter | None, round: Round, told: Mapping[str, Facts] | None = None
    ) -> Iterator[Message]:
        """Usable replies that are read one by one, as they come."""

    def masked(self, action: str, round: Round, told: Mapping[str, Facts]) -> Iterator[Message]:
        """Usable replies that are masked, as they come."""

    def refuse(self, reply: Message, reason: str) -> None:
        """Record that a reply which had come does not count."""


@dataclass(frozen=True, slots=True)
class _Carrier:
    """Carries the steps of one round's sums."""

    federation: Exchanging
    round: Round

    def exchange(self, action: str, told: Mapping[str, Facts], *, gathered: bool) -> Iterator[Message]:
        if gathered:
            return self.federation.masked(action, self.round, told)
        return self.federation.asking(action, None, self.round, told)

    def refuse(self, reply: Message, reason: str) -> None:
        self.federation.refuse(reply, reason)


@dataclass(frozen=True, slots=True)
class UnderMasks:
    """Makes the sums of a run. run: its fingerprint; asked: who may be in a sum; minimum: of clients."""

    run: str
    settings: Settings
    registry: Registry
    journal: Journal
    asked: Asked
    minimum: int

    def gather(
        self,
        federation: Exchanging,
        action: str,
        adapter: Adapter | None,
        round: Round,
        guards: Guards | None,
    ) -> tuple[Gathered, Outcome]:
        """The mean and the sums of what the cohort has made, and how the sum went.

        `guards`: of the updates, if the action is one whose updates they watch over.
        """
        acks = federation.asking(action, adapter, round)
        like = dict(adapter.arrays) if adapter else {}
        crossing = _packed(like, guards, round)
        shapes = tuple(sorted((name, tuple(array.shape)) for name, array in crossing.items()))
        everybody = self.asked(action, round.index, round.cohort[0])
        wanted = Sum(self.run, action, round.index, everybody, shapes)
        sums = MaskedSums(
            _Carrier(federation, round), self.settings, self.registry, self.journal, self.minimum
        )
        outcome = sums.gather(wanted, acks)
        if outcome.summed is None:
            return Gathered(None, {}, 0), outcome
        mean, number = outcome.summed.arrays, outcome.summed.num_clients
        found = None
        if adapter and action == TUNE:
            whole = guards.packing.unpack(mean, round, like) if guards and guards.packing else mean
            found = guards.arrived(adapter, whole, round, number) if guards else _moved(adapter, whole)
        elif adapter:
            found = adapter.with_arrays(mean)
        return Gathered(found, dict(outcome.summed.sums), number), outcome


def _packed(like: Mapping[str, Array], guards: Guards | None, round: Round) -> Mapping[str, Array]:
    """Arrays in the shape in which they are summed."""
    if guards is None or guards.packing is None:
        return like
    return guards.packing.pack({name: np.zeros_like(array) for name, array in like.items()}, round)


def _moved(adapter: Adapter, change: Mapping[str, Array]) -> Adapter:
    """What was sent and the mean of changes."""
    arrays = {name: (array + change[name]).astype(array.dtype) for name, array in adapter.arrays.items()}
    return adapter.with_arrays(arrays)
