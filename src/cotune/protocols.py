"""The slots a plug-in can fill, and the two verbs by which a server reaches clients.

A plug-in never imports another one: what it needs is handed to it by `build.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from cotune.records import Adapter, Array, Example, Facts, Failure, Message, Round

if TYPE_CHECKING:
    import numpy as np

    from cotune.models.learner import Learner


@dataclass(frozen=True, slots=True)
class State:
    """What a run has learned so far, on the server. A strategy leaves what it does not train at None."""

    slm: Adapter | None = None
    llm: Adapter | None = None

    def replace(self, **changes: Any) -> State:
        """A copy with other values."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Client:
    """One client as a step sees it: its examples, its randomness, and what it kept from earlier rounds."""

    id: str
    examples: Sequence[Example]
    round: Round
    kept: Adapter | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """The only source of randomness in a client's step."""
        return self.round.rng(purpose, self.id)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client's step returns.

    `adapter` and `sums` may be added up over clients (`gather`): the adapter with `weight`, each of `sums` as
    it is. `facts` are read one by one (`ask`). `keep` stays on the client and never travels.
    """

    adapter: Adapter | None = None
    weight: float = 1.0
    sums: Mapping[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    keep: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that the server learns from `gather`: a weighted mean, sums, and how many clients are in them."""

    adapter: Adapter | None
    sums: Mapping[str, float]
    num_replies: int

    @property
    def losses(self) -> dict[str, float]:
        """The clients' mean loss, if anybody sent one."""
        clients = self.sums.get("clients", 0.0)
        return {"slm": self.sums["loss"] / clients} if clients else {}


class Verbs(Protocol):
    """How a strategy's server half reaches clients. There is no third way."""

    def gather(self, action: str, adapter: Adapter | None, round: Round) -> Gathered:
        """Every client of the cohort does `action`; the server learns sums only."""

    def ask(self, action: str, adapter: Adapter | None, round: Round) -> list[Message]:
        """Every client of the cohort does `action`; replies arrive one by one, in the clear, sorted."""

    def progress(self, phase: str, done: int, total: int, **facts: Any) -> None:
        """Tell whoever watches."""


class Strategy(Protocol):
    """A co-tuning method: its server half and its client half."""

    trains: frozenset[str]
    """Which of `slm` and `llm` change; the other one is neither loaded nor measured. Its module has the same
    value as `TRAINS`, known before anything is loaded."""

    def init(self, seed: int) -> State:
        """The state before round 1."""

    def server_round(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """One round; also returns losses by name."""

    def client_step(
        self, action: str, given: Sequence[Adapter | None], clients: Sequence[Client]
    ) -> list[Reply]:
        """What the clients of one process do when asked for `action`; one reply each, in order."""


class Aggregator(Protocol):
    """Many weighted updates into one."""

    def fold(self, updates: Iterable[tuple[Mapping[str, Array], float]]) -> dict[str, Array]:
        """Combine arrays by name; at least one update is given and all have the same names and shapes."""


class Transport(Protocol):
    """Carries messages to clients and brings replies back, in any order, at most one per client."""

    def clients(self) -> Sequence[str]:
        """Who can be reached."""

    def send(self, messages: Sequence[Message]) -> Iterator[tuple[Message | Failure, int, int]]:
        """Each outcome with the bytes that went down and came up for it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What `build.py` hands to a strategy: the models it trains, by role, and the public set."""

    learners: Mapping[str, Learner]
    public: Sequence[Example]
