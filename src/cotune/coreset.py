"""Choose from a file: the same selectors as in a run, on clients that live here, without any training."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cotune import config as configs
from cotune import data as datasets
from cotune import memory, plugins, sources, whole
from cotune.choices import Choices
from cotune.data import Dataset
from cotune.errors import ConfigError, DataError
from cotune.federation import Federation
from cotune.host import Host
from cotune.map import Map
from cotune.places import places
from cotune.protocols import SLM, Selector, SelectorParts, State
from cotune.readers import Readers
from cotune.records import Event, Example, Progress, Round
from cotune.rows import Row
from cotune.selection import Selection, select
from cotune.table import load_task
from cotune.transports.inprocess import InProcess

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COUNTED = 1000
"""Texts whose tokens are counted at a time."""
CHUNK = 256
"""Clients in memory at a time: their examples are read in the same passes."""
MODEL = "smollm2-135m"
"""Stands for the clients' own model unless one is named."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be chosen, from what, and by whom.

    Attributes:
        data: JSONL file (.gz), `wheel:` member or hub id; empty: the task's own rows.
        methods: selectors in order, each a name or `{name: ..., option: ...}`.
        task: how rows are read; empty: `multiple_choice` for rows with choices, else `instruction`.
        partition: who holds what: `one`, `iid:N`, `dirichlet:N:ALPHA[:KEY]`, `by_key:KEY`.
        model: what selectors read with, unless a method's own options name another; empty: what the method
            names by default, and `MODEL` where it asks for the clients' own model.
        keep: share of the examples to keep; None leaves it to the method.
        seed: of the partition and of everything random.
    """

    data: str
    methods: Sequence[Mapping[str, Any]]
    task: str = ""
    partition: str = "one"
    model: str = ""
    keep: float | None = None
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Coreset:
    """What was chosen. Rows are counted as they stand in the data, from 0.

    Attributes:
        indices: chosen rows, client by client, in each client's order of use.
        clients: names; owner: each row's client, as a number into them, [rows].
        groups: each row's group on its client, -1 for none, [rows]; None if the method makes none.
        scores: each row's score, [rows]; None if the method gives none.
        facts: what `selection.json` says.
    """

    indices: Ints
    clients: tuple[str, ...]
    owner: Ints
    groups: Ints | None
    scores: npt.NDArray[np.float64] | None
    facts: Mapping[str, Any]


def choose(
    question: Question, note: Callable[[str], None], progress: Progress
) -> tuple[Coreset, Source, Map]:
    """Do it.

    Args:
        question: what is asked.
        note: told what is being prepared, and what the data are not fit for.
        progress: told what is being done, how much of it is done, and of how much.

    Raises:
        UserError: an unknown method, task or model; malformed rows; a share outside (0, 1].
    """
    began = time.perf_counter()
    specs = _specs(question)
    note(f"reading {question.data or question.task}")
    progress("reading rows", 0, 1)
    source = read(question)
    for text in source.dataset.notes:
        note(text)
    read_seconds = time.perf_counter() - began
    among = _Among(len(source.dataset.clients), progress)
    readers = Readers(question.model or MODEL, configs.RuntimeConfig(), note, partial(among.tell, "reading"))
    parts = SelectorParts(readers, 1, among.tell)
    selectors: list[Selector] = [plugins.load("selector", s["name"], _options(s), parts=parts) for s in specs]
    with tempfile.TemporaryDirectory() as folder:
        host = Host(source.dataset, (None, selectors, None), lambda *_: {}, Path(folder), (question.seed, 1))
        aggregator = plugins.load("aggregator", "mean", {})
        federation = Federation(InProcess(host, CHUNK), aggregator, among.hear)
        now = Round(1, 1, question.seed, source.dataset.clients)
        found = select(selectors, Selection(), State(), now, federation)
        failures = federation.ledger.failures
        if failures:
            raise DataError(f"{failures[0].client}: {failures[0].reason}")
        chosen = _gathered(source, host.choices, len(specs))
    seconds = {"reading": read_seconds, "choosing": found.seconds}
    began = time.perf_counter()
    points, colours, whose = places(_texts(source.examples), readers, question.seed, progress)
    seconds["mapping"] = time.perf_counter() - began
    lengths = _lengths(source.examples, readers, progress)
    facts = _facts(question, source, chosen, (found, readers, seconds, lengths))
    chosen = replace(chosen, facts=facts)
    return chosen, source, _map(chosen, source, (points, colours, whose))


@dataclass(frozen=True, slots=True)
class Source:
    """The rows as examples, dealt to clients; each row's line; and where they are from."""

    dataset: Dataset
    lines: Sequence[bytes]
    data: str

    @property
    def examples(self) -> tuple[Example, ...]:
        """All of them, in the order of the data."""
        return self.dataset.pool


