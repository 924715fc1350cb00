"""A map of the examples as one HTML page: every example a point, the chosen ones marked. Pure.

Texts, names and ids are data: they stand in the page as JSON in which nothing can end or begin an element,
and the page's script shows them as text only. Nothing comes from the network.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cotune.errors import DataError

SIDE = 1_000_000
"""Places are whole numbers from 0 to this along the longer side of the map."""
TEXT_AT_MOST, TEXT_AT_LEAST = 300, 40
TEXT_BYTES = 6_500_000
"""Where texts would take more than this, they are cut shorter than `TEXT_AT_MOST`."""
LISTED = 200

_ESCAPED = "<>&\u2028\u2029"
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Map:
    """What the page shows; all but the last two have one entry an example.

    Args:
        places: where each example stands, float [n, 2]; near means similar.
        groups: the group of each example, int [n]; -1 is in no group.
        chosen: which were chosen, bool [n].
        texts: the full text of each example; the page shows its beginning.
        clients: the client that holds it.
        ids: its id; a link to `#hover=ID` opens the page with that example shown.
        title: the heading of the page.
        facts: rows of a small table, such as method, seconds, model.
    """

    places: NDArray[np.floating[Any]]
    groups: NDArray[np.integer[Any]]
    chosen: NDArray[np.bool_]
    texts: Sequence[str]
    clients: Sequence[str]
    ids: Sequence[str]
    title: str
    facts: Sequence[tuple[str, str]] = ()


def render(map: Map) -> str:  # noqa: A002
    """The page.

    Raises:
        DataError: the parts differ in length, or a place is not finite; says which row.
    """
    from jinja2 import Environment, StrictUndefined

    data = page_data(map)
    text = embedded(data)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("cotune").joinpath("map.html.j2").read_text(encoding="utf-8")
    values = {
        "title": map.title,
        "facts": map.facts,
        "counts": counts(map),
        "listed": LISTED,
        "cut": data["cut"],
        "data": Markup(text),
        "nonce": hashlib.sha256(text.encode()).hexdigest(),
    }
    return environment.from_string(template).render(values)


def page_data(examples: Map) -> dict[str, Any]:
    """What the page's script reads: flat lists in the order of the examples.

    Returns:
        `places` (x, y, x, y, ... as whole numbers from 0 to `SIDE`), `groups`, `chosen` (row numbers),
        `texts` (cut), `ids`, `clients` (each name once), `client` (index into it), `cut` (the longest text).
    """
    _check(examples)
    names = list(dict.fromkeys(examples.clients))
    position = {name: index for index, name in enumerate(names)}
    texts, limit = shortened(examples.texts)
    return {
        "places": scaled(np.asarray(examples.places)).ravel().tolist(),
        "groups": np.asarray(examples.groups, dtype=np.int64).tolist(),
        "chosen": np.flatnonzero(examples.chosen).tolist(),
        "texts": texts,
        "ids": list(examples.ids),
        "clients": names,
        "client": [position[name] for name in examples.clients],
        "cut": limit,
    }


def embedded(value: object) -> str:
    """The value as JSON that is safe inside a `script` element, and in any encoding that has ASCII.

    No `<`, `>` or `&`, so that no text can close the element; no line separators; no lone surrogates.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in _ESCAPED:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _HALVES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def scaled(places: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Places [n, 2] as whole numbers: one scale for both axes, the longer from 0 to `SIDE`."""
    if places.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    values = places.astype(np.float64)
    values /= np.abs(values).max() or 1.0
    low = values.min(axis=0)
    span = (values.max(axis=0) - low).max()
    share = (values - low) / span if span > 0 else np.full_like(values, 0.5)
    return np.rint(share * SIDE).astype(np.int64)


def shortened(texts: Sequence[str]) -> tuple[list[str], int]:
    """The beginnings of texts, all cut at one length, and that length: 300, or less where there are many."""
    limit = TEXT_AT_MOST
    cut = [_cut(text, limit) for text in texts]
    size = len(embedded(cut).encode())
    while size > TEXT_BYTES and limit > TEXT_AT_LEAST:
        limit = max(TEXT_AT_LEAST, int(0.97 * limit * TEXT_BYTES / size))
        cut = [_cut(text, limit) for text in texts]
        size = len(embedded(cut).encode())
    return cut, limit


def counts(examples: Map) -> dict[str, Any]:
    """How many examples, clients and groups there are, and how many of each have a chosen one."""
    groups, chosen = np.asarray(examples.groups), np.asarray(examples.chosen, dtype=bool)
    picked = np.flatnonzero(chosen).tolist()
    total = len(examples.ids)
    return {
        "total": total,
        "chosen": len(picked),
        "share": f"{100 * len(picked) / total:.3g}%" if total else "",
        "clients": len(set(examples.clients)),
        "clients_chosen": len({examples.clients[i] for i in picked}),
        "groups": len(np.unique(groups[groups >= 0])),
        "groups_chosen": len(np.unique(groups[chosen & (groups >= 0)])),
        "ungrouped": int((groups < 0).sum()),
    }


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _check(examples: Map) -> None:
    count = len(examples.ids)
    places = np.asarray(examples.places)
    lengths = {
        "places": len(places), "groups": len(examples.groups), "chosen": len(examples.chosen),
        "texts": len(examples.texts), "clients": len(examples.clients),
    }  # fmt: skip
    for name, length in lengths.items():
        if length != count:
            raise DataError(f"Map: expected one entry of `{name}` for each of {count} ids, got {length}.")
    if not count:
        return
    if places.shape != (count, 2):
        raise DataError(f"Map: expected places of shape ({count}, 2), got {places.shape}.")
    broken = np.flatnonzero(~np.isfinite(places).all(axis=1))
    if broken.size:
        row = int(broken[0])
        more = f"; so are {broken.size - 1} more rows" if broken.size > 1 else ""
        raise DataError(
            f"Map: the place of row {row} (counted from 0, id {examples.ids[row]!r}) is not finite: "
            f"{places[row].tolist()}{more}. Leave these examples out, or make their features again."
        )
