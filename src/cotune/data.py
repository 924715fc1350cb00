"""Rows become examples; examples become a test set, a public set, and the private parts of the clients.

Clients are handles: each is an array of row numbers into one shared pool, so that ten thousand cost little.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from cotune import partition, plugins, sources
from cotune.config import (
    ByKeyPartition,
    DataConfig,
    DirichletPartition,
    FiveWayPartition,
    IidPartition,
    SourceConfig,
)
from cotune.errors import DataError
from cotune.partition import IntArray
from cotune.records import Example, derived_rng
from cotune.rows import Row, wrong

METRICS = ("choice", "rouge_l", "exact_match")


class Task(Protocol):
    """One file of `cotune.tasks`: the module itself is the task.

    It may also define `passage(prompt) -> str`: the part of a prompt that must not stand on two sides of a split
    (the whole prompt by default).
    """

    SOURCE: str | None
    TEST_SOURCE: str | None
    DOMAIN: str
    METRIC: str

    def example(self, row: Row, where: str) -> Example:
        """A row as an example; `where` is its place, for messages."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything a run may read, by who may read it.

    Attributes:
        public: examples that every party may read.
        test: held-out examples by task.
        metrics: how each task is scored: choice, rouge_l or exact_match.
        dropped: rows left out, by task, because their text also stands in the test or public set.
        pool: the private examples of all clients.
        parts: client -> its rows in `pool`.
        own_test: client -> its own held-out examples by task; None when all clients share `test`.
    """

    public: tuple[Example, ...] = field(repr=False)
    test: Mapping[str, tuple[Example, ...]] = field(repr=False)
    metrics: Mapping[str, str]
    dropped: Mapping[str, int]
    pool: tuple[Example, ...] = field(repr=False)
    parts: Mapping[str, IntArray] = field(repr=False)
    own_test: Mapping[str, Mapping[str, tuple[Example, ...]]] | None = field(default=None, repr=False)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of all clients, in a fixed order."""
        return tuple(self.parts)

    def train(self, client: str) -> tuple[Example, ...]:
        """The private examples of one client."""
        return tuple(self.pool[row] for row in self.parts[client].tolist())

    def num_train(self, client: str) -> int:
        """How many private examples a client has."""
        return len(self.parts[client])

    def held_out(self, client: str) -> Mapping[str, tuple[Example, ...]]:
        """The examples a client is measured on, by task.

        Split by key, they are those with the client's own key (none if no held-out row has it); else all.
        """
        return self.test if self.own_test is None else self.own_test.get(client, {})


def load(config: DataConfig, seed: int) -> Dataset:
    """Read all sources, hold out the test rows, then the public rows, and give the rest to the clients.

    The rows of each source are shuffled once, by the seed and the source alone. A text stands on one side only:
    rows whose prompt is in the test set are left out of public and private rows, those in the public set out of
    the private ones.

    Raises:
        DataError: a row is malformed, ids repeat, rows do not suffice, or a client would be empty.
    """
    loaded = [_load_source(config, number) for number in range(len(config.sources))]
    _refuse_repeated_ids(table for source in loaded for table in (source.rows, source.test_rows) if table)
    five_way = config.partition if isinstance(config.partition, FiveWayPartition) else None
    splits = [_Split(source, seed, five_way) for source in loaded]
    held = {row.passage for split in splits for row in split.test}
    for split in splits:
        split.cut_public(held)
    shared = {row.passage for split in splits for row in split.public}
    for split in splits:
        split.cut_train(shared)
    pool = [row for split in splits for row in split.train]
    if not pool:
        raise DataError("data.sources: no rows are left for the clients. Lower test_rows or public_rows.")
    names, owner = _owners(config, seed, pool, np.concatenate([split.owner for split in splits]))
    test = [row for split in splits for row in split.test]
    dropped: Counter[str] = Counter()
    for split in splits:
        dropped[split.source.task] += split.num_dropped
    return Dataset(
        public=tuple(row.example for split in splits for row in split.public),
        test=_by_task(test),
        metrics={source.task: source.metric for source in loaded},
        dropped=dict(dropped),
        pool=tuple(row.example for row in pool),
        parts=dict(zip(names, partition.members(owner, len(names)), strict=True)),
        own_test=_by_client(test, names) if isinstance(config.partition, ByKeyPartition) else None,
    )


def load_examples(task: str, data: str | None = None, limit: int | None = None) -> tuple[Example, ...]:
    """Examples of one task in the order of the file, to evaluate a model on.

    Args:
        task: name of the task.
        data: JSONL file, hub id or wheel file; by default the task's held-out rows, else its own source.
        limit: how many; all by default.

    Raises:
        DataError: there is no source, or a row is malformed.
    """
    found = load_task(task)
    source = data or found.TEST_SOURCE or found.SOURCE
    if source is None:
        raise DataError(f"task {task}: it has no rows of its own. Name a JSONL file: --data FILE")
    rows = _parse(found, task, source, label=task, key=None, limit=limit)
    _refuse_repeated_ids([rows])
    return tuple(row.example for row in rows)


