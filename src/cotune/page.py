"""What the report page shows: results and rounds in, the values of its template out. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from cotune.audits_section import audits_values
from cotune.changes import (
    Change,
    client_changes,
    family_changes,
    headline,
    mapping,
    mean,
    mean_score,
    metric_name,
    number,
    score_of,
)
from cotune.chart import SLOTS, Series, Span, bar_chart, dumbbell, line_chart, share_bar
from cotune.privacy_section import privacy_values
from cotune.selection_page import selection_values
from cotune.tables import amount, duration, percent
from cotune.teaching_page import teaching_values

Record = Mapping[str, Any]

MODELS = (("llm", "LLM", 0), ("slm", "SLMs", 1))
PHASE_WORDS = {
    "propose": "clients summarise their examples",
    "select": "clients choose examples",
    "tune": "clients train",
    "gather": "the server adds up",
    "co-tune": "LLM and SLM teach each other",
    "evaluate": "held-out questions",
    "checkpoint": "saving",
    "other": "everything else",
}
TASK_PANELS = 12
PHASE_SLOTS = (2, 3, 4, 5, 6, 0, 1)
"""Colours of the phases: those of the two models come last."""
SCROLL_ABOVE, COLLAPSE_ABOVE, ROWS_AT_MOST = 10, 24, 1000
FAILURES_AT_MOST = 200
TEXT_AT_MOST = 1600
STATUS_NOTES = {
    "running": "This run had not finished when the report was made: what follows is the state so far.",
    "interrupted": "This run was interrupted: what follows is what it had finished. It can be resumed.",
    "stopped": "A gate ended this run before its last round; why is told under Audits and gates.",
}


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One row of the per-client table."""

    change: Change
    train: int | None
    test: int | None

    @property
    def picture(self) -> Markup:
        """Before and after as a drawing."""
        return dumbbell(self.change.before, self.change.after)


def page_values(results: Record, rounds: Sequence[Record], config: str) -> dict[str, Any]:
    """All values of the template."""
    return {
        "results": results,
        "metric": metric_name(results),
        "status_note": STATUS_NOTES.get(str(results.get("status")), ""),
        "headlines": [_headline(results, model, name, slot) for model, name, slot in MODELS],
        "curves": score_charts(rounds, metric_name(results)),
        "losses": loss_charts(rounds),
        "clients": client_table(results),
        "families": _families(results),
        "selection": selection_values(results, rounds),
        "teaching": teaching_values(results, rounds),
        "audits": audits_values(rounds),
        "traffic": traffic(results, rounds),
        "privacy": privacy_values(results, rounds),
        "time": time_spent(results, rounds),
        "failures": _failures(rounds),
        "skipped": [r["round"] for r in rounds if r.get("status") == "failed"],
        "examples": [_example(e) for e in results.get("examples") or [] if isinstance(e, Mapping)],
        "facts": _facts(results),
        "config": config,
        "percent": percent,
        "points": signed_points,
        "scroll_above": SCROLL_ABOVE,
    }


def _families(results: Record) -> list[tuple[Change, str]]:
    """Each model family and which model its clients hold."""
    models = mapping(results.get("models"))
    names = [mapping(models.get(change.name)).get("label") for change in family_changes(results)]
    shown = [PurePath(str(name)).name if name else "\N{EN DASH}" for name in names]
    return list(zip(family_changes(results), shown, strict=True))


def signed_points(value: float | None) -> str:
    """A difference of scores in points, with a real minus sign."""
    return "\N{EN DASH}" if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def verdict(change: Change) -> str:
    """A gain and how far it can be trusted, as a sentence."""
    if change.gain is None:
        return "Only one side was measured, so there is no gain to state."
    if change.stderr is None:
        return "No standard error can be given, so chance is not ruled out."
    over = f" over {change.clients} clients" if (change.clients or 0) > 1 else ""
    error = f"Standard error {100 * change.stderr:.1f} points{over}:"
    if not change.is_clear:
        return f"{error} a change of this size may be chance."
    return f"{error} the {'gain' if change.gain > 0 else 'loss'} is more than twice that, so hardly chance."


