"""The examples that compress worst together; no model is read.

Paper: Yin et al. 2024 (Entropy Law, ZIP), https://arxiv.org/abs/2407.06645.
"""

from __future__ import annotations

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of ZIP."""

    keep: float = Field(0.1, gt=0, le=1, description="share of each client's examples")
    official: bool = Field(
        False, description="the published code's rule and text, its losers left out for good"
    )


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    text = "python" if config.official else "json"
    options = {"keep": config.keep, "official": config.official, "text": text}
    return Scored(Recipe("zip", options, (("top_k", {"keep": config.keep}),)), parts)
