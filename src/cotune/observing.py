"""The audits of a run: what is observed after which round, what the server overheard, and what gates do.

An audit of a run sees what the server has: models, and what crossed in the clear. It asks no client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from cotune import gates
from cotune.audit_settings import GatesConfig
from cotune.examined import Audit, Subject
from cotune.gates import Decision
from cotune.protocols import State
from cotune.records import Array, Message

Record = dict[str, Any]
READS_WHAT_CROSSED = "canary"
"""The audit that reads what was overheard; until it is due, everything is kept for it."""
NUMBERS = frozenset({"metrics", "adapter"})
"""Facts of replies that hold no text of a client."""


@dataclass(slots=True)
class Overheard:
    """What clients sent in the clear since it was last taken: texts; and of this round the centres of groups
    of examples, each with the fingerprint of the model that it comes from."""

    texts: list[str] = field(default_factory=list)
    centres: list[tuple[str, Array]] = field(default_factory=list)

    def hear(self, reply: Message) -> None:
        """Note what a reply holds."""
        for name, value in reply.facts.items():
            self.texts += _strings(value) if name not in NUMBERS else ()
        centres = reply.arrays.get("centres")
        if centres is not None and centres.ndim == 2 and len(centres):
            self.centres.append((str(reply.facts.get("model")), centres))

    def take(self) -> Overheard:
        """What was heard; from now on only what comes later."""
        taken = Overheard(self.texts, self.centres)
        self.texts, self.centres = [], []
        return taken


@dataclass(slots=True)
class Observing:
    """What a session asks after its rounds.

    Attributes:
        audits: by name, each with the rounds between two observations.
        subject: the models of a state, and of the state in which this round's clients were asked, together
            with what was overheard since the last observation.
        config: limits and actions; None: nothing follows from an audit.
    """

    audits: Mapping[str, tuple[Audit, int]]
    subject: Callable[[State, State | None, Overheard], Subject]
    config: GatesConfig | None
    overheard: Overheard = field(default_factory=Overheard)
    _asked: State | None = field(default=None, init=False)

    def begin(self, state: State) -> None:
        """A round begins with this state; centres are compared in its basis, so older ones are let go."""
        self._asked = state
        self.overheard.centres = []

    def due(self, index: int, num_rounds: int) -> list[str]:
        """Audits that observe after a round: before the first, every so many, and after the last."""
        ends = (0, num_rounds)
        return [name for name, (_, every) in self.audits.items() if index in ends or index % every == 0]

    def observe(self, state: State, index: int, num_rounds: int) -> Record:
        """What the audits that are due say, by name; empty if none is."""
        names = self.due(index, num_rounds)
        if not names:
            return {}
        heard = self.overheard.take() if READS_WHAT_CROSSED in names else Overheard()
        subject = self.subject(state, self._asked, heard)
        return {"audits": {name: dict(self.audits[name][0].observe(subject)) for name in names}}

    def unread(self) -> list[str]:
        """Texts that are kept for an audit; none if no audit reads them."""
        return list(self.overheard.texts) if READS_WHAT_CROSSED in self.audits else []

    def follow(self, records: Sequence[Mapping[str, Any]], state: State) -> tuple[State, list[Decision]]:
        """What the gates make of the rounds so far, and the state after it."""
        if self.config is None:
            return state, []
        found = gates.decide(records, self.config)
        return gates.lowered(state, found, self.config), found


def _strings(value: Any) -> Iterator[str]:
    """Every text in JSON values, keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*map(str, value), *value.values()])
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_strings, value))
