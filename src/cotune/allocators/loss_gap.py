"""The items whose reference answer the peer predicts better than the party itself, widest gap first.

Paper: Fan et al. 2024 (FedMKT, its DualMinCE), https://arxiv.org/abs/2406.02224. As printed, the peer must be
strictly better, and what nobody predicts better is left out. Losses are means over characters, not tokens, so
that models with different tokens can be compared; between models with the same, it is the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.pool import Allocated, PoolView, Trained
from cotune.ranking import count_of, high_first

if TYPE_CHECKING:
    from cotune.records import Array


class Config(PluginConfig):
    """Options of the loss gap."""

    most: float | None = Field(
        None, gt=0, le=1, description="largest share of the pool; null: every item that has a gap"
    )


class LossGap:
    """See the module."""

    needs = frozenset({"losses"})

    def __init__(self, config: Config) -> None:
        self.most = config.most

    def choose(self, view: PoolView, memory: Mapping[str, Array]) -> Allocated:
        """Rows whose gap is above 0, perhaps none; the scores are the gaps."""
        import numpy as np

        own, peer = view.losses()
        with np.errstate(invalid="ignore"):  # two infinite losses have no gap
            gaps = np.asarray(own, np.float64) - np.asarray(peer, np.float64)
        rows = high_first(gaps)
        rows = rows[gaps[rows] > 0]
        if self.most is not None:
            rows = rows[: count_of(self.most, view.num_items)]
        return Allocated(rows, gaps)

    def learn(self, view: PoolView, memory: Mapping[str, Array], trained: Trained) -> Mapping[str, Array]:
        """Nothing."""
        return memory


def build(config: Config) -> LossGap:
    """The allocator."""
    return LossGap(config)
