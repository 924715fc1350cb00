"""The client side of one process: it owns the examples of the clients that live here, and answers messages.

Deployed, that is a list of one client; embedded, all of them, trained in stacks on one frozen base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotune.checked import Known, check_requests
from cotune.choices import Choices
from cotune.data import ByTask, Dataset
from cotune.outbox import Outbox
from cotune.protocols import TUNE, Client, Given, Pupil, Reply, Selector, Strategy
from cotune.records import Adapter, Example, Message, Round, adapter_digest, adapter_of
from cotune.shelf import Shelf

Evaluator = Callable[[Adapter | None, ByTask], Mapping[str, Any]]
"""(adapter or none, held-out examples by task) -> numbers by task."""

SECURE = "secure/"
"""`secure/keys` is the first step of a masked sum."""
SELECT = "select/"
"""`select/0/propose` is step `propose` of the first selector."""
TEACH = "teach/"
"""`teach/choose` is the first step of a round's teaching."""
KEPT_ADAPTER = "adapter"
"""Under this name a client keeps the adapter that its strategy has it keep."""


class Host:
    """Answers messages for the clients of this process."""

    def __init__(
        self,
        dataset: Dataset,
        steps: tuple[Strategy | None, Sequence[Selector], Pupil | None],
        evaluate: Evaluator,
        folder: Path,
        run: tuple[int, int],
        outbox: Outbox | None = None,
    ) -> None:
        self.dataset, self.evaluate, self.shelf = dataset, evaluate, Shelf(folder, "strategy")
        self.outbox = outbox or Outbox()
        self.strategy, self.selectors, self.pupil = steps
        self.choices = Choices(folder, len(self.selectors))
        self.seed, self.num_rounds = run

    def clients(self) -> tuple[str, ...]:
        """The clients that live here."""
        return self.dataset.clients

    def handle(self, messages: Sequence[Message]) -> list[Message]:
        """One reply per message, in order; all messages have the same round and action."""
        first = messages[0]
        if first.action == "evaluate":
            return self._evaluate(messages)
        if first.action.startswith(SECURE):
            return self.outbox.answer(messages)
        now = Round(first.round, self.num_rounds, self.seed, tuple(m.client for m in messages))
        if first.action.startswith(SELECT):
            return self._select(messages, now)
        clients = [
            Client(m.client, self._chosen(m), now, self.shelf.adapter(m.client, KEPT_ADAPTER, m.round))
            for m in messages
        ]
        replies = self._step(first.action, messages, clients)
        for message, reply in zip(messages, replies, strict=True):
            if reply.keep is not None:
                self.shelf.put_adapter(message.client, KEPT_ADAPTER, message.round, reply.keep)
                self.shelf.trim(message.client, KEPT_ADAPTER)
        return self._replies(messages, replies, now)

    def _replies(self, messages: Sequence[Message], replies: Sequence[Reply], now: Round) -> list[Message]:
        """What leaves: an update goes through the guards, and what is to be summed may stay under masks."""
        return [
            self.outbox.send(message, reply, now) for message, reply in zip(messages, replies, strict=True)
        ]

    def _step(self, action: str, messages: Sequence[Message], clients: list[Client]) -> list[Reply]:
        """A step of the teaching, or of the strategy; what is taught is learned before one's own examples."""
        adapters = [adapter_of(message) for message in messages]
        if self.pupil and action.startswith(TEACH):
            told = [Given(a, m.facts.get("told", {})) for a, m in zip(adapters, messages, strict=True)]
            return self.pupil.step(action.removeprefix(TEACH), told, clients)
        assert self.strategy is not None
        if not (self.pupil and action == TUNE):
            return self.strategy.client_step(action, adapters, clients)
        starts, clients = self.pupil.before_tuning([a for a in adapters if a], clients)
        return self.strategy.client_step(action, starts, clients)

    def _chosen(self, message: Message) -> tuple[Example, ...]:
        """What the client trains on: all its examples, or those that the selectors left."""
        examples = self.dataset.train(message.client)
        if not self.selectors:
            return examples
        rows = self.choices.rows(message.client, message.round, len(examples))
        return tuple(examples[row] for row in rows.tolist())

    def _select(self, messages: Sequence[Message], now: Round) -> list[Message]:
        """One step of one selector; it sees only what the selectors before it have left."""
        number, action = messages[0].action.removeprefix(SELECT).split("/")
        here, choices = int(number), self.choices
        pools, clients = [], []
        for message in messages:
            examples = self.dataset.train(message.client)
            pool = choices.pool(message.client, here, message.round, len(examples))
            used = choices.used(message.client, here, message.round)
            pools.append(pool.tolist())
            clients.append(
                Client(
                    message.client,
                    tuple(examples[row] for row in pools[-1]),
                    now,
                    memo=choices.memo(message.client, here, message.round),
                    used={index: np.flatnonzero(np.isin(pool, rows)) for index, rows in used.items()},
                )
            )
        given = [Given(adapter_of(message), message.facts.get("told", {})) for message in messages]
        replies = self.selectors[here].client_step(action, given, clients)
        for message, reply, pool in zip(messages, replies, pools, strict=True):
            if reply.memo:
                choices.note(message.client, here, message.round, reply.memo)
            if reply.chosen is not None:
                choices.choose(message.client, here, message.round, [pool[place] for place in reply.chosen])
        return self._replies(messages, replies, now)

    def _evaluate(self, messages: Sequence[Message]) -> list[Message]:
        """Score the given adapter, else the client's own, else the bare model; equal work is done once."""
        known: dict[tuple[str, int], Mapping[str, Any]] = {}
        replies = []
        for message in messages:
            held_out = self.dataset.held_out(message.client)
            adapter = adapter_of(message) or self.shelf.adapter(
                message.client, KEPT_ADAPTER, message.round + 1
            )
            key = (adapter_digest(adapter), id(held_out))
            if key not in known:
                known[key] = self.evaluate(adapter, held_out)
            facts = {"metrics": known[key]}
            replies.append(Message(message.client, message.round, message.action, {}, facts))
        return replies


class Hosts:
    """Several hosts in one process, one a model family: each message goes to the host of its client.

    `known`: what may be asked here, where whoever asks is on another machine.
    """

    def __init__(self, hosts: Sequence[Host], known: Known | None = None) -> None:
        self.known = known
        self.host_of = {client: host for host in hosts for client in host.clients()}

    def clients(self) -> tuple[str, ...]:
        """The clients that live here."""
        return tuple(self.host_of)

    def handle(self, messages: Sequence[Message]) -> list[Message]:
        """One reply per message, in order.

        Raises:
            WireError: they are not one request that a server of this run sends.
        """
        if self.known is not None:
            check_requests(messages, self.known)
        places: dict[int, list[int]] = {}
        for place, message in enumerate(messages):
            places.setdefault(id(self.host_of[message.client]), []).append(place)
        found: dict[int, Message] = {}
        for mine in places.values():
            host = self.host_of[messages[mine[0]].client]
            found |= zip(mine, host.handle([messages[place] for place in mine]), strict=True)
        return [found[place] for place in range(len(messages))]
