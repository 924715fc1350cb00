"""What the report says about teaching: who taught whom, what filters foretold, how paths ended. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from markupsafe import Markup

from cotune.barren import warning
from cotune.changes import mapping, number
from cotune.chart import Series, bar_chart, line_chart
from cotune.selection_page import round_ranges
from cotune.tables import amount, percent

Record = Mapping[str, Any]
Line = tuple[int, Record]
"""A round and its record of teaching."""

SIDES = (("llm", "LLM", 0), ("slm", "SLMs", 1))
SHARES = (
    ("taught", "Share of the pool on which the LLM teaches a client"),
    ("asked", "Share of the pool on which a client teaches the LLM"),
)
CLIENT_SLOTS = (2, 3, 4, 5, 6, 0)
"""Colours of single clients; where there are more of them, their mean and range are drawn."""
NAME_AT_MOST, ROWS_NAMED, SCRUBBED_AT_MOST = 8, 12, 20
SAMPLES_AT_MOST, LONG_PATH, TEXT_AT_MOST = 6, 240, 1600
SCRUB_WORDS = {
    "email": "e-mail addresses", "iban": "IBANs", "phone": "telephone numbers", "number": "long numbers",
    "pattern": "matches of own patterns", "cut": "middles of long paths",
}  # fmt: skip
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Promise:
    """The filters' scores u against the gains z of what one side learned in a round: sums over n pairs."""

    n: float
    u: float
    z: float
    uu: float
    zz: float
    uz: float

    @classmethod
    def of(cls, sums: Record) -> Promise | None:
        """From `scored`, `u` and so on; None where one is missing or nothing had a score."""
        n = number(sums.get("scored"))
        found = [number(sums.get(name)) for name in ("u", "z", "uu", "zz", "uz")]
        present = [value for value in found if value is not None]
        return cls(n, *present) if n is not None and n >= 1 and len(present) == len(found) else None

    @property
    def correlation(self) -> float | None:
        """Pearson's; None where it is undefined: fewer than two pairs, or all scores or all gains alike."""
        spreads = (_spread(self.n, self.u, self.uu), _spread(self.n, self.z, self.zz))
        if self.n < 2 or 0.0 in spreads:
            return None
        found = number((self.n * self.uz - self.u * self.z) / spreads[0] / spreads[1])
        return None if found is None or abs(found) > 1 + 1e-6 else max(-1.0, min(1.0, found))


def teaching_values(results: Record, rounds: Sequence[Record]) -> dict[str, Any] | None:
    """Values of the section "Teaching", or None when no model taught another."""
    found = [(r.get("round"), mapping(r.get("teaching"))) for r in rounds]
    lines = [(index, line) for index, line in found if isinstance(index, int) and line]
    if not lines:
        return None
    pool = max(_count(line.get("pool")) for _, line in lines)
    promises = [row for line in lines for row in _promises(line)]
    return {
        "pool": f"{pool:,}" if pool else DASH,
        "endpoint": _endpoint([mapping(line.get("endpoint")) for _, line in lines]),
        "learned": [_learned(lines, side) for side, _, _ in SIDES],
        "shortened": _shortened(lines),
        "shares": _share_charts(lines),
        "barren": [(index, said) for index, line in lines if (said := warning(line))],
        "nothing_asked": _is_unasked(lines),
        "refused": _refused(lines, pool),
        "promises": promises,
        "has_scores": any(row["n"] != "0" for row in promises),
        "foretold": _foretold(lines),
        "paths": [row for line in lines for row in _paths(line)],
        "charts": _charts(lines),
        "sent": _sent(results, rounds, lines),
        "scrubbed": _scrubbed(lines),
        "samples": _samples(lines),
    }


def _spread(n: float, total: float, squares: float) -> float:
    """n times the standard deviation; 0 where the values are alike or the sums cannot be those of any."""
    found = number(n * squares - total * total)
    return math.sqrt(found) if found is not None and found > 1e-12 * abs(n * squares) else 0.0


def _count(value: object) -> int:
    return max(0, int(number(value) or 0))


def _sum(values: Sequence[float | None]) -> float | None:
    """Of the values that are there, or None."""
    present = [value for value in values if value is not None]
    return sum(present) if present else None


