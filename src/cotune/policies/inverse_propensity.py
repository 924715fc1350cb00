"""Rows drawn without repeats, each with a weight of 1 over its score: what is frequent is drawn less often.

Paper: Sachdeva et al. 2024 (Density), https://arxiv.org/abs/2402.09668, its text and Theorem A.2; drawn as
Efraimidis and Spirakis 2006 do, https://doi.org/10.1016/j.ipl.2005.11.003, on the scale of logarithms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Stage
from cotune.ranking import count_of, usable

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """Options of inverse propensity."""

    keep: float = Field(0.1, gt=0, le=1, description="share of the rows that this policy is given")


class InversePropensity:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.keep = config.keep

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n] in the order they were drawn; at least one if any has a score."""
        import numpy as np

        rows = usable(scores)
        keys = stage.rng.gumbel(size=len(rows)) - np.log(positive(scores[rows]))
        return rows[np.argsort(-keys, kind="stable")][: count_of(self.keep, len(scores))]


def positive(scores: Scores) -> Scores:
    """Scores [n] as they are where all are above 0; else moved up, the lowest to the mean distance from it.

    A density is positive already. The move is ours, so that every score has a meaning here; infinite scores
    become the largest finite number.
    """
    import numpy as np

    finite: Scores = np.clip(scores, -1e300, 1e300)
    if not len(finite) or finite.min() > 0:
        return finite
    raised: Scores = finite / 4 - finite.min() / 4
    return raised + (float((raised / len(raised)).sum()) or 1.0)


def build(config: Config) -> InversePropensity:
    """The policy."""
    return InversePropensity(config)
