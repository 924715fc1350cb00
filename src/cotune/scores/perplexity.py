"""How surprised the model is by the answer, given the prompt.

Paper: Marion et al. 2023, https://arxiv.org/abs/2309.04564, who keep the middle; here of answers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Pool, Reader
from cotune.ranking import LocalScore, by_pool

if TYPE_CHECKING:
    from cotune.ranking import Scores

NEEDS = frozenset({"completion", "log_probs"})


class Config(PluginConfig):
    """Options of perplexity."""

    first: Literal["high", "low"] = Field(
        "high", description="which end comes first; low gives the negative perplexity"
    )


def perplexities(pools: Sequence[Pool], reader: Reader) -> Scores:
    """exp of the mean token loss of each completion, [examples]; NaN for a completion without tokens."""
    import numpy as np

    pairs = [(example.prompt, example.completion) for pool in pools for example in pool.examples]
    if not pairs:
        return np.zeros(0)
    read = reader.log_probs(pairs)
    means = np.full(len(pairs), np.nan)
    np.divide(read.sums, read.counts, out=means, where=read.counts > 0)
    found: Scores = np.exp(-means)
    return found


def build(config: Config) -> LocalScore:
    """The score."""
    sign = 1.0 if config.first == "high" else -1.0
    return LocalScore(lambda pools, reader: by_pool(sign * perplexities(pools, reader), pools))
