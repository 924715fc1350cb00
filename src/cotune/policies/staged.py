"""A curriculum: the rows in a few stages, each scored anew, the highest first, until all were used.

Paper: Du et al. 2024 (FedDQC), https://arxiv.org/abs/2410.11540. Stage k of K takes the top of K-k+1 equal
parts of what no stage before it used; the printed K-k is 0 in the last one.

A selector that stands before this one and chooses anew more often does not move the curriculum on: the same
stage chooses again within the new pool, and a stage has used what it chose last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Stage
from cotune.ranking import high_first

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of the curriculum."""

    stages: int = Field(3, gt=0, description="how many; never more than the run has rounds")


class Staged:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.stages = config.stages

    def due(self, round: int, num_rounds: int) -> bool:
        """Whether a new stage begins with this round."""
        return round == 1 or stage_of(round, num_rounds, self.stages) != stage_of(
            round - 1, num_rounds, self.stages
        )

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n] for this stage, highest first; fewer than stages: some stages have none."""
        import numpy as np

        rows, stages = high_first(scores), min(self.stages, stage.num_rounds)
        now = stage_of(stage.round, stage.num_rounds, stages)
        last = {stage_of(index, stage.num_rounds, stages): stage.used[index] for index in sorted(stage.used)}
        for number in range(1, now):
            rows = rows[~np.isin(rows, last.get(number, ()))]
        return np.array_split(rows, stages - now + 1)[0]


def stage_of(round: int, num_rounds: int, stages: int) -> int:
    """Number of the stage, from 1, that a round belongs to: rounds / stages each."""
    return (round - 1) * min(stages, num_rounds) // num_rounds + 1


def build(config: Config) -> Staged:
    """The policy."""
    return Staged(config)
