"""Every task that is found by listing the folder keeps the contract; its row here is invented."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cotune import plugins
from cotune.data import load_examples
from cotune.errors import DataError
from cotune.reasoning import is_right, path_prompt, written
from cotune.records import DELIMITER
from cotune.rows import Row
from cotune.table import METRICS, load_task

WHERE = "mine.jsonl:1"
QUESTION: Row = {"question": "What is snow?", "choices": ["water", "sand", "iron"], "answer_idx": 0}


def chat(content: str, ideal: str) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": content}], "ideal": ideal}


ROWS: Mapping[str, Row] = {
    "arc_challenge": QUESTION,
    "arc_easy": QUESTION,
    "commonsense_qa": QUESTION,
    "dolly": {"instruction": "Name a colour.", "response": "Red.", "category": "general"},
    "dss_cqa": QUESTION,
    "food": chat("Is the following string a food item or related to food? plum jam", "Yes"),
    "gsm8k": {"question": "Kim has 2 pens and buys 3. How many are there?", "answer": "2 + 3 = 5\n#### 5"},
    "heart_disease": chat("Age: 33 years, Sex: Female, Serum cholesterol: 200 mg/dl", "1"),
    "instruction": {"instruction": "Name a colour.", "input": "", "output": "Red."},
    "multiple_choice": QUESTION,
    "naughty_strings": chat("Is this string malicious? a quiet tree", "No"),
    "openbookqa": QUESTION,
    "quartz": chat("The pot is on the fire. It gets\n\n A: warmer\n B: colder", "A"),
    "short_answer": {"question": "Spell cat backward.", "answer": "tac"},
    "socialiqa": chat("Kim helped Lee. What is Lee? A: angry; B: asleep; C: grateful.", "C"),
    "strategyqa": {"question": "Could a whale ride a tram?", "answer": False},
    "svamp": {"question": "Lee ate 2 of 5 figs. How many are left?", "answer": 3},
    "tomi": chat(
        "The key is in the tin_box. Kim moved the key to the shoe. Where is the key really?",
        "shoe",
    ),
}

NAMES = plugins.names("task")
each_task = pytest.mark.parametrize("name", NAMES)


def test_every_task_has_a_row_here() -> None:
    assert set(ROWS) == set(NAMES), "add an invented row of the new task to ROWS"


@each_task
def test_a_task_states_what_it_is_and_where_it_comes_from(name: str) -> None:
    task, module = load_task(name), plugins.module("task", name)
    doc = module.__doc__ or ""
    assert 10 < len(plugins.summary("task", name)) < 80
    assert all(f"\n{word}:" in doc for word in ("Origin", "Licence", "Prompt"))
    assert task.METRIC in METRICS
    assert task.DOMAIN
    for source in (task.SOURCE, task.TEST_SOURCE):
        assert source is None or re.fullmatch(r"wheel:\S+\.jsonl|[\w-]+/[\w-]+(:[\w-]+)?@\w+", source)


@each_task
def test_an_example_has_the_form_that_is_scored(name: str) -> None:
    task = load_task(name)
    example = task.example(ROWS[name], WHERE)
    assert example.prompt == example.prompt.rstrip() != ""
    assert example.domain == task.DOMAIN
    if task.METRIC != "choice":
        assert example.completion.strip()
        assert (example.choices, example.answer_idx) == ((), None)
        return
    assert example.answer_idx is not None
    assert len(example.choices) > 1
    assert example.completion == DELIMITER + example.choices[example.answer_idx]
    assert all(choice == choice.strip() for choice in example.choices)


@each_task
def test_a_row_is_not_changed_and_gives_the_same_example_again(name: str) -> None:
    task, row = load_task(name), dict(copy.deepcopy(ROWS[name]))
    assert task.example(row, WHERE) == task.example(row, "elsewhere:9")
    assert row == ROWS[name]


@each_task
def test_a_row_may_bring_its_own_id_domain_and_rationale(name: str) -> None:
    task = load_task(name)
    assert task.example(ROWS[name], WHERE).id == ""
    example = task.example({**ROWS[name], "id": 5, "domain": "mine", "rationale": "So."}, WHERE)
    assert (example.id, example.domain, example.rationale) == ("5", "mine", "So.")


@each_task
@pytest.mark.parametrize("row", [{}, {"input": [], "ideal": "Yes"}, {"question": 3}])
def test_a_malformed_row_names_its_place_and_field(name: str, row: Row) -> None:
    with pytest.raises(DataError, match=r"^mine\.jsonl:1: field '\w+"):
        load_task(name).example(row, WHERE)


@each_task
def test_every_field_that_is_needed_is_missed_by_name(name: str) -> None:
    for field in set(ROWS[name]) - {"input"} if name == "instruction" else set(ROWS[name]):
        row = {key: value for key, value in ROWS[name].items() if key != field}
        with pytest.raises(DataError, match=rf"mine\.jsonl:1: field '{field}'"):
            load_task(name).example(row, WHERE)


@each_task
def test_every_example_can_be_asked_for_a_path_and_the_written_one_is_right(name: str) -> None:
    example = load_task(name).example(ROWS[name], WHERE)
    assert path_prompt(example).startswith("Question: ")
    assert path_prompt(example).endswith("\nReasoning:")
    assert is_right(written("First this, then that.", example), example)
    assert not is_right("First this, then that.", example)


@each_task
def test_rows_load_from_a_file_of_the_users(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(ROWS[name]) + "\n")
    (example,) = load_examples(name, str(path))
    assert example.id == f"{name}-0"
