"""The server's half of choosing: which selectors are due, who is asked, and who sits this round out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
        counts: examples that each client has chosen; who is missing has never answered.
        waiting: for each selector, whom it asks again in the next round: those who did not answer and have
            nothing in use, and everybody if nobody answered.
        answers: what of the counts is of this round.
        is_new: a selector was due.
        seconds: that choosing took.
        crossed: for each exchange its action, its verb, and the bytes that came up.
    """

    counts: Counts = field(default_factory=dict)
    waiting: Sequence[Collection[str]] = ()
    answers: Counts = field(default_factory=dict)
    is_new: bool = False
    seconds: float = 0.0
    crossed: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def playing(self, cohort: Sequence[str]) -> tuple[str, ...]:
        """Who has something to train on."""
        return tuple(client for client in cohort if self.counts.get(client))


def select(
    selectors: Sequence[Selector],
    before: Selection,
    state: State,
    round: Round,
    federation: Federation,
    members: Sequence[str] | None = None,
) -> Selection:
    """Let every selector that is due choose anew, each from what the one before it has left.

    For whom the predecessor chose anew, the next one chooses anew as well. A client that does not answer
    keeps what it chose earlier; if that is nothing, it is asked again in each round until it answers. Sums
    are then taken over everybody again, so that a late client is never summed alone.

    Args:
        selectors: in the order in which they narrow the choice.
        before: what was in use so far.
        state: what the run has learned so far.
        round: the round that is about to begin.
        federation: how clients are reached.
        members: among whom to choose; by default everybody.
    """
    all_of_them = federation.clients() if members is None else members
    began, crossed = federation.journal.now(), []
    waiting: list[Collection[str]] = []
    answers: dict[str, int] = {}
    is_new, fresh, gone = False, set[str](), set[str]()
    for number, selector in enumerate(selectors):
        late = set(before.waiting[number]).intersection(all_of_them) if before.waiting else set()
        everybody = all_of_them if selector.asks_all else round.cohort
        whole = [client for client in everybody if client not in gone and (client in fresh or not is_new)]
        is_due = is_new or selector.is_due(round)
        asked = tuple(client for client in whole if is_due or client in fresh | late)
        numbered = _Numbered(federation, number, tuple(whole))
        found = selector.server_select(state, replace(round, cohort=asked), numbered) if asked else {}
        is_last = number == len(selectors) - 1
        answers |= {client: count for client, count in found.items() if is_last or not count}
        silent = late.union(asked) - found.keys() - answers.keys()
        waiting.append(sorted(c for c in silent if not found or not before.counts.get(c)))
        fresh = {client for client, count in found.items() if count}
        is_new, gone = is_due, gone | silent | (found.keys() - fresh)
        crossed += numbered.crossed
    seconds = federation.journal.now() - began if is_new or crossed else 0.0
    return Selection({**before.counts, **answers}, waiting, answers, is_new, seconds, crossed)


def together(before: Selection, found: Sequence[Selection]) -> Selection:
    """What is in use once each family of clients has chosen among its own, all of them from `before`."""
    answers = {client: count for one in found for client, count in one.answers.items()}
    waiting = [sorted(set().union(*lists)) for lists in zip(*(one.waiting for one in found), strict=True)]
    crossed = [part for one in found for part in one.crossed]
    is_new, seconds = any(one.is_new for one in found), sum(one.seconds for one in found)
    return Selection({**before.counts, **answers}, waiting, answers, is_new, seconds, crossed)


class _Numbered:
    """The two verbs, with the selector's number in every action, counting what came up.

    What is gathered is gathered from all who take part, `whole`, even where only some of them are to choose.
    """

    def __init__(self, federation: Federation, number: int, whole: tuple[str, ...]) -> None:
        self.federation, self.number, self.whole = federation, number, whole
        self.crossed: list[dict[str, Any]] = []

    def gather(self, action: str, adapter: Adapter | None, round: Round) -> Gathered:
        before = self.federation.ledger.up_bytes
        all_of_them = replace(round, cohort=self.whole)
        found = self.federation.gather(f"{SELECT}{self.number}/{action}", adapter, all_of_them)
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
