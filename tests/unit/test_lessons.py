"""Lessons: which of them can be learned from, and what each counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cotune.lessons import Lesson, usable, weights
from cotune.records import Example

POOL = [Example(id="q", prompt="Which?", completion="", choices=("ice", "sand"), answer_idx=0)]


def lesson(preferred: str, other: str = "Final answer: sand", row: int = 0, owner: str = "a") -> Lesson:
    return Lesson(row, preferred, other, owner)


def test_only_right_paths_teach_under_the_guard_and_never_empty_or_equal_ones() -> None:
    right, wrong = lesson("It melts. Final answer: ice"), lesson("It is dry. Final answer: sand!")
    useless = [lesson(" "), lesson("x", "\n"), lesson("Final  answer: ice", "Final answer: ice")]
    assert usable([right, wrong, *useless], POOL, guard=True) == [right]
    assert usable([right, wrong, *useless], POOL, guard=False) == [right, wrong]


@given(rows=st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_items_count_alike_however_many_owners_had_a_path(rows: list[int]) -> None:
    found = weights([lesson("x", row=row, owner=str(number)) for number, row in enumerate(rows)])
    totals = [found[np.array(rows) == row].sum() for row in set(rows)]
    assert np.allclose(totals, totals[0])
    assert np.isclose(found.mean(), 1)


def test_lessons_of_different_items_all_count_one() -> None:
    assert weights([lesson("x", row=row) for row in range(3)]).tolist() == [1.0, 1.0, 1.0]
    assert weights([]).tolist() == []