def _items(value: object, pool: int) -> set[int]:
    """Numbers of items of the pool; anything else that stands among them is left out."""
    rows = value if isinstance(value, list | tuple) else ()
    return {row for row in rows if type(row) is int and 0 <= row < pool}


def _endpoint(records: Sequence[Record]) -> dict[str, str] | None:
    """Who taught in the LLM's place, and what it took; counts are of a round each."""
    known = [record for record in records if record]
    if not known:
        return None
    names = dict.fromkeys(str(record["model"]) for record in known if record.get("model"))
    counts = {key: _sum([number(record.get(key)) for record in known]) for key in ENDPOINT_COUNTS}
    answers, empty, estimated, read, wrote = (counts[key] for key in ENDPOINT_COUNTS)
    usage = [f"It read {_told(read)} tokens and wrote {_told(wrote)} in {_told(answers)} answers."]
    usage += [f"{empty:,.0f} of the answers had no text that can be used."] if empty else []
    usage += [f"The tokens of {estimated:,.0f} answers are estimated."] if estimated else []
    return {
        "model": ", ".join(names) or "a model without a name",
        "usage": " ".join(usage),
        "cost": _cost([number(record.get("cost")) for record in known]),
    }


ENDPOINT_COUNTS = ("answers", "empty", "estimated", "tokens_in", "tokens_out")


def _told(value: float | None) -> str:
    return "an unknown number of" if value is None else f"{value:,.0f}"


def _cost(costs: Sequence[float | None]) -> str:
    whole = _sum(costs)
    if whole is None:
        return "No price given, so what it cost is not known."
    least = "at least " if None in costs else ""
    sum_of_money = f"{whole:.2g}" if 0 < whole < 0.1 else f"{whole:,.2f}"
    return f"That cost {least}{sum_of_money}, in the currency of its price."


def _learned(lines: Sequence[Line], side: str) -> str:
    pairs = _sum([number(mapping(line.get(side)).get("pairs")) for _, line in lines])
    return DASH if pairs is None else f"{pairs:,.0f}"


def _shortened(lines: Sequence[Line]) -> str:
    """How many paths were too long to be learned from whole, as a sentence; empty where none was."""
    told = []
    for side, name, _ in SIDES:
        count = sum(_count(mapping(line.get(side)).get("cut")) for _, line in lines)
        told += [f"the {name} {count:,}"] if count else []
    start = "Paths that were cut at tune.max_length when they were learned from: "
    return f"{start}{', '.join(told)}." if told else ""


