"""A server and clients that sum under masks, without models and without network; used by several tests.

Each message is answered by a new object, as if the client had been started again, and goes through the codec.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cotune.aggregators.secure_sum import Config, SecureSum, build
from cotune.codec import decode, encode
from cotune.errors import WireError
from cotune.guarding import Update
from cotune.identity_keys import simulated_identity, simulated_registry
from cotune.masked_gather import Journal, MaskedSums, Outcome
from cotune.masked_member import Members
from cotune.masked_terms import STEPS, Sum
from cotune.records import Facts, Message

SEED = 5
Told = Callable[[str, str, Facts], Facts | None]
"""(step, client, what it would be told) -> what it is told; None: it is not asked."""


def named(number: int) -> tuple[str, ...]:
    return tuple(f"client {i:03d}" for i in range(number))


def updates(names: tuple[str, ...], size: int = 12, seed: int = 0) -> dict[str, Update]:
    rng = np.random.default_rng(seed)
    return {
        name: Update(
            {
                "a": rng.normal(0, 0.1, (size // 3, 3)).astype(np.float32),
                "b": rng.normal(0, 0.1, size).astype(np.float32),
            },
            float(rng.uniform(0.5, 1.0)),
            {"loss": float(rng.uniform(0, 9)), "clients": 1.0},
        )
        for name in names
    }


@dataclass
class Group:
    """All clients of a run, and the wire between them and a server.

    gone: who leaves at a step, for good; lie: what a server tells in place of the truth; seen: all that the
    server has seen; refused: why replies did not count; told: what clients were told last.
    """

    folder: Path
    names: tuple[str, ...]
    config: Config = field(default_factory=Config)
    gone: Mapping[str, set[str]] = field(default_factory=dict)
    lie: Told = lambda step, client, told: told
    round: int = 1
    order: int = 0
    how: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    seen: list[Message] = field(default_factory=list)
    told: dict[tuple[str, str], Facts] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    num_bytes: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def __post_init__(self) -> None:
        self.registry = simulated_registry(SEED, self.names)
        self.updates = updates(self.names)

    @property
    def settings(self) -> SecureSum:
        return build(self.config)

    def members(self, client: str) -> Members:
        given: dict[str, Any] = {
            "folder": self.folder / "clients",
            "identity": lambda name: simulated_identity(SEED, name),
            "registry": self.registry,
            "run": "run",
            "settings": self.settings,
            "is_flushed": False,
        }
        return Members(**given | self.how.get(client, {}))

    def message(self, client: str, action: str, facts: Facts) -> Message:
        return decode(encode(Message(client, self.round, action, {}, {"told": facts})))

    def answer(self, client: str, step: str, told: Facts) -> Message:
        return decode(encode(self.members(client).answer(self.message(client, f"secure/{step}", told))))

    def keep(self, action: str = "tune") -> list[Message]:
        acks = []
        for client in self.names:
            asked = Message(client, self.round, action)
            facts = self.members(client).keep(asked, self.updates[client])
            acks.append(decode(encode(replace(asked, facts=facts))))
        return acks

    def exchange(self, action: str, told: Mapping[str, Facts], *, gathered: bool) -> Iterator[Message]:
        step = action.removeprefix("secure/")
        self.away |= self.gone.get(step, set())
        clients = list(told)
        random.Random(self.order).shuffle(clients)
        for client in clients:
            facts = self.lie(step, client, told[client])
            if client in self.away or facts is None:
                continue
            self.told[step, client] = facts
            try:
                reply = self.answer(client, step, facts)
            except WireError as error:
                self.refused.append((client, str(error)))
                continue
            self.seen.append(reply)
            self.num_bytes[gathered] += len(encode(reply))
            yield reply

    def refuse(self, reply: Message, reason: str) -> None:
        self.refused.append((reply.client, reason))

    def server(self) -> MaskedSums:
        return MaskedSums(self, self.settings, self.registry, Journal(self.folder / "server"))

    def wanted(self, action: str = "tune") -> Sum:
        arrays = self.updates[self.names[0]].arrays
        return Sum("run", action, self.round, self.names, tuple((n, arrays[n].shape) for n in sorted(arrays)))

    def gather(self, action: str = "tune") -> Outcome:
        return self.server().gather(self.wanted(action), self.keep(action))

    def sent(self, step: str, client: str) -> Message:
        """What a client has sent last in a step."""
        return next(
            one for one in reversed(self.seen) if (one.client, one.action) == (client, f"secure/{step}")
        )


def check(group: Group, outcome: Outcome, alive: set[str] | None = None) -> None:
    """The outcome is the weighted mean of those who are in it, within the error that its layout states."""
    names = sorted(set(group.names) if alive is None else alive)
    gifts = [group.updates[name] for name in names]
    weights = [gift.weight for gift in gifts]
    found = outcome.summed
    assert found is not None, outcome.reason
    assert found.num_clients == len(names)
    layout = group.settings.layout(
        outcome.plan["asked_to_mask"], group.wanted().shapes, tuple(sorted(gifts[0].sums)), is_update=True
    )
    assert abs(found.weight - sum(weights)) <= layout.extras.error(len(names))
    assert abs(found.sums["loss"] - sum(gift.sums["loss"] for gift in gifts)) <= 1e-5
    assert found.sums["clients"] == len(names)
    for name, array in found.arrays.items():
        expected = np.average([gift.arrays[name] for gift in gifts], axis=0, weights=weights)
        assert np.abs(array - expected).max() <= layout.error(found.weight, len(names)) + 2.0**-25


__all__ = ["SEED", "STEPS", "Group", "check", "named", "updates"]
