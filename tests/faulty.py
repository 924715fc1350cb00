"""A transport that loses, delays, repeats and damages replies, by seed; and one with scripted replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from cotune.protocols import Transport
from cotune.records import Failure, Message, derived_rng

Outcome = tuple[Message | Failure, int, int]


class Scripted:
    """Clients that answer with what a function says; any number of replies each."""

    def __init__(
        self, names: Sequence[str], answer: Callable[[Message], Sequence[Message | Failure]]
    ) -> None:
        self.names, self.answer = names, answer
        self.seen: list[Message] = []

    def clients(self) -> Sequence[str]:
        return self.names

    def send(self, messages: Sequence[Message]) -> Iterator[Outcome]:
        for message in messages:
            self.seen.append(message)
            for reply in self.answer(message):
                yield reply, 10, 100


class Faulty:
    """A transport in front of another: each reply meets one fate, drawn by seed, round and client."""

    FATES = ("well", "drop", "late", "twice", "stale", "torn", "not finite", "odd weight")

    def __init__(self, inner: Transport, seed: int, share: float = 0.5) -> None:
        self.inner, self.seed, self.share = inner, seed, share
        self.fates: dict[tuple[int, str], str] = {}

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def send(self, messages: Sequence[Message]) -> Iterator[Outcome]:
        delayed: list[Outcome] = []
        for outcome, down, up in self.inner.send(messages):
            assert isinstance(outcome, Message)
            changed = [(fate, down, up) for fate in self._fate(outcome)]
            if self._slow(outcome):
                delayed += changed
            else:
                yield from changed
        yield from reversed(delayed)

    def _slow(self, message: Message) -> bool:
        return bool(derived_rng(self.seed, "slow", str(message.round), message.client).random() < 0.3)

    def _fate(self, reply: Message) -> list[Message | Failure]:
        if reply.action == "evaluate":
            return [reply]
        rng = derived_rng(self.seed, "fate", str(reply.round), reply.client)
        fate = str(rng.choice(self.FATES[1:])) if rng.random() < self.share else "well"
        self.fates[reply.round, reply.client] = fate
        failures = {"drop": "crashed", "late": "late"}
        if fate in failures:
            return [Failure(reply.client, reply.round, failures[fate], "by chance")]
        if fate == "twice":
            return [reply, reply]
        return [self._damaged(reply, fate)]

    def _damaged(self, reply: Message, fate: str) -> Message:
        name = next(iter(reply.arrays), "")
        if fate == "stale":
            return replace(reply, round=reply.round - 1)
        if fate == "torn":
            return replace(reply, arrays={n: a for n, a in reply.arrays.items() if n != name})
        if fate == "not finite":
            return replace(reply, arrays={**reply.arrays, name: np.full_like(reply.arrays[name], np.nan)})
        if fate == "odd weight":
            return replace(reply, facts={**reply.facts, "weight": -1.0})
        return reply
