"""Rows become examples; examples become a test set, a public set, and the private parts of the clients.

Clients are handles: each is an array of row numbers into one shared pool, so that ten thousand cost little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cotune import partition
from cotune.config import (
    ByKeyPartition,
    DataConfig,
    DirichletPartition,
    FiveWayPartition,
    Partition,
    SourceConfig,
)
from cotune.errors import DataError, suggestion
from cotune.partition import IntArray
from cotune.records import Example, Metric, derived_rng
from cotune.splits import Source, Split, split
from cotune.table import Entry, load_task, metric_of, read_entries, refuse_repeated_ids

ByTask = Mapping[str, tuple[Example, ...]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything a run may read, by who may read it.

    Attributes:
        public: examples that every party may read.
        test: held-out examples by task.
        metrics: how each task is scored (see `records.Metric`).
        dropped: rows left out, by task, because their text also stands in the test or public set.
        pool: the private examples of all clients.
        parts: client -> its rows in `pool`.
        own_test: client -> its own held-out examples by task; None when all clients share `test`.
        notes: what the user should know about the split, a sentence each.
    """

    public: tuple[Example, ...] = field(repr=False)
    test: ByTask = field(repr=False)
    metrics: Mapping[str, Metric]
    dropped: Mapping[str, int]
    pool: tuple[Example, ...] = field(repr=False)
    parts: Mapping[str, IntArray] = field(repr=False)
    own_test: Mapping[str, ByTask] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

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

    def only(self, clients: Sequence[str]) -> Dataset:
        """What these clients hold; all else is the same."""
        own = None if self.own_test is None else {client: self.own_test[client] for client in clients}
        return replace(self, parts={client: self.parts[client] for client in clients}, own_test=own)

    def with_more(self, client: str, examples: Sequence[Example]) -> Dataset:
        """The same with further private examples of one client."""
        rows = np.arange(len(self.pool), len(self.pool) + len(examples))
        parts = {**self.parts, client: np.concatenate([self.parts[client], rows])}
        return replace(self, pool=(*self.pool, *examples), parts=parts)

    def held_out(self, client: str) -> ByTask:
        """The examples a client is measured on, by task.

        Split by key, they are those with the client's own key (none if no held-out row has it); else all.
        """
        return self.test if self.own_test is None else self.own_test[client]

    def measured(self, client: str) -> frozenset[int]:
        """Rows of `public` whose prompt is also one that the client is measured on; they must not teach it.

        `load` leaves none; a client of a deployed run may bring held-out examples of its own.
        """
        prompts = {example.prompt for examples in self.held_out(client).values() for example in examples}
        return frozenset(row for row, example in enumerate(self.public) if example.prompt in prompts)


def load(config: DataConfig, seed: int) -> Dataset:
    """Read all sources, hold out the test rows, then the public rows, and give the rest to the clients.

    The rows of each source are shuffled once, by the seed and the source alone. A text stands on one side
    only: rows whose prompt is in the test set are left out of the public and private rows, those in the
    public set out of the private ones.

    Raises:
        DataError: a row is malformed, ids repeat, rows do not suffice, or a client would be empty.
    """
    sources = [_read_source(config, number) for number in range(len(config.sources))]
    refuse_repeated_ids(table for source in sources for table in (source.entries, source.test_entries or ()))
    five_way = config.partition if isinstance(config.partition, FiveWayPartition) else None
    splits = split(sources, seed, five_way)
    private = [entry for one in splits for entry in one.private]
    if not private:
        raise DataError(
            "data.sources: no rows are left for the clients. Lower test_rows or public_rows, or hold out "
            "fewer (held_out)."
        )
    names, parts = _parts(config, seed, splits)
    test = [entry for one in splits for entry in one.test]
    dropped: Counter[str] = Counter()
    for one in splits:
        dropped[one.source.settings.task] += one.num_dropped
    return Dataset(
        public=tuple(entry.example for one in splits for entry in one.public),
        test=_by_task(test),
        metrics=_metrics(config),
        dropped=dict(dropped),
        pool=tuple(entry.example for entry in private),
        parts=dict(zip(names, parts, strict=True)),
        own_test=_by_client(test, names) if isinstance(config.partition, ByKeyPartition) else None,
        notes=(*unmixed([entry.key for entry in private], config.partition), *left_out(dropped)),
    )


def load_examples(task: str, data: str | None = None, limit: int | None = None) -> tuple[Example, ...]:
    """Examples of one task in the order of the file, to evaluate a model on.

    Args:
        task: name of the task.
        data: JSONL file, hub id or wheel file; by default the task's held-out rows, else its own source.
        limit: how many; all by default.

    Raises:
        ConfigError: there is no such task.
        DataError: there is no source, or a row is malformed.
    """
    found = load_task(task)
    source = data or found.TEST_SOURCE or found.SOURCE
    if source is None:
        raise DataError(f"task {task}: it has no rows of its own. Name a JSONL file: --data FILE")
    entries = read_entries(task, source, label=task, limit=limit)
    refuse_repeated_ids([entries])
    return tuple(entry.example for entry in entries)


def _metrics(config: DataConfig) -> dict[str, Metric]:
    """How each task is scored: as a source asks for, else in the task's own way.

    Raises:
        DataError: the task cannot be scored so, or two sources of it differ.
    """
    found: dict[str, Metric] = {}
    for number, source in enumerate(config.sources):
        place = f"data.sources.{number}.metric"
        asked = metric_of(source.task, source.metric, place)
        if found.setdefault(source.task, asked) != asked:
            raise DataError(
                f"{place}: got {asked}; another source of task {source.task} is scored by "
                f"{found[source.task]}. Give all its sources the same `metric`."
            )
    return found


