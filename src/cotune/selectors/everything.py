"""All examples: no selection.

Origin: training on all data, the baseline of every paper on data selection.
"""

from __future__ import annotations

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """No options."""


def build(_config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    return Scored(Recipe("random"), parts)