def _share_charts(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Share of the pool a client and round, both directions on one scale; without what never happened."""
    both = [(title, _shares(lines, key)) for key, title in SHARES]
    values = [v for _, shares in both for client in shares.values() for v in client if v is not None]
    span = (0.0, max([0.1, *values]))
    charts = []
    for title, shares in both:
        drawn = _client_lines(shares) if any(any(client) for client in shares.values()) else []
        svg = line_chart(title, [r for r, _ in lines], drawn, _share_text, bridge=True, span=span)
        cut = len(shares) <= len(CLIENT_SLOTS) and any(len(name) > NAME_AT_MOST for name in shares)
        legend = list(zip(shares, CLIENT_SLOTS, strict=False)) if cut else []
        charts.append({"title": title, "svg": svg, "legend": legend})
    return [chart for chart in charts if chart["svg"]]


def _shares(lines: Sequence[Line], key: str) -> dict[str, list[float | None]]:
    """Of each client, its share of the pool in each round; None where it took no part."""
    found: dict[str, list[float | None]] = {}
    for place, (_, line) in enumerate(lines):
        pool = _count(line.get("pool"))
        for client, rows in mapping(line.get(key)).items() if pool else ():
            shares = found.setdefault(str(client), [None] * len(lines))
            shares[place] = len(_items(rows, pool)) / pool
    return found


def _client_lines(shares: Mapping[str, Sequence[float | None]]) -> list[Series]:
    """A line a client, or their highest, mean and lowest share where they are many."""
    if len(shares) <= len(CLIENT_SLOTS):
        return [
            Series(name if len(name) <= NAME_AT_MOST else f"{name[:2]}\u2026{name[-3:]}", slot, values)
            for (name, values), slot in zip(shares.items(), CLIENT_SLOTS, strict=False)
        ]
    per_round = [[v for v in values if v is not None] for values in zip(*shares.values(), strict=True)]
    kinds: tuple[tuple[str, int, Callable[[Sequence[float]], float]], ...] = (
        ("highest", 7, max), ("mean", 0, statistics.fmean), ("lowest", 7, min),
    )  # fmt: skip
    return [Series(name, slot, [of(v) if v else None for v in per_round]) for name, slot, of in kinds]


def _share_text(share: float) -> str:
    return percent(share, 0 if share == 0 or share >= 0.1 else 1)


def _is_unasked(lines: Sequence[Line]) -> bool:
    """It is on record that no client was asked for a path."""
    asked = [mapping(line.get("asked")) for _, line in lines]
    return any(asked) and not any(rows for clients in asked for rows in clients.values())


def _refused(lines: Sequence[Line], pool: int) -> str:
    """Which items no client wanted in any round, as a sentence; what only measures was not refused."""
    wishes = [rows for _, line in lines for rows in mapping(line.get("wanted")).values()]
    if not pool or not wishes:
        return ""
    probes = [rows for _, line in lines for rows in mapping(line.get("probe")).values()]
    wanted = set[int]().union(*(_items(rows, pool) for rows in [*wishes, *probes]))
    count = pool - len(wanted)
    if not count:
        return f"Each of the {pool:,} items was wanted by a client in some round."
    first = list(islice((row for row in range(pool) if row not in wanted), ROWS_NAMED))
    rest = f" and {count - len(first):,} more" if count > len(first) else ""
    named = round_ranges(first) if not rest else round_ranges(first).replace(" and ", ", ")
    what = "item was" if count == 1 else "items were"
    share = _share_text(count / pool)
    return f"{count:,} {what} refused by every client in all rounds ({share} of the pool): {named}{rest}."


def _promises(line: Line) -> list[dict[str, Any]]:
    index, record = line
    rows: list[dict[str, Any]] = []
    for side, name, _ in SIDES:
        sums = mapping(record.get(side))
        found = Promise.of(sums)
        row = {"n": f"{_count(sums.get('scored')):,}", "score": DASH, "margin": DASH, "correlation": DASH}
        if found is not None:
            row |= {
                "score": _signed(found.u / found.n).removeprefix("+"),
                "margin": _signed(found.z / found.n),
            }
            row["correlation"] = _signed(found.correlation)
        rows += [{"round": index, "who": name, **row}] if sums else []
    return rows


def _correlation(line: Record, side: str) -> float | None:
    found = Promise.of(mapping(line.get(side)))
    return found.correlation if found else None


def _foretold(lines: Sequence[Line]) -> str:
    """How often each side's correlation was positive, as a sentence."""
    parts = []
    for side, name, _ in SIDES:
        known = [value for _, line in lines if (value := _correlation(line, side)) is not None]
        positive = sum(value > 0 for value in known)
        rounds = "round" if len(known) == 1 else "rounds"
        parts += [f"for the {name} in {positive} of {len(known)} {rounds}"] if known else []
    return f"It was positive {' and '.join(parts)}." if parts else ""


def _signed(value: float | None) -> str:
    if value is None:
        return DASH
    return "0" if value == 0 else f"{value:+.2f}".replace("-", MINUS)


def _paths(line: Line) -> list[dict[str, Any]]:
    """What one round's paths came to, a row a side; a side without paths has none."""
    rows: list[dict[str, Any]] = []
    for side, name, _ in SIDES:
        paths = mapping(line[1].get(f"{side}_paths"))
        cut = number(paths.get("cut"))
        row = {"round": line[0], "who": name, "total": f"{_count(paths.get('paths')):,}"}
        row["cut"] = DASH if cut is None else f"{cut:,.0f}"
        for key, share in (("answered", _answered(line[1], side)), ("right", _right(line[1], side))):
            row[key] = (f"{_count(paths.get(key)):,}", percent(share, 0))
        rows += [row] if _count(paths.get("paths")) else []
    return rows


def _answered(line: Record, side: str) -> float | None:
    return _path_share(mapping(line.get(f"{side}_paths")), "answered")


def _right(line: Record, side: str) -> float | None:
    return _path_share(mapping(line.get(f"{side}_paths")), "right")


def _path_share(paths: Record, key: str) -> float | None:
    total = _count(paths.get("paths"))
    return min(1.0, _count(paths.get(key)) / total) if total else None


def _charts(lines: Sequence[Line]) -> dict[str, list[tuple[str, Markup]]]:
    """Curves of both sides: what filters foretold, and how paths ended."""
    found: dict[str, list[tuple[str, Markup]]] = {"foretold": [], "paths": []}
    for name, title, value, low, text in (
        ("foretold", "Score against gain: correlation", _correlation, -1.0, _signed),
        ("paths", "Paths that end on an answer", _answered, 0.0, _share_text),
        ("paths", "Paths that end on the right answer", _right, 0.0, _share_text),
    ):
        drawn = [Series(who, slot, [value(line, side) for _, line in lines]) for side, who, slot in SIDES]
        svg = line_chart(title, [r for r, _ in lines], drawn, text, bridge=True, span=(low, 1.0))
        found[name] += [(title, svg)] if svg else []
    return found


def _sent(results: Record, rounds: Sequence[Record], lines: Sequence[Line]) -> dict[str, Any]:
    """Bytes of the paths, in total beside all traffic and per round."""
    payload = [number(line.get("payload_bytes")) for _, line in lines]
    total = _sum(payload)
    stated = _both_ways(mapping(results.get("traffic")))
    whole = stated if stated is not None else _sum([_both_ways(mapping(r.get("traffic"))) for r in rounds])
    share = _share_text(total / whole) if whole and total is not None and total <= whole else ""
    bars = [Series("paths, both ways", 3, payload)]
    return {
        "total": amount(total),
        "whole": amount(whole) if whole else "",
        "share": share,
        "svg": bar_chart("Bytes of paths per round", [r for r, _ in lines], bars, amount),
    }


def _both_ways(traffic: Record) -> float | None:
    return _sum([number(traffic.get("up_bytes")), number(traffic.get("down_bytes"))])


def _scrubbed(lines: Sequence[Line]) -> list[tuple[str, str]] | None:
    """How often what was replaced in clients' paths, by kind; None where nobody said."""
    told = [mapping(line.get("scrubbed")) for _, line in lines if isinstance(line.get("scrubbed"), Mapping)]
    counts: dict[str, int] = {}
    for record in told:
        for name, count in record.items():
            counts[str(name)] = counts.get(str(name), 0) + _count(count)
    most = sorted(((count, name) for name, count in counts.items() if count), key=lambda one: -one[0])
    kinds = [(SCRUB_WORDS.get(name, name), f"{count:,}") for count, name in most[:SCRUBBED_AT_MOST]]
    return kinds if told else None


def _samples(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A few items of the first and of the last round that has some, with what both sides wrote."""
    found = []
    for index, line in lines:
        samples = line.get("samples")
        listed = [mapping(one) for one in (samples if isinstance(samples, list | tuple) else ())]
        told = [shown for one in listed[:SAMPLES_AT_MOST] if (shown := _sample(index, one))["paths"]]
        found += [told] if told else []
    return [*found[0], *(found[-1] if len(found) > 1 else [])] if found else []


def _sample(index: int, sample: Record) -> dict[str, Any]:
    client = sample.get("client")
    writers = (("llm", "LLM"), ("slm", "SLM" if client is None else f"SLM of {client}"))
    paths = []
    for side, who in writers:
        text, is_right = sample.get(f"{side}_path"), sample.get(f"{side}_right")
        if isinstance(text, str) and text.strip():
            verdict = is_right if isinstance(is_right, bool) else None
            paths.append(
                {"who": who, "text": _cut(text), "is_right": verdict, "is_long": len(text) > LONG_PATH}
            )
    row = sample.get("row")
    return {
        "round": index, "row": row if type(row) is int else DASH, "paths": paths,
        "question": _cut(_text(sample.get("question"))), "answer": _cut(_text(sample.get("answer"))),
    }  # fmt: skip


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= TEXT_AT_MOST else text[:TEXT_AT_MOST] + " \N{HORIZONTAL ELLIPSIS}"