def read(question: Question) -> Source:
    """The data as examples; rows without an answer are allowed, for scores that need none."""
    data = question.data or (load_task(question.task).SOURCE if question.task else "")
    if not data:
        raise ConfigError(
            "--data: missing. Name a JSONL file or hub id, or a task that has rows: --task food"
        )
    rows, lines = sources.read_with_lines(data)
    task = question.task or ("multiple_choice" if "choices" in rows[0][1] else "instruction")
    module = load_task(task)
    partition, key = _partition(question.partition, len(rows))
    examples, keys, errors = [], [], []
    for number, (where, row) in enumerate(rows):
        try:
            example = _example(module, task, row, where)
            keys.append(_key(key, task, example, row, where))
        except DataError as error:
            errors.append(error)
            if len(errors) == sources.MAX_ERRORS:
                break
            continue
        examples.append(example if example.id else replace(example, id=f"row-{number}"))
    sources.raise_all(errors)
    names, parts = datasets.deal(keys, partition, question.seed)
    notes = datasets.unmixed(keys, partition)
    held = Dataset((), {}, {}, {}, tuple(examples), dict(zip(names, parts, strict=True)), notes=notes)
    return Source(held, lines, data)


def _example(module: Any, task: str, row: Row, where: str) -> Example:
    has_answer = task != "instruction" or bool(str(row.get("output") or "").strip())
    found: Example = module.example(row if has_answer else {**row, "output": "?"}, where)
    return found if has_answer else replace(found, completion="")


def _key(key: str, task: str, example: Example, row: Row, where: str) -> str:
    from cotune.table import partition_key

    return partition_key(key, task, example, row, where) if key else ""


def _partition(text: str, num_rows: int) -> tuple[configs.Partition, str]:
    """`one`, `iid:N`, `dirichlet:N:ALPHA[:KEY]`, `by_key:KEY` as a partition, and the key it needs."""
    name, *rest = text.split(":")
    try:
        if name == "one" and not rest:
            return configs.IidPartition(name="iid", clients=1), ""
        if name == "iid" and len(rest) == 1:
            return configs.IidPartition(name="iid", clients=int(rest[0])), ""
        if name == "by_key" and len(rest) == 1:
            return configs.ByKeyPartition(name="by_key", key=rest[0]), rest[0]
        if name == "dirichlet" and len(rest) in (2, 3):
            key = rest[2] if len(rest) == 3 else "domain"
            made = configs.DirichletPartition(
                name="dirichlet", clients=int(rest[0]), alpha=float(rest[1]), key=key
            )
            return made, key
    except ValueError:
        pass
    raise ConfigError(
        f"--partition {text!r}: expected one, iid:N, dirichlet:N:ALPHA[:KEY] or by_key:KEY, for {num_rows} "
        "rows, with N and ALPHA above 0; e.g. dirichlet:200:0.5:task, or --partition dirichlet:0.5:task "
        "--clients 200"
    )


def _specs(question: Question) -> list[dict[str, Any]]:
    """The methods with the share to keep given to the last one, if it has such an option; all checked."""
    keep = question.keep
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(
            f"--keep {keep:g}: expected a share of the examples above 0 and at most 1, e.g. 0.015"
        )
    specs = [dict(method) for method in question.methods]
    if not specs:
        raise ConfigError(f"--method: expected one of {', '.join(plugins.names('selector'))}")
    if keep is not None:
        _give_share(specs, keep)
    if question.model:
        _give_model(specs)
    configs.check_plugins("selector", specs)
    return specs


def _give_share(specs: list[dict[str, Any]], keep: float) -> None:
    last = specs[-1]["name"]
    if "keep" not in plugins.config_class("selector", last).model_fields:
        raise ConfigError(
            f"--keep {keep:g}: {last} takes no share. Add a selector that does: --method {last},random_subset"
        )
    specs[-1].setdefault("keep", keep)


def _give_model(specs: list[dict[str, Any]]) -> None:
    """`slm` for a model that a method would name by default: here that is the model of the question."""
    for spec in specs:
        if "model" in plugins.config_class("selector", spec["name"]).model_fields:
            spec.setdefault("model", SLM)


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "name"}


