"""Rows out of JSON Lines files (.gz too), hub data sets, the pinned `evals` wheel, and makers of problems."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from cotune import gym, wheels
from cotune.errors import DataError
from cotune.rows import Row, from_json

EVALS_WHEEL = "evals==3.0.1.post1"
"""MIT; ships real question sets as JSON Lines."""
EVALS_SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"

MAX_ERRORS = 5
"""So many row errors are reported at once."""

WhereRow = tuple[str, Row]
"""A row and its place, `file:line` or `id[index]`."""

_HUB = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>\S+))?")
_FILE_ENDINGS = (".jsonl", ".json", ".gz", ".txt", ".csv")


def read(source: str, limit: int | None = None) -> list[WhereRow]:
    """All rows of a source, or the first `limit`.

    Args:
        source: a JSONL file (.gz too), `wheel:<path inside the evals wheel>`, `gym:<set>?size=100&seed=1`
            (see `cotune.gym`), or a hub id `org/name[:config][@split]` (split `train` by default).
        limit: rows to read; all by default.

    Raises:
        DataError: it cannot be read, a line is no JSON object, or there are no rows.
    """
    if _is_table(source):
        return _some(_table(source, limit), source)
    return _some(_json_lines(_lines(_raw(source)), source, limit), source)


def read_with_lines(source: str) -> tuple[list[WhereRow], list[bytes]]:
    """All rows of a source, and each as it stands there: untouched for a file, else as JSON.

    The source is read once, so that both are of the same state of it, and it may be a pipe.

    Raises:
        DataError: as `read`.
    """
    if _is_table(source):
        rows = read(source)
        return rows, [json.dumps(row, ensure_ascii=False, default=str).encode() for _, row in rows]
    lines = _lines(_raw(source))
    return _some(_json_lines(lines, source, None), source), [line for _, line in lines]


def raise_all(errors: list[DataError]) -> None:
    """Raise one error that holds every message; nothing when there is none."""
    if errors:
        more = "\n(there may be more; reading stopped here)" if len(errors) >= MAX_ERRORS else ""
        raise DataError("\n".join(map(str, errors)) + more)


def _is_table(source: str) -> bool:
    """Whether a source has rows and no text: a hub id, or problems to be made."""
    if not source.strip():
        raise DataError("data: the name is empty; name a JSONL file, or a hub id org/name[:config][@split]")
    return source.startswith(gym.PREFIX) or (not source.startswith("wheel:") and _is_hub_id(source))


def _table(source: str, limit: int | None) -> list[WhereRow]:
    return gym.rows(source, limit) if source.startswith(gym.PREFIX) else _hub(source, limit)


def _some(rows: list[WhereRow], source: str) -> list[WhereRow]:
    if not rows:
        raise DataError(f"{source}: no rows. Give a file with one JSON object a line.")
    return rows


def _is_hub_id(source: str) -> bool:
    if Path(source).exists() or source.endswith(_FILE_ENDINGS) or source[0] in "./~":
        return False
    return _HUB.fullmatch(source) is not None


def _raw(source: str) -> bytes:
    """The bytes of a member of the wheel or of a file."""
    if not source.startswith("wheel:"):
        return _file_bytes(source)
    wheel = wheels.fetch_wheel(EVALS_WHEEL, EVALS_SHA256)
    return wheels.read_member(wheel, source.removeprefix("wheel:"))


def _file_bytes(source: str) -> bytes:
    path = Path(source).expanduser()
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except FileNotFoundError:
        raise DataError(
            f"{source}: no such file (looked from {Path.cwd()}). "
            "Give a JSONL file (.gz too), or a hub id org/name[:config][@split]."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{source}: cannot be read ({error}). Give a readable JSONL file (.gz too)."
        ) from error


def _lines(raw: bytes) -> list[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    # Lines end at \n only: str.splitlines would also cut at U+2028 and the like inside a string.
    found = enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    return [(number, line) for number, line in found if line.strip()]


def _json_lines(lines: list[tuple[int, bytes]], name: str, limit: int | None) -> list[WhereRow]:
    rows: list[WhereRow] = []
    errors: list[DataError] = []
    for number, line in lines:
        if len(errors) == MAX_ERRORS or (limit is not None and len(rows) >= limit):
            break
        try:
            rows.append((f"{name}:{number}", _json_object(line)))
        except ValueError as error:
            errors.append(
                DataError(f"{name}:{number}: {error}; expected one JSON object on each line (JSONL)")
            )
    raise_all(errors)
    return rows


def _json_object(line: bytes) -> Row:
    try:
        value = from_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"got a JSON {type(value).__name__}")
    return value


def _hub(source: str, limit: int | None) -> list[WhereRow]:
    match = _HUB.fullmatch(source)
    assert match is not None  # _is_hub_id has matched it
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source}: hub data sets need the extra: pip install 'cotune[hub]'. Or give `data` a JSONL file."
        ) from error
    try:
        table: Any = datasets.load_dataset(match["path"], match["config"], split=match["split"] or "train")
    except Exception as error:  # the library raises anything from OSError to its own errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: no such file here, and the hub data set could not be loaded ({reason}). "
            "Check the id org/name[:config][@split] and the network, or give `data` a JSONL file."
        ) from error
    size = len(table) if limit is None else min(limit, len(table))
    return [(f"{source}[{index}]", table[index]) for index in range(size)]
