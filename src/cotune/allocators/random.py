"""A share of the pool, drawn anew in every round.

Origin: the yardstick of every other allocator; the share is that of LaDa's first round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.pool import Allocated, PoolView, Trained
from cotune.ranking import count_of

if TYPE_CHECKING:
    from cotune.records import Array


class Config(PluginConfig):
    """Options of random."""

    keep: float = Field(0.3, gt=0, le=1, description="share of the pool")


class Random:
    """See the module."""

    needs: frozenset[str] = frozenset()

    def __init__(self, config: Config) -> None:
        self.keep = config.keep

    def choose(self, view: PoolView, memory: Mapping[str, Array]) -> Allocated:
        """Rows in the order they were drawn."""
        import numpy as np

        rows = view.rng.permutation(view.num_items).astype(np.int64)
        return Allocated(rows[: count_of(self.keep, view.num_items)], np.full(view.num_items, np.nan))

    def learn(self, view: PoolView, memory: Mapping[str, Array], trained: Trained) -> Mapping[str, Array]:
        """Nothing."""
        return memory


def build(config: Config) -> Random:
    """The allocator."""
    return Random(config)
