"""Drops answers that do not fit their prompt, then trains on the best fitting third, the next, and the last.

Paper: Du et al. 2024 (FedDQC), https://arxiv.org/abs/2410.11540: alignment (IRA), a global threshold, and K
stages that are each scored anew by the model as it is then.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of FedDQC."""

    floor: float = Field(0.0, description="lowest alignment that is kept, in nats; lambda in the paper")
    keep: float = Field(
        1.0, gt=0, le=1, description="at most this share of each client's examples, best aligned first"
    )
    stages: int = Field(3, gt=0, description="K in the paper")
    per: Literal["mean", "sum"] = Field(
        "mean", description="loss per token, as the code, or of the whole answer, as the printed formula"
    )
    model: str = Field(
        "slm", description="which model reads: slm as it is trained, or the name of a frozen one"
    )


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    policies = (
        ("top_k", {"keep": config.keep}),
        ("floor", {"at": config.floor}),
        ("staged", {"stages": config.stages}),
    )
    return Scored(Recipe("ira", {"per": config.per}, policies, model=config.model), parts)
