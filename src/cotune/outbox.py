"""What a client's reply goes through before it leaves: guards for an update, masks for what is summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cotune.errors import WireError
from cotune.guarded import Guards
from cotune.guarding import Update
from cotune.protocols import TUNE, Reply
from cotune.records import Adapter, Message, Round, adapter_header, adapter_of, refusal


class Masking(Protocol):
    """The client half of masked sums."""

    def keep(self, message: Message, update: Update) -> Mapping[str, Any]:
        """Keep what is to be summed; what the server is told in its place.

        Raises:
            WireError: it cannot be summed.
        """

    def answer(self, message: Message) -> Message:
        """One step of the protocol.

        Raises:
            WireError: a step that must not be taken.
        """


@dataclass(frozen=True, slots=True)
class Outbox:
    """`guards` of updates and `masking` of sums, if there are any; of the clients of one process."""

    guards: Guards | None = None
    masking: Masking | None = None

    def send(self, message: Message, reply: Reply, round: Round) -> Message:
        """The reply to `message` as it leaves; what must not leave becomes a refusal that says why."""
        if reply.adapter is None and not reply.sums:
            return _reply(message, reply.facts, reply.arrays)
        header = {"adapter": adapter_header(reply.adapter)} if reply.adapter else {}
        facts = {**reply.facts, **header}
        update = Update(reply.adapter.arrays if reply.adapter else reply.arrays, reply.weight, reply.sums)
        sent = adapter_of(message)
        try:
            if reply.adapter and sent and message.action == TUNE:
                update = self._guarded(update, sent, message.client, round)
            if self.masking is not None:
                return _reply(message, {**facts, **self.masking.keep(message, update)}, {})
        except WireError as error:
            return refusal(message, str(error))
        # null is refused by the server and recorded; NaN could not even be sent
        sums = {name: value if math.isfinite(value) else None for name, value in update.sums.items()}
        return _reply(message, {**facts, "weight": update.weight, "sums": sums}, update.arrays)

    def answer(self, messages: Sequence[Message]) -> list[Message]:
        """One step of a masked sum for each client; who must not take it says why."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        if self.masking is None:
            return refusal(message, f"{message.action!r} was asked, but sums are not masked in this run")
        try:
            return self.masking.answer(message)
        except WireError as error:
            return refusal(message, str(error))

    def _guarded(self, update: Update, sent: Adapter, client: str, round: Round) -> Update:
        """The change in place of the adapter, where guards or masks ask for it."""
        if self.guards is None and self.masking is None:
            return update
        changed = {name: array - sent.arrays[name] for name, array in update.arrays.items()}
        if not all(np.isfinite(array).all() for array in changed.values()):
            raise WireError("an update is not finite: training diverged; lower slm.tune.lr")
        update = Update(changed, update.weight, update.sums)
        return self.guards.leaving(update, client, round) if self.guards else update


def _reply(message: Message, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> Message:
    return Message(message.client, message.round, message.action, arrays, dict(facts))