def score_charts(rounds: Sequence[Record], metric: str) -> list[tuple[str, Markup]]:
    """Mean score per round, then one small chart a task where there are several."""
    metrics = [mapping(r.get("metrics")) for r in rounds]
    means = [(name, slot, [mean_score(m.get(model)) for m in metrics]) for model, name, slot in MODELS]
    tasks = list(
        dict.fromkeys(task for m in metrics for model, _, _ in MODELS for task in mapping(m.get(model)))
    )
    charts = [(f"Mean {metric}" if len(tasks) != 1 else f"{tasks[0]}: {metric}", means)]
    for task in tasks[:TASK_PANELS] if len(tasks) > 1 else []:
        lines = [
            (name, slot, [score_of(mapping(m.get(model)).get(task)) for m in metrics])
            for model, name, slot in MODELS
        ]
        charts.append((task, lines))
    span = _span([value for _, lines in charts for _, _, values in lines for value in values])
    return _charts(rounds, charts, lambda v: percent(v, 0), span)


def loss_charts(rounds: Sequence[Record]) -> list[tuple[str, Markup]]:
    """Task loss and distillation loss per round; a line breaks where a loss was missing or not finite."""
    losses = [mapping(r.get("losses")) for r in rounds]
    charts = []
    for title, prefix in (
        ("Task loss (cross-entropy)", ""),
        ("Distance to the other model (distillation)", "distill_"),
    ):
        lines = [
            (name, slot, [_loss(loss, prefix + model) for loss in losses]) for model, name, slot in MODELS
        ]
        charts.append((title, lines))
    return _charts(rounds, charts, short_number, None)


def _loss(losses: Record, name: str) -> float | None:
    """One loss, the mean over model families; further ones carry their family's name."""
    own = [value for key, value in losses.items() if key.partition(" ")[0] == name]
    return mean([number(value) for value in own]) if None not in map(number, own) else None


def client_table(results: Record) -> dict[str, Any]:
    """Rows of the per-client table, and what they say as a whole."""
    sizes = mapping(mapping(results.get("data")).get("clients"))
    changes = {c.name: c for c in client_changes(results)}
    names = [*changes, *(name for name in sizes if name not in changes)]
    rows = []
    for name in names:
        change, size = changes.get(name, Change(name, None, None)), mapping(sizes.get(name))
        rows.append(ClientRow(change, size.get("train"), change.num_examples or size.get("test")))
    ranked = sorted((r for r in rows if r.change.gain is not None), key=lambda r: r.change.gain or 0.0)
    many = len(rows) > COLLAPSE_ABOVE
    return {
        "rows": rows[:ROWS_AT_MOST],
        "left_out": max(0, len(rows) - ROWS_AT_MOST),
        "summary": _client_summary([r.change.gain or 0.0 for r in ranked]) if len(ranked) > 1 else "",
        "extremes": [("Smallest gains", ranked[:5]), ("Largest gains", ranked[:-6:-1])]
        if many and ranked
        else [],
        "is_collapsed": many,
    }


def traffic(results: Record, rounds: Sequence[Record]) -> dict[str, Any]:
    """Bytes in total and per round, by verb and by direction."""
    per_round = [mapping(r.get("traffic")) for r in rounds]
    keys = ("gathered_bytes", "clear_bytes", "up_bytes", "down_bytes")
    series = {key: [number(t.get(key)) for t in per_round] for key in keys}
    stated = mapping(results.get("traffic"))
    totals = {key: _or(number(stated.get(key)), sum(v or 0.0 for v in series[key])) for key in keys}
    charts = []
    for title, names in (("Replies, by what the method sees", keys[:2]), ("Both directions", keys[2:])):
        layers = [(BYTE_NAMES[key][0], BYTE_NAMES[key][1], series[key]) for key in names]
        charts.append(_bars(rounds, title, layers, amount))
    known = bool(stated) or any(per_round)
    return {
        "is_known": known,
        "totals": {key: amount(value) for key, value in totals.items()},
        "nothing_in_clear": known and totals["clear_bytes"] == 0,
        "charts": [c for c in charts if c["svg"]],
    }


