"""What the report says about data selection: share used, when it chose, its cost and what crossed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cotune.changes import mapping, number
from cotune.tables import amount, duration, percent

COLLAPSE_ABOVE, ROWS_AT_MOST = 24, 1000
VERB_WORDS = {"ask": "in the clear, one by one", "gather": "as a sum"}


@dataclass(frozen=True, slots=True)
class Share:
    """How much of its data one client used; `scale` is the largest share of any client."""

    client: str
    chosen: float | None
    total: float | None
    scale: float

    @property
    def share(self) -> float | None:
        """Chosen of total, or None where either is missing."""
        return _share(self.chosen, self.total)

    @property
    def words(self) -> str:
        """The share as a percentage."""
        return _percent(self.share)

    @property
    def picture(self) -> Markup:
        """The share as a bar, as wide as the table cell where it is the largest of all."""
        if self.share is None:
            return Markup("")
        width = 112 * min(self.share / self.scale, 1.0) if self.scale > 0 else 0.0
        return Markup(
            '<svg class="dumbbell" viewBox="0 0 120 14" aria-hidden="true">'
            '<line class="rail" x1="4" x2="116" y1="7" y2="7"/>'
            '<rect class="fill c2" x="4" y="3.5" width="{:.1f}" height="7"/></svg>'
        ).format(width)


def selection_values(
    results: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Values of the section "Data selection", or None when the run chose nothing among its data."""
    selection = mapping(results.get("selection"))
    if not selection:
        return None
    chosen, total = number(selection.get("chosen")), number(selection.get("total"))
    rows = _rows(selection)
    scale = max((row.scale for row in rows), default=0.0)
    listed = _listed(len(rows[:ROWS_AT_MOST]), max(len(rows), int(number(selection.get("num_clients")) or 0)))
    return {
        "selectors": ", then ".join(_texts(selection.get("selectors"))),
        "share": _percent(_share(chosen, total)),
        "counts": f"{chosen:,.0f} of {total:,.0f} examples"
        if chosen is not None and total is not None
        else "",
        "rounds": _when(rounds),
        "sat_out": _sat_out(selection, rounds),
        "warning": _warning(selection),
        "costs": _costs(selection),
        "cut": _cut(number(selection.get("cut"))),
        "rows": rows[:ROWS_AT_MOST],
        "listed": listed,
        "is_collapsed": len(rows) > COLLAPSE_ABOVE,
        "scale": _percent(scale),
        "summary": _summary(rows[:ROWS_AT_MOST], listed),
        "crossed": [_crossing(mapping(one)) for one in _list(selection.get("crossed"))],
        "nothing_crossed": number(selection.get("ask_bytes")) == 0 == number(selection.get("gather_bytes")),
        "bytes": [
            (verb, VERB_WORDS[verb], amount(number(selection.get(f"{verb}_bytes")))) for verb in VERB_WORDS
        ],
        "notes": _texts(selection.get("notes")),
    }


