"""Published logs counted again: loose, strict and hard scores of ICE, and averages of RSE tables.

File formats of https://github.com/Aegis1863/LLMs-Distillation-Quantification: `attack_result/*.jsonl`, all
messages with the loose ruling; `loose_score/*.csv`, the loose hits; `strict_score/*.csv`, the hits of the
second ruling in the column `re_judge`. Their names do not agree, so files of one model are found by the
messages they share, and by their names only where a file has no rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cotune.errors import DataError
from cotune.identity_texts import misleads

FOLDERS = ("attack_result", "loose_score", "strict_score")
INSIDE = ("", "identity_jailbreak/data")
"""Where those folders may be: in the folder that was named, or in a clone of the repository."""
COLUMNS = ("jailbreak_prompt", "query", "target_responses", "eval_results")
RULING = "re_judge"
SHARED = 0.5
"""Share of a file's messages that must stand in another file for both to be of one model."""
MAKERS = {
    "OpenAI/GPT": re.compile("openai|gpt", re.I),
    "Anthropic/Claude": re.compile("anthropic|claude", re.I),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model's counts.

    Attributes:
        name: of the model, as its files have it. n: messages asked; None: its log is missing.
        loose, strict, hard: hits; None: the file that says it is missing.
        named: strict hits whose answer names each of `MAKERS`.
        unjudged: rows of the strict file without a second ruling; they are no hits.
        files: what was counted. notes: what is odd about them.
    """

    name: str
    n: int | None
    loose: int | None
    strict: int | None
    hard: int | None
    named: Mapping[str, int]
    unjudged: int
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def as_facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For people: counts, then what is odd."""
        told = " ".join(f"{name} {_dash(getattr(self, name))}" for name in ("n", "loose", "strict", "hard"))
        return "  ".join([f"{self.name:<28}", told, *self.notes])


def _dash(count: int | None) -> str:
    return f"{'-' if count is None else count:<5}"


@dataclass(frozen=True, slots=True)
class _File:
    """One file; `kind` is its folder."""

    kind: str
    path: Path
    rows: Sequence[Mapping[str, Any]]
    messages: frozenset[tuple[str, str]]

    @property
    def model(self) -> str:
        """`gpt_GPT_NAME.jsonl`, `GPT_NAME_0.17.csv` or `NAME_0.292.csv`."""
        name = re.sub(r"^(?:gpt_)?(?:GPT_)?", "", self.path.stem, flags=re.IGNORECASE)
        return re.sub(r"_\d+(?:\.\d+)?(?:_in_\d+)?$", "", name)


@dataclass(slots=True)
class _Model:
    files: dict[str, _File] = field(default_factory=dict)

    def shares(self, file: _File) -> float:
        """How much of a file stands in those that are here already; by name where it has no rows."""
        if not file.messages:
            return float(any(_plain(file.model) == _plain(other.model) for other in self.files.values()))
        return max(len(file.messages & other.messages) for other in self.files.values()) / len(file.messages)


def recount(folder: Path) -> list[Row]:
    """Counts of every model that has a file, by name.

    Raises:
        DataError: there are no such logs, or a file is no log; says where.
    """
    root = next((folder / part for part in INSIDE if (folder / part / FOLDERS[0]).is_dir()), None)
    if root is None:
        raise DataError(
            f"{folder}: no logs; expected the folders {', '.join(FOLDERS)} in it, as in a clone of "
            "LLMs-Distillation-Quantification"
        )
    models: list[_Model] = []
    for kind in FOLDERS:
        _assign(models, [file for file in _files(root / kind, kind) if file.rows or kind != FOLDERS[0]])
    return sorted((_row(model) for model in models), key=lambda row: row.name.casefold())


def _assign(models: list[_Model], files: Sequence[_File]) -> None:
    """Each file to the model that it shares most with; a file that fits nowhere is a model of its own."""
    ranked = sorted(
        ((model.shares(file), -number, file, model) for number, file in enumerate(files) for model in models),
        key=lambda pair: pair[:2],
        reverse=True,
    )
    placed: set[Path] = set()
    for share, _, file, model in ranked:
        if share > SHARED and file.path not in placed and file.kind not in model.files:
            model.files[file.kind] = file
            placed.add(file.path)
    models += [_Model({file.kind: file}) for file in files if file.path not in placed]


def _files(folder: Path, kind: str) -> Iterator[_File]:
    for path in sorted(folder.glob("*.jsonl" if kind == FOLDERS[0] else "*.csv")):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected UTF-8") from None
        rows = _lines(text, path) if kind == FOLDERS[0] else _table(text, path)
        yield _File(kind, path, rows, frozenset(_message(row) for row in rows))


def _lines(text: str, path: Path) -> list[Mapping[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); expected one message a line") from None
        _check(row, f"{path}:{number}")
        rows.append(row)
    return rows


def _table(text: str, path: Path) -> list[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[Mapping[str, Any]] = []
    try:
        for row in reader:
            _check(row, f"{path}:{reader.line_num}")
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return rows


def _check(row: Any, where: str) -> None:
    missing = [name for name in COLUMNS if not isinstance(row, dict) or row.get(name) is None]
    if missing:
        came = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: {missing[0]} is missing; expected {', '.join(COLUMNS)}; got {came}")


def _message(row: Mapping[str, Any]) -> tuple[str, str]:
    return _plain_lines(row["jailbreak_prompt"]), _plain_lines(row["query"])


def _plain_lines(text: Any) -> str:
    return "\n".join(str(text).split())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _is_hit(value: Any) -> bool:
    """A ruling, as JSON or as what pandas writes of it."""
    if isinstance(value, list):
        return any(map(_is_hit, value))
    return str(value).strip().casefold() in ("true", "1", "1.0")


def _row(model: _Model) -> Row:
    log, loose, strict = (model.files.get(kind) for kind in FOLDERS)
    first = next(file for file in (log, loose, strict) if file is not None)
    hits = [row for row in strict.rows if _is_hit(row.get(RULING))] if strict else []
    open_ones = [row for row in hits if not misleads(f"{row['jailbreak_prompt']}\n{row['query']}")]
    unjudged = sum(not str(row.get(RULING) or "").strip() for row in strict.rows) if strict else 0
    counts = [sum(_is_hit(row["eval_results"]) for row in file.rows) for file in (log, loose) if file]
    notes = [f"{unjudged} rows of {strict.path.name} have no second ruling"] if strict and unjudged else []
    if log is None:
        notes.append("the log of all messages is missing")
    if len(set(counts)) > 1:
        notes.append(f"the log has {counts[0]} loose hits, the loose file {counts[1]}")
    return Row(
        first.model,
        len(log.rows) if log else None,
        counts[0] if counts else None,
        len(hits) if strict else None,
        len(open_ones) if strict else None,
        {
            name: sum(bool(made.search(str(row["target_responses"]))) for row in hits)
            for name, made in MAKERS.items()
        },
        unjudged,
        tuple(f"{file.kind}/{file.path.name}" for file in model.files.values()),
        tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class RseRow:
    """One model's means by prompt set; `printed` is the average that its table has, if it has one."""

    model: str
    means: Mapping[str, float]
    printed: float | None

    @property
    def average(self) -> float:
        """The unweighted mean of the sets' means."""
        return sum(self.means.values()) / len(self.means)

    def as_facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"average": self.average}

    def line(self) -> str:
        """For people: the average, and what is printed beside it."""
        printed = "" if self.printed is None else f"  printed {self.printed:.3f}"
        return f"{self.model:<28}  {self.average:.3f}  of {len(self.means)} prompt sets{printed}"


def averages(path: Path) -> list[RseRow]:
    """Averages of the RSE table in a file: see `table_rows` and `rse_average`.

    Raises:
        DataError: it cannot be read, or holds no such table; says where.
    """
    try:
        rows = table_rows(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a table in Markdown or CSV") from None
    if not rows:
        raise DataError(f"{path}: no rows; expected a line for each model under one with the prompt sets")
    try:
        return rse_average(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def table_rows(text: str) -> list[dict[str, str]]:
    """Rows of a table in Markdown, where every line begins with `|`, or in CSV."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("|"):
        return [dict(row) for row in csv.DictReader(lines)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    body = [row for row in cells[1:] if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return [dict(zip(cells[0], row, strict=False)) for row in body]


def rse_average(rows: Sequence[Mapping[str, str]]) -> list[RseRow]:
    """Averages of an RSE table: the model's name in the first column, a prompt set in each further one.

    Raises:
        DataError: a mean is no number; says which.
    """
    found = []
    for row in rows:
        name, *sets = row
        if None in sets:  # what csv calls the column of cells that have none
            raise DataError(f"{row[name]}: more cells than columns; expected one for each prompt set")
        means = {key: _number(row[key], f"{row[name]}, {key}") for key in sets}
        printed = [means.pop(key) for key in sets if key.strip().casefold() in ("avg", "average", "mean")]
        if not means:
            raise DataError(
                f"{row[name]}: no prompt sets; expected a column for each, besides the model's name"
            )
        found.append(RseRow(row[name], means, printed[0] if printed else None))
    return found


def _number(text: str | None, where: str) -> float:
    try:
        return float(str(text))
    except ValueError:
        raise DataError(f"{where}: got {text!r}; expected a mean from 1 to 5") from None