BYTE_NAMES = {
    "gathered_bytes": ("as sums", 2),
    "clear_bytes": ("in the clear", 4),
    "up_bytes": ("up, clients to server", 5),
    "down_bytes": ("down, server to clients", 3),
}


def time_spent(results: Record, rounds: Sequence[Record]) -> dict[str, Any]:
    """Seconds a phase, in total and per round. Phases beyond the palette and unaccounted time are `other`."""
    per_round = [{k: number(v) or 0.0 for k, v in mapping(r.get("phases")).items()} for r in rounds]
    totals: dict[str, float] = {}
    for phases in per_round:
        for phase, seconds in phases.items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    shown = sorted(totals, key=lambda p: -totals[p])[: len(PHASE_SLOTS)]
    shown = [p for p in totals if p in shown]
    rest = [_rest(r, phases, shown) for r, phases in zip(rounds, per_round, strict=True)]
    layers = [
        (phase, slot, [p.get(phase) for p in per_round])
        for slot, phase in zip(PHASE_SLOTS, shown, strict=False)
    ]
    if sum(rest) > 0.01 * (sum(totals.values()) + sum(rest)):
        layers.append(("other", SLOTS, list(rest)))
    parts = [(name, slot, sum(v or 0.0 for v in values)) for name, slot, values in layers]
    whole = sum(seconds for _, _, seconds in parts)
    legend = [
        {"name": name, "slot": slot, "words": PHASE_WORDS.get(name, ""), "seconds": duration(seconds),
         "share": percent(seconds / whole, 0) if whole else "-"}
        for name, slot, seconds in parts
    ]  # fmt: skip
    size, unit = time_unit(max((sum(p.values()) for p in per_round), default=0.0))
    scaled = [(name, slot, [(v or 0.0) / size for v in values]) for name, slot, values in layers]
    chart = _bars(rounds, "Time per round", scaled, lambda v: f"{v:.3g} {unit}" if v else "0")
    return {
        "bar": share_bar("Time per phase", parts, duration),
        "legend": legend,
        "chart": chart if len(rounds) > 1 and chart["svg"] else None,
        "total": duration(_or(number(results.get("seconds")), whole)),
    }


def short_number(value: float) -> str:
    """At most three digits that matter, two below 0.1."""
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


def time_unit(longest: float) -> tuple[float, str]:
    """The unit in which times up to `longest` seconds are short numbers."""
    return (1.0, "s") if longest < 300 else (60.0, "min") if longest < 18000 else (3600.0, "h")


def _rest(record: Record, phases: Mapping[str, float], shown: Sequence[str]) -> float:
    named = sum(phases.get(p, 0.0) for p in shown)
    return max(0.0, _or(number(record.get("seconds")), sum(phases.values())) - named)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _headline(results: Record, model: str, name: str, slot: int) -> dict[str, Any]:
    change = headline(results, model)
    return {
        "name": name, "slot": slot, "change": change, "verdict": verdict(change) if change else "",
        "who": "one model on the server" if model == "llm" else _who(results),
    }  # fmt: skip


def _who(results: Record) -> str:
    clients = len(client_changes(results)) or len(mapping(mapping(results.get("data")).get("clients")))
    return (
        "one client" if clients == 1 else f"mean over {clients} clients" if clients else "mean over clients"
    )


def _client_summary(gains: Sequence[float]) -> str:
    better, worse = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    middle = signed_points(statistics.median(gains))
    same = len(gains) - better - worse
    if better == len(gains):
        return f"All {better} clients became better; median gain {middle} points."
    return (
        f"{better} clients became better, {worse} worse, {same} stayed the same; median gain {middle} points."
    )


