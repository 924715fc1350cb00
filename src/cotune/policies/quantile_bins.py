"""Equally many rows from every part of the range of scores, drawn at random.

Paper: the first phase of Data Reasoning Intensity, https://arxiv.org/abs/2509.24836: uniform over score bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Stage
from cotune.ranking import count_of, high_first

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of quantile bins."""

    keep: float = Field(0.1, gt=0, le=1, description="share of the rows that this policy is given")
    bins: int = Field(10, gt=0, description="parts of equally many rows, by score")


class QuantileBins:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n] in random order; what does not divide goes to the bins of highest scores, one each."""
        import numpy as np

        rows, bins = high_first(scores), self.config.bins
        total = min(len(rows), count_of(self.config.keep, len(scores)))
        quota = [total // bins + (part < total % bins) for part in range(bins)]
        parts = zip(np.array_split(rows, bins), quota, strict=True)
        drawn = [stage.rng.choice(part, number, replace=False) for part, number in parts if number]
        return stage.rng.permutation(np.concatenate([rows[:0], *drawn]))


def build(config: Config) -> QuantileBins:
    """The policy."""
    return QuantileBins(config)
