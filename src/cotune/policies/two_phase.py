"""One policy for the first share of the rounds, another one after it: easy first, then hard, say.

Paper: Data Reasoning Intensity, https://arxiv.org/abs/2509.24836, which first draws evenly from score
bins, then prefers high scores; here with any two policies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from cotune import plugins
from cotune.plugins import PluginConfig
from cotune.protocols import Policy, Stage
from cotune.scored import PolicySpec

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of the two phases."""

    first: PolicySpec = Field(
        PolicySpec(name="top_k", keep=0.5, end="high"),
        description="policy of the first phase, with its options",
    )
    then: PolicySpec = Field(
        PolicySpec(name="top_k", keep=0.5, end="low"),
        description="policy of the second phase, with its options",
    )
    until: float = Field(0.5, gt=0, lt=1, description="share of the rounds in the first phase")


class TwoPhase:
    """See the module."""

    def __init__(self, first: Policy, then: Policy, until: float) -> None:
        self.first, self.then, self.until = first, then, until

    def due(self, round: int, num_rounds: int) -> bool:
        """Whether a phase begins with this round."""
        return round in (1, last_of_first(num_rounds, self.until) + 1)

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n], as the policy of this phase chooses."""
        is_first = stage.round <= last_of_first(stage.num_rounds, self.until)
        return (self.first if is_first else self.then).choose(scores, stage)


def last_of_first(num_rounds: int, until: float) -> int:
    """The last round of the first phase; a run of one round has no second phase."""
    return max(1, math.floor(num_rounds * until + 1e-9))


def build(config: Config) -> TwoPhase:
    """The policy."""
    first, then = (plugins.load("policy", part.name, part.options) for part in (config.first, config.then))
    return TwoPhase(first, then, config.until)
