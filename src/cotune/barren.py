"""When paths teach hardly anybody: a sentence that says so with its numbers, and what helps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotune.changes import mapping, number

FEW = 0.05
"""Of the paths of one side; where fewer are right and became lessons, the other side could not learn."""
ENOUGH = 10
"""Paths from which that can be said."""


def warning(record: Mapping[str, Any]) -> str:
    """One line about a round's `teaching` in rounds.jsonl; empty where both sides had something to learn.

    Under `teach.guard` only paths that end on the right answer become lessons: a model that reaches no answer
    within `teach.path_tokens`, or mostly a wrong one, teaches nobody, and the round was for nothing.
    """
    endpoint = mapping(record.get("endpoint"))
    writer, paths = "the teacher" if endpoint else "the LLM", mapping(record.get("llm_paths"))
    taught = [rows for rows in mapping(record.get("taught")).values() if isinstance(rows, list)]
    sides = [(writer, paths, mapping(record.get("slm")).get("pairs"), float(sum(map(len, taught))))]
    if not endpoint:
        paths = mapping(record.get("slm_paths"))
        sides.append(("the SLMs", paths, record.get("llm_lessons"), number(paths.get("paths")) or 0))
    told = [_told(name, paths) for name, paths, lessons, most in sides if _is_barren(paths, lessons, most)]
    if not told:
        return ""
    helps = (
        "Longer paths (teach.path_tokens, teach.max_chars), more preparation (teach.prepare, with public "
        "rationales) or a stronger model help"
    )
    return f"{' and '.join(told)}: hardly a lesson came of it. {helps}"


def _is_barren(paths: Mapping[str, Any], lessons: object, most: float) -> bool:
    """Few paths are right, and few of the lessons that could be (`most`) came of them."""
    total, right = number(paths.get("paths")) or 0, number(paths.get("right")) or 0
    return total >= ENOUGH and right < FEW * total and (number(lessons) or 0) < FEW * most


def _told(name: str, paths: Mapping[str, Any]) -> str:
    total, answered, right, cut = (
        number(paths.get(key)) or 0 for key in ("paths", "answered", "right", "cut")
    )
    ends = f"{answered:,.0f} end on an answer, {right:,.0f} on the right one"
    return f"of {total:,.0f} paths of {name} {ends}" + (f", {cut:,.0f} were cut" if cut else "")
