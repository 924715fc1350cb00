"""Instruction-following difficulty: loss of the answer with the prompt over its loss without.

Paper: Li et al. 2023 (Cherry), https://arxiv.org/abs/2308.12032. Their first code divides losses and reads
the lone answer after "### Response:"; later code divides perplexities, which is exp(-IRA). Above 1 the prompt
makes the answer harder.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cotune import answer_loss
from cotune.plugins import PluginConfig
from cotune.ranking import LocalScore, by_pool

NEEDS = frozenset({"completion", "log_probs"})


class Config(PluginConfig):
    """Options of IFD."""

    ratio: Literal["perplexity", "loss"] = Field(
        "perplexity", description="what is divided: perplexities, as the later code, or losses, as the first"
    )
    alone: str = Field(
        "", description="text before the answer when it is read alone; empty: the start token (BOS, or EOS)"
    )


def build(config: Config) -> LocalScore:
    """The score."""
    return LocalScore(
        lambda pools, reader: by_pool(
            answer_loss.ifd(answer_loss.read(pools, reader, config.alone), config.ratio), pools
        )
    )
