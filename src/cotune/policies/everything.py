"""Every row that has a score, in its own order.

Origin: training on all data, the baseline of every paper on data selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cotune.plugins import PluginConfig
from cotune.protocols import Stage
from cotune.ranking import usable

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


class Config(PluginConfig):
    """No options."""


class Everything:
    """See the module."""

    def choose(self, scores: Scores, stage: Stage) -> Rows:
        """All rows of [n]."""
        return usable(scores)


def build(_config: Config) -> Everything:
    """The policy."""
    return Everything()
