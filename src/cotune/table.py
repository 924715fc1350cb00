"""The parsed rows of one source, and everything a split needs to know about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, get_args

from cotune import plugins, sources
from cotune.errors import DataError
from cotune.records import Example, Metric
from cotune.rows import Row, wrong

METRICS: tuple[str, ...] = get_args(Metric)


class Task(Protocol):
    """One file of `cotune.tasks`: the module itself is the task.

    It may also define `passage(prompt) -> str`: the part of a prompt that must not stand on two sides of a
    split (the whole prompt by default).
    """

    SOURCE: str | None
    TEST_SOURCE: str | None
    DOMAIN: str
    METRIC: Metric

    def example(self, row: Row, where: str) -> Example:
        """A row as an example; `where` is its place, for messages."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One example with its task, its place, the text that must stay on one side, its partition key, and the
    value by which rows are held out."""

    example: Example
    task: str
    where: str
    passage: str
    key: str
    kind: str = ""


def load_task(name: str) -> Task:
    """Import a task and check that it is one.

    Raises:
        ConfigError: there is no such task.
        DataError: the module does not define what a task defines.
    """
    found = plugins.module("task", name)
    parts = ("SOURCE", "TEST_SOURCE", "DOMAIN", "METRIC", "example")
    missing = [part for part in parts if not hasattr(found, part)]
    if missing:
        raise DataError(f"task {name}: its module lacks {', '.join(missing)}; see any file of cotune/tasks")
    task = cast(Task, found)
    if task.METRIC not in METRICS:
        raise DataError(f"task {name}: METRIC is {task.METRIC!r}; expected one of {', '.join(METRICS)}")
    return task


def metric_of(task: str, asked: str | None, where: str) -> Metric:
    """How a task is scored: as asked, where its questions allow it; None: in its own way.

    Raises:
        DataError: they do not.
    """
    own = load_task(task).METRIC
    if asked == "path_accuracy" and own == "choice":
        return "path_accuracy"
    if asked not in (None, own):
        other = f"{own} or path_accuracy" if own == "choice" else f"{own} alone"
        raise DataError(f"{where}: got {asked}; task {task} is scored by {other}. Leave it out.")
    return own


def read_entries(
    name: str,
    source: str,
    label: str,
    key: str | None = None,
    limit: int | None = None,
    kind: str | None = None,
) -> list[Entry]:
    """Every row of a source as an entry of task `name`.

    Args:
        name: the task.
        source: JSONL file, hub id or wheel file (see `cotune.sources.read`).
        label: rows without an id of their own are called `<label>-<index>`.
        key: the partition key: domain, task, or a field of the row (`meta.part` for a nested one).
        limit: rows to read; all by default.
        kind: the key by whose value rows are held out, of the same form.

    Raises:
        DataError: up to `sources.MAX_ERRORS` malformed rows, each with its place and field.
    """
    task = load_task(name)
    passage = getattr(task, "passage", str)
    entries: list[Entry] = []
    errors: list[DataError] = []
    for index, (where, row) in enumerate(sources.read(source, limit)):
        try:
            example = task.example(row, where)
            value = "" if key is None else partition_key(key, name, example, row, where)
            side = "" if kind is None else partition_key(kind, name, example, row, where, "held_out")
        except DataError as error:
            errors.append(error)
            if len(errors) == sources.MAX_ERRORS:
                break
            continue
        if not example.id:
            example = dataclasses.replace(example, id=f"{label}-{index}")
        entries.append(Entry(example, name, where, passage(example.prompt), value, side))
    sources.raise_all(errors)
    return entries


def refuse_repeated_ids(tables: Iterable[Sequence[Entry]]) -> None:
    """Check that an id names one row.

    Raises:
        DataError: it does not; both places are named.
    """
    seen: dict[str, str] = {}
    errors: list[DataError] = []
    for entry in (entry for table in tables for entry in table):
        first = seen.setdefault(entry.example.id, entry.where)
        if first is entry.where:
            continue
        errors.append(
            DataError(
                f"{entry.where}: field 'id': {entry.example.id!r} was already used at {first}. Ids must "
                "be unique in all data and test_data: rename one, or remove the field and rows are numbered."
            )
        )
        if len(errors) == sources.MAX_ERRORS:
            break
    sources.raise_all(errors)


def partition_key(
    key: str, task: str, example: Example, row: Row, where: str, named_by: str = "data.partition.key"
) -> str:
    """The value of a field of the row by which rows are dealt to clients, or held out.

    Where a row has no field `domain` or `task` of its own, these words mean the task's. `named_by` is the
    setting that names the field, for messages.

    Raises:
        DataError: the row has no such field, or it is no text or whole number.
    """
    own = row.get(key)
    if key in ("domain", "task") and not (isinstance(own, str) and own.strip()):
        return example.domain if key == "domain" else task
    value: object = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, str | int) or not str(value).strip():
        raise wrong(where, key, value, f"a string or whole number, because {named_by} names this field")
    return str(value)
