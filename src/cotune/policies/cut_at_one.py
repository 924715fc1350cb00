"""Rows whose score is at most 1, in their own order: made for IFD, where above 1 the prompt does not help.

Paper: Li et al. 2023 (Cherry), https://arxiv.org/abs/2308.12032.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cotune.plugins import PluginConfig
from cotune.protocols import Stage

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """No options."""


class CutAtOne:
    """See the module."""

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """Rows of [n]; NaN is not at most anything."""
        import numpy as np

        return np.flatnonzero(scores <= 1.0).astype(np.int64)


def build(_config: Config) -> CutAtOne:
    """The policy."""
    return CutAtOne()
