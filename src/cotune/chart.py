"""Small charts as inline SVG: numbers in, markup out. No script; colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 216
TOP, BOTTOM = 12, 38
LINE_MARGINS, BAR_MARGINS = (44, 92), (60, 8)
LABEL_GAP = 15.0
MARKERS_UP_TO = 25
SLOTS = 7
"""Number of CSS colour classes (`c0` to `c6`) a series can use; `c7` is the neutral one for what is left."""

Format = Callable[[float], str]
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart or one layer of stacked bars: a value, or None, for each round of the chart."""

    name: str
    slot: int
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Axes:
    """Where data values land in the drawing."""

    margins: tuple[int, int]
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @property
    def left(self) -> int:
        """Left edge of the plot."""
        return self.margins[0]

    @property
    def right(self) -> int:
        """Right edge of the plot."""
        return WIDTH - self.margins[1]

    def x(self, value: float) -> float:
        """Horizontal position of a round."""
        span = self.x_high - self.x_low
        share = (value - self.x_low) / span if span else 0.5
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def line_chart(
    title: str,
    rounds: Sequence[int],
    series: Sequence[Series],
    fmt: Format,
    *,
    bridge: bool,
    span: Span | None = None,
) -> Markup:
    """Lines over rounds, each labelled at its right end.

    Args:
        title: what the values are, read out by screen readers.
        rounds: the rounds measured, ascending.
        series: the lines; None and non-finite values are not drawn.
        fmt: a value as text, for labels and ticks.
        bridge: whether a line runs on across a round without a value (not measured) or breaks there.
        span: values that the vertical axis must reach, so that several charts share one scale.

    Returns:
        One `svg` element, or an empty string when no value can be drawn.
    """
    lines = [(s, [(r, v) for r, v in zip(rounds, s.values, strict=True) if is_number(v)]) for s in series]
    drawn = [(s, [(r, float(v or 0.0)) for r, v in points]) for s, points in lines if points]
    if not drawn:
        return Markup("")
    values = [v for _, points in drawn for _, v in points]
    low, high, ticks = value_range(*(span or (min(values), max(values))))
    axes = Axes(LINE_MARGINS, rounds[0], rounds[-1], low, high)
    parts = [_grid(axes, ticks, fmt), _round_ticks(axes, rounds)]
    parts += [_line(axes, s, list(rounds), fmt, bridge) for s, _ in drawn]
    ends = [(axes.y(points[-1][1]), s, fmt(points[-1][1])) for s, points in drawn]
    parts += [
        _end_label(y, s, text) for y, (_, s, text) in zip(spread([e[0] for e in ends]), ends, strict=True)
    ]
    return _svg(f"{title}. {'; '.join(_spoken(s.name, points, fmt) for s, points in drawn)}.", parts)


def bar_chart(title: str, rounds: Sequence[int], layers: Sequence[Series], fmt: Format) -> Markup:
    """Stacked bars, one a round, the first layer at the bottom; an empty string when all values are zero."""
    heights = [sum(_or_zero(s.values[i]) for s in layers) for i in range(len(rounds))]
    if not heights or max(heights) <= 0:
        return Markup("")
    _, high, ticks = value_range(0.0, max(heights))
    pad = 0.5 if len(rounds) > 1 else 0.0
    axes = Axes(BAR_MARGINS, rounds[0] - pad, rounds[-1] + pad, 0.0, high)
    slot_width = (axes.right - axes.left) / (rounds[-1] - rounds[0] + 1)
    width = max(0.6, min(36.0, slot_width * 0.72))
    parts = [_grid(axes, ticks, fmt), _round_ticks(axes, rounds)]
    parts += [
        _bar(axes, r, width, [(s, _or_zero(s.values[i])) for s in layers], fmt) for i, r in enumerate(rounds)
    ]
    spoken = "; ".join(f"{s.name} {fmt(sum(_or_zero(v) for v in s.values))} in all" for s in layers)
    return _svg(f"{title}. {spoken}.", parts)


def share_bar(title: str, parts: Sequence[tuple[str, int, float]], fmt: Format) -> Markup:
    """One horizontal bar cut by share; `parts` are (name, colour slot, value)."""
    total = sum(value for _, _, value in parts)
    if total <= 0:
        return Markup("")
    pieces, left = [], 0.0
    for name, slot, value in parts:
        width = 100 * value / total
        pieces.append(
            Markup(
                '<rect class="fill c{}" x="{:.3f}" y="0" width="{:.3f}" height="10">'
                "<title>{}: {}</title></rect>"
            ).format(slot, left, max(width - 0.25, 0.05), name, fmt(value))
        )
        left += width
    spoken = "; ".join(f"{name} {fmt(value)}" for name, _, value in parts)
    head = Markup(
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">'
    )
    return head.format(f"{title}. {spoken}.") + Markup("").join(pieces) + Markup("</svg>")


