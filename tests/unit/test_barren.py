"""A round of teaching in which hardly anybody could learn is told."""

from __future__ import annotations

from typing import Any

import pytest

from cotune.barren import warning


def record(**more: Any) -> dict[str, Any]:
    return {
        "llm_paths": {"paths": 40, "answered": 30, "right": 20, "cut": 3},
        "slm_paths": {"paths": 30, "answered": 9, "right": 6},
        "slm": {"pairs": 20.0},
        "taught": {"a": list(range(20)), "b": list(range(20, 40))},
        "llm_lessons": 6,
    } | more


def test_where_both_sides_learn_nothing_is_told() -> None:
    assert warning(record()) == ""


def test_a_teacher_whose_paths_end_on_no_answer_is_told_with_what_helps() -> None:
    cut = {"paths": 61, "answered": 9, "right": 1, "cut": 49}
    found = warning(record(llm_paths=cut, slm={"pairs": 1.0}))
    assert found.startswith(
        "of 61 paths of the LLM 9 end on an answer, 1 on the right one, 49 were cut: hardly a lesson"
    )
    assert "teach.path_tokens" in found
    assert "SLMs" not in found


def test_one_right_path_that_many_clients_learn_from_does_not_hide_the_others() -> None:
    paths = {"paths": 100, "answered": 90, "right": 1}
    taught = {f"client-{number}": list(range(100)) for number in range(20)}
    assert "1 on the right one" in warning(record(llm_paths=paths, slm={"pairs": 20.0}, taught=taught))


def test_both_sides_are_told_in_one_line() -> None:
    none = {"paths": 57, "answered": 0, "right": 0}
    found = warning(record(slm_paths=none, llm_lessons=0, llm_paths=none, slm={}))
    assert "of the LLM 0 end on an answer, 0 on the right one and of 57 paths of the SLMs 0 end" in found
    assert "\n" not in found


def test_right_paths_of_which_few_were_wanted_are_no_fault_of_the_writer() -> None:
    good = {"paths": 60, "answered": 58, "right": 50}
    assert warning(record(llm_paths=good, slm={"pairs": 0.0})) == ""


def test_without_a_guard_wrong_paths_teach_and_nothing_is_told() -> None:
    wrong = {"paths": 40, "answered": 0, "right": 0}
    assert warning(record(llm_paths=wrong, slm={"pairs": 38.0})) == ""


def test_a_teacher_behind_an_endpoint_is_named_and_clients_need_not_teach_it() -> None:
    none = {"paths": 0, "answered": 0, "right": 0}
    bad = {"paths": 20, "answered": 2, "right": 0}
    found = warning(record(endpoint={"model": "m"}, llm_paths=bad, slm_paths=none, llm_lessons=0, slm={}))
    assert found.startswith("of 20 paths of the teacher 2 end on an answer, 0 on the right one: ")


@pytest.mark.parametrize(
    "junk", [None, 3, "x", [], {"paths": None}, {"paths": "many"}, {"paths": float("nan")}]
)
def test_any_record_is_tolerated(junk: Any) -> None:
    keys = ("llm_paths", "slm_paths", "slm", "llm_lessons", "taught")
    assert warning(dict.fromkeys(keys, junk)) == ""
    assert warning(record(taught={"a": junk})) == ""
    assert warning({}) == ""
