"""Rows whose score is not below a threshold, in their own order.

Paper: Du et al. 2024 (FedDQC), https://arxiv.org/abs/2410.11540: its filter IRA >= lambda.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Stage

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of floor."""

    at: float = Field(0.0, description="lowest score that is kept")


class Floor:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.at = config.at

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n]; nothing is at least NaN."""
        import numpy as np

        return np.flatnonzero(scores >= self.at).astype(np.int64)


def build(config: Config) -> Floor:
    """The policy."""
    return Floor(config)