def load_task(name: str) -> Task:
    """Import a task and check that it is one.

    Raises:
        ConfigError: there is no such task.
        DataError: the module does not define what a task defines.
    """
    found = plugins.module("task", name)
    missing = [
        part for part in ("SOURCE", "TEST_SOURCE", "DOMAIN", "METRIC", "example") if not hasattr(found, part)
    ]
    if missing:
        raise DataError(f"task {name}: the module lacks {', '.join(missing)}; see cotune.data.Task")
    task = cast(Task, found)
    if task.METRIC not in METRICS:
        raise DataError(f"task {name}: METRIC is {task.METRIC!r}; expected one of {', '.join(METRICS)}")
    return task


@dataclass(frozen=True, slots=True)
class _Parsed:
    """An example and what the split needs to know about it."""

    example: Example
    task: str
    where: str
    passage: str
    key: str


@dataclass(frozen=True, slots=True)
class _Source:
    """All rows of one entry of `data.sources`."""

    settings: SourceConfig
    label: str
    metric: str
    rows: list[_Parsed]
    test_rows: list[_Parsed] | None

    @property
    def task(self) -> str:
        return self.settings.task


class _Split:
    """One source, cut into test, public and train; test first, and no text on two sides."""

    def __init__(self, source: _Source, seed: int, five_way: FiveWayPartition | None) -> None:
        self.source = source
        self.five_way = five_way
        self.public: list[_Parsed] = []
        self.train: list[_Parsed] = []
        self.owner: IntArray = np.empty(0, dtype=np.int64)
        self.num_dropped = 0
        rng = np.random.default_rng(five_way.seed) if five_way else derived_rng(seed, "data", source.label)
        # numpy's default_rng(seed).permutation is what Dataset.shuffle(seed) of the `datasets` library draws.
        rest = [source.rows[row] for row in rng.permutation(len(source.rows)).tolist()]
        if source.test_rows is None:
            num_test = source.settings.test_rows or 0
            self._refuse_shortage("test_rows", num_test, len(rest))
            self.test, self.rest = rest[:num_test], rest[num_test:]
        else:
            self.test, self.rest = _some(source, seed), rest

    def cut_public(self, held: set[str]) -> None:
        """Take the public rows from what is left, without the held-out texts."""
        self._drop(held)
        if self.five_way is not None:
            self._cut_five_way(self.five_way)
            return
        num_public = self.source.settings.public_rows
        self._refuse_shortage("public_rows", num_public, len(self.rest))
        self.public, self.rest = self.rest[:num_public], self.rest[num_public:]

    def cut_train(self, shared: set[str]) -> None:
        """Take the training rows from what is left, without the public texts."""
        self._drop(shared)
        num_train = self.source.settings.train_rows
        if num_train is not None and self.five_way is None:
            self._refuse_shortage("train_rows", num_train, len(self.rest))
            self.rest = self.rest[:num_train]
        self.train = self.rest

    def _cut_five_way(self, five_way: FiveWayPartition) -> None:
        settings, clients = self.source.settings, five_way.clients
        if settings.public_rows:
            raise DataError(
                f"source {self.source.label}: public_rows is {settings.public_rows}, but five_way makes its last part "
                "public. Remove public_rows, or use the iid partition."
            )
        size = len(self.rest) // (clients + 1)
        if settings.train_rows is not None:
            self._refuse_shortage("train_rows", settings.train_rows, size * clients)
            size = settings.train_rows // clients
        if size == 0:
            raise DataError(
                f"source {self.source.label}: {len(self.rest)} rows (train_rows {settings.train_rows}) do not make "
                f"{clients + 1} equal parts. Use fewer clients or more rows."
            )
        owner = partition.equal_parts(len(self.rest), clients + 1, size)
        self.public = [row for row, part in zip(self.rest, owner, strict=True) if part == clients]
        private = (owner >= 0) & (owner < clients)
        self.rest = [row for row, kept in zip(self.rest, private, strict=True) if kept]
        self.owner = owner[private]

    def _drop(self, passages: set[str]) -> None:
        keep = np.array([row.passage not in passages for row in self.rest], dtype=bool)
        if len(self.owner):
            self.owner = self.owner[keep]
        self.num_dropped += int((~keep).sum())
        self.rest = [row for row, kept in zip(self.rest, keep, strict=True) if kept]

    def _refuse_shortage(self, setting: str, asked: int, left: int) -> None:
        if asked <= left:
            return
        dropped = f" ({self.num_dropped} repeat a held-out or public text)" if self.num_dropped else ""
        raise DataError(
            f"source {self.source.label}: {setting} asks for {asked} rows, {left} of {len(self.source.rows)} are left"
            f"{dropped}. Lower {setting}, or give the source more rows."
        )


