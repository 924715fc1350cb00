"""Rows between two quantiles of the scores, in their own order: neither the one end nor the other.

Paper: Marion et al. 2023, https://arxiv.org/abs/2309.04564 (the middle of perplexity); Gholami and
Omar 2024 (GOLD), https://arxiv.org/abs/2403.19754 (a band of energies).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from cotune.plugins import PluginConfig
from cotune.protocols import Stage
from cotune.ranking import high_first

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of band."""

    low: float = Field(0.25, ge=0, lt=1, description="share of the rows left out below")
    high: float = Field(0.75, gt=0, le=1, description="share of the rows that lie below the upper end")

    @model_validator(mode="after")
    def _in_order(self) -> Config:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low must be below high.")
        return self


class Band:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n]; at least one if any has a score. Quantiles are counted in rows."""
        import numpy as np

        rows = high_first(-scores)
        start = min(int(self.config.low * len(rows)), max(len(rows) - 1, 0))
        stop = max(int(self.config.high * len(rows)), start + 1)
        return np.sort(rows[start:stop])


def build(config: Config) -> Band:
    """The policy."""
    return Band(config)
