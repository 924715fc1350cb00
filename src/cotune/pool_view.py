"""The public pool as one party sees it: features, losses, attempts; made when first asked for, and once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cotune import reasoning
from cotune.errors import RunError
from cotune.pool import Attempts, Writer
from cotune.protocols import Reader
from cotune.records import Example, Round, Sampling, readable

CONTEXT_SIZE = 128
"""Dimensions of a context, whatever the model."""
CONTEXT_SEED = 0
LOSS_DIGITS = 5
LARGEST = 1e6
"""No loss of a character comes near it."""

Floats = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float64]


@dataclass
class ModelView:
    """See `cotune.pool.PoolView`.

    Contexts are read from the bare model, so that they are read once in a run, stay the same while adapters
    change, and serve every client of a family.

    Attributes:
        pool: the public items.
        own: the party's private examples; none on the server.
        now: the round; owner: whose randomness.
        reader: the party's own model.
        peer_losses: what the peer told, if it was asked; own_losses: computes one's own.
        attempt: (count) -> the paths of so many tries for each item.
    """

    pool: Sequence[Example]
    own: Sequence[Example]
    now: Round
    owner: str
    reader: Reader
    peer_losses: Losses | None = None
    own_losses: Callable[[], Losses] | None = None
    attempt: Callable[[int], Sequence[Sequence[str]]] | None = None
    _known: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def num_items(self) -> int:
        """Items in the pool."""
        return len(self.pool)

    @property
    def round(self) -> int:
        """Of the run, from 1."""
        return self.now.index

    @property
    def num_rounds(self) -> int:
        """Of the run."""
        return self.now.num_rounds

    @cached_property
    def rng(self) -> np.random.Generator:
        """The only source of randomness in this step."""
        return self.now.rng("allocate", self.owner)

    def contexts(self) -> Floats:
        """Features of the items' questions, [items, CONTEXT_SIZE]."""
        return self._features("contexts", [example.prompt for example in self.pool])

    def own_data(self) -> Floats:
        """Features of the private examples' questions, [examples, CONTEXT_SIZE]."""
        return self._features("own_data", [example.prompt for example in self.own])

    def losses(self) -> tuple[Any, Any]:
        """Losses of the reference answers under the own and the peer's model, [items] each: `mean_losses`."""
        if self.own_losses is None or self.peer_losses is None:
            raise RunError("allocator: asked for losses, which its `needs` does not name. Add it there.")
        if "losses" not in self._known:
            self._known["losses"] = self.own_losses()
        return self._known["losses"], self.peer_losses

    def answers(self, count: int) -> Attempts:
        """Final answers of `count` tries at each item."""
        if self.attempt is None:
            raise RunError("allocator: asked for answers, which its `needs` does not name. Add it there.")
        if "answers" not in self._known:
            tries = self.attempt(count)
            self._known["answers"] = Attempts(
                [
                    [reasoning.parse(path, example) for path in paths]
                    for paths, example in zip(tries, self.pool, strict=True)
                ]
            )
        found: Attempts = self._known["answers"]
        return found

    def _features(self, name: str, texts: list[str]) -> Floats:
        if name not in self._known:
            self.reader.mount(None)
            self._known[name] = self.reader.features(texts, CONTEXT_SIZE, CONTEXT_SEED, together=True)
        found: Floats = self._known[name]
        return found


def mean_losses(reader: Reader, pool: Sequence[Example]) -> Losses:
    """Loss of each item's reference answer under the model as it is mounted, nats a character [items].

    Per character and not per token, so that models with other tokens can be compared; NaN without tokens.
    Rounded as it crosses: whoever compares own with told losses must not find a gap between equal models.
    """
    found = reader.log_probs([(example.prompt, example.completion) for example in pool])
    lengths = np.array([len(example.completion) for example in pool], np.float64)
    has_tokens = np.asarray(found.counts) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        values: Losses = np.where(has_tokens, -np.asarray(found.sums) / lengths, np.nan)
    return np.round(values, LOSS_DIGITS)


def told_losses(losses: Losses) -> list[float | None]:
    """Losses as a message holds them; none where there is none, so that the item has no gap."""
    return [float(value) if np.isfinite(value) else None for value in losses]


def losses_of(facts: Mapping[str, Any], num_items: int) -> Losses:
    """Losses that a message holds, [items]; NaN where there is none.

    Raises:
        ValueError: they are not so many numbers.
    """
    told = facts.get("losses")
    if not isinstance(told, list) or len(told) != num_items:
        raise ValueError(f"losses: expected {num_items} numbers")
    if not all(value is None or (type(value) in (int, float) and abs(value) < LARGEST) for value in told):
        raise ValueError(f"losses: one of them is no number below {LARGEST:g}")
    return np.array(told, np.float64)


def attempts(
    writer: Writer, pool: Sequence[Example], sampling: Sampling, count: int
) -> list[tuple[str, ...]]:
    """`count` sampled paths to each item, at temperature 1."""
    prompts = [reasoning.path_prompt(example) for example in pool]
    tries = [
        writer.write(prompts, replace(sampling, temperature=1.0, seed=sampling.seed + number))
        for number in range(count)
    ]
    return [tuple(one.text for one in each) for each in zip(*tries, strict=True)]


def rows_of(facts: Mapping[str, Any], name: str, num_items: int) -> list[int]:
    """Rows of the pool that a message names.

    Raises:
        ValueError: they are no distinct row numbers; says what came.
    """
    rows = facts.get(name)
    if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < num_items for row in rows):
        raise ValueError(f"{name}: {rows!r:.60}; expected row numbers below {num_items}")
    if len(set(rows)) != len(rows):
        raise ValueError(f"{name}: a row stands there twice")
    return rows


def texts_of(facts: Mapping[str, Any], name: str, count: int, limit: int) -> list[str]:
    """Paths that a message holds.

    Raises:
        ValueError: not so many texts, or one that is too long.
    """
    texts = facts.get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: expected a list of texts")
    if len(texts) != count:
        raise ValueError(f"{name}: {len(texts)} texts, expected {count}")
    long = [len(text) for text in texts if len(text) > limit]
    if long:
        raise ValueError(f"{name}: a text of {long[0]} characters, limit {limit}")
    return [readable(text) for text in texts]
