"""Any score with any policies, each choosing from what the one before it left.

Origin: the published selectors taken apart; each named preset is one such combination.
"""

from __future__ import annotations

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import PolicySpec, Recipe, Scored, ScoreSpec


class Config(PluginConfig):
    """Options of the free combination."""

    score: ScoreSpec = Field(
        ScoreSpec(name="ira"), description="a score and its options: {name: ifd, ratio: loss}"
    )
    policies: tuple[PolicySpec, ...] = Field(
        (PolicySpec(name="everything"),), min_length=1, description="policies and their options, in order"
    )
    every: int = Field(0, ge=0, description="rounds between two choices; 0: only once")
    model: str = Field(
        "slm", description="which model reads: slm as it is trained, or the name of a frozen one"
    )


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    policies = tuple((part.name, part.options) for part in config.policies)
    recipe = Recipe(config.score.name, config.score.options, policies, config.every, config.model)
    return Scored(recipe, parts)
