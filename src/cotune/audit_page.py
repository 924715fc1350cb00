"""The page audit.html: what `cotune audit` found, in words, charts and tables. Pure: a record in, HTML out.

Sentences and charts are made here, tables in the template. Answers, names and all else in a record are data:
the page escapes them, runs no script and loads nothing. Audits may be missing or without numbers; one that
nobody here knows is shown by its summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from cotune.changes import mapping, number
from cotune.chart import WIDTH, value_range
from cotune.examined import BASELINE, BEFORE, REFERENCE, STUDENT, UNRELATED
from cotune.heat import heat_map
from cotune.records import readable
from cotune.tables import duration, percent

if TYPE_CHECKING:
    from jinja2 import Template

Record = Mapping[str, Any]
Format = Callable[[float], str]

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
COLOURS = {STUDENT: 1, REFERENCE: 0, BASELINE: 6, UNRELATED: 3, "slm": 1, "llm": 0}
ASPECTS = ("overall", "style", "logic", "content", "aspects")
SCORES = ("loose", "strict", "hard", "hard_published")
ANCHORS = {
    "unrelated model": "an unrelated model's answers and the reference's",
    "other prompts": "the reference's answers to different prompts",
}
PLANTED = (("planted", "recall", 1), ("controls", "control recall", 6))
TEXT_AT_MOST = 1600
MARGIN, RAIL_TOP, POINT_GAP = 10, 22, 9


class Point(NamedTuple):
    """An estimate in a chart: whose it is, its value and interval as in audit.json, and its colour."""

    name: str
    facts: object
    slot: int


class Chart(NamedTuple):
    """A drawing and what its colours mean."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Panel:
    """What is said about one audit: sentences, which also open the page, and charts; `facts` are its own."""

    name: str
    facts: Record
    findings: Sequence[str]
    charts: Sequence[Chart] = ()


def render(record: Record) -> str:
    """The page of a record of `cotune.audit`, finished or not."""
    return readable(_template().render(page_values(record)))


@cache
def _template() -> Template:
    """The page without its values; reading it takes longer than filling it in."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals |= {f.__name__: f for f in (at, cell, cut, heat_map, listed, words)}
    text = resources.files("cotune").joinpath("audit.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def page_values(record: Record) -> dict[str, Any]:
    """All values of the template."""
    audits, models = _records(record.get("audits")), _records(record.get("models"))
    names = [*(name for name in PANELS if name in audits), *(name for name in audits if name not in PANELS)]
    judge = mapping(record.get("judge"))
    known = [_name(models[role]) for role in (STUDENT, REFERENCE) if role in models]
    return {
        "title": " against ".join(known) or "Audit",
        "is_done": record.get("status") == "done",
        "models": {role: _name(own) for role, own in models.items()},
        "judge": _name(judge) if judge else "",
        "panels": [Panel(name, audits[name], *PANELS.get(name, _other)(audits[name])) for name in names],
        "has_rse": "rse" in audits,
        "warnings": [(name, str(text)) for name in names for text in listed(audits[name].get("warnings"))],
        "sets": _records(record.get("prompt_sets")),
        "facts": _facts(record),
    }


def at(facts: object, *path: str) -> Record:
    """The mapping at a path of keys; empty where there is none."""
    for key in path:
        facts = mapping(facts).get(key)
    return mapping(facts)


def listed(value: object) -> Sequence[Any]:
    """The value if it is a list, otherwise an empty one."""
    return value if isinstance(value, list | tuple) else ()


def cell(value: object) -> str:
    """Any value of a record as the text of a table's cell."""
    if isinstance(value, Mapping):
        return (
            told(value, level)
            if "value" in value
            else ", ".join(f"{k} ({cell(v)})" for k, v in value.items())
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and number(value) is None):
        return DASH
    return cut(f"{value:.3g}".replace("-", MINUS) if isinstance(value, float) else str(value))


