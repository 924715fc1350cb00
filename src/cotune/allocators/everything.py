"""All items of the pool teach, in their own order.

Origin: distillation over the whole public set, which LaDa, https://arxiv.org/abs/2602.18749, compares with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cotune.plugins import PluginConfig
from cotune.pool import Allocated, PoolView, Trained

if TYPE_CHECKING:
    from cotune.records import Array


class Config(PluginConfig):
    """It has no options."""


class Everything:
    """See the module."""

    needs: frozenset[str] = frozenset()

    def choose(self, view: PoolView, memory: Mapping[str, Array]) -> Allocated:
        """Every row."""
        import numpy as np

        return Allocated(np.arange(view.num_items, dtype=np.int64), np.full(view.num_items, np.nan))

    def learn(self, view: PoolView, memory: Mapping[str, Array], trained: Trained) -> Mapping[str, Array]:
        """Nothing."""
        return memory


def build(config: Config) -> Everything:
    """The allocator."""
    return Everything()
