"""The state of a run on disk: a file per round, whole or not at all; resume takes the newest good one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotune import whole
from cotune.codec import decode, encode
from cotune.errors import ConfigError, RunError, WireError
from cotune.protocols import State
from cotune.records import Adapter, Array, Message, adapter_header


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished round: the state after it, its line of `rounds.jsonl`, and texts that were overheard and
    that no audit has read yet."""

    round: int
    state: State
    record: Mapping[str, Any]
    heard: Sequence[str] = ()


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str, keep: int) -> None:
    """Write a checkpoint, flushed to disk, then drop all but the newest `keep`.

    Raises:
        RunError: it could not be written; older ones are intact.
    """
    arrays, facts = packed(checkpoint.state)
    facts |= {"fingerprint": fingerprint, "record": dict(checkpoint.record), "heard": list(checkpoint.heard)}
    data = encode(Message("server", checkpoint.round, "checkpoint", arrays, facts))
    write_whole(folder / f"{checkpoint.round:06d}.ckpt", data, folder.parent)
    for old in sorted(folder.glob("*.ckpt"))[:-keep]:
        old.unlink()


def write_whole(target: Path, data: bytes, run: Path) -> None:
    """Write a file whole or not at all, flushed to disk; `run` is the folder that can be resumed.

    Raises:
        RunError: it could not be written; what was there before is intact.
    """
    try:
        whole.write(target, data)
    except OSError as error:
        raise RunError(
            f"{target}: cannot be written ({error.strerror}). Earlier checkpoints are intact. Free "
            f"{len(data):,} bytes, then: cotune resume {run}"
        ) from error


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


def packed(state: State) -> tuple[dict[str, Array], dict[str, Any]]:
    """A state as the arrays and facts of a message."""
    adapters = state.adapters()
    arrays = {f"{r}/{n}": v for r, a in adapters.items() for n, v in a.arrays.items()}
    headers = {role: adapter_header(a) for role, a in adapters.items()}
    return arrays, {"adapters": headers, "distil": state.distil}


def unpacked(message: Message) -> State:
    """The reverse."""
    found = {}
    for role, header in message.facts["adapters"].items():
        arrays = {
            n.removeprefix(f"{role}/"): a for n, a in message.arrays.items() if n.startswith(f"{role}/")
        }
        found[role] = Adapter(arrays, str(header["base"]), int(header["rank"]), float(header["alpha"]))
    distil = float(message.facts.get("distil", 1.0))
    return State(found.pop("slm", None), found.pop("llm", None), found, distil)


def _checkpoint(message: Message) -> Checkpoint:
    facts = message.facts
    return Checkpoint(message.round, unpacked(message), facts["record"], facts.get("heard", ()))
