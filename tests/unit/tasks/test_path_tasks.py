"""The tasks with rationales or with free answers, on invented rows, and on the real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cotune.data import load_examples
from cotune.errors import DataError
from cotune.reasoning import answer_of, is_right, path_prompt, written
from cotune.records import Example
from cotune.tasks import dss_cqa, gsm8k, quartz, short_answer, socialiqa, strategyqa, svamp

WHERE = "mine.jsonl:1"


def chat(content: str, ideal: str) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": content}], "ideal": ideal}


def test_gsm8k_drops_the_notes_of_the_calculator_and_keeps_the_number() -> None:
    solution = "Kim has 2*3 = <<2*3=6>>6 pens.\nIn all 6+1,000 = <<6+1000=1006>>1,006.\n#### 1,006"
    example = gsm8k.example({"question": "How many pens?", "answer": solution}, WHERE)
    assert example.rationale == "Kim has 2*3 = 6 pens.\nIn all 6+1,000 = 1,006."
    assert example.completion == f" {example.rationale}\nFinal answer: 1,006"
    assert example.prompt == path_prompt(example)
    assert example.prompt.startswith("Question: How many pens?\nThink step by step.")
    assert answer_of(example) == "1006"
    assert is_right("6 + 1000. Final answer: $1006.00", example)


def test_gsm8k_reads_rationale_and_number_apart() -> None:
    row = {"question": "How many?", "rationale": "2+2=<<2+2=4>>4", "answer": "4"}
    assert gsm8k.example(row, WHERE).completion == " 2+2=4\nFinal answer: 4"
    assert gsm8k.example({"question": "How many?", "answer": -4.5}, WHERE).completion == " Final answer: -4.5"


@pytest.mark.parametrize("answer", ["four", "####", "2 + 2 = 4", "4 pens", "#### 4 pens", True, None])
def test_gsm8k_refuses_an_answer_that_is_no_number(answer: object) -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl:1: field 'answer': got .*; expected a"):
        gsm8k.example({"question": "How many?", "answer": answer}, WHERE)


def test_svamp_reads_the_form_of_the_hub_and_that_of_files() -> None:
    hub = {"Body": "Lee had 5 figs. ", "Question": "How many are left?", "Answer": "3.0", "Equation": "5-2"}
    example = svamp.example(hub, WHERE)
    assert example.prompt.startswith("Question: Lee had 5 figs. How many are left?\n")
    assert answer_of(example) == "3"
    row = {"question": "How many are left?", "answer": 3, "rationale": "5 - 2 = 3."}
    assert svamp.example(row, WHERE).completion == " 5 - 2 = 3.\nFinal answer: 3"


@pytest.mark.parametrize(("answer", "index"), [(True, 0), (False, 1), ("yes", 0), ("no", 1)])
def test_strategyqa_is_yes_or_no_with_facts_as_rationale(answer: object, index: int) -> None:
    row = {
        "question": "Could a whale ride a tram?",
        "answer": answer,
        "facts": ["Whales swim. ", "Trams do not."],
    }
    example = strategyqa.example(row, WHERE)
    assert (example.choices, example.answer_idx) == (("yes", "no"), index)
    assert example.rationale == "Whales swim. Trams do not."
    assert example.prompt == "Question: Could a whale ride a tram?\nAnswer:"
    assert strategyqa.example({**row, "facts": "Whales swim."}, WHERE).rationale == "Whales swim."
    assert strategyqa.example({**row, "rationale": "It is big."}, WHERE).rationale == "It is big."


def test_strategyqa_refuses_other_answers_and_facts() -> None:
    row = {"question": "Could a whale ride a tram?", "answer": True}
    for answer in (None, "maybe", 2, 1, ["yes"]):
        with pytest.raises(DataError, match=r"field 'answer': .*use a split whose answers are published"):
            strategyqa.example({**row, "answer": answer}, WHERE)
    with pytest.raises(DataError, match="field 'facts': got 3; expected a string, a list of strings"):
        strategyqa.example({**row, "facts": 3}, WHERE)


def test_dss_cqa_asks_the_bare_question_and_keeps_the_rationale() -> None:
    row = {"question": "Snow is ", "choices": ["ice", "sand"], "answer_idx": 0, "rationale": "It melts."}
    example = dss_cqa.example(row, WHERE)
    assert (example.prompt, example.completion, example.rationale) == ("Snow is", " ice", "It melts.")
    assert written(example.rationale, example) == " It melts.\nFinal answer: ice"


def test_short_answer_takes_texts_and_numbers() -> None:
    row = {"question": "Spell cat backward.", "answer": "tac"}
    assert short_answer.example(row, WHERE).completion == " Final answer: tac"
    assert answer_of(short_answer.example({**row, "answer": 7}, WHERE)) == "7"


@pytest.mark.parametrize("answer", ["two\nlines", "...", "Final answer: 3", "", None, True])
def test_short_answer_refuses_what_cannot_stand_behind_the_marker(answer: object) -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl:1: field 'answer': got .*; expected"):
        short_answer.example({"question": "Which?", "answer": answer}, WHERE)


def test_quartz_and_socialiqa_can_be_asked_for_paths() -> None:
    first = quartz.example(chat("The pot is on the fire. It gets\n\n A: warmer\n B: colder", "A"), WHERE)
    assert path_prompt(first).startswith(
        "Question: The pot is on the fire. It gets\nA. warmer\nB. colder\nThink"
    )
    second = socialiqa.example(chat("Kim met Lee. Why? A: to talk; B: no reason; C: hunger.", "C"), WHERE)
    assert path_prompt(second).startswith(
        "Question: Kim met Lee. Why?\nA. to talk\nB. no reason\nC. hunger\n"
    )
    assert (first.rationale, second.rationale) == ("", "")
    assert is_right("Food is there. Final answer: (c)", second)


SHARED = Path(os.environ.get("COTUNE_TEST_DATA", ""))
REAL = [
    ("gsm8k", "gsm8k/test", 1319),
    ("svamp", "dss_svamp/train", 800),
    ("strategyqa", "strategyqa/dev", 229),
    ("dss_cqa", "dss_cqa/test", 1221),
]


@pytest.mark.skipif(
    "COTUNE_TEST_DATA" not in os.environ, reason="COTUNE_TEST_DATA names no folder of real data sets"
)
@pytest.mark.parametrize(("task", "name", "size"), REAL)
def test_every_real_row_has_a_rationale_and_its_written_path_is_right(
    task: str, name: str, size: int
) -> None:
    examples = load_examples(task, str(SHARED / f"{name}.jsonl.gz"))
    assert len(examples) == size
    assert all(example.rationale for example in examples)
    assert "<<" not in "".join(example.rationale for example in examples)
    assert all(_is_readable(example) for example in examples)


def _is_readable(example: Example) -> bool:
    return is_right(written(example.rationale, example), example) and not is_right(example.rationale, example)
