"""The tasks that read files of questions or instructions, on invented rows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cotune import data
from cotune.config import DataConfig
from cotune.errors import DataError
from cotune.tasks import (
    arc_challenge,
    arc_easy,
    commonsense_qa,
    dolly,
    instruction,
    multiple_choice,
    openbookqa,
)

WHERE = "mine.jsonl:1"
HUB_CHOICES = {"text": ["water", "sand"], "label": ["A", "B"]}


def test_the_arc_tasks_ask_question_and_answer() -> None:
    row = {"id": "x", "question": "What is snow?", "choices": HUB_CHOICES, "answerKey": "A"}
    for task in (arc_easy, arc_challenge):
        example = task.example(row, WHERE)
        assert example.prompt == "Question: What is snow?\nAnswer:"
        assert (example.id, example.completion, example.answer_idx) == ("x", " water", 0)


def test_commonsense_qa_and_openbookqa_ask_the_bare_question() -> None:
    row = {"question": "Snow is ", "choices": HUB_CHOICES, "answerKey": "B"}
    assert commonsense_qa.example(row, WHERE).prompt == "Snow is"
    stem = {"question_stem": "Snow is", "choices": HUB_CHOICES, "answerKey": "B"}
    assert openbookqa.example(stem, WHERE).prompt == "Snow is"
    assert openbookqa.example(stem, WHERE).completion == " sand"


def test_a_row_of_the_unanswered_commonsense_qa_test_split_is_refused() -> None:
    row = {"question": "Snow is", "choices": ["water", "sand"], "answer_idx": None, "answer": None}
    with pytest.raises(DataError, match=r"'answer_idx': got null.* use a split whose answers are published"):
        commonsense_qa.example(row, WHERE)


def test_multiple_choice_takes_a_context_or_a_whole_prompt() -> None:
    row = {"question": "What is snow?", "choices": ["water", "sand"], "answer_idx": 0}
    with_context = multiple_choice.example({**row, "context": "It is cold.\n"}, WHERE)
    assert with_context.prompt == "It is cold.\nQuestion: What is snow?\nAnswer:"
    assert multiple_choice.example({**row, "prompt": "Snow =  "}, WHERE).prompt == "Snow ="


def test_instruction_uses_the_alpaca_template_with_and_without_input() -> None:
    row = {"instruction": "Add {these}. ", "input": " 1 and 2", "output": " 3\n"}
    example = instruction.example(row, WHERE)
    assert example.prompt.endswith("### Instruction:\nAdd {these}.\n\n### Input:\n1 and 2\n\n### Response:")
    assert example.completion == "\n3"
    bare = instruction.example({"instruction": "Sing.", "output": "La"}, WHERE)
    assert "Input" not in bare.prompt
    assert bare.prompt.endswith("### Instruction:\nSing.\n\n### Response:")


def test_dolly_is_read_as_instructions_whose_domain_is_the_category() -> None:
    row = {
        "instruction": "Who is she?",
        "context": "She is Ann.",
        "response": "Ann.",
        "category": "closed_qa",
    }
    found = dolly.example(row, WHERE)
    same = {"instruction": "Who is she?", "input": "She is Ann.", "output": "Ann.", "domain": "closed_qa"}
    assert found == instruction.example(same, WHERE)
    assert "Input" not in dolly.example({**row, "context": ""}, WHERE).prompt
    with pytest.raises(DataError, match=r"mine\.jsonl:1: field 'response': got \"\"; expected a string"):
        dolly.example({**row, "response": ""}, WHERE)


SHARED = Path(os.environ.get("COTUNE_TEST_DATA", ""))


@pytest.mark.skipif(
    "COTUNE_TEST_DATA" not in os.environ, reason="COTUNE_TEST_DATA names no folder of real data sets"
)
def test_the_five_way_split_of_the_real_commonsense_qa() -> None:
    source = {
        "task": "commonsense_qa",
        "data": str(SHARED / "commonsense_qa" / "train.jsonl.gz"),
        "test_data": str(SHARED / "commonsense_qa" / "dev.jsonl.gz"),
    }
    dataset = data.load(
        DataConfig.model_validate({"sources": [source], "partition": {"name": "five_way"}}), seed=7
    )
    kept = [dataset.num_train(client) for client in dataset.clients]
    assert len(dataset.test["commonsense_qa"]) == 1221
    assert len(dataset.public) == 1948  # 9741 // 5
    assert sum(kept) + dataset.dropped["commonsense_qa"] in range(4 * 1948, 4 * 1948 + 5)
