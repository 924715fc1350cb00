"""The server's half of choosing: which selectors are due, who is asked, and who sits this round out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cotune.federation import Federation
from cotune.host import SELECT
from cotune.protocols import Gathered, Selector, State
from cotune.records import Adapter, Facts, Message, Round

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is in use in a round.

    Attributes:
        counts: examples that each client has chosen; who is missing has chosen none.
        is_new: a selector was due.
        seconds: that choosing took.
        crossed: for each exchange its action, its verb, and the bytes that came up.
    """

    counts: Counts
    is_new: bool = False
    seconds: float = 0.0
    crossed: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def playing(self, cohort: Sequence[str]) -> tuple[str, ...]:
        """Who has something to train on."""
        return tuple(client for client in cohort if self.counts.get(client))


def select(
    selectors: Sequence[Selector], before: Counts, state: State, round: Round, federation: Federation
) -> Selection:
    """Let every selector that is due choose anew, each from what the one before it has left.

    A selector whose predecessor chose anew chooses anew as well.

    Args:
        selectors: in the order in which they narrow the choice.
        before: what was in use so far.
        state: what the run has learned so far.
        round: the round that is about to begin.
        federation: how clients are reached.
    """
    began, crossed = time.monotonic(), []
    is_new, counts = False, dict(before)
    left: set[str] | None = None
    for number, selector in enumerate(selectors):
        if not (is_new or selector.is_due(round)):
            continue
        everybody = federation.clients() if selector.asks_all else round.cohort
        asked = tuple(client for client in everybody if left is None or client in left)
        numbered = _Numbered(federation, number)
        found = selector.server_select(state, replace(round, cohort=asked), numbered) if asked else {}
        counts = {**dict.fromkeys(everybody, 0), **found}
        is_new, left = True, {client for client, count in counts.items() if count}
        crossed += numbered.crossed
    return Selection(counts, is_new, time.monotonic() - began if is_new else 0.0, crossed)


class _Numbered:
    """The two verbs, with the selector's number in every action, counting what came up."""

    def __init__(self, federation: Federation, number: int) -> None:
        self.federation, self.number = federation, number
        self.crossed: list[dict[str, Any]] = []

    def gather(self, action: str, adapter: Adapter | None, round: Round) -> Gathered:
        before = self.federation.ledger.up_bytes
        found = self.federation.gather(f"{SELECT}{self.number}/{action}", adapter, round)
        self._count(action, "gather", before)
        return found

    def ask(
        self, action: str, adapter: Adapter | None, round: Round, told: Mapping[str, Facts] | None = None
    ) -> list[Message]:
        before = self.federation.ledger.up_bytes
        found = self.federation.ask(f"{SELECT}{self.number}/{action}", adapter, round, told)
        self._count(action, "ask", before)
        return found

    def refuse(self, reply: Message, reason: str) -> None:
        self.federation.refuse(reply, reason)

    def progress(self, phase: str, done: int, total: int, **facts: Any) -> None:
        self.federation.progress(phase, done, total, **facts)

    def _count(self, action: str, verb: str, before: int) -> None:
        up = self.federation.ledger.up_bytes - before
        self.crossed.append({"selector": self.number, "action": action, "verb": verb, "bytes": up})
