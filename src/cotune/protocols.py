"""The slots a plug-in can fill, and the two verbs by which a server reaches clients.

A plug-in never imports another one: what it needs is handed to it by `build.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cotune.records import (
    Adapter,
    Array,
    Example,
    Facts,
    Failure,
    Message,
    Progress,
    Round,
    silent,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cotune.models.learner import Learner
    from cotune.pool import Writer


TUNE = "tune"
"""The step of a strategy in which clients train. Lessons come before it, guards after it."""
SLM = "slm"
"""The family of all clients that hold the model `slm`; the others have names of their own."""


@dataclass(frozen=True, slots=True)
class State:
    """What a run has learned so far, on the server. A strategy leaves what it does not train at None.

    `others` holds the SLM adapters of further families of clients by name; a strategy works on one family at
    a time and never sees them. `distil` is how much of the teaching between models the gates have left, from
    1 (all) to 0.
    """

    slm: Adapter | None = None
    llm: Adapter | None = None
    others: Mapping[str, Adapter] = field(default_factory=dict)
    distil: float = 1.0

    def replace(self, **changes: Any) -> State:
        """A copy with other values."""
        return replace(self, **changes)

    def of(self, family: str) -> State:
        """The state as one family sees it."""
        return State(self.slm if family == SLM else self.others.get(family), self.llm, distil=self.distil)

    def after(self, family: str, seen: State) -> State:
        """The state once one family has gone from `of(family)` to `seen`."""
        if family == SLM:
            return State(seen.slm, seen.llm, self.others, self.distil)
        own = {family: seen.slm} if seen.slm is not None else {}
        return State(self.slm, seen.llm, {**self.others, **own}, self.distil)

    def adapters(self) -> dict[str, Adapter]:
        """All that there are, by family; the LLM's under `llm`."""
        found = {SLM: self.slm, "llm": self.llm, **self.others}
        return {name: adapter for name, adapter in found.items() if adapter is not None}


@dataclass(frozen=True, slots=True)
class Client:
    """One client as a step sees it: its examples, its randomness, and what it kept from earlier rounds.

    `memo` is what the same selector noted in its step before this one; `used` are the rows of `examples` that
    it chose in earlier rounds, by round. `counts` is what it weighs in a mean over examples, where it
    tunes on more texts than it has examples.
    """

    id: str
    examples: Sequence[Example]
    round: Round
    kept: Adapter | None = None
    memo: Mapping[str, Array] = field(default_factory=dict)
    used: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    counts: int | None = None

    @property
    def num_examples(self) -> int:
        """What it weighs in a mean over examples."""
        return len(self.examples) if self.counts is None else self.counts

    def rng(self, purpose: str) -> np.random.Generator:
        """The only source of randomness in a client's step."""
        return self.round.rng(purpose, self.id)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client's step returns.

    `adapter` and `sums` may be added up over clients (`gather`): the adapter with `weight`, each of `sums` as
    it is. `facts` and `arrays` are read one by one (`ask`). What follows stays on the client and never
    travels: `keep`; `memo`, for the next step of the same selector; and `chosen`, the rows of the client's
    examples, in their order of use, that it trains on from now on.
    """

    adapter: Adapter | None = None
    weight: float = 1.0
    sums: Mapping[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    keep: Adapter | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    memo: Mapping[str, Array] = field(default_factory=dict)
    chosen: Sequence[int] | None = None


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
        return {"slm": self.sums["loss"] / clients} if clients and "loss" in self.sums else {}


class Verbs(Protocol):
    """How a strategy's server half reaches clients. There is no third way."""

    def gather(self, action: str, adapter: Adapter | None, round: Round) -> Gathered:
        """Every client of the cohort does `action`; the server learns sums only."""

    def ask(
        self,
        action: str,
        adapter: Adapter | None,
        round: Round,
        told: Mapping[str, Facts] | None = None,
    ) -> list[Message]:
        """Every client of the cohort does `action`; replies arrive one by one, in the clear, sorted.

        `told` asks its keys instead of the cohort, and tells each of them something of its own.
        """

    def refuse(self, reply: Message, reason: str) -> None:
        """Record that a reply which had come does not count."""

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


class Given(NamedTuple):
    """What a message brought to a client: an adapter, and facts meant for this client alone."""

    adapter: Adapter | None
    facts: Facts


