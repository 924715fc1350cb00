"""How far a run is and how long the rest will take. Pure bookkeeping: time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cotune.changes import number
from cotune.records import Event
from cotune.tables import printable

PHASES: Mapping[str, float] = {
    "tune": 0.62,
    "gather": 0.01,
    "co-tune": 0.28,
    "evaluate": 0.08,
    "checkpoint": 0.01,
}
"""Share of a round that each phase is expected to take, until it has been measured."""

TRUSTED_SHARE = 0.1
"""How much of a phase must be done before its own pace, and not the plan, says how long it takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before a run starts. `phases` maps each phase to its expected share of a round's time."""

    title: str
    num_rounds: int
    num_clients: int = 0
    first_round: int = 1
    phases: Mapping[str, float] = field(default_factory=lambda: dict(PHASES))


class Progress:
    """What has happened so far, event by event.

    Facts it understands: `tokens`, `up_bytes`, `down_bytes` (added since the event before), `loss_*` (latest
    value), `client` (it is done with this phase), `note` (something to tell; about `client` if one is named).
    """

    def __init__(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.began = self.phase_began = self.round_began = now
        self.round, self.phase, self.done, self.total = 0, "", 0, 0
        self.losses: dict[str, float] = {}
        self.up_bytes = self.down_bytes = 0.0
        self.clients_done: frozenset[str] = frozenset()
        self.note = ""
        self._tokens = 0.0
        self._seen: frozenset[str] = frozenset()  # phases of this round
        self._times: dict[str, list[float]] = {}  # seconds of each finished phase
        self._rounds_done = 0

    def hear(self, event: Event, now: float) -> None:
        """Take one event in."""
        if event.round != self.round:
            self._begin_phase("", now)
            self._rounds_done += self.round >= self.plan.first_round
            self.round, self.round_began, self._seen = event.round, now, frozenset()
        if event.phase != self.phase:
            self._begin_phase(event.phase, now)
        self.done, self.total = event.done, event.total
        self._take(event.facts)

    def tokens_per_second(self, now: float) -> float:
        """Pace of the current phase; 0 while unknown."""
        return self._tokens / (now - self.phase_began) if now > self.phase_began else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Estimated time to the end of the run; None before training: scoring says little about its pace."""
        pace = self._pace(now)
        if pace is None or self.round < self.plan.first_round:
            return None
        ahead = set(self.plan.phases) - self._seen
        return (
            max(0.0, self._length_of_current(pace, now) - (now - self.phase_began))
            + sum(self._expected(phase, pace) for phase in ahead)
            + (self.plan.num_rounds - self.round)
            * sum(self._expected(phase, pace) for phase in {*self.plan.phases, *self._times})
        )

    def _begin_phase(self, name: str, now: float) -> None:
        if self.phase:
            self._times.setdefault(self.phase, []).append(now - self.phase_began)
        self.phase, self.phase_began, self.done, self.total = name, now, 0, 0
        self.clients_done, self._tokens = frozenset(), 0.0
        self._seen |= {name} if name else set()

    def _take(self, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            amount = number(value)
            if name.startswith("loss_") and amount is not None:
                self.losses[name.removeprefix("loss_")] = amount
        self._tokens += number(facts.get("tokens")) or 0.0
        self.up_bytes += number(facts.get("up_bytes")) or 0.0
        self.down_bytes += number(facts.get("down_bytes")) or 0.0
        if facts.get("note"):
            self.note = printable(": ".join(str(facts[key]) for key in ("client", "note") if facts.get(key)))
        elif facts.get("client"):
            self.clients_done |= {str(facts["client"])}

    def _share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    def _pace(self, now: float) -> float | None:
        """Seconds that a whole planned round takes, judged by the planned work that is done."""
        planned = self.plan.phases
        spent = sum(sum(times) for phase, times in self._times.items() if phase in planned)
        work = sum(planned[phase] * len(times) for phase, times in self._times.items() if phase in planned)
        if self._share() > 0 and self.phase in planned:
            spent, work = spent + now - self.phase_began, work + planned[self.phase] * self._share()
        return spent / work if work > 0 else None

    def _length_of_current(self, pace: float, now: float) -> float:
        share, expected = self._share(), self._typical(self.phase, pace)
        if share == 0:
            return expected
        trust = min(1.0, share / TRUSTED_SHARE)
        return trust * (now - self.phase_began) / share + (1 - trust) * expected

    def _typical(self, phase: str, pace: float) -> float:
        """Seconds the phase takes when it happens: as measured, else as planned."""
        times = self._times.get(phase)
        return sum(times) / len(times) if times else self.plan.phases.get(phase, 0.0) * pace

    def _expected(self, phase: str, pace: float) -> float:
        """Seconds the phase takes in a round, on average: it may not happen in each."""
        often = len(self._times.get(phase, ())) / self._rounds_done if self._rounds_done >= 2 else 1.0
        return min(1.0, often) * self._typical(phase, pace)
