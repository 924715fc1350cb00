"""Instruction-response alignment: how much easier the prompt makes the answer.

Paper: Du et al. 2024 (FedDQC), https://arxiv.org/abs/2410.11540. Its printed formula sums over tokens, its
code takes the mean; an empty prompt gives 0.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cotune import answer_loss
from cotune.plugins import PluginConfig
from cotune.ranking import LocalScore, by_pool

NEEDS = frozenset({"completion", "log_probs"})


class Config(PluginConfig):
    """Options of IRA."""

    per: Literal["mean", "sum"] = Field(
        "mean", description="loss per token, as the code, or of the whole answer, as the printed formula"
    )
    alone: str = Field(
        "", description="text before the answer when it is read alone; empty: the start token (BOS, or EOS)"
    )


def build(config: Config) -> LocalScore:
    """The score."""
    return LocalScore(
        lambda pools, reader: by_pool(
            answer_loss.ira(answer_loss.read(pools, reader, config.alone), config.per), pools
        )
    )
