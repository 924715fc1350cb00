"""A matrix as a table with shades."""

from __future__ import annotations

import pytest

from cotune.heat import heat_map, shade


@pytest.mark.parametrize(
    ("value", "step"), [(0, 0), (1, 10), (-3, 0), (7, 10), (0.26, 3), (None, 0), ("x", 0)]
)
def test_shades_end_at_none_and_all(value: object, step: int) -> None:
    assert shade(value) == step


def test_values_names_and_titles_are_texts() -> None:
    text = str(heat_map("<i>", ["<b>", "&"], [[1.0, -0.301], [None, True], ["x"]]))
    assert "<i>" not in text
    assert "<b>" not in text
    assert text.count("&lt;b&gt;") == 2
    cells = [part.split("<")[0] for part in text.split('<td class="num ')[1:]]
    assert cells == [
        'h10">1.00',
        'h0">\N{MINUS SIGN}0.30',
        'h0">\N{EN DASH}',
        'h0">\N{EN DASH}',
        'h0">\N{EN DASH}',
    ]


def test_without_rows_there_is_nothing() -> None:
    assert heat_map("t", ["a"], []) == ""