def dumbbell(before: float | None, after: float | None) -> Markup:
    """A line from before (ring) to after (dot) on a scale of 0 to 1; stands beside the numbers themselves."""
    if not is_number(before) or not is_number(after):
        return Markup("")
    a, b = (4 + 112 * min(max(float(v or 0.0), 0.0), 1.0) for v in (before, after))
    return Markup(
        '<svg class="dumbbell" viewBox="0 0 120 14" aria-hidden="true">'
        '<line class="rail" x1="4" x2="116" y1="7" y2="7"/>'
        '<line class="stroke c1" x1="{a:.1f}" x2="{b:.1f}" y1="7" y2="7"/>'
        '<circle class="ring c1" cx="{a:.1f}" cy="7" r="3"/>'
        '<circle class="fill c1" cx="{b:.1f}" cy="7" r="3.6"/></svg>'
    ).format(a=a, b=b)


def is_number(value: object) -> bool:
    """A finite int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_range(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round axis limits that hold low and high, and about four round ticks between them."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
        pad = max(0.1 * abs(high), 1e-6)
        low, high = (low - pad if low else 0.0), high + pad
    step = _round_step((high - low) / 3.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def spread(positions: Sequence[float]) -> list[float]:
    """The same positions, moved apart just enough to be `LABEL_GAP` from each other, inside the drawing."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed: dict[int, float] = {}
    floor = float(TOP)
    for i in order:
        placed[i] = max(positions[i], floor)
        floor = placed[i] + LABEL_GAP
    ceiling = float(HEIGHT - BOTTOM)
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_GAP
    return [placed[i] for i in range(len(positions))]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


def _or_zero(value: float | None) -> float:
    return float(value or 0.0) if is_number(value) else 0.0


def _svg(spoken: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, spoken
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _grid(axes: Axes, ticks: Sequence[float], fmt: Format) -> Markup:
    row = Markup(
        '<line class="grid" x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="tick" x="{x}" y="{ty:.1f}" text-anchor="end">{text}</text>'
    )
    return Markup("").join(
        row.format(x1=axes.left, x2=axes.right, y=axes.y(t), x=axes.left - 6, ty=axes.y(t) + 4, text=fmt(t))
        for t in ticks
    )


def _round_ticks(axes: Axes, rounds: Sequence[int]) -> Markup:
    span = rounds[-1] - rounds[0]
    step = max(1, math.ceil(_round_step(span / 6))) if span else 1
    shown = [r for r in range(rounds[0], rounds[-1] + 1) if r % step == 0]
    tick = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    texts = [tick.format(axes.x(r), HEIGHT - BOTTOM + 16, r) for r in shown]
    name = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">round</text>')
    return Markup("").join(texts) + name.format((axes.left + axes.right) / 2, HEIGHT - 6)


def _line(axes: Axes, series: Series, rounds: Sequence[int], fmt: Format, bridge: bool) -> Markup:
    runs: list[list[tuple[int, float]]] = [[]]
    for r, v in zip(rounds, series.values, strict=True):
        if is_number(v):
            runs[-1].append((r, float(v or 0.0)))
        elif not bridge and runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    points = sum(len(run) for run in runs)
    parts = []
    for run in runs:
        path = " ".join(f"{axes.x(r):.1f},{axes.y(v):.1f}" for r, v in run)
        parts.append(Markup('<polyline class="stroke c{}" points="{}"/>').format(series.slot, path))
        marked = run if points <= MARKERS_UP_TO or len(run) == 1 else run[-1:]
        parts += [
            _marker(axes.x(r), axes.y(v), series, f"{series.name}, round {r}: {fmt(v)}") for r, v in marked
        ]
    return Markup("").join(parts)


def _marker(x: float, y: float, series: Series, text: str) -> Markup:
    shapes = (
        '<circle class="dot c{slot}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{text}</title></circle>',
        '<rect class="dot c{slot}" x="{left:.1f}" y="{top:.1f}" width="6.4" height="6.4">'
        "<title>{text}</title></rect>",
    )
    shape = Markup(shapes[series.slot % 2])
    return shape.format(slot=series.slot, x=x, y=y, left=x - 3.2, top=y - 3.2, text=text)


def _end_label(y: float, series: Series, text: str) -> Markup:
    label = Markup('<text class="label c{}" x="{}" y="{:.1f}">{} {}</text>')
    return label.format(series.slot, WIDTH - LINE_MARGINS[1] + 9, y + 4, series.name, text)


def _bar(axes: Axes, index: int, width: float, layers: Sequence[tuple[Series, float]], fmt: Format) -> Markup:
    piece = Markup(
        '<rect class="fill c{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}">'
        "<title>round {}, {}: {}</title></rect>"
    )
    parts, base = [], 0.0
    for series, value in layers:
        top, bottom = axes.y(base + value), axes.y(base)
        x = axes.x(index) - width / 2
        if value > 0:
            parts.append(
                piece.format(series.slot, x, top, width, bottom - top, index, series.name, fmt(value))
            )
        base += value
    return Markup("").join(parts)


def _spoken(name: str, points: Sequence[tuple[int, float]], fmt: Format) -> str:
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{name} {fmt(start)} at round {first}"
    return f"{name} from {fmt(start)} at round {first} to {fmt(end)} at round {last}"