def cut(value: object) -> str:
    """A text as long as the page shows it."""
    text = str(value)
    return text if len(text) <= TEXT_AT_MOST else text[:TEXT_AT_MOST] + " \N{HORIZONTAL ELLIPSIS}"


def words(name: object) -> str:
    """A key of a record as words."""
    return str(name).replace("_", " ")


def told(facts: object, fmt: Format) -> str:
    """A value and its interval, such as `3.92 (3.71 to 4.13)`; a dash when there is none."""
    value = _value(facts)
    return DASH if value is None else fmt(value) + interval(facts, fmt)


def interval(facts: object, fmt: Format) -> str:
    """Such as ` (3.71 to 4.13)`, with a blank before it; empty when there is none."""
    low, high = (number(mapping(facts).get(end)) for end in ("low", "high"))
    return (
        ""
        if low is None or high is None
        else f" ({fmt(low)}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{fmt(high)})"
    )


def level(value: float) -> str:
    """Two digits behind the point, with a real minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A difference."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", MINUS)


def dot_chart(
    title: str,
    rows: Iterable[tuple[str, Sequence[Point]]],
    span: tuple[float, float],
    marks: Mapping[str, float],
) -> Chart:
    """Points with intervals, one rail a row; no drawing when there is no value.

    Args:
        title: what the values are.
        rows: name and points of each rail; points without a value are left out.
        span: what the axis reaches at least; of some length.
        marks: anchors by name, drawn across all rails.
    """
    full = [(name, [p for p in points if _value(p.facts) is not None]) for name, points in rows]
    full = [(name, points) for name, points in full if points]
    ends = [end for _, points in full for point in points for end in _ends(point)]
    if not ends:
        return Chart(title, Markup(""), ())
    low, high = min(*span, *ends), max(*span, *ends)
    ticks = [tick for tick in value_range(low, high)[2] if low <= tick <= high]

    def x(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low)

    top = y = 20 if marks else 4
    rails = []
    for name, points in full:
        rails.append(_rail(name, points, x, y))
        y += RAIL_TOP + POINT_GAP * len(points) + 6
    line = Markup('<line class="{}" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>')
    grid = [line.format("grid", top, y, x=x(tick)) + _caption(x(tick), y + 15, f"{tick:g}") for tick in ticks]
    for name, place in marks.items():
        grid += [line.format("mark", top - 6, y, x=x(place)), _caption(x(place), top - 9, name)]
    spoken = "; ".join(f"{name}, {p.name} {told(p.facts, level)}" for name, points in full for p in points)
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    svg = head.format(WIDTH, y + 22, f"{title}. {spoken}.") + Markup("").join([*grid, *rails])
    legend = list(dict.fromkeys((p.name, p.slot) for _, points in full for p in points))
    return Chart(title, svg + Markup("</svg>"), legend if len(legend) > 1 else ())


def _rail(name: str, points: Sequence[Point], x: Callable[[float], float], top: int) -> Markup:
    """A name, its values at the right, and below them each point on its interval."""
    value = Markup('<tspan class="label c{}">{}</tspan>')
    values = Markup(" \N{MIDDLE DOT} ").join(
        value.format(p.slot, told({"value": _value(p.facts)}, level)) for p in points
    )
    texts = Markup(
        '<text class="name" x="{}" y="{y}">{}</text><text x="{}" y="{y}" text-anchor="end">{}</text>'
    )
    bar = Markup(
        '<line class="stroke c{slot}" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>'
        '<circle class="dot c{slot}" cx="{:.1f}" cy="{y}" r="4"><title>{}</title></circle>'
    )
    parts = [texts.format(MARGIN, name, WIDTH - MARGIN, values, y=top + 12)]
    for place, point in enumerate(points):
        low, middle, high = (x(end) for end in _ends(point))
        title = f"{name}, {point.name}: {told(point.facts, level)}"
        y = top + RAIL_TOP + POINT_GAP * place
        parts.append(bar.format(low, high, middle, title, slot=point.slot, y=y))
    return Markup("").join(parts)


def _caption(x: float, y: int, text: str) -> Markup:
    """A text at a place; a long one is turned inwards at the edges of the drawing."""
    is_long = len(text) > 3
    anchor = "start" if is_long and x < 60 else "end" if is_long and x > WIDTH - 60 else "middle"
    edge = {"start": x - MARGIN, "middle": x, "end": x + MARGIN}[anchor]
    mark = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>')
    return mark.format(edge, y, anchor, text)


def _ends(point: Point) -> tuple[float, float, float]:
    value, facts = _value(point.facts) or 0.0, mapping(point.facts)
    low, high = number(facts.get("low")), number(facts.get("high"))
    return value if low is None else low, value, value if high is None else high


Found = tuple[Sequence[str], Sequence[Chart]]


def _rse(facts: Record) -> Found:
    models, judge = _records(facts.get("models")), at(facts, "judge")
    said = _versus("The student's answers are {} of 5 like the reference's{}", facts, "overall", "")
    if facts.get("usable") is False:
        why = at(facts, "self_check").get("why") or "it failed its self-check"
        said = f"Judge unusable: {why}. There is no RSE."
    ends = ("unrelated", "identical") if judge.get("is_anchored") else ("dissimilar", "similar")
    rows = [(aspect, _points(models, aspect)) for aspect in ASPECTS]
    return [said], [dot_chart("Level", rows, (1, 5), {f"1: {ends[0]}": 1.0, f"5: {ends[1]}": 5.0})]


def _likeness(facts: Record) -> Found:
    anchor, mean = str(facts.get("anchor") or "strangers"), at(facts, "mean")
    text = "Without a judge, the student's answers are {} like the reference's{}"
    said = _versus(text, facts, "likeness.mean", "likeness.mean.")
    scale = f"Here 0 is how alike {ANCHORS.get(anchor, anchor)} are. A proxy, not RSE."
    keys = {STUDENT: "calibrated", BASELINE: "baseline_calibrated"}
    rows = [("mean of all", [Point(role, mean.get(role), COLOURS[role]) for role in keys])]
    for name, own in _records(facts.get("proxies")).items():
        rows.append((words(name), [Point(r, own.get(key), COLOURS[r]) for r, key in keys.items()]))
    marks = {anchor: 0.0, "itself": 1.0}
    return [f"{said} {scale}"], [dot_chart("Calibrated likeness", rows, (0, 1), marks)]


def _ice(facts: Record) -> Found:
    models = _records(facts.get("models"))
    shares = [
        f"in {told(own.get('strict'), percent)} of the {role}'s answers" for role, own in models.items()
    ]
    found = [f"Another model's identity is claimed {', and '.join(shares) or 'by nobody'} (strict)."]
    for role, own in models.items():
        named = at(own, "named")
        found += [f"The {role} names: {cell(named)}."] if named else []
    rows = [(words(score), _points(models, score)) for score in SCORES]
    return found, [dot_chart("Share of answers", rows, (0, 0.1), {})]


def _canary(facts: Record) -> Found:
    summary, leaks, chance = at(facts, "summary"), at(facts, "leaks"), number(facts.get("chance"))
    recalls = {role: f"{role}, recall {told(summary.get(f'recall {role}'), percent)}" for role in leaks}
    knows = [recalls[role] for role in leaks if leaks[role]]
    others = [recalls[role] for role in leaks if not leaks[role]]
    found = [f"Planted facts are known to {'; '.join(knows)}; chance {percent(chance)}."] if knows else []
    found += [f"No sign of planted facts in {'; '.join(others)}; chance {percent(chance)}."] if others else []
    for kind, channels in at(facts, "channels").items():
        leaking = [name for name, seen in mapping(channels).items() if mapping(seen).get("leaks")]
        found += [f"Planted facts crossed to the server by {kind}: {', '.join(leaking)}."] if leaking else []
    rows = [
        (role, [Point(name, summary.get(f"{prefix} {role}"), slot) for name, prefix, slot in PLANTED])
        for role in at(facts, "models")
    ]
    chart = dot_chart("Recall", rows, (0, 1), {} if chance is None else {"chance": chance})
    return found or ["Whether planted facts leaked was not observed."], [chart]


def _membership(facts: Record) -> Found:
    controls, found, rows = at(facts, "controls"), [], []
    for role, own in _records(facts.get("models")).items():
        rows += [(f"{role}, {name}", [Point("attack", at(own, name).get("auc"), 1)]) for name in own]
        if role in (REFERENCE, BASELINE, UNRELATED) or role.endswith(BEFORE):
            continue
        kind = "calibrated" if "calibrated" in own else "loss"
        area = told(at(own, kind).get("auc"), level)
        found.append(f"What the {role} was trained on is told from other examples with AUC {area} ({kind}).")
    rows += [(str(name), [Point("control, without a model", own, 6)]) for name, own in controls.items()]
    length = told(controls.get("AUC by length alone"), level)
    found = [*found, f"Guessing has AUC 0.50, length alone {length}."] if found else ["Nothing was observed."]
    return found, [dot_chart("Area under the curve (AUC)", rows, (0.4, 1), {"guessing": 0.5})]


def _homogenisation(facts: Record) -> Found:
    parts = ("now", "before", "change")
    now, before, change = (at(facts, "summary", f"homogenisation.{part}") for part in parts)
    said = f"Pairs of models are {told(now, level)} alike on average, from 0, strangers, to 1, the same"
    if _value(change) is not None:
        said += f"; before the run {told(before, level)}: {told(change, signed)}{_doubt(change)}"
    return [f"{said}."], []


def _other(facts: Record) -> Found:
    """Of an audit that is not known here."""
    shown = list(at(facts, "summary").items())[:3]
    return [f"{words(name)}: {told(own, level)}." for name, own in shown] or ["It has no summary."], []


PANELS: Mapping[str, Callable[[Record], Found]] = {
    "rse": _rse,
    "likeness": _likeness,
    "ice": _ice,
    "canary": _canary,
    "membership": _membership,
    "homogenisation": _homogenisation,
}
"""In the order of the page."""


def _versus(text: str, facts: Record, name: str, prefix: str) -> str:
    """The student's number, the baseline's, and the gain, as a sentence."""
    summary = at(facts, "summary")
    student, baseline, gain = (summary.get(key) for key in (name, f"{prefix}baseline", f"{prefix}gain"))
    value = _value(student)
    if value is None:
        return "There is no number; the warnings say why."
    said = text.format(level(value), interval(student, level))
    if _value(baseline) is not None:
        said += f"; the baseline's {told(baseline, level)}: {told(gain, signed)}{_doubt(gain)}"
    return f"{said}."


def _doubt(gain: object) -> str:
    low, high = (number(mapping(gain).get(end)) for end in ("low", "high"))
    return ", which may be chance" if low is not None and high is not None and low <= 0 <= high else ""


def _points(models: Mapping[str, Record], key: str) -> list[Point]:
    """What each model has under a key."""
    return [Point(role, own.get(key), COLOURS.get(role, 2)) for role, own in models.items()]


def _facts(record: Record) -> list[tuple[str, str]]:
    """What a reader needs to repeat the audit."""
    versions, seconds = at(record, "versions"), at(record, "seconds")
    facts = [(name, record.get(name)) for name in ("fingerprint", "seed", "status")]
    facts += [*versions.items()]
    facts += [(f"{name} took", duration(number(took))) for name, took in seconds.items()]
    if "cost" in record:
        facts += [("cost of endpoints; a dash: no price", cell(at(record, "cost")) or "none was asked")]
    return [(str(name), str(value)) for name, value in facts if value is not None]


def _name(model: object) -> str:
    return str(mapping(model).get("name") or "without a name")


def _value(facts: object) -> float | None:
    return number(mapping(facts).get("value"))


def _records(value: object) -> dict[str, Record]:
    """A mapping whose values are taken for mappings; what is none is empty."""
    return {str(name): mapping(own) for name, own in mapping(value).items()}
