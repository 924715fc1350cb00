"""Prompts of an audit: our own three small sets, or a user's files and hub data sets, one set each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from cotune import sources
from cotune.errors import DataError

FIELDS = ("prompt", "instruction", "question", "message", "text")
"""Where a row's prompt stands, the first that is there; `input` is added to an instruction."""


def own() -> dict[str, tuple[str, ...]]:
    """What ships with the package: requests, problems, conversations; 24 of each, of our own writing."""
    text = resources.files("cotune").joinpath("texts/audit_prompts.jsonl").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        row = json.loads(line)
        found.setdefault(row["set"], []).append(row["prompt"])
    return {name: tuple(prompts) for name, prompts in found.items()}


def read(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """One set a file (.jsonl, .jsonl.gz, or .txt with a prompt a line) or hub id; our own without any.

    Raises:
        DataError: a source cannot be read, or has no row with a prompt.
    """
    if not names:
        return own()
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        title = _title(name, found)
        found[title] = _lines(Path(name)) if name.endswith(".txt") else _rows(name)
    return found


def digest(prompts: Sequence[str]) -> str:
    """SHA-256 of a set, 16 hexadecimal digits: two audits with equal ones asked the same."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]


def described(sets: Mapping[str, Sequence[str]]) -> dict[str, dict[str, object]]:
    """For audit.json."""
    return {name: {"n": len(prompts), "sha256": digest(prompts)} for name, prompts in sets.items()}


def _title(name: str, taken: Mapping[str, object]) -> str:
    stem = Path(name).name.split(".")[0] or name
    return stem if stem not in taken else name


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path}: cannot be read as UTF-8 text ({error})") from error
    return _some(tuple(line for line in lines if line), str(path))


def _rows(name: str) -> tuple[str, ...]:
    found: list[str] = []
    for where, row in sources.read(name):
        values = [row.get(field) for field in (*FIELDS, "input")]
        *texts, extra = [value if isinstance(value, str) else "" for value in values]
        text = next((text for text in texts if text.strip()), "")
        if not text:
            raise DataError(f"{where}: no prompt; expected a text in one of the fields {', '.join(FIELDS)}")
        found.append(f"{text}\n\n{extra}" if extra else text)
    return _some(tuple(found), name)


def _some(prompts: tuple[str, ...], name: str) -> tuple[str, ...]:
    if not prompts:
        raise DataError(f"--prompts {name}: there is no prompt in it")
    return prompts