def round_ranges(indices: Sequence[int]) -> str:
    """Round numbers as text: `0`, `0 to 4`, `0, 5 and 10`."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in runs]
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _rows(selection: Mapping[str, Any]) -> list[Share]:
    clients = {str(name): mapping(counts) for name, counts in mapping(selection.get("clients")).items()}
    found = [(name, number(c.get("chosen")), number(c.get("total"))) for name, c in clients.items()]
    scale = max((_share(chosen, total) or 0.0 for _, chosen, total in found), default=0.0)
    return [Share(name, chosen, total, scale) for name, chosen, total in found]


def _listed(shown: int, total: int) -> str:
    """Which clients are meant, if not all of them."""
    return f"first {shown:,} of {total:,} clients" if shown < total else ""


def _cut(count: float | None) -> str:
    if count is None or count <= 0:
        return ""
    return (
        f"{count:,.0f} example{' was' if count == 1 else 's were'} longer than the model that read for the "
        "choice can read, and judged by a part."
    )


def _summary(rows: Sequence[Share], listed: str) -> str:
    """How the shares are spread over the clients in `rows`; `listed` says which these are, if not all."""
    shares = [row.share for row in rows if row.share is not None]
    if len(shares) < 2:
        return ""
    none = sum(share == 0 for share in shares)
    empty = f" {none} of {len(shares)} used none." if none else ""
    whose = f"Of the {listed}, each" if listed else "A client"
    return (
        f"{whose} used between {_percent(min(shares))} and {_percent(max(shares))} of its examples; "
        f"half of {'them' if listed else 'the clients'} used {_percent(statistics.median(shares))} or less."
        f"{empty}"
    )


def _when(rounds: Sequence[Mapping[str, Any]]) -> str:
    """In which rounds the clients chose anew, as a sentence."""
    records = [(r.get("round"), mapping(r.get("selection"))) for r in rounds]
    known = [(index, one) for index, one in records if isinstance(index, int) and one]
    renewed = [index for index, one in known if one.get("renewed")]
    if not known:
        return ""
    if not renewed:
        return "No round on record chose anew."
    if len(renewed) == len(known) > 1:
        return f"Chosen anew in each of {len(known)} rounds ({round_ranges(renewed)})."
    kept = "; the rounds after it used the same examples" if len(renewed) == 1 and len(known) > 1 else ""
    kept = "; the other rounds used what was chosen last" if len(renewed) > 1 else kept
    return f"Chosen anew in round{'' if len(renewed) == 1 else 's'} {round_ranges(renewed)}{kept}."


def _sat_out(selection: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    count = number(selection.get("sat_out"))
    if not count:
        return ""
    per_round = [_list(mapping(r.get("selection")).get("sat_out")) for r in rounds]
    names = {str(name) for clients in per_round for name in clients}
    who = f" ({len(names)} different client{'' if len(names) == 1 else 's'})" if names else ""
    times = "Once" if count == 1 else f"{count:,.0f} times"
    return f"{times} a client had no chosen example and sat the round out{who}."


def _warning(selection: Mapping[str, Any]) -> str:
    seconds = number(selection.get("seconds_longest", selection.get("seconds")))
    epoch = number(selection.get("epoch_seconds"))
    if seconds is None or epoch is None or seconds <= epoch:
        return ""
    return (
        f"Choosing took {duration(seconds)}, longer than one pass of training over all the data of these "
        f"clients (about {duration(epoch)}). Choose less often, or with a cheaper method."
    )


def _costs(selection: Mapping[str, Any]) -> list[str]:
    """What choosing cost and what it saved, as sentences."""
    keys = ("seconds", "seconds_tuning", "epoch_seconds", "saved_seconds")
    seconds, tuning, epoch, saved = (number(selection.get(key)) for key in keys)
    sentences = []
    if seconds is not None:
        trained = f", training on the chosen examples {duration(tuning)}" if tuning is not None else ""
        sentences.append(f"Choosing took {duration(seconds)}{trained}.")
    if epoch is not None:
        sentences.append(f"One pass over all the data of these clients would take about {duration(epoch)}.")
    if saved is None:
        sentences.append("How much training time it saved is not known.")
    elif saved <= 0:
        sentences.append("It saved no training time.")
    else:
        sentences.append(f"It saved about {duration(saved)} of training{_balance(seconds, saved)}.")
    return sentences


def _balance(seconds: float | None, saved: float) -> str:
    if not seconds:
        return ""
    if saved <= seconds:
        return f", {duration(seconds - saved)} less than it cost"
    times = saved / seconds
    return f": {times:,.0f} times what it cost" if times >= 10 else f": {times:.1f} times what it cost"


def _crossing(crossing: Mapping[str, Any]) -> dict[str, str]:
    verb = str(crossing.get("verb", ""))
    return {
        "action": str(crossing.get("action", "")), "verb": verb, "how": VERB_WORDS.get(verb, ""),
        "what": str(crossing.get("what", "")), "bytes": amount(number(crossing.get("bytes"))),
    }  # fmt: skip


def _share(chosen: float | None, total: float | None) -> float | None:
    return chosen / total if chosen is not None and total else None


def _percent(share: float | None) -> str:
    """Two digits that matter where a share is small: `0.13%`, `1.5%`, `42%`."""
    if share is None or share == 0 or share >= 0.1:
        return percent(share, 0)
    return percent(share, 1 if share >= 0.00995 else 2)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else []


def _texts(value: object) -> list[str]:
    return [str(one) for one in ([value] if isinstance(value, str) else _list(value))]
