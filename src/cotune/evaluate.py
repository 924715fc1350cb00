"""How good a model is on some examples: by the likeliest choice, or by what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cotune import metrics, reasoning
from cotune.errors import DataError
from cotune.models.causal_lm import CausalLM
from cotune.models.generate import generate
from cotune.models.score import score_choices
from cotune.records import Example, Metric, Sampling

Summary = dict[str, float | int | None]

_WRITTEN: dict[str, Callable[[str, str], float]] = {
    "rouge_l": metrics.rouge_l,
    "exact_match": metrics.exact_match,
}
PATH = Sampling(max_new_tokens=256, stop=reasoning.STOP)
"""How a reasoning path is written for `path_accuracy`, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one example, and what that is worth: 0 to 1.

    `score_norm` is the score of the choice that is likeliest per character; None for written answers.
    """

    id: str
    text: str
    score: float
    score_norm: float | None = None


def evaluate(
    lm: CausalLM,
    examples: Sequence[Example],
    metric: Metric,
    *,
    tokens: int,
) -> Summary:
    """The summary of `answers`; see there and `summary`."""
    return summary(answers(lm, examples, metric, tokens=tokens), metric)


def answers(
    lm: CausalLM,
    examples: Sequence[Example],
    metric: Metric,
    *,
    tokens: int,
    sampling: Sampling | None = None,
) -> list[Answer]:
    """What the model answers, example by example.

    Args:
        lm: the model, with or without one adapter mounted.
        examples: with choices and `answer_idx` for `choice`; with a completion for the others.
        metric: `choice` (accuracy by log-likelihood), `rouge_l` or `exact_match` (of generated text), or
            `path_accuracy` (the answer that a generated reasoning path ends on, with choices or without).
        tokens: positions per forward pass where choices are scored; texts are written as many together as
            `models.generate` does by itself.
        sampling: how text is generated; greedy, 64 tokens at most, if None; `PATH` for paths.

    Raises:
        DataError: an example without choices or answer under `choice`; names it.
    """
    if metric == "choice":
        return choice_answers(examples, score_choices(lm, examples, tokens=tokens))
    if metric == "path_accuracy":
        prompts = [reasoning.path_prompt(example) for example in examples]
        return path_answers(examples, generate(lm, prompts, sampling=sampling or PATH))
    texts = generate(lm, [e.prompt for e in examples], sampling=sampling or Sampling())
    compare = _WRITTEN[metric]
    return [
        Answer(example.id, text.strip(), compare(text, example.completion))
        for example, text in zip(examples, texts, strict=True)
    ]


def path_answers(examples: Sequence[Example], paths: Sequence[str]) -> list[Answer]:
    """What written reasoning paths are worth: 1 if they end on the right answer.

    Raises:
        DataError: an example whose right answer is not known.
    """
    return [
        Answer(example.id, path.strip(), float(reasoning.is_right(path, example)))
        for example, path in zip(examples, paths, strict=True)
    ]


def choice_answers(examples: Sequence[Example], sums: Sequence[tuple[float, ...]]) -> list[Answer]:
    """The likeliest choice of each example, given the log-likelihoods of `score_choices`.

    Raises:
        DataError: an example without the index of its right choice.
    """
    found = []
    for example, values in zip(examples, sums, strict=True):
        if example.answer_idx is None:
            raise DataError(f"example {example.id!r}: has no answer_idx; expected the right choice's index.")
        score = metrics.choice_correct(values, example.answer_idx)
        score_norm = metrics.choice_correct_norm(values, example.choices, example.answer_idx)
        said = example.choices[int(np.argmax(values))]
        found.append(Answer(example.id, said, float(score), float(score_norm)))
    return found


def summary(answers: Sequence[Answer], metric: Metric) -> Summary:
    """Means over answers.

    Returns:
        `accuracy` and `accuracy_norm` (lm-evaluation-harness's acc and acc_norm) under `choice`, else the
        metric by its own name; `n`; `stderr`, the standard error of the first. None stands for what so few
        answers cannot say.
    """
    whole = metrics.mean([answer.score for answer in answers])
    name = "accuracy" if metric == "choice" else metric
    found: Summary = {name: _known(whole.value)}
    if metric == "choice":
        found["accuracy_norm"] = _known(metrics.mean([answer.score_norm or 0.0 for answer in answers]).value)
    return found | {"n": whole.n, "stderr": _known(whole.stderr)}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
