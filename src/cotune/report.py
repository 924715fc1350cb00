"""A run on disk (`rounds.jsonl`, `results.json`, `config.yaml`) and the one HTML page made of it.

Model text, ids and configuration are data: the page escapes them all, runs no script and loads nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cotune import whole
from cotune.errors import DataError, RunError

if TYPE_CHECKING:
    from jinja2 import Template

ROUNDS, RESULTS, CONFIG, PAGE = "rounds.jsonl", "results.json", "config.yaml", "report.html"


def append_round(directory: Path, record: Mapping[str, Any]) -> None:
    """Add one line to `rounds.jsonl`, on the disk when this returns.

    A torn last line, left by a crash, is cut off first. Numbers that are not finite are written as null.

    Raises:
        RunError: the line could not be written; what was there before is intact.
    """
    path = directory / ROUNDS
    line = json.dumps(plain(record), separators=(",", ":")) + "\n"
    try:
        with path.open("a+b") as file:
            _repair(file.fileno())
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _not_written(path, error) from error


def read_rounds(directory: Path) -> list[dict[str, Any]]:
    """The records of `rounds.jsonl` by round, oldest first; empty when there is no such file.

    A resumed run starts again from its checkpoint, so a record replaces its own round and every later one
    that stands before it. A torn last line is left out.

    Raises:
        DataError: a line that is not the last is not a record.
    """
    path = directory / ROUNDS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    while lines and not lines[-1].strip():
        lines.pop()
    kept: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is None and number == len(lines):
            break
        if record is None:
            raise DataError(
                f"{path}, line {number}: expected a JSON object with an integer `round`, got {line[:50]!r}. "
                "The file was changed by something else than a run; take that line out or restore the file."
            )
        kept = [r for r in kept if r["round"] < record["round"]] + [record]
    return kept


def write_results(directory: Path, results: Mapping[str, Any]) -> Path:
    """Write `results.json` whole or not at all, and return its path. Numbers that are not finite become null.

    Raises:
        RunError: it could not be written; an older one is intact.
    """
    return _write(directory / RESULTS, json.dumps(plain(results), indent=2) + "\n")


def read_results(directory: Path) -> dict[str, Any]:
    """The results of a run.

    Raises:
        DataError: there are none, or the file is not a JSON object.
    """
    path = directory / RESULTS
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{directory}: no {RESULTS} here. {_cure(directory)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected one JSON object ({error}). {_cure(directory)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected one JSON object, got {type(value).__name__}. {_cure(directory)}")
    return value


def render(directory: Path) -> Path:
    """Make `report.html` from the files of a run, and return its path.

    Raises:
        DataError: a file is missing or malformed; says which, and what to run.
    """
    from cotune.page import page_values

    missing = [name for name in (ROUNDS, RESULTS, CONFIG) if not (directory / name).is_file()]
    if missing:
        raise DataError(
            f"{directory}: a report needs {', '.join(missing)}, not found here. {_cure(directory)}"
        )
    config = (directory / CONFIG).read_text(encoding="utf-8", errors="replace")
    values = page_values(read_results(directory), read_rounds(directory), config)
    return _write(directory / PAGE, _template().render(values))


@cache
def _template() -> Template:
    """The page without its values; reading it takes longer than filling it in."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files("cotune").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NumPy scalars become Python's, tuples lists, NaN and infinities None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and type(record.get("round")) is int
    return record if is_record else None


def _repair(descriptor: int) -> None:
    """Cut a torn last line off, or end a whole one that lacks its newline."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    start = content.rfind(b"\n") + 1
    if _parsed(content[start:]) is None:
        os.ftruncate(descriptor, start)
    else:
        os.write(descriptor, b"\n")


def _write(path: Path, text: str) -> Path:
    """Write under a temporary name in the same folder: a reader sees the old file or the new one."""
    try:
        whole.write(path, text, is_shared=True)
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def _not_written(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: could not be written ({error.strerror}). Once there is room and permission to write, "
        f"continue with: cotune resume {path.parent}"
    )


def _cure(directory: Path) -> str:
    if (directory / "checkpoints").is_dir():
        return f"The run has not finished; continue it with: cotune resume {directory}"
    return f"Make a run first: cotune run CONFIG --out {directory}"
