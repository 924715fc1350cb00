"""Losses of an answer with and without its prompt, read once; IRA and every IFD are derived from them.

Paper: Du et al. 2024 (IRA), https://arxiv.org/abs/2410.11540; Li et al. 2023 (IFD),
https://arxiv.org/abs/2308.12032. IFD by perplexities equals exp(-IRA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cotune.protocols import Pool, Reader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """Sums of token losses in nats and numbers of tokens, arrays of [answers].

    The two counts may differ: where prompt and answer meet, a tokenizer may cut differently.
    """

    given_sum: Values
    given_count: npt.NDArray[np.int64]
    alone_sum: Values
    alone_count: npt.NDArray[np.int64]

    @property
    def given(self) -> Values:
        """L(a|q): loss per token after the prompt; NaN for an answer without tokens."""
        return _divided(self.given_sum, self.given_count)

    @property
    def alone(self) -> Values:
        """L(a): loss per token without the prompt; NaN for an answer without tokens."""
        return _divided(self.alone_sum, self.alone_count)


def read(pools: Sequence[Pool], reader: Reader, alone: str) -> AnswerLoss:
    """Both losses of all answers of all pools, in order, with one call of the reader.

    Args:
        pools: whose examples.
        reader: the model.
        alone: text before the lone answer; empty: the tokenizer's start token.
    """
    import numpy as np

    examples = [example for pool in pools for example in pool.examples]
    if not examples:
        return AnswerLoss(np.zeros(0), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    pairs = [(example.prompt, example.completion) for example in examples]
    pairs += [(alone, example.completion) for example in examples]
    found, n = reader.log_probs(pairs), len(examples)
    return AnswerLoss(-found.sums[:n], found.counts[:n], -found.sums[n:], found.counts[n:])


def ira(loss: AnswerLoss, per: Literal["mean", "sum"]) -> Values:
    """L(a) - L(a|q), per token (the code) or over the whole answer (the printed formula)."""
    import numpy as np

    if per == "mean":
        return loss.alone - loss.given
    has_tokens = (loss.given_count > 0) & (loss.alone_count > 0)
    return np.where(has_tokens, loss.alone_sum - loss.given_sum, np.nan)


def ifd(loss: AnswerLoss, ratio: Literal["perplexity", "loss"]) -> Values:
    """exp L(a|q) / exp L(a), or L(a|q) / L(a), which is NaN where the lone answer has no loss."""
    import numpy as np

    if ratio == "perplexity":
        found: Values = np.exp(loss.given - loss.alone)
        return found
    return _divided(loss.given, loss.alone)


def _divided(above: Values, below: npt.NDArray[Any]) -> Values:
    import numpy as np

    found: Values = np.full(above.shape, np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found
