"""What an audit sees and says: models by role, answers, a judge; estimates and findings.

An audit observes and changes nothing. It asks its subject for what it needs; whoever made the subject keeps
every answer on disk, so that an audit that was stopped asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cotune.records import Array, Facts, Sampling, Written

if TYPE_CHECKING:
    from cotune.pool import Writer
    from cotune.protocols import LogProbs

STUDENT, REFERENCE, BASELINE, UNRELATED = "student", "reference", "baseline", "unrelated"
"""Roles of `cotune audit`: the model under audit; the one it may have become a copy of; the student before
it was taught; and a model that has nothing to do with them. In a run the roles are `llm`, `slm` and the names
of further families, and each of them with `BEFORE`."""
BEFORE = " before"
"""`llm before` is the LLM as it was when the run began."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 percent interval; NaN is never held, `value` None says that there is none.

    n: observations behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def as_facts(self) -> dict[str, Any]:
        """For audit.json."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, in the order in which a judge is shown them."""

    prompt: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How similar two answers are, each from 1 (very dissimilar) to 5 (very similar)."""

    style: float
    logic: float
    content: float
    overall: float


class Judge(Protocol):
    """Who compares answers. Judges of one kind differ by their fingerprint alone."""

    @property
    def name(self) -> str:
        """For people: the model's name, or the endpoint's and the model's."""

    @property
    def fingerprint(self) -> str:
        """Of all that a verdict depends on besides the comparison."""

    @property
    def is_anchored(self) -> bool:
        """Whether its scores mean something only between its own score of identical answers and of unrelated
        ones; False: they are whole levels from 1 to 5."""

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict | None]:
        """A verdict for each, in order; None where none could be had, also after asking once more.

        Raises:
            Paused: the judge cannot be reached; what was judged is kept.
        """


@dataclass(frozen=True, slots=True)
class CrossedVectors:
    """Centroids that left a client, and where the facts of the leakage audit lie among them.

    centroids [g, d]: as sent; planted [n, d], controls [m, d]: features of the facts of both halves in the
    basis of the centroids.
    """

    centroids: Array
    planted: Array
    controls: Array


@dataclass(frozen=True, slots=True)
class Crossed:
    """What clients sent in the clear, by channel; None: this subject has no such channel, or cannot tell."""

    texts: Mapping[str, Sequence[str]] | None = None
    vectors: Mapping[str, CrossedVectors] | None = None


class Subject(Protocol):
    """What is under audit. Answers are what a model says to a user's message, with its chat template."""

    @property
    def seed(self) -> int:
        """The only source of randomness: use `derived_rng(subject.seed, "rse", ...)`."""

    @property
    def roles(self) -> Mapping[str, str]:
        """Which models there are: role -> name for people."""

    @property
    def prompt_sets(self) -> Mapping[str, Sequence[str]]:
        """Users' messages by the name of their set; each set has one at least."""

    @property
    def judge(self) -> Judge | None:
        """Who compares answers; None: nobody."""

    @property
    def identity_judge(self) -> Writer | None:
        """Who is asked whether an answer contradicts an identity; None: rules decide."""

    @property
    def mutator(self) -> Writer | None:
        """Who rewrites templates; None: nobody."""

    @property
    def crossed(self) -> Crossed:
        """What clients sent in the clear."""

    def fingerprint(self, role: str) -> str:
        """Of a model, its adapter and tokenizer."""

    def answers(self, role: str, messages: Sequence[str], sampling: Sampling) -> list[Written]:
        """What the model of a role answers to each message; may be empty texts.

        Raises:
            Paused: an endpoint cannot be reached; what was answered is kept.
        """

    def reads(self, role: str) -> bool:
        """Whether likelihoods can be had: not from an endpoint."""

    def log_probs(self, role: str, pairs: Sequence[tuple[str, str]]) -> LogProbs:
        """Log-probability of each target after its context, as raw text, for (context, target) pairs."""

    def embed(self, texts: Sequence[str]) -> Array | None:
        """A unit vector of each text from a frozen sentence encoder, float32 [texts, d]; None: there is no
        encoder on this machine."""

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress."""


class Audit(Protocol):
    """One question about the models of a subject."""

    def observe(self, subject: Subject) -> Facts:
        """JSON values for audit.json.

        `summary` maps the name of each number to `Estimate.as_facts()`; `warnings` is a list of sentences.
        Both are always there; all else is the audit's own.

        Raises:
            ConfigError: the subject lacks a role, a judge or a file that this audit cannot do without.
        """
