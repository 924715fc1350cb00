"""The state of a run on disk: a file per round, whole or not at all; resume takes the newest good one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotune.codec import decode, encode
from cotune.errors import ConfigError, RunError, WireError
from cotune.protocols import State
from cotune.records import Adapter, Message, adapter_header


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished round: the state after it and its line of `rounds.jsonl`."""

    round: int
    state: State
    record: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str, keep: int) -> None:
    """Write a checkpoint, flushed to disk, then drop all but the newest `keep`.

    Raises:
        RunError: it could not be written; older ones are intact.
    """
    adapters = checkpoint.state.adapters()
    arrays = {f"{r}/{n}": v for r, a in adapters.items() for n, v in a.arrays.items()}
    headers = {role: adapter_header(a) for role, a in adapters.items()}
    facts = {
        "fingerprint": fingerprint,
        "record": dict(checkpoint.record),
        "adapters": headers,
        "distil": checkpoint.state.distil,
    }
    data = encode(Message("server", checkpoint.round, "checkpoint", arrays, facts))
    target = folder / f"{checkpoint.round:06d}.ckpt"
    part = target.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"{target}: cannot be written ({error.strerror}). Earlier checkpoints are intact. Free "
            f"{len(data):,} bytes, then: cotune resume {folder.parent}"
        ) from error
    for old in sorted(folder.glob("*.ckpt"))[:-keep]:
        old.unlink()


def latest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None.

    Raises:
        ConfigError: it belongs to another experiment.
    """
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        try:
            message = decode(path.read_bytes())
            found = _checkpoint(message)
        except (WireError, KeyError, TypeError, ValueError):
            continue  # torn by a crash or a full disk: the one before it counts
        if message.facts["fingerprint"] != fingerprint:
            raise ConfigError(
                f"{path}: made by experiment {message.facts['fingerprint']}, this is {fingerprint}. "
                "Resume with the configuration it was started with, or start anew with another --out."
            )
        return found
    return None


def _checkpoint(message: Message) -> Checkpoint:
    found = {}
    for role, header in message.facts["adapters"].items():
        arrays = {
            n.removeprefix(f"{role}/"): a for n, a in message.arrays.items() if n.startswith(f"{role}/")
        }
        found[role] = Adapter(arrays, str(header["base"]), int(header["rank"]), float(header["alpha"]))
    distil = float(message.facts.get("distil", 1.0))
    state = State(found.pop("slm", None), found.pop("llm", None), found, distil)
    return Checkpoint(message.round, state, message.facts["record"])