Lines = Sequence[tuple[str, int, Sequence[float | None]]]


def _charts(
    rounds: Sequence[Record],
    charts: Sequence[tuple[str, Lines]],
    fmt: Callable[[float], str],
    span: Span | None,
) -> list[tuple[str, Markup]]:
    indices = [int(r["round"]) for r in rounds]
    drawn = [
        (
            title,
            line_chart(
                title, indices, [Series(*line) for line in lines], fmt, bridge=span is not None, span=span
            ),
        )
        for title, lines in charts
    ]
    return [(title, svg) for title, svg in drawn if svg]


def _span(values: Sequence[float | None]) -> Span:
    """Lowest and highest score, at least a tenth apart so that noise does not look like a trend."""
    present = [v for v in values if v is not None] or [0.0]
    low, high = min(present), max(present)
    slack = max(0.0, 0.1 - (high - low)) / 2
    return max(0.0, low - slack), high + slack


def _bars(rounds: Sequence[Record], title: str, layers: Lines, fmt: Callable[[float], str]) -> dict[str, Any]:
    used = [Series(*layer) for layer in layers if any(layer[2])]
    svg = bar_chart(title, [int(r["round"]) for r in rounds], used, fmt) if rounds else Markup("")
    return {"title": title, "svg": svg, "legend": [(s.name, s.slot) for s in used]}


def _failures(rounds: Sequence[Record]) -> dict[str, Any]:
    rows = [mapping(f) for r in rounds for f in r.get("failures") or []]
    return {"rows": rows[:FAILURES_AT_MOST], "left_out": max(0, len(rows) - FAILURES_AT_MOST)}


def _example(example: Record) -> dict[str, Any]:
    choices = [str(c) for c in example.get("choices") or []]
    right, before, after = (_answer(example.get(key), choices) for key in ("right", "before", "after"))
    return {
        "client": example.get("client", ""), "task": example.get("task", ""),
        "prompt": _cut(str(example.get("prompt", ""))), "choices": [_cut(c) for c in choices],
        "right": right, "before": before, "after": after,
        "was_right": before == right, "is_right": after == right,
    }  # fmt: skip


def _answer(value: object, choices: Sequence[str]) -> str:
    """An answer as text; it may be stored as a text or as an index into the choices."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return _cut(choices[value])
    return "" if value is None else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_AT_MOST else text[:TEXT_AT_MOST] + " \N{HORIZONTAL ELLIPSIS}"


def _written_by(teacher: Record) -> str | None:
    """Who wrote rationales, and what an endpoint took for them."""
    if not teacher:
        return None
    said = [f"written by {teacher.get('model')}"]
    wrote, answers, cost = (number(teacher.get(name)) for name in ("tokens_out", "answers", "cost"))
    if wrote is not None and answers is not None:
        said.append(f"{wrote:,.0f} tokens in {answers:,.0f} answers")
    if cost is not None:
        said.append(f"cost {cost:,.4f}")
    return ", ".join(said)


def _facts(results: Record) -> list[tuple[str, str]]:
    """What a reader needs to repeat the run, as pairs of name and value."""
    data = mapping(results.get("data"))
    memory = number(results.get("peak_memory_bytes"))
    sets = ", ".join(
        f"{data[key]} {words}" for key, words in (("public", "public"), ("test", "held out")) if key in data
    )
    versions = [(name, version) for name, version in mapping(results.get("versions")).items() if version]
    facts = [
        *(
            (name, results.get(name))
            for name in ("strategy", "rounds", "seed", "fingerprint", "commit", "device")
        ),
        ("examples", sets),
        ("rationales", _written_by(mapping(results.get("teacher")))),
        ("peak memory", amount(memory) if memory else None),
        *versions,
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]
