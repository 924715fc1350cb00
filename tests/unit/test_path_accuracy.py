"""The metric `path_accuracy`: what a model's reasoning paths end on; and every metric is known everywhere."""

from __future__ import annotations

from typing import get_args

import pytest

import tiny
from cotune import changes, compare, table
from cotune.evaluate import PATH, answers, evaluate, path_answers, summary
from cotune.models.causal_lm import CausalLM
from cotune.models.generate import generate
from cotune.reasoning import path_prompt
from cotune.records import Example, Metric, Sampling

CHOICE = Example(id="q", prompt="Which?", completion=" b", choices=("a", "b"), answer_idx=1)
NUMBER = Example(id="r", prompt="How many?", completion=" 5")


def test_paths_are_worth_what_they_end_on() -> None:
    paths = [" So.\nFinal answer: B\n", "Final answer: A", "b", "2 + 3. Final answer: 5.0"]
    found = path_answers([CHOICE, CHOICE, CHOICE, NUMBER], paths)
    assert [(answer.id, answer.text, answer.score) for answer in found] == [
        ("q", "So.\nFinal answer: B", 1.0),
        ("q", "Final answer: A", 0.0),
        ("q", "b", 0.0),
        ("r", "2 + 3. Final answer: 5.0", 1.0),
    ]
    # Scores 1 0 0 1: variance (4 * .25) / 3, error sqrt(1 / 3) / 2.
    assert summary(found, "path_accuracy") == pytest.approx(
        {"path_accuracy": 0.5, "n": 4, "stderr": 3**-0.5 / 2}
    )


def test_a_model_is_asked_for_paths_with_choices_or_without() -> None:
    lm = CausalLM(tiny.llama(), tiny.tokenizer(), "tiny")
    how = Sampling(max_new_tokens=8)
    found = answers(lm, [CHOICE, NUMBER], "path_accuracy", tokens=1000, sampling=how)
    written = generate(lm, [path_prompt(CHOICE), path_prompt(NUMBER)], tokens=1000, sampling=how)
    assert [answer.text for answer in found] == [text.strip() for text in written]
    assert summary(found, "path_accuracy") == {"path_accuracy": 0.0, "n": 2, "stderr": 0.0}
    assert evaluate(lm, [], "path_accuracy", tokens=1000)["path_accuracy"] is None
    assert PATH.max_new_tokens > Sampling().max_new_tokens


def test_every_metric_is_known_to_tasks_comparisons_and_reports() -> None:
    for metric in get_args(Metric):
        assert metric in table.METRICS
        name = "accuracy" if metric == "choice" else metric
        assert name in changes.METRIC_NAMES
        assert compare.score_of({name: 0.5, "n": 3}) == 0.5