def _gathered(source: Source, choices: Choices, num_selectors: int) -> Coreset:
    """Every client's choice in rows of the data."""
    dataset, last = source.dataset, num_selectors - 1
    num_rows = len(dataset.pool)
    owner, groups = np.zeros(num_rows, np.int64), np.full(num_rows, -1)
    scores = np.full(num_rows, np.nan)
    picked: list[Ints] = []
    for number, client in enumerate(dataset.clients):
        rows = dataset.parts[client]
        owner[rows] = number
        picked.append(rows[choices.rows(client, 1, len(rows))])
        memo = choices.memo(client, last, 1)
        pool = rows[choices.pool(client, last, 1, len(rows))]
        if "labels" in memo:
            groups[pool] = memo["labels"]
        if "scores" in memo:
            scores[pool] = memo["scores"]
    return Coreset(
        indices=np.concatenate(picked),
        clients=dataset.clients,
        owner=owner,
        groups=None if (groups < 0).all() else groups,
        scores=None if np.isnan(scores).all() else scores,
        facts={},
    )


def _facts(
    question: Question,
    source: Source,
    chosen: Coreset,
    how: tuple[Selection, Readers, Mapping[str, float], tuple[Ints, str]],
) -> dict[str, Any]:
    found, readers, seconds, (lengths, unit) = how
    dataset = source.dataset
    taken = np.bincount(chosen.owner[chosen.indices], minlength=len(dataset.clients)).tolist()
    return {
        "data": source.data,
        "methods": [dict(method) for method in question.methods],
        "selected": len(chosen.indices),
        "total": len(source.examples),
        "clients": {
            client: {"selected": count, "total": dataset.num_train(client)}
            for client, count in zip(dataset.clients, taken, strict=True)
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_bytes": memory.peak(),
        "length": {
            "unit": unit,
            "all": int(lengths.sum()),
            "selected": int(lengths[chosen.indices].sum()),
            "saved": int(lengths.sum() - lengths[chosen.indices].sum()),
        },
        "cut": readers.num_cut,
        "notes": list(dataset.notes),
        "crossed": [dict(part) for part in found.crossed],
        "models": {name: reader.fingerprint for name, reader in readers.loaded.items()},
        "seed": question.seed,
    }


def _texts(examples: Sequence[Example]) -> list[str]:
    return [example.prompt + example.completion for example in examples]


def _map(chosen: Coreset, source: Source, where: tuple[Floats, Ints, str]) -> Map:
    is_chosen = np.zeros(len(source.examples), np.bool_)
    is_chosen[chosen.indices] = True
    facts = chosen.facts
    methods = ", ".join(method["name"] for method in facts["methods"])
    rows = [
        ("chosen", f"{facts['selected']:,} of {facts['total']:,} ({facts['selected'] / facts['total']:.2%})"),
        ("clients", f"{len(chosen.clients):,}"),
        ("places and colours", where[2]),
        ("seconds", f"{sum(facts['seconds'].values()):.1f}"),
        (f"{facts['length']['unit']} saved", f"{facts['length']['saved']:,} of {facts['length']['all']:,}"),
    ]
    return Map(
        places=where[0],
        groups=where[1],
        chosen=is_chosen,
        texts=_texts(source.examples),
        clients=[chosen.clients[number] for number in chosen.owner.tolist()],
        ids=[example.id for example in source.examples],
        title=f"{methods} on {Path(str(facts['data'])).name}",
        facts=rows,
    )


def _lengths(examples: Sequence[Example], readers: Readers, progress: Progress) -> tuple[Ints, str]:
    """Length of each example in tokens of a model that was read with, else in words."""
    texts = _texts(examples)
    for name, reader in readers.loaded.items():
        found: list[int] = []
        while len(found) < len(texts):
            found += map(len, reader.tokenize(texts[len(found) : len(found) + COUNTED]))
            progress("counting tokens", len(found), len(texts))
        return np.array(found), f"tokens of {name}"
    return np.array([len(text.split()) for text in texts]), "words"


class _Among:
    """What is done with a few clients at a time, told as a part of what is done with all of them."""

    def __init__(self, num_clients: int, progress: Progress) -> None:
        self.done, self.total, self.progress = 0, num_clients, progress

    def hear(self, event: Event) -> None:
        """An exchange begins, or one more client has answered."""
        self.done, self.total = event.done, event.total if event.done else self.total

    def tell(self, what: str, done: int, total: int) -> None:
        """How far a step is; it is taken by a chunk of clients, or by the server when all have answered."""
        chunk = min(CHUNK, self.total - self.done)
        if chunk <= 0:
            self.progress(what, done, total)
        else:
            self.progress(what, self.done * total + chunk * done, self.total * total)


def write(folder: Path, chosen: Coreset, source: Source, page: str) -> None:
    """`coreset.jsonl` with the rows as they stood, `selection.json`, `map.html`; each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = b"".join(source.lines[row] + b"\n" for row in chosen.indices.tolist())
    table = json.dumps(chosen.facts, indent=2, ensure_ascii=False) + "\n"
    for name, content in (
        ("coreset.jsonl", rows),
        ("selection.json", table.encode()),
        ("map.html", page.encode()),
    ):
        whole.write(folder / name, content)
