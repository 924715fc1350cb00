"""A public pool without a model: views of it, and a party that learns from it as it is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cotune.pool import Attempts, Trained


@dataclass
class FakeView:
    """What is not given is made up, the same for the same seed. `needs`: what may be asked for."""

    contexts_: Any
    own_data_: Any = None
    losses_: Any = None
    attempts: Attempts | None = None
    seed: int = 0
    round: int = 1
    num_rounds: int = 5
    needs: frozenset[str] = frozenset({"contexts", "own_data", "losses", "answers"})
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng((self.seed, self.round))
        self._made_up = np.random.default_rng(self.seed)

    @property
    def num_items(self) -> int:
        return len(self.contexts_)

    def contexts(self) -> Any:
        self._ask("contexts")
        return self.contexts_

    def own_data(self) -> Any:
        self._ask("own_data")
        return self.contexts_[:0] if self.own_data_ is None else self.own_data_

    def losses(self) -> Any:
        self._ask("losses")
        return self._made_up.random((2, self.num_items)) if self.losses_ is None else self.losses_

    def answers(self, count: int) -> Attempts:
        self._ask("answers")
        if self.attempts is not None:
            return self.attempts
        drawn = self._made_up.choice(["A", "B", "C"], (self.num_items, count)).tolist()
        return Attempts(drawn, [self._made_up.dirichlet(np.ones(3), 2) for _ in drawn])

    def _ask(self, what: str) -> None:
        assert what in self.needs, f"asked for {what}, which it did not say it needs"
        self.asked.add(what)


def pool(n: int, dimensions: int = 12, seed: int = 0, **given: Any) -> FakeView:
    """Items without any order in them."""
    x = np.random.default_rng(seed).standard_normal((n, dimensions)).astype(np.float32)
    return FakeView(x, seed=seed, **given)


def trained(
    rows: Sequence[int], margins: Any, log_probs: Any = None, batches: Any = None, probe: Any = ()
) -> Trained:
    """Records; all in one batch, all paths alike likely, and without a probe, unless given."""
    return Trained(
        np.asarray(rows, np.int64),
        np.zeros(len(rows), np.int64) if batches is None else np.asarray(batches, np.int64),
        np.asarray(margins, np.float64),
        np.zeros(len(rows)) if log_probs is None else np.asarray(log_probs, np.float64),
        np.asarray(probe, np.float64),
    )


@dataclass(frozen=True)
class Party:
    """It learns from some items (`fits` [n]) and not from the others; with role -1 all is reversed.

    Margins of what it learns from are high and those paths are still unlikely, both under noise; the probe
    rises over a round with every batch that holds more than half such items, and falls with the others.
    """

    fits: Any
    role: int = 1

    def train(self, rows: Any, seed: int, size: int = 8) -> Trained:
        rng = np.random.default_rng(seed)
        rows = rng.permutation(rows)
        signs = self.role * np.where(self.fits[rows], 1.0, -1.0)
        batches = np.arange(len(rows)) // size
        gains = [signs[batches == batch].mean() for batch in range(batches[-1] + 1)]
        probe = 1 / (1 + np.exp([0.0, -sum(gains)]))
        noise = rng.standard_normal((2, len(rows)))
        return trained(rows, 3 * signs + 2 * noise[0], -signs + noise[1], batches, probe)


def two_kinds(n: int, share: float, seed: int, dimensions: int = 64) -> tuple[Any, Any]:
    """Contexts [n, d] with a large part that all share, and which of them are of the rarer kind, [n]."""
    rng = np.random.default_rng(seed)
    fits = rng.permutation(n) < round(share * n)
    apart, shared = rng.standard_normal((2, dimensions))
    x = rng.standard_normal((n, dimensions)) + 10 * shared + np.where(fits, 2.0, 0.0)[:, None] * apart
    return x.astype(np.float32), fits


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two memories hold the same arrays."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
    )
