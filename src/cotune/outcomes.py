"""What was measured, before and after: means over clients, and gains with their standard errors.

A model's numbers on one task are `{accuracy, accuracy_norm, n, stderr, answers}`; `answers` is one score per
held-out question (1 right, 0 wrong), so that before and after can be compared question by question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Numbers = Mapping[str, Any]
ByTask = Mapping[str, Numbers]
Differences = np.ndarray[Any, np.dtype[np.float64]]

PER_QUESTION = ("answers", "shown")
"""Entries that hold one value per question."""


def without_answers(found: ByTask) -> dict[str, Any]:
    """The numbers alone."""
    return {
        task: {k: v for k, v in numbers.items() if k not in PER_QUESTION} for task, numbers in found.items()
    }


def answers(found: ByTask) -> dict[str, list[float]]:
    """The question-by-question part alone."""
    return {task: numbers["answers"] for task, numbers in found.items() if "answers" in numbers}


LARGEST = 1e15
"""Largest number that a client may report; what is far above it is no float."""


def problem(found: object) -> str:
    """What is wrong with the numbers a client sent; empty for nothing.

    Numbers are finite or missing (None); answers are a list of them; shown texts are left alone.
    """
    if not isinstance(found, Mapping):
        return f"metrics: expected numbers by task, got {type(found).__name__}"
    for task, numbers in found.items():
        if not isinstance(numbers, Mapping) or not isinstance(numbers.get("n"), int):
            return f"metrics of {task!r:.40}: expected numbers by name, with n"
        for name, value in numbers.items():
            is_list = name == "answers"
            fits = isinstance(value, list) and None not in value if is_list else True
            values = value if is_list and fits else [value]
            if name != "shown" and not (fits and all(_is_number_or_none(one) for one in values)):
                return f"metrics of {task!r:.40}: {name!r:.40} is no finite number"
    return ""


def _is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= LARGEST)  # NaN is not below


def over_clients(clients: Mapping[str, ByTask], is_shared: bool) -> dict[str, dict[str, float]]:
    """Mean by task over the clients that have a number, half of them at least; `n` counts questions once that
    all share."""
    tasks = dict.fromkeys(task for by_task in clients.values() for task in by_task)
    found = {}
    for task in tasks:
        rows = [by_task[task] for by_task in clients.values() if task in by_task]
        names = dict.fromkeys(name for row in rows for name in row if name != "n")
        said = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
        means = {
            name: float(np.mean(values)) for name, values in said.items() if 2 * len(values) >= len(rows)
        }
        n = max(row["n"] for row in rows) if is_shared else sum(row["n"] for row in rows)
        found[task] = {**means, "n": n}
    return found


def before_after(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """`{llm: {task: {before, after}}, slm: ..., clients: {id: {task: {before, after}}}}`."""
    merged: dict[str, Any] = {}
    for role in ("llm", "slm"):
        if role in first and role in last:
            merged[role] = _pair(first[role], last[role])
    if "clients" in first and "clients" in last:
        both = [client for client in first["clients"] if client in last["clients"]]
        merged["clients"] = {c: _pair(first["clients"][c], last["clients"][c]) for c in both}
    return merged


def _pair(first: ByTask, last: ByTask) -> dict[str, Any]:
    return {task: {"before": first[task], "after": last[task]} for task in first if task in last}


def gains(first: Mapping[str, Any], last: Mapping[str, Any], is_shared: bool) -> dict[str, dict[str, float]]:
    """Mean gain in accuracy of each role with its standard error over held-out questions.

    A model's is the mean over its tasks, as its accuracy is; the SLMs' the mean over clients. Clients with
    their own questions count as independent; clients that share them do not: a question's gain is first
    averaged over clients.
    """
    found = {}
    if first.get("llm") and last.get("llm"):
        found["llm"] = _gain(_differences(first["llm"], last["llm"]))
    sizes = {c: _sizes(x) for c, x in first.get("clients", {}).items() if c in last.get("clients", {})}
    clients = [c for c, size in sizes.items() if _sizes(last["clients"][c]) == size]  # others sent rubbish
    if is_shared and clients:
        usual = Counter(sizes[c] for c in clients).most_common(1)[0][0]
        clients = [c for c in clients if sizes[c] == usual]
    if clients:
        each = [_differences(first["clients"][c], last["clients"][c]) for c in clients]
        if is_shared:
            each = [[np.mean(task, axis=0) for task in zip(*each, strict=True)]]
        gain = [_gain(tasks) for tasks in each]
        error = math.sqrt(sum(one["stderr"] ** 2 for one in gain)) / len(gain)
        mean = float(np.mean([one["mean"] for one in gain]))
        found["slm"] = {"mean": mean, "stderr": error, "clients": float(len(clients))}
    return found


def _sizes(found: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """How many questions of each task were answered."""
    return tuple((task, len(found[task])) for task in sorted(found))


def _differences(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[Differences]:
    """After minus before for every question of each task, in the order of their names."""
    return [
        np.array([float(a) - float(b) for b, a in zip(first[task], last[task], strict=True)])
        for task in sorted(first)
        if task in last
    ]


def _gain(parts: Sequence[Differences]) -> dict[str, float]:
    """Mean of the parts' means; parts are independent, so their variances add."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return {"mean": 0.0, "stderr": 0.0}
    variances = [float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.25 for part in parts]
    mean = float(np.mean([part.mean() for part in parts]))
    return {"mean": mean, "stderr": math.sqrt(sum(variances)) / len(parts)}