def _read_source(config: DataConfig, number: int) -> Source:
    settings, place = config.sources[number], f"data.sources.{number}"
    task = load_task(settings.task)
    data = settings.data or task.SOURCE
    if data is None:
        raise DataError(
            f"{place}.data: missing; task {settings.task} has no rows of its own. Name a JSONL file."
        )
    held = settings.test_data or (task.TEST_SOURCE if settings.data is None else None)
    if held is None and settings.held_out is None and settings.test_rows is None:
        raise DataError(
            f"{place}.test_rows: missing; {data} has no held-out rows of its own. "
            "Say how many to hold out (0 for none), name a file: test_data, or a kind of rows: held_out"
        )
    repeated = sum(source.task == settings.task for source in config.sources) > 1
    label = f"{settings.task}-{number + 1}" if repeated else settings.task
    split_by = config.partition
    key = split_by.key if isinstance(split_by, ByKeyPartition | DirichletPartition) else None
    if settings.held_out is not None:
        field, value = _key_and_value(settings, place)
        entries = read_entries(settings.task, data, label, key, kind=field)
        return Source(settings, label, *_hold_out(entries, value, f"{place}.held_out: {data}, {field!r}"))
    entries = read_entries(settings.task, data, label, key)
    test_entries = read_entries(settings.task, held, f"{label}-test", key) if held else None
    return Source(settings, label, entries, test_entries)


def _key_and_value(settings: SourceConfig, place: str) -> tuple[str, str]:
    """The two sides of `held_out`."""
    field, _, value = (part.strip() for part in str(settings.held_out).partition("="))
    if not field or not value:
        raise DataError(
            f"{place}.held_out: got {settings.held_out!r}; expected KEY=VALUE, e.g. category=summarization"
        )
    if settings.test_data is not None:
        raise DataError(
            f"{place}: both held_out ({settings.held_out}) and test_data ({settings.test_data}) say which "
            "rows are held out; expected one of them. Remove the other."
        )
    return field, value


def _hold_out(entries: Sequence[Entry], kind: str, place: str) -> tuple[list[Entry], list[Entry]]:
    """The rows of other kinds, and those of this one."""
    held = [entry for entry in entries if entry.kind == kind]
    if not held:
        known = sorted({entry.kind for entry in entries})
        shown = ", ".join(map(repr, known[:10])) + (", ..." if len(known) > 10 else "")
        raise DataError(f"{place}: no row has {kind!r}; expected one of {shown}.{suggestion(kind, known)}")
    return [entry for entry in entries if entry.kind != kind], held


def deal(keys: Sequence[str], split_by: Partition, seed: int) -> tuple[tuple[str, ...], list[IntArray]]:
    """Names of the clients and the rows of each.

    Args:
        keys: of each row, for partitions that have a key.
        split_by: how; not the five-way split, which has a public part.
        seed: of everything random.

    Raises:
        DataError: a client would be empty.
    """
    rng = derived_rng(seed, "data", "partition")
    match split_by:
        case ByKeyPartition():
            names, owner = partition.by_key(keys)
            return names, partition.members(owner, len(names))
        case DirichletPartition(clients=clients, alpha=alpha):
            owner = partition.dirichlet(keys, clients, alpha, rng)
        case _:
            clients = split_by.clients
            owner = partition.iid(len(keys), clients, rng)
    return partition.client_names(clients), partition.members(owner, clients)


def unmixed(keys: Sequence[str], split_by: Partition) -> tuple[str, ...]:
    """A warning where a Dirichlet partition has nothing to mix, because all keys are the same."""
    if not isinstance(split_by, DirichletPartition) or split_by.clients == 1 or len(set(keys)) != 1:
        return ()
    return (
        f"data.partition: dirichlet deals by {split_by.key!r}, which is {keys[0]!r} in all {len(keys):,} "
        "rows: clients differ in size, not in what they have. Name a field with several values "
        "(data.partition.key; with cotune select --partition dirichlet:ALPHA:FIELD).",
    )


def left_out(dropped: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence about rows that must not be trained on, because their text is measured or public."""
    rows = [f"{count:,} of {task}" for task, count in dropped.items() if count]
    told = f"data: left out {', '.join(rows)}: their text also stands in the held-out or the public rows"
    return (told,) if rows else ()


def _parts(config: DataConfig, seed: int, splits: Sequence[Split]) -> tuple[tuple[str, ...], list[IntArray]]:
    """Names of the clients and the private rows of each."""
    if not isinstance(config.partition, FiveWayPartition):
        return deal([entry.key for one in splits for entry in one.private], config.partition, seed)
    clients = config.partition.clients
    owner = np.concatenate([one.owner for one in splits if one.owner is not None])
    partition.refuse_empty(owner, clients, "five_way", "fewer repeated prompts, fewer clients or more rows")
    return partition.client_names(clients), partition.members(owner, clients)


def _by_task(entries: Iterable[Entry]) -> dict[str, tuple[Example, ...]]:
    found: dict[str, list[Example]] = {}
    for entry in entries:
        found.setdefault(entry.task, []).append(entry.example)
    return {task: tuple(examples) for task, examples in found.items()}


def _by_client(test: Sequence[Entry], names: Sequence[str]) -> dict[str, ByTask]:
    grouped: dict[str, list[Entry]] = {name: [] for name in names}
    for entry in test:
        grouped.setdefault(entry.key, []).append(entry)
    return {name: _by_task(grouped[name]) for name in names}
