"""What the report says about the audits of a run: each headline number by round, and what gates did. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from cotune.changes import mapping, number
from cotune.chart import Series, line_chart
from cotune.examined import BEFORE, UNRELATED
from cotune.heat import heat_map
from cotune.tables import percent

Record = Mapping[str, Any]
Line = tuple[int, Record]
"""A round and what one audit said after it."""


class Headline(NamedTuple):
    """The number of an audit that is drawn.

    title: of the chart. name: in the summary; with `{}`, there is one of each model. scale: what the axis
    reaches at least, before it is rounded outwards. fmt: the number as text. label: of the only line.
    """

    title: str
    name: str
    scale: tuple[float, float] = (0.0, 1.0)
    fmt: Callable[[float], str] = "{:.2f}".format
    label: str = "SLMs"


def _share(value: float) -> str:
    return percent(value, 0)


HEADLINES = {
    "rse": Headline("RSE: SLMs against the LLM, 1 to 5", "overall", (1.5, 4.5)),
    "likeness": Headline("Likeness without a judge: SLMs against the LLM", "likeness.mean"),
    "ice": Headline("Strict ICE: answers that claim another identity", "strict", (0.0, 0.1), percent),
    "canary": Headline("Recall of planted facts", "recall {}", fmt=_share),
    "membership": Headline("Membership: area under the curve", "AUC {}, calibrated", (0.5, 1.0)),
    "homogenisation": Headline("Likeness of all models to each other", "homogenisation.now", label="mean"),
}
MODELS = {"llm": ("LLM", 0), "slm": ("SLMs", 1)}
"""Label and colour of a line, as in the rest of the report."""
CHANCE_SLOT = 7
FURTHER_SLOTS = (2, 3, 6)
"""Of further model families; of more of them than that, the first ones are drawn."""
NAME_AT_MOST, WARNINGS_AT_MOST = 8, 10
ACTIONS = {"lower": "models are taught less of each other", "stop": "the run ends here"}


def audits_values(rounds: Sequence[Record]) -> dict[str, Any] | None:
    """Values of the section "Audits and gates"; None when nothing was audited."""
    found = [(r.get("round"), mapping(r.get("audits"))) for r in rounds]
    lines = [(index, audits) for index, audits in found if type(index) is int and audits]
    decisions = [_decision(r, mapping(one)) for r in rounds for one in _list(r.get("gates"))]
    if not lines and not decisions:
        return None
    names = dict.fromkeys(name for _, audits in lines for name in audits)
    charts = [
        _chart(str(name), [(i, mapping(audits[name])) for i, audits in lines if name in audits])
        for name in names
    ]
    left = [share for r in rounds if (share := number(r.get("distil"))) is not None]
    warnings = list(_warnings(lines))
    return {
        "charts": [(title, svg) for title, svg in charts if svg],
        "heat_maps": [one for one in _heat_maps(lines) if one],
        "decisions": decisions,
        "distil": percent(left[-1]) if left else "",
        "warnings": warnings[:WARNINGS_AT_MOST],
        "left_out": len(warnings[WARNINGS_AT_MOST:]),
    }


def _decision(record: Record, facts: Record) -> dict[str, str]:
    """What a gate did after a round, in words."""
    action = str(facts.get("action", ""))
    return {
        "round": str(record.get("round", "")),
        "gate": str(facts.get("gate", "")),
        "action": action,
        "words": ACTIONS.get(action, ""),
        "reason": str(facts.get("reason", "")),
    }


def _chart(audit: str, lines: Sequence[Line]) -> tuple[str, Markup]:
    """The headline number of one audit, or of each model, over the rounds in which it observed."""
    summaries = [mapping(facts.get("summary")) for _, facts in lines]
    first = next((str(name) for summary in summaries for name in summary), "")
    head = HEADLINES.get(audit, Headline(audit, first, label="value"))
    named = _named(head, summaries)
    series = [Series(label, slot, [_value(s.get(name)) for s in summaries]) for name, label, slot in named]
    chances = [number(facts.get("chance")) for _, facts in lines]
    series += [Series("chance", CHANCE_SLOT, chances)] if series and any(chances) else []
    present = [value for one in series for value in one.values if value is not None]
    span = min([head.scale[0], *present]), max([head.scale[1], *present])
    indices = [index for index, _ in lines]
    return head.title, line_chart(head.title, indices, series, head.fmt, bridge=True, span=span)


def _heat_maps(lines: Sequence[Line]) -> Iterator[Markup]:
    """Who answers like whom, before the run and after the last round that was audited."""
    seen = [
        (index, mapping(audits["homogenisation"])) for index, audits in lines if "homogenisation" in audits
    ]
    if seen:
        index, facts = seen[-1]
        for name, when in (("before", "before the run"), ("now", f"after round {index}")):
            title = f"Likeness of each model to each other, {when}"
            yield heat_map(title, _list(facts.get("roles")), _list(facts.get(name)))


def _named(head: Headline, summaries: Sequence[Record]) -> list[tuple[str, str, int]]:
    """Names in the summaries that fit a pattern, each with the label and colour of its line.

    Models as they were before the run are left out: they do not change.
    """
    names = dict.fromkeys(str(name) for summary in summaries for name in summary)
    before, is_each, after = head.name.partition("{}")
    if not is_each:
        return [(head.name, head.label, 1)] if head.name in names else []
    roles = [
        name[len(before) : len(name) - len(after)]
        for name in names
        if name.startswith(before) and name.endswith(after)
    ]
    taught = [role for role in roles if role != UNRELATED and not role.endswith(BEFORE)]
    further = [role for role in taught if role not in MODELS]
    shown = MODELS | {role: (_short(role), slot) for role, slot in zip(further, FURTHER_SLOTS, strict=False)}
    return [(before + role + after, *shown[role]) for role in taught if role in shown]


def _short(name: str) -> str:
    """A name that fits beside its line."""
    return name if len(name) <= NAME_AT_MOST else f"{name[:2]}\N{HORIZONTAL ELLIPSIS}{name[-3:]}"


def _warnings(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Of each audit's last observation."""
    last = {str(name): mapping(facts) for _, audits in lines for name, facts in audits.items()}
    for name, facts in last.items():
        for text in dict.fromkeys(map(str, _list(facts.get("warnings")))):
            yield name, text


def _value(estimate: object) -> float | None:
    return number(mapping(estimate).get("value"))


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