def _some(source: _Source, seed: int) -> list[_Parsed]:
    """`test_rows` of the held-out file, drawn by the seed and kept in the order of the file."""
    rows, asked = source.test_rows or [], source.settings.test_rows
    if asked is None:
        return rows
    if asked > len(rows):
        raise DataError(
            f"source {source.label}: test_rows asks for {asked} rows, the held-out data has {len(rows)}. Lower test_rows."
        )
    chosen = derived_rng(seed, "data", source.label, "test").permutation(len(rows))[:asked]
    return [rows[row] for row in sorted(chosen.tolist())]


def _load_source(config: DataConfig, number: int) -> _Source:
    settings = config.sources[number]
    task = load_task(settings.task)
    data = settings.data or task.SOURCE
    if data is None:
        raise DataError(
            f"data.sources.{number}.data: task {settings.task} has no rows of its own. Name a JSONL file."
        )
    held = settings.test_data or (task.TEST_SOURCE if settings.data is None else None)
    if held is None and settings.test_rows is None:
        raise DataError(
            f"data.sources.{number}.test_rows: missing; {data} has no held-out rows of its own. "
            "Say how many to hold out (0 for none), or name a file: test_data"
        )
    repeated = sum(source.task == settings.task for source in config.sources) > 1
    label = f"{settings.task}-{number + 1}" if repeated else settings.task
    key = config.partition.key if isinstance(config.partition, ByKeyPartition) else None
    return _Source(
        settings=settings,
        label=label,
        metric=task.METRIC,
        rows=_parse(task, settings.task, data, label=label, key=key),
        test_rows=_parse(task, settings.task, held, label=f"{label}-test", key=key) if held else None,
    )


def _parse(
    task: Task, name: str, source: str, *, label: str, key: str | None, limit: int | None = None
) -> list[_Parsed]:
    passage = getattr(task, "passage", str)
    parsed: list[_Parsed] = []
    errors: list[DataError] = []
    for index, (where, row) in enumerate(sources.read(source, limit)):
        try:
            example = task.example(row, where)
            if not example.id:
                example = dataclasses.replace(example, id=f"{label}-{index}")
            value = "" if key is None else _key(key, name, example, row, where)
        except DataError as error:
            errors.append(error)
            if len(errors) == sources.MAX_ERRORS:
                break
            continue
        parsed.append(_Parsed(example, name, where, passage(example.prompt), value))
    sources.raise_all(errors)
    return parsed


def _key(key: str, task: str, example: Example, row: Row, where: str) -> str:
    """The value of the partition key: domain, task, or a field of the row (`meta.part` for a nested one)."""
    if key in ("domain", "task"):
        return example.domain if key == "domain" else task
    value: object = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, float | list | Mapping) or value is None or not str(value).strip():
        raise wrong(where, key, value, "a string or whole number, as data.partition.key names this field")
    return str(value)


def _refuse_repeated_ids(tables: Iterable[Sequence[_Parsed]]) -> None:
    seen: dict[str, str] = {}
    errors: list[DataError] = []
    for table in tables:
        for row in table:
            first = seen.setdefault(row.example.id, row.where)
            if first is not row.where and len(errors) < sources.MAX_ERRORS:
                errors.append(
                    DataError(
                        f"{row.where}: field 'id': {row.example.id!r} was already used at {first}. Ids must be unique "
                        "in all data and test_data; rename one, or remove the field to have rows numbered."
                    )
                )
    sources.raise_all(errors)


def _owners(
    config: DataConfig, seed: int, pool: Sequence[_Parsed], five_way_owner: IntArray
) -> tuple[tuple[str, ...], IntArray]:
    rng = derived_rng(seed, "data", "partition")
    match config.partition:
        case IidPartition(clients=clients):
            owner = partition.iid(len(pool), clients, rng)
        case DirichletPartition(clients=clients, alpha=alpha):
            owner = partition.dirichlet([row.example.domain for row in pool], clients, alpha, rng)
        case ByKeyPartition():
            return partition.by_key([row.key for row in pool])
        case FiveWayPartition(clients=clients):
            owner = five_way_owner
            empty = np.flatnonzero(np.bincount(owner, minlength=clients) == 0)
            if len(empty):
                raise DataError(
                    f"data.partition: five_way leaves client {empty[0] + 1} empty, all its rows repeat public text. "
                    "Use fewer clients or more rows."
                )
    return partition.client_names(clients), owner


def _by_task(rows: Iterable[_Parsed]) -> dict[str, tuple[Example, ...]]:
    found: dict[str, list[Example]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row.example)
    return {task: tuple(examples) for task, examples in found.items()}


def _by_client(test: Sequence[_Parsed], names: Sequence[str]) -> dict[str, dict[str, tuple[Example, ...]]]:
    grouped: dict[str, list[_Parsed]] = {name: [] for name in names}
    for row in test:
        grouped.setdefault(row.key, []).append(row)
    return {name: _by_task(grouped[name]) for name in names}
