"""The model is asked whether the pair is worth training on; the score is the probability of yes.

Paper: Sachdeva et al. 2024 (Ask-LLM), https://arxiv.org/abs/2402.09668. The question is our own, for pairs of
instruction and response instead of passages of a web crawl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Pool, Reader
from cotune.ranking import LocalScore, by_pool
from cotune.records import Array, Example

if TYPE_CHECKING:
    from cotune.ranking import Scores

NEEDS = frozenset({"completion", "log_probs"})

YES = ("yes", "Yes", " yes", " Yes")
NO = ("no", "No", " no", " No")


class Config(PluginConfig):
    """Options of Ask-LLM."""

    task: str = Field(
        "following instructions",
        min_length=1,
        description="what the pairs shall teach, as in `useful for <task>`",
    )
    normalise: bool = Field(False, description="divide by the probability of yes or no")


def question(example: Example, task: str) -> str:
    """What the model reads before it says yes or no."""
    return (
        "Here is one example of an instruction and the response to it, between two lines of ###.\n"
        f"###\n{example.prompt}{example.completion}\n###\n"
        f"Would a language model get better at {task} by learning from this example? It counts as useful for "
        f"{task} when the response is right, answers this very instruction, reads well and hurts nobody.\n"
        "Answer yes or no.\nAnswer:"
    )


def chances(sums: Scores, counts: Array) -> Scores:
    """Log-probability that one of the variants follows, [questions], of arrays of [questions, variants].

    Variants of one token count, as in the paper; where a model has none of that kind, whole variants do.
    """
    import numpy as np

    is_single = counts == 1
    counted = is_single | ~is_single.any(axis=1, keepdims=True)
    total: Scores = np.logaddexp.reduce(np.where(counted, sums, -np.inf), axis=1)
    return total


def asked(pools: Sequence[Pool], reader: Reader, config: Config) -> Scores:
    """Probability of yes for all examples of all pools, in [0, 1]."""
    import numpy as np

    examples = [example for pool in pools for example in pool.examples]
    if not examples:
        return np.zeros(0)
    words = YES + NO if config.normalise else YES
    contexts = [question(example, config.task) for example in examples]
    found = reader.log_probs([(context, word) for context in contexts for word in words])
    sums, counts = found.sums.reshape(-1, len(words)), found.counts.reshape(-1, len(words))
    k = len(YES)
    yes = chances(sums[:, :k], counts[:, :k])
    whole = np.logaddexp(yes, chances(sums[:, k:], counts[:, k:])) if config.normalise else 0.0
    return np.exp(np.minimum(yes - whole, 0.0))


def build(config: Config) -> LocalScore:
    """The score."""
    return LocalScore(lambda pools, reader: by_pool(asked(pools, reader, config), pools))
