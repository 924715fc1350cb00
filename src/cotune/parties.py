"""What one party of a deployed run has in its folder: its name and keys, and the examples it may read.

A client's folder holds its own examples and those that everybody may read, the server's folder the public
and held-out ones. `cotune deploy init` writes them; a client may replace its `data.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cotune.data import ByTask, Dataset
from cotune.errors import ConfigError, DataError
from cotune.guarded import SERVER
from cotune.protocols import Transport
from cotune.records import Example
from cotune.rows import from_json
from cotune.table import read_entries

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PARTY, REGISTRY, CONFIG = "party.json", "registry.json", "run.yaml"
DATA, PUBLIC, HELD_OUT, SHAPE = "data.jsonl", "public.jsonl", "held_out.jsonl", "dataset.json"
IDENTITY, SECRET = "identity.key", "secret.key"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Registry:
    """Who takes part: Ed25519 public keys (32 bytes) by name, the server's among them; and the key, as PEM,
    with which the SuperNode of each client signs its requests."""

    identities: Mapping[str, bytes]
    nodes: Mapping[str, str]

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of all clients, in the order of the configuration."""
        return tuple(self.nodes)

    @property
    def of_clients(self) -> dict[str, bytes]:
        """The clients' Ed25519 public keys by name."""
        return {name: self.identities[name] for name in self.nodes}


@dataclass(frozen=True, slots=True)
class Party:
    """One party, as its folder says.

    settings: `party.json`, that is the address of the server and what this machine adds to it; identity: its
    Ed25519 private key; secret: 32 bytes from which its noise is drawn.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    registry: Registry
    identity: Ed25519PrivateKey = field(repr=False)
    secret: bytes = field(repr=False)

    @property
    def is_server(self) -> bool:
        """Whether it is the server."""
        return self.name == SERVER


@dataclass(frozen=True, slots=True)
class Parties:
    """What the server of a deployed run knows in place of all clients' data: a dataset without private rows,
    the transport that reaches them, its own secret, and the clients' public keys."""

    dataset: Dataset
    transport: Transport
    secret: Callable[[str], bytes] = field(repr=False)
    identities: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def load(folder: Path) -> Party:
    """Read a party's folder, but not its data.

    Raises:
        ConfigError: a file is missing or is not what it should be.
    """
    from cotune.identity_keys import read_identity

    settings, registry = _json(folder / PARTY), _json(folder / REGISTRY)
    try:
        nodes = {str(name): str(pem) for name, pem in registry["nodes"].items()}
        identities = {str(name): bytes.fromhex(key) for name, key in registry["identities"].items()}
        name = str(settings["name"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder}: {PARTY} or {REGISTRY} is damaged ({error!r}). Get this party's folder again from "
            "whoever ran: cotune deploy init"
        ) from error
    if identities.keys() != {SERVER, *nodes} or any(len(key) != KEY_BYTES for key in identities.values()):
        raise ConfigError(f"{folder / REGISTRY}: expected one key of {KEY_BYTES} bytes for every party.")
    if name not in identities:
        raise ConfigError(
            f"{folder / PARTY}: {name!r} is not in {REGISTRY}: the files are of two deployments."
        )
    keys = (read_identity(folder / IDENTITY), _key(folder / SECRET))
    return Party(name, folder, settings, Registry(identities, nodes), *keys)


def own_secret(party: Party) -> Callable[[str], bytes]:
    """The party's secret, told under its own name only."""

    def secret(name: str) -> bytes:
        if name != party.name:
            raise ConfigError(f"{party.folder}: the secret of {name!r} is not here, only {party.name!r}'s")
        return party.secret

    return secret


def write_server(folder: Path, dataset: Dataset) -> None:
    """The public and held-out examples, and how many examples each client has; nobody's own."""
    write_examples(folder / PUBLIC, {"": dataset.public})
    write_examples(folder / HELD_OUT, dataset.test)
    sizes = {client: dataset.num_train(client) for client in dataset.clients}
    _write_shape(folder, dataset, sizes)


def write_client(folder: Path, dataset: Dataset, client: str) -> None:
    """One client's examples and the ones it is measured on, and the public ones."""
    write_examples(folder / DATA, {"": dataset.train(client)})
    write_examples(folder / HELD_OUT, dataset.held_out(client))
    write_examples(folder / PUBLIC, {"": dataset.public})
    _write_shape(folder, dataset, dict.fromkeys(dataset.clients, 0))