class Selector(Protocol):
    """Which private examples to train on: a server half that reconciles, and a client half that proposes and
    picks. Only what its replies hold crosses."""

    def is_due(self, round: Round) -> bool:
        """Whether it chooses anew before this round."""

    asks_all: bool
    """Everybody is asked, not only the cohort: what is chosen now is still in use in later rounds."""

    def server_select(self, state: State, round: Round, verbs: Verbs) -> dict[str, int]:
        """Let the clients of `round.cohort` choose; returns how many examples each of them has chosen."""

    def client_step(self, action: str, given: Sequence[Given], clients: Sequence[Client]) -> list[Reply]:
        """What the clients of one process do when asked for `action`; one reply each, in order."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What one client may choose from, as a score sees it; `progress` hears how far a long score is."""

    examples: Sequence[Example]
    rng: np.random.Generator
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class Stage:
    """When a policy chooses, and what it needs to know besides the scores.

    round and num_rounds: of the run, from 1; used: rows chosen in earlier rounds, by round; rng: its
    randomness.
    """

    round: int
    num_rounds: int
    rng: np.random.Generator
    used: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)


class Reader(Protocol):
    """A model that scores and clusters are read from; nothing is trained."""

    @property
    def fingerprint(self) -> str:
        """Of the weights, without adapter."""

    def mount(self, adapter: Adapter | None) -> None:
        """Read with this adapter from now on; None: the bare model."""

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> LogProbs:
        """Log-probability of each target after its context, for (context, target) pairs."""

    def features(
        self, texts: Sequence[str], dimensions: int | None, seed: int, *, together: bool = False
    ) -> Array:
        """Features, float32 [texts, dimensions], that every reader of the same model and seed computes alike.

        `dimensions` None: all features, unprojected. `together`: to the last bit the same whenever these very
        texts are asked for together.
        """


class LogProbs(Protocol):
    """What a model thinks of some targets."""

    @property
    def sums(self) -> Array:
        """Log-probability of each whole target in nats, float64 [targets]."""

    @property
    def counts(self) -> Array:
        """Tokens of each target, int64 [targets]."""


class Score(Protocol):
    """One number for each example; its module also says what it needs.

    `NEEDS`: a frozenset of `completion`, `log_probs`, `features`.
    """

    def template(self) -> Mapping[str, Array]:
        """Zeros in the shape of what `share` returns; empty where clients score on their own."""

    def share(self, pools: Sequence[Pool], reader: Reader) -> list[Mapping[str, Array]]:
        """Arrays that are summed over clients before anybody scores; one mapping a pool."""

    def score(
        self, pools: Sequence[Pool], reader: Reader, shared: Mapping[str, Array]
    ) -> list[npt.NDArray[np.float64]]:
        """[examples] of each pool; higher comes first. `shared` is the sum over clients."""


class Policy(Protocol):
    """Scores to rows; every policy works with every score."""

    def choose(self, scores: npt.NDArray[np.float64], stage: Stage) -> npt.NDArray[np.int64]:
        """Rows of `scores` [n], without repeats, in the order of their use; may be empty."""


class Pupil(Protocol):
    """The clients' half of teaching: what they do when a step of it is asked for, and before they tune."""

    def step(self, action: str, given: Sequence[Given], clients: Sequence[Client]) -> list[Reply]:
        """One step for the clients of one process; one reply each, in order."""

    def before_tuning(
        self, starts: Sequence[Adapter], clients: Sequence[Client]
    ) -> tuple[list[Adapter], list[Client]]:
        """Where clients start their own tuning from once they were taught, and on what they tune."""


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
class SelectorParts:
    """What `build.py` hands to a selector: models by name, loaded when first asked for.

    `reader("slm")` is the clients' own model, with the global adapter mounted; any other is a frozen one.
    `progress` hears how far a long step is.
    """

    reader: Callable[[str], Reader]
    num_rounds: int
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class Parts:
    """What `build.py` hands to a strategy: the models it trains, by role, and the public set.

    `num_families`: how many kinds of SLM are tuned with this LLM, each by a strategy of its own; `note` tells
    the user something in words.
    """

    learners: Mapping[str, Learner]
    public: Sequence[Example]
    num_families: int = 1
    note: Callable[[str], None] = lambda _: None
    teacher: Callable[[bool], Writer] | None = None
    """Who writes rationales: the LLM, loaded when it is first asked for, or an endpoint. It is told whether
    its texts must end on an answer; of an endpoint that then gives none, no text is kept."""
