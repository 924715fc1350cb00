"""A share of the examples, drawn at random.

Origin: the baseline of FedHDS, https://arxiv.org/abs/2410.10926, and of most papers on data selection.
"""

from __future__ import annotations

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of the random subset."""

    keep: float = Field(0.1, gt=0, le=1, description="share of each client's examples")
    every: int = Field(0, ge=0, description="rounds between two draws; 0: only once")


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    return Scored(Recipe("random", policies=(("top_k", {"keep": config.keep}),), every=config.every), parts)