def _write_shape(folder: Path, dataset: Dataset, sizes: Mapping[str, int]) -> None:
    shape = {
        "clients": dict(sizes),
        "metrics": dict(dataset.metrics),
        "dropped": dict(dataset.dropped),
        "shares_test": dataset.own_test is None,
    }
    (folder / SHAPE).write_text(json.dumps(shape, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_server(folder: Path, sizes: Mapping[str, int] | None = None) -> Dataset:
    """What the server may read. `sizes`: how many examples clients say they have, where it is known.

    Raises:
        DataError, ConfigError: a file cannot be used.
    """
    shape = _shape(folder)
    counts = {**shape["clients"], **(sizes or {})}
    test = _by_task(folder / HELD_OUT)
    return Dataset(
        public=read_examples(folder / PUBLIC),
        test=test,
        metrics=shape["metrics"],
        dropped=shape["dropped"],
        pool=(),
        parts={client: np.arange(counts[client]) for client in shape["clients"]},
        own_test=None if shape["shares_test"] else {client: {} for client in shape["clients"]},
    )


def read_client(folder: Path, client: str, tasks: Sequence[str] = ()) -> Dataset:
    """What one client may read: of the others, the names.

    `tasks`: of the configuration; rows that are not examples yet are read as rows of the only one. What the
    client is measured on is left out of its own examples; `notes` say so, and what of the public ones is.

    Raises:
        DataError, ConfigError: a file cannot be used, or nothing is left to train on.
    """
    shape = _shape(folder)
    brought, held_out = _own(folder / DATA, tasks), _by_task(folder / HELD_OUT)
    prompts = {example.prompt for examples in held_out.values() for example in examples}
    own = tuple(example for example in brought if example.prompt not in prompts)
    public = read_examples(folder / PUBLIC)
    shown = sum(example.prompt in prompts for example in public)
    if not own:
        raise DataError(
            f"{folder / DATA}: all {len(brought)} examples also stand in {HELD_OUT}. Take them out of one."
        )
    nothing: dict[str, ByTask] = {name: {} for name in shape["clients"]}
    return Dataset(
        public=public,
        test=held_out if shape["shares_test"] else {},
        metrics=shape["metrics"],
        dropped={},
        pool=own,
        parts={name: np.arange(len(own) if name == client else 0) for name in shape["clients"]},
        own_test=None if shape["shares_test"] else {**nothing, client: held_out},
        notes=_told(len(brought) - len(own), shown),
    )


def _told(dropped: int, shown: int) -> tuple[str, ...]:
    """Sentences about examples that a client is measured on and that also stand elsewhere."""
    own = f"{DATA}: {dropped:,} of its examples also stand in {HELD_OUT}; they were left out"
    public = (
        f"{PUBLIC}: {shown:,} of its examples also stand in {HELD_OUT}; their paths teach nothing here, but "
        "the server trains on them too, so what is measured may be flattered"
    )
    return (*([own] if dropped else []), *([public] if shown else []))


def write_examples(path: Path, by_task: Mapping[str, Sequence[Example]]) -> None:
    """Examples as JSON Lines, each with its task if it has one."""
    lines = []
    for task, examples in by_task.items():
        named = {"task": task} if task else {}
        lines += [json.dumps({**named, **asdict(example)}) + "\n" for example in examples]
    path.write_text("".join(lines), encoding="utf-8")


def read_examples(path: Path) -> tuple[Example, ...]:
    """Examples as `write_examples` writes them.

    Raises:
        DataError: a line is not one.
    """
    return tuple(example for _, example in _lines(path))


def _own(path: Path, tasks: Sequence[str]) -> tuple[Example, ...]:
    """A client's examples; a file of raw rows is read by the run's task, if there is one only."""
    first = next(iter(_raw_lines(path)), None)
    if first is None:
        raise DataError(f"{path}: it is empty; expected one example a line.")
    if "completion" in first[1] or len(set(tasks)) != 1:
        found = read_examples(path)
    else:
        found = tuple(entry.example for entry in read_entries(tasks[0], str(path), label=path.stem))
    ids = [example.id for example in found]
    twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise DataError(f"{path}: id {twice!r} is there twice. Ids must be unique: rename one.")
    return found


def _by_task(path: Path) -> dict[str, tuple[Example, ...]]:
    found: dict[str, list[Example]] = {}
    for task, example in _lines(path):
        found.setdefault(task, []).append(example)
    return {task: tuple(examples) for task, examples in found.items()}


def _lines(path: Path) -> list[tuple[str, Example]]:
    return [(str(row.get("task", "")), _example(row, where)) for where, row in _raw_lines(path)]


def _raw_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each row with its place."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Give one example a line, as JSON.") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); expected one example a line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: {type(row).__name__}; expected an object with prompt and completion.")
        found.append((where, row))
    return found


def _example(row: Mapping[str, Any], where: str) -> Example:
    known = {one.name for one in fields(Example)}
    odd = sorted(row.keys() - known - {"task"})
    texts = ("id", "prompt", "completion", "rationale", "domain")
    wrong = [name for name in texts if not isinstance(row.get(name, ""), str)]
    missing = [name for name in ("id", "prompt", "completion") if name not in row]
    if odd or wrong or missing:
        raise DataError(
            f"{where}: fields {odd + wrong + missing} are unknown, of another type, or missing; expected id, "
            "prompt and completion as text, and optionally choices, answer_idx, rationale, domain."
        )
    choices, answer = row.get("choices", []), row.get("answer_idx")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: choices: expected a list of texts.")
    if choices and (type(answer) is not int or not 0 <= answer < len(choices)):
        raise DataError(f"{where}: answer_idx {answer!r}; expected a number from 0 to {len(choices) - 1}.")
    values = {name: row[name] for name in texts if name in row}
    return Example(**values, choices=tuple(choices), answer_idx=answer)


def _shape(folder: Path) -> dict[str, Any]:
    found = _json(folder / SHAPE)
    expected = {"clients": dict, "metrics": dict, "dropped": dict, "shares_test": bool}
    odd = [name for name, kind in expected.items() if not isinstance(found.get(name), kind)]
    if odd:
        raise ConfigError(
            f"{folder / SHAPE}: {', '.join(odd)} missing or of another type. Get the file again."
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). Give the folder of one party, as cotune deploy init wrote it."
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected an object.")
    return found


def _key(path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Only its owner may read it."
        ) from error
    if len(found) != KEY_BYTES:
        raise ConfigError(f"{path}: {len(found)} bytes; expected {KEY_BYTES}.")
    return found
