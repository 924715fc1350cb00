"""Examples drawn evenly over what all clients have: the more like it there are, the rarer it is drawn.

Paper: Sachdeva et al. 2024 (Density), https://arxiv.org/abs/2402.09668; clients' sketches are summed, so
nobody's features are seen.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of Density."""

    keep: float = Field(0.1, gt=0, le=1, description="share of each client's examples")
    method: Literal["sketch", "exact"] = Field(
        "sketch", description="sketch: neighbours among all clients' examples; exact: among a client's own"
    )
    every: int = Field(0, ge=0, description="rounds between two draws; 0: only once")
    model: str = Field("slm", description="whose features, without adapter: slm, or the name of another one")


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    policies = (("inverse_propensity", {"keep": config.keep}),)
    recipe = Recipe("density", {"method": config.method}, policies, config.every, config.model)
    return Scored(recipe, parts)
