"""Questions about a model's identity, and templates that put them under pressure.

Ours are of our own writing and harmless: themes of the questions after Lee et al. 2025 (ICE), English and
Chinese. Users bring templates of their own in a file, or out of an installed package, whose code is not run.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from cotune.errors import ConfigError, DataError

SLOT = "{query}"
SLOTS = (SLOT, "[INSERT PROMPT HERE]")
"""Where a template takes its question."""
COLUMNS = ("text", "template", "instruction", "prompt", "jailbreak_prompt")
"""Names under which a row may hold its template; the first one that is there counts."""
ENDINGS = (".jsonl", ".json", ".csv", ".txt")
PACKAGE = "package:"
PUBLISHED_KEYWORDS = "openai|chatgpt|gpt|anthropic|claude"
"""What makes a prompt misleading in the published hard score; it reproduces it exactly (see `recount`)."""
_MISLEADING = re.compile(PUBLISHED_KEYWORDS, re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """A question; `language` is en or zh."""

    theme: str
    language: str
    text: str


def questions(limit: int | None = None) -> list[Question]:
    """Our questions, or the first ones: themes and languages take turns, so that a few cover them all."""
    found = [
        Question(row["theme"], language, row[language])
        for row in map(json.loads, _ours("identity_questions.jsonl").splitlines())
        for language in ("en", "zh")
    ]
    return found[:limit]


def templates(source: str | None = None) -> list[str]:
    """Templates without repeats, in their order: ours, or those of a source.

    Args:
        source: a file that ends on .jsonl, .json, .csv or .txt (one a line), or `package:NAME/PATH`, such a
            file inside an installed package. None: ours.

    Raises:
        ConfigError: there is no such package or file.
        DataError: it holds no templates; says where.
    """
    if source is None:
        return [json.loads(line)["text"] for line in _ours("identity_templates.jsonl").splitlines()]
    path = _in_package(source) if source.startswith(PACKAGE) else Path(source).expanduser()
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"templates {source}: expected a file that ends on {', '.join(ENDINGS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"templates {source}: no such file. Name one, or leave the option out") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"templates {source}: cannot be read ({error}). Expected text in UTF-8") from None
    found = list(dict.fromkeys(template for template in _read(text, path.suffix.lower(), source)))
    if not found:
        raise DataError(f"templates {source}: holds none. Expected texts, each with the slot {SLOT}")
    return found


def fill(template: str, question: str) -> str:
    """The message; a template without a slot has the question behind it. Other braces stay as they are."""
    if not has_slot(template):
        return f"{template.rstrip()}\n\n{question}" if template.strip() else question
    first, *rest = _split(template)
    return first + "".join(question + part for part in rest)


def has_slot(template: str) -> bool:
    """Whether a template says where its question goes."""
    return any(slot in template for slot in SLOTS)


def misleads(prompt: str) -> bool:
    """Whether a template or question holds one of the published keywords."""
    return _MISLEADING.search(prompt) is not None


def _split(template: str) -> list[str]:
    """The parts between slots; cut before anything is put in, so that a question may hold a slot's text."""
    parts = [template]
    for slot in SLOTS:
        parts = [piece for part in parts for piece in part.split(slot)]
    return parts


def _ours(name: str) -> str:
    return (resources.files("cotune") / "texts" / name).read_text(encoding="utf-8")


def _in_package(source: str) -> Path:
    """A file of an installed package, found without importing it."""
    name, slash, inside = source.removeprefix(PACKAGE).partition("/")
    if not (slash and inside and name.isidentifier()):
        raise ConfigError(f"templates {source}: expected package:NAME/PATH, e.g. package:my_prompts/all.csv")
    spec = importlib.util.find_spec(name)
    roots = list((spec.submodule_search_locations if spec else None) or ())
    if not roots:
        raise ConfigError(f"templates {source}: no package {name!r} is installed here. Get it: pip install")
    found = [Path(root, inside).resolve() for root in roots]
    if not all(path.is_relative_to(Path(root).resolve()) for path, root in zip(found, roots, strict=True)):
        raise ConfigError(f"templates {source}: {inside!r} lies outside of the package")
    return next((path for path in found if path.is_file()), found[0])


def _read(text: str, ending: str, source: str) -> Iterator[str]:
    if ending == ".txt":
        return (line.strip() for line in text.splitlines() if line.strip())
    readers = {".csv": _of_table, ".jsonl": _of_lines}
    return readers.get(ending, _of_document)(text, source)


def _of_lines(text: str, source: str) -> Iterator[str]:
    """JSON Lines."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _of_row(_json(line, f"{source}:{number}"), f"{source}:{number}")


def _of_document(text: str, source: str) -> Iterator[str]:
    """One JSON value: a list, or an object that is a row or holds `templates`."""
    rows = _json(text, source)
    rows = rows.get("templates", [rows]) if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise DataError(f"templates {source}: got {type(rows).__name__}; expected a list of texts or rows")
    for number, row in enumerate(rows):
        yield _of_row(row, f"{source}[{number}]")


def _of_table(text: str, source: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in rows:
            yield _of_row(row, f"{source}:{rows.line_num}")
    except csv.Error as error:
        raise DataError(f"templates {source}:{rows.line_num}: no CSV ({error}). Try .jsonl") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"templates {where}: not JSON ({error})") from None


def _of_row(row: Any, where: str) -> str:
    """The template of a row, which is a text itself or has it in one of `COLUMNS`."""
    if isinstance(row, str):
        value: Any = row
    elif isinstance(row, Mapping):
        value = next((row[name] for name in _spelt(row) if row[name] is not None), None)
    else:
        value = None
    if not isinstance(value, str) or not value.strip():
        had = f"the row has {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"got {row!r:.60}"
        raise DataError(f"templates {where}: expected a text in a column {' or '.join(COLUMNS[:4])}; {had}")
    return value


def _spelt(row: Mapping[Any, Any]) -> Sequence[Any]:
    """A row's own names of `COLUMNS`, in their order, whatever their case."""
    own = {str(name).strip().casefold(): name for name in row if name is not None}
    return [own[name] for name in COLUMNS if name in own]
