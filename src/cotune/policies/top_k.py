"""A share of the rows from one end of the scores, the outermost first; equal ones by their row.

Paper: Li et al. 2023 (Cherry), https://arxiv.org/abs/2308.12032, and most others: the top-k rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Stage
from cotune.ranking import count_of, high_first

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of top-k."""

    keep: float = Field(0.1, gt=0, le=1, description="share of the rows that this policy is given")
    end: Literal["high", "low"] = Field("high", description="which end of the scores")


class TopK:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n]; at least one if any has a score."""
        rows = high_first(scores if self.config.end == "high" else -scores)
        return rows[: count_of(self.config.keep, len(scores))]


def build(config: Config) -> TopK:
    """The policy."""
    return TopK(config)
