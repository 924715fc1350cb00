"""What a finished run and a comparison look like in a terminal, and as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cotune.changes import Change, family_changes, headline, mapping, metric_name, number, task_changes

MODEL_NAMES = {"llm": "LLM (server)", "slm": "SLMs (clients)"}
TITLES = {"llm": "Server LLM", "slm": "Client SLMs"}
METHOD_ORDER = {
    "llm": ("zero_shot", "centralized", "fedcollm"),
    "slm": ("zero_shot", "standalone", "fedavg", "step_by_step", "fedcollm"),
}
METHOD_NAMES = {
    "zero_shot": "zero-shot",
    "centralized": "centralized",
    "standalone": "standalone",
    "fedavg": "FedAvg",
    "step_by_step": "Step-by-Step",
    "fedcollm": "FedCoLLM",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A score of 0..1 as `41.0%`; a dash when there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """A difference of scores as signed percentage points."""
    return "-" if value is None else f"{100 * value:+.1f}"


def amount(num_bytes: float | None) -> str:
    """Bytes in decimal units: `1.2 MB`."""
    if num_bytes is None:
        return "-"
    if num_bytes == 0:
        return "0"
    size, unit = float(num_bytes), 0
    while size >= 999.5 and unit < 4:
        size, unit = size / 1000, unit + 1
    name = ("bytes", "kB", "MB", "GB", "TB")[unit]
    return f"{size:.0f} {name}" if unit == 0 or size >= 99.95 else f"{size:.1f} {name}"


def duration(seconds: float | None) -> str:
    """A time a person can take in: `4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: object) -> str:
    """One line without control characters, safe to show in any terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def summary_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of the end-of-run table: model, task, before, after, gain, note."""
    rows = []
    for model, name in MODEL_NAMES.items():
        tasks = task_changes(mapping(results.get("metrics")).get(model))
        for change in tasks if len(tasks) > 1 or not headline(results, model) else []:
            rows.append((name, printable(change.name), *_numbers(change), ""))
            name = ""
        whole = headline(results, model)
        if whole is not None:
            label = printable(tasks[0].name) if len(tasks) == 1 else "mean"
            rows.append((name, label, *_numbers(whole), certainty(whole)))
    families = [(f"  {printable(change.name)}", change) for change in family_changes(results)]
    rows += [(name, "mean", *_numbers(change), certainty(change)) for name, change in families]
    return rows


def certainty(change: Change) -> str:
    """The standard error of a gain, and whether it may be chance; empty when nothing can be said."""
    if change.gain is None or change.stderr is None:
        return ""
    over = f" over {change.clients} clients" if (change.clients or 0) > 1 else ""
    return f"{100 * change.stderr:.1f}{over}" + ("" if change.is_clear else ", may be chance")


def summary_table(results: Mapping[str, Any]) -> Table:
    """The end-of-run table for a terminal."""
    table = Table(
        box=box.SIMPLE_HEAD, title=Text(_caption(results)), title_justify="left", title_style="bold"
    )
    for column in _summary_head(results):
        table.add_column(column, justify="right" if column in {"before", "after", "gain"} else "left")
    for row in summary_rows(results):
        table.add_row(*(Text(cell) for cell in row))
    return table


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The same table as plain aligned text, and under it what crossed the wire."""
    traffic = mapping(results.get("traffic"))
    lines = [_caption(results), *_aligned([_summary_head(results), *summary_rows(results)], right=(2, 3, 4))]
    if traffic:
        lines.append(traffic_line(traffic))
    return lines


def traffic_line(traffic: Mapping[str, Any]) -> str:
    """What crossed the wire, in one line."""
    sent = {key: amount(number(traffic.get(f"{key}_bytes"))) for key in ("up", "down", "clear", "gathered")}
    return "up {up}, down {down}; replies: {gathered} as sums, {clear} in the clear".format(**sent)


def compare_tables(compare: Mapping[str, Any]) -> tuple[Table, ...]:
    """The paper's two tables, server LLM and client SLM, for a terminal; a model without results has none."""
    tables = []
    for model, title in TITLES.items():
        head, rows = _compare_cells(compare, model)
        if not rows:
            continue
        table = Table(box=box.SIMPLE_HEAD, title=title, caption=compare_caption(compare), title_style="bold")
        for index, column in enumerate(head):
            table.add_column(Text(column), justify="right" if index else "left", no_wrap=not index)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        tables.append(table)
    return tuple(tables)


def compare_text(compare: Mapping[str, Any]) -> str:
    """The same tables as plain aligned text, for output that is not a terminal."""
    blocks = []
    for model, title in TITLES.items():
        head, rows = _compare_cells(compare, model)
        if rows:
            blocks.append("\n".join([title, *_aligned([head, *rows], right=range(1, len(head)))]))
    return "\n\n".join([*blocks, compare_caption(compare)])


def compare_caption(compare: Mapping[str, Any]) -> str:
    """What the numbers of the comparison are."""
    seeds = list(compare.get("seeds") or [])
    if len(seeds) > 1:
        listed = ", ".join(str(s) for s in seeds)
        return f"Accuracy in percent, mean and standard deviation over {len(seeds)} seeds ({listed})."
    return f"Accuracy in percent, one seed{f' ({seeds[0]})' if seeds else ''}: no spread."


def _numbers(change: Change) -> tuple[str, str, str]:
    return percent(change.before), percent(change.after), points(change.gain)


def _summary_head(results: Mapping[str, Any]) -> tuple[str, ...]:
    return (metric_name(results), "task", "before", "after", "gain", "standard error")


def _caption(results: Mapping[str, Any]) -> str:
    seconds, memory = number(results.get("seconds")), number(results.get("peak_memory_bytes"))
    facts = [
        printable(results.get("strategy", "run")),
        f"{results['rounds']} rounds" if "rounds" in results else "",
        f"seed {results['seed']}" if "seed" in results else "",
        duration(seconds) if seconds is not None else "",
        f"peak memory {amount(memory)}" if memory is not None else "",
    ]
    return ", ".join(fact for fact in facts if fact)


def _compare_cells(compare: Mapping[str, Any], model: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one table; methods in the paper's order, then by name."""
    methods = {name: mapping(scores) for name, scores in mapping(compare.get(model)).items()}
    known = METHOD_ORDER[model]
    order = [m for m in known if methods.get(m)] + sorted(m for m in methods if m not in known and methods[m])
    tasks = [t for t in compare.get("tasks") or [] if t != "mean"]
    tasks = tasks or sorted({t for m in order for t in methods[m]} - {"mean"})
    columns = [*tasks, *(["mean"] if any("mean" in methods[m] for m in order) else [])]
    rows = [
        [METHOD_NAMES.get(m, printable(m)), *(_cell(mapping(methods[m].get(c))) for c in columns)]
        for m in order
    ]
    return ["method", *(printable(c) for c in columns)], rows


def _cell(score: Mapping[str, Any]) -> str:
    value, deviation = number(score.get("mean")), number(score.get("spread"))
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if deviation is None else f"{100 * value:.1f} +/- {100 * deviation:.1f}"


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
