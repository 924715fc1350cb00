"""What aggregators share that must see every update: held all at once, worked on some columns at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from cotune.errors import WireError
from cotune.records import Array

BLOCK = 1 << 20
"""Values of all clients together that are worked on at a time: 8 MiB as float64."""

Held = Sequence[Mapping[str, Array]]
"""The arrays of each client, all with the same names and shapes."""


def held(updates: Iterable[tuple[Mapping[str, Array], float]], needed: int, why: str) -> Held:
    """All updates at once, without their weights.

    Raises:
        WireError: fewer than are needed, `why` says for what.
    """
    found = [arrays for arrays, _ in updates]
    if len(found) < needed:
        raise WireError(
            f"{len(found)} updates; {why} needs at least {needed}. Raise cohort.minimum to {needed}, so that "
            "such a round is left out, or ask more clients."
        )
    return found


def columns(updates: Held, name: str) -> Iterator[tuple[slice, Array]]:
    """Stretches of one array, flat, with what each client has there, float64 [values, clients]."""
    rows = [np.ravel(arrays[name]) for arrays in updates]
    width = max(1, BLOCK // len(rows))
    for start in range(0, len(rows[0]), width):
        part = slice(start, start + width)
        yield part, np.stack([row[part] for row in rows], axis=1, dtype=np.float64)


def by_column(updates: Held, combine: Callable[[Array], Array]) -> dict[str, Array]:
    """Arrays of `combine` ([values, clients] -> [values]), in each array's own type."""
    found = {}
    for name, array in updates[0].items():
        whole = np.empty(array.size, array.dtype)
        for part, values in columns(updates, name):
            whole[part] = combine(values) + 0.0  # no zero has a sign
        found[name] = whole.reshape(array.shape)
    return found


def middle_mean(values: Array, cut: int) -> Array:
    """Mean over clients without the `cut` smallest and the `cut` largest: [values, clients] -> [values].

    Values are added in the order of their size, so the order of the clients changes nothing.
    """
    clients = values.shape[1]
    if 2 * cut >= clients:
        raise ValueError(f"cut {cut} at each end of {clients}; expected less than half")
    ordered = np.sort(values, axis=1)
    found: Array = ordered[:, cut : clients - cut].mean(axis=1)
    return found
