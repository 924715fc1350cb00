"""The server's view of its clients: `gather` returns sums, `ask` returns replies in the clear. Nothing else.

Every reply is checked before it counts. What is not usable is named and left out; the round goes on.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cotune.errors import WireError
from cotune.guarded import Guards
from cotune.journal import ASK, GATHER, Journal, Kept, Ledger, Step, exchange, phase
from cotune.protocols import TUNE, Aggregator, Gathered, State, Transport
from cotune.records import (
    Adapter,
    Array,
    Event,
    Facts,
    Failure,
    Listener,
    Message,
    Round,
    adapter_digest,
    adapter_header,
)

if TYPE_CHECKING:
    from cotune.under_masks import UnderMasks  # it needs the extra `secure`

How = Literal["asked", "masked", "summed", "packed"]
"""How a reply is used: read alone, or added to others: under its mask, as it is, or once it was unpacked."""
LONGEST_REASON = 1000
"""Characters of a reason that are kept: parts of it may come from the client."""
LARGEST = 1e15
"""Largest weight or sum that a reply may hold; far above any count, far below what overflows."""


class Federation:
    """Who is present, what they were asked, and what came back."""

    def __init__(
        self, transport: Transport, aggregator: Aggregator, listener: Listener, minimum: int = 1
    ) -> None:
        self.transport, self.aggregator, self.listener, self.minimum = (
            transport,
            aggregator,
            listener,
            minimum,
        )
        self.ledger = Ledger()
        self.guards: Guards | None = None
        self.masks: UnderMasks | None = None
        self.overhear: Callable[[Message], None] = lambda _: None
        """Told every usable reply that is read one by one."""
        self.journal = Journal()
        """Where what came of each step is kept; by default nowhere."""
        self._round = Round(0, 0, 0, ())

    def clients(self) -> tuple[str, ...]:
        """Everybody who can be reached, sorted."""
        return tuple(sorted(self.transport.clients()))

    def gather(self, action: str, adapter: Adapter | None, round: Round) -> Gathered:
        """The cohort does `action`; only the weighted mean of adapters and the sums of numbers come back.

        Fewer usable replies than the minimum give `Gathered(None, {}, n)`: the round changes nothing.
        Replies are added up as they come, but in the order of the clients' names, so that the order in which
        they come changes nothing; one that is early is held until those before it have come or failed.
        """
        self._round, step = round, exchange(GATHER, action, adapter, round.cohort)
        kept = self._once(step, lambda: Kept(gathered=self._gather(action, adapter, round)))
        assert kept.gathered is not None
        return kept.gathered

    def _gather(self, action: str, adapter: Adapter | None, round: Round) -> Gathered:
        guards = self.guards if self._is_guarded(action, adapter) else None
        facts: dict[str, Any] = {"action": action, "asked": list(round.cohort)}
        if self.masks is not None:
            found, outcome = self.masks.gather(self, action, adapter, round, guards)
            facts |= {"reason": outcome.reason, "plan": dict(outcome.plan)}
        else:
            found = self._gather_clear(action, adapter, round, guards)
        if found.adapter and guards:
            facts["digest"] = adapter_digest(found.adapter)  # opened, so it counts: too little or not
        self.ledger.sums.append({**facts, "summed": found.num_replies})
        return found if found.num_replies >= self.minimum else Gathered(None, {}, found.num_replies)

    def _gather_clear(
        self, action: str, adapter: Adapter | None, round: Round, guards: Guards | None
    ) -> Gathered:
        sums: Counter[str] = Counter()
        num_replies = 0

        def updates() -> Iterator[tuple[Mapping[str, Array], float]]:
            nonlocal num_replies
            for reply, arrays in self._updates(action, adapter, round, guards):
                sums.update(reply.facts["sums"])
                num_replies += 1
                yield arrays, float(reply.facts["weight"])

        coming = updates()
        early = list(islice(coming, self.minimum))
        if len(early) < self.minimum:
            return Gathered(None, {}, num_replies)
        folded = self.aggregator.fold(chain(early, coming)) if adapter else {}
        del early
        deque(coming, maxlen=0)
        if adapter and guards:
            return Gathered(guards.arrived(adapter, folded, round, num_replies), dict(sums), num_replies)
        return Gathered(adapter and adapter.with_arrays(folded), dict(sums), num_replies)

    def _is_guarded(self, action: str, adapter: Adapter | None) -> bool:
        return self.guards is not None and adapter is not None and action == TUNE

    def _updates(
        self, action: str, adapter: Adapter | None, round: Round, guards: Guards | None
    ) -> Iterator[tuple[Message, Mapping[str, Array]]]:
        """Usable replies in order, with their arrays as they were before they were packed."""
        outcomes = self._exchange(action, adapter, round, None, "packed" if guards else "summed")
        for reply in in_order(outcomes, round.cohort):
            try:
                arrays = guards.unpacked(reply.arrays, round, adapter.arrays) if guards and adapter else None
            except WireError as error:
                self.refuse(reply, str(error))
                continue
            yield reply, reply.arrays if arrays is None else arrays

    def ask(
        self,
        action: str,
        adapter: Adapter | None,
        round: Round,
        told: Mapping[str, Facts] | None = None,
    ) -> list[Message]:
        """The cohort does `action`; replies one by one, in the clear, sorted by client.

        `told` asks its keys instead of the cohort, and tells each of them something of its own.
        """
        self._round, step = round, exchange(ASK, action, adapter, round.cohort, told)
        kept = self._once(step, lambda: Kept(self._ask(action, adapter, round, told)))
        for reply in kept.replies:
            self.overhear(reply)
        return list(kept.replies)

    def _ask(
        self, action: str, adapter: Adapter | None, round: Round, told: Mapping[str, Facts] | None
    ) -> tuple[Message, ...]:
        return tuple(sorted(self.asking(action, adapter, round, told), key=lambda reply: reply.client))

    def asking(
        self, action: str, adapter: Adapter | None, round: Round, told: Mapping[str, Facts] | None = None
    ) -> Iterator[Message]:
        """Usable replies that are read one by one, as they come."""
        found = self._exchange(action, adapter, round, told, "asked")
        return (one for one in found if isinstance(one, Message))

    def masked(self, action: str, round: Round, told: Mapping[str, Facts]) -> Iterator[Message]:
        """Usable replies that are masked, as they come."""
        found = self._exchange(action, None, round, told, "masked")
        return (one for one in found if isinstance(one, Message))

    def begin(self, round: Round, state: State) -> None:
        """A round begins from this state."""
        self._round = round
        self.journal.begin(round.index, state)

    def once(
        self, name: str, state: State, do: Callable[[], tuple[State, Mapping[str, Any]]]
    ) -> tuple[State, Mapping[str, Any]]:
        """The state after a phase, and facts, which must be JSON values: as recorded, else by doing it."""

        def kept() -> Kept:
            found, facts = do()
            return Kept(state=found, facts=facts)

        came = self._once(phase(name, state), kept)
        for reply in came.heard:
            self.overhear(reply)
        assert came.state is not None
        return came.state, came.facts

    def _once(self, step: Step, do: Callable[[], Kept]) -> Kept:
        """Do a step that is not in the journal; what crossed in it counts once, whether it is or not."""
        before, self.ledger = self.ledger, Ledger()
        kept = self.journal.once(step, lambda: replace(do(), ledger=self.ledger))
        self.ledger = before + kept.ledger
        return kept

    def refuse(self, reply: Message, reason: str) -> None:
        """Record that a reply which had come does not count."""
        reason = reason[:LONGEST_REASON]
        self.ledger.failures.append(Failure(reply.client, reply.round, "rejected", reason))
        told = {"client": reply.client, "kind": "rejected", "note": f"rejected: {reason}"}
        self.progress(reply.action.rpartition("/")[2], 0, 1, **told)

    def progress(self, phase: str, done: int, total: int, **facts: Any) -> None:
        """Tell whoever watches; the round is the one of the last exchange."""
        self.listener(Event(self._round.index, self._round.num_rounds, phase, done, total, facts))

    def take_ledger(self) -> Ledger:
        """The ledger so far; a new one begins."""
        taken, self.ledger = self.ledger, Ledger()
        return taken

    def _exchange(
        self,
        action: str,
        adapter: Adapter | None,
        round: Round,
        told: Mapping[str, Facts] | None,
        how: How,
    ) -> Iterator[Message | Failure]:
        """Usable replies, and failures of clients that send none, as they come; all else is written down."""
        messages = _messages(action, adapter, round, told)
        expected = {message.client for message in messages}
        self.progress(action.rpartition("/")[2], 0, 1, asked=sorted(expected), **self._limit())
        self.ledger.actions = sorted({*self.ledger.actions, action})
        usable: set[str] = set()
        for outcome, down, up in self._awaited(messages):
            self._count(down, up, how != "asked")
            problem = (
                outcome
                if isinstance(outcome, Failure)
                else _problem(outcome, messages[0], (expected, usable), how)
            )
            if problem is None:
                usable.add(outcome.client)
            else:
                self.ledger.failures.append(problem)
            note = {"note": f"{problem.kind}: {problem.reason}", "kind": problem.kind} if problem else {}
            seen = {"client": outcome.client, "up_bytes": up, "down_bytes": down, **note}
            self.progress(
                "gather" if how != "asked" else action.rpartition("/")[2], len(usable), len(messages), **seen
            )
            if problem is None or problem is outcome:
                yield outcome

    def _awaited(self, messages: Sequence[Message]) -> Iterator[tuple[Message | Failure, int, int]]:
        """What the transport brings; only the time until it does is counted as waiting."""
        coming = self.transport.send(messages)
        while True:
            began = time.monotonic()
            found = next(coming, None)
            self.ledger.seconds += time.monotonic() - began
            if found is None:
                return
            yield found

    def _limit(self) -> dict[str, float]:
        """How long clients may take, where the transport sets a limit."""
        seconds = getattr(self.transport, "deadline", None)
        return {} if seconds is None else {"deadline": seconds}

    def _count(self, down: int, up: int, gathered: bool) -> None:
        self.ledger.down_bytes += down
        self.ledger.up_bytes += up
        if gathered:
            self.ledger.gathered_bytes += up
        else:
            self.ledger.clear_bytes += up


def in_order(outcomes: Iterable[Message | Failure], clients: Collection[str]) -> Iterator[Message]:
    """Replies sorted by client, each as soon as every client before it has replied or failed."""
    held: dict[str, Message | None] = {}
    awaited = deque(sorted(clients))
    for outcome in outcomes:
        if isinstance(outcome, Message):
            held[outcome.client] = outcome
        else:
            held.setdefault(outcome.client, None)
        while awaited and awaited[0] in held:
            reply = held.pop(awaited.popleft())
            if reply is not None:
                yield reply
    yield from (reply for _, reply in sorted(held.items()) if reply is not None)


def _messages(
    action: str, adapter: Adapter | None, round: Round, told: Mapping[str, Facts] | None
) -> list[Message]:
    """One message a client, sorted: the same adapter for everybody, and what each is told alone."""
    arrays: Mapping[str, Any] = adapter.arrays if adapter else {}
    facts: dict[str, Any] = {"adapter": adapter_header(adapter)} if adapter else {}
    clients = sorted(round.cohort if told is None else told)
    own = {client: {"told": told[client]} if told and told[client] else {} for client in clients}
    return [Message(client, round.index, action, arrays, facts | own[client]) for client in clients]


def _problem(
    reply: Message, sent: Message, who: tuple[Collection[str], Collection[str]], how: How
) -> Failure | None:
    try:
        check_reply(reply, sent, who, how)
    except WireError as error:
        return Failure(reply.client, sent.round, "rejected", str(error)[:LONGEST_REASON])
    return None


def check_reply(
    reply: Message, sent: Message, who: tuple[Collection[str], Collection[str]], how: How
) -> None:
    """Refuse a reply that must not count.

    Args:
        reply: what came.
        sent: what was asked.
        who: the clients that were asked, and those whose reply is already here.
        how: it is read alone (asked) or is masked; or it is to be summed, so that it must have a weight, sums
            and the arrays that were sent (summed) or what guards have made of them (packed).

    Raises:
        WireError: unknown or repeated client, another round or action, a refusal, a non-finite value; and if
            it is to be summed, other arrays or shapes, or a weight that is not a positive finite number.
    """
    expected, seen = who
    if reply.client not in expected:
        raise WireError(f"reply of {reply.client!r}, who was not asked")
    if reply.client in seen:
        raise WireError(f"second reply of {reply.client!r}")
    if (reply.round, reply.action) != (sent.round, sent.action):
        raise WireError(
            f"reply to {reply.action!r} of round {reply.round}; this is {sent.action!r} of {sent.round}"
        )
    if "refused" in reply.facts:
        raise WireError(f"refused: {reply.facts['refused']!s:.300}")
    if how in ("summed", "packed"):
        _check_update(reply, sent, is_packed=how == "packed")
    for name, array in reply.arrays.items():
        if not np.isfinite(array).all():
            cure = ": training diverged; lower slm.tune.lr" if how in ("summed", "packed") else ""
            raise WireError(f"{name}: a value is not finite{cure}")


def _check_update(reply: Message, sent: Message, *, is_packed: bool) -> None:
    weight, sums = reply.facts.get("weight"), reply.facts.get("sums")
    if weight is None or not _is_number(weight) or weight <= 0:
        raise WireError(f"weight {weight!r:.40}; expected a positive number")
    if not isinstance(sums, dict) or not all(map(_is_number, sums.values())):
        raise WireError("a sum is missing or is not finite: training diverged; lower slm.tune.lr")
    if reply.facts.get("adapter") != sent.facts.get("adapter"):
        raise WireError(f"adapter of another base or rank: {reply.facts.get('adapter')}")
    if is_packed:
        return
    if reply.arrays.keys() != sent.arrays.keys():
        odd = sorted(reply.arrays.keys() ^ sent.arrays.keys())[:1]
        raise WireError(f"other arrays than were sent, first difference {odd}")
    for name, array in reply.arrays.items():
        if array.shape != sent.arrays[name].shape or array.dtype != sent.arrays[name].dtype:
            raise WireError(f"{name}: {array.dtype}{array.shape}, expected {sent.arrays[name].shape}")


def _is_number(value: Any) -> bool:
    """A number that can be summed: no NaN, no infinity, nothing so large that a float cannot hold it."""
    return isinstance(value, int | float) and abs(value) <= LARGEST  # NaN is not below anything
