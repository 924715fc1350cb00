"""The public pool: what an allocator sees of it and says, what it is told later, and who writes paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cotune.records import Array, Keep, Sampling, Written

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Attempts:
    """What a model answered when it tried every item of the pool a few times.

    answers: of each item, the final answer of each try; None where none could be read. steps: of each item
    [prefixes, choices], how likely each choice was after each step of its reasoning; empty where not read.
    """

    answers: Sequence[Sequence[str | None]]
    steps: Sequence[Array] = ()


class PoolView(Protocol):
    """The public pool as the party sees it that is to be taught: a client by the LLM, or the LLM by a client.

    What is expensive is computed when it is first asked for, and once.
    """

    @property
    def num_items(self) -> int:
        """Items in the pool; may be 0."""

    @property
    def round(self) -> int:
        """Of the run, from 1."""

    @property
    def num_rounds(self) -> int:
        """Of the run."""

    @property
    def rng(self) -> np.random.Generator:
        """The only source of randomness in this step."""

    def contexts(self) -> Array:
        """Features of each item's prompt under the party's own model, float32 [items, d].

        d is the same for every model and round.
        """

    def own_data(self) -> Array:
        """The same features of the party's private examples, float32 [examples, d]; none on the server."""

    def losses(self) -> tuple[Array, Array]:
        """Loss of each item's reference answer under the party's own model and under its peer's.

        Each float64 [items], in nats a character; NaN where an answer has no tokens.
        """

    def answers(self, count: int) -> Attempts:
        """What the party's own model answers when it tries each item `count` times."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """Which items teach the party, and what the allocator thinks of every item.

    rows: int64, without repeats, best first. scores: float64 [items], higher is better; NaN where there is
    none.
    """

    rows: Array
    scores: Array


@dataclass(frozen=True, slots=True)
class Trained:
    """What was seen while a party learned from its items: an entry a pair of paths, in the order of training.

    Attributes:
        rows: int64 [t], of the pool; an item that came up twice is here twice.
        batches: int64 [t], the step that an entry took part in, from 0 in each round, not falling.
        margins: float64 [t], before the step, z of `sigmoid(beta z)`: how much more the peer's path has
            gained on its reference than the other one.
        log_probs: float64 [t], before the step: mean token log-probability of the peer's path.
        probe: float64 [2], mean preference probability on a fixed set, before the first step and after the
            last; empty where it was not measured.
    """

    rows: Array
    batches: Array
    margins: Array
    log_probs: Array
    probe: Array


class Allocator(Protocol):
    """Which items of the public pool teach one party. What it remembers stays with the party, as arrays."""

    needs: frozenset[str]
    """Of `contexts`, `own_data`, `losses`, `answers`: what it asks a view for; known before it does.
    And `probe`, where its rewards read what was measured on one."""

    def choose(self, view: PoolView, memory: Mapping[str, Array]) -> Allocated:
        """The items of this round; `memory` is empty before anything was learned."""

    def learn(self, view: PoolView, memory: Mapping[str, Array], trained: Trained) -> Mapping[str, Array]:
        """The new memory, after the party has learned from its items."""


class Writer(Protocol):
    """Who writes texts after prompts: a model of this process, or one behind an endpoint."""

    @property
    def fingerprint(self) -> str:
        """Of everything but the prompt and the sampling that a text depends on: model, adapter, tokenizer."""

    def write(self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None = None) -> list[Written]:
        """A text for each prompt, in order; the text is empty where none came that can be used.

        `keep` is told each text as soon as it is there, also if a later one fails. One prompt and one seed
        have one text: for several texts of a prompt, ask with several seeds.
        """
