"""Drops answers that do not fit their prompt: alignment below a threshold. To stand before another selector.

Paper: the filter of FedDQC, Du et al. 2024, https://arxiv.org/abs/2410.11540.
"""

from __future__ import annotations

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of the noise floor."""

    at: float = Field(
        0.0, description="lowest alignment (IRA) that is kept, in nats per token; lambda in the paper"
    )
    every: int = Field(0, ge=0, description="rounds between two readings; 0: only once")
    model: str = Field(
        "slm", description="which model reads: slm as it is trained, or the name of a frozen one"
    )


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    floor = ("floor", {"at": config.at})
    return Scored(Recipe("ira", policies=(floor,), every=config.every, model=config.model), parts)
