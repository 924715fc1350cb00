"""What a score is: accuracy by log-likelihood, exact match, Rouge-L; each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over `n` questions and its standard error (sample standard deviation / sqrt(n))."""

    value: float
    stderr: float
    n: int


def mean(scores: Sequence[float]) -> Mean:
    """Mean and standard error; the error of fewer than two scores is nan, as is the mean of none.

    >>> mean([1.0, 0.0, 1.0, 1.0])
    Mean(value=0.75, stderr=0.25, n=4)
    """
    if not scores:
        return Mean(math.nan, math.nan, 0)
    values = np.asarray(scores, dtype=np.float64)
    stderr = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(float(values.mean()), stderr, len(values))


def choice_correct(log_likelihoods: Sequence[float], answer_idx: int) -> bool:
    """Whether the right choice has the largest summed log-likelihood; `acc` of lm-evaluation-harness.

    The first of equal choices wins, there as here.
    """
    return int(np.argmax(log_likelihoods)) == answer_idx


def choice_correct_norm(log_likelihoods: Sequence[float], choices: Sequence[str], answer_idx: int) -> bool:
    """The same per character of the choice, without the delimiter; `acc_norm` of lm-evaluation-harness."""
    lengths = [len(choice) for choice in choices]
    return int(np.argmax(np.asarray(log_likelihoods) / lengths)) == answer_idx


def exact_match(prediction: str, reference: str) -> float:
    """1 when both are the same text apart from case and blanks, else 0.

    >>> exact_match(" The  hall ", "the hall")
    1.0
    """
    return float(prediction.casefold().split() == reference.casefold().split())


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), by rouge-score.

    No stemming. Its words are runs of a-z and 0-9 in lower case: text in other scripts scores 0.

    >>> round(rouge_l("the cat sat", "the cat sat down"), 4)  # precision 3/3, recall 3/4
    0.8571
    """
    return float(_rouge_scorer().score(target=reference, prediction=prediction)["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # slow to import: it loads nltk

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
