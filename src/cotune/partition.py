"""Who holds which training row: iid, Dirichlet over domains, by key, five-way.

A partition is an array `owner` [rows] of client numbers, so it is disjoint and complete by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cotune.errors import DataError

IntArray = npt.NDArray[np.int64]

DIRICHLET_DRAWS = 100
"""So often a Dirichlet partition is drawn again while a client is empty."""


def iid(num_rows: int, num_clients: int, rng: np.random.Generator) -> IntArray:
    """Equal random parts; sizes differ by at most one.

    Raises:
        DataError: there are fewer rows than clients.
    """
    _refuse_fewer_rows(num_rows, num_clients)
    owner = np.empty(num_rows, dtype=np.int64)
    owner[rng.permutation(num_rows)] = np.arange(num_rows) * num_clients // num_rows
    return owner


def dirichlet(domains: Sequence[str], num_clients: int, alpha: float, rng: np.random.Generator) -> IntArray:
    """Cut every domain among the clients in proportions drawn from Dirichlet(alpha, ..., alpha).

    The split that FedHDS and FederatedScope use (Li et al. 2021, https://arxiv.org/abs/2102.02079): where
    domains are of equal size, a client's mixture over them is about Dirichlet(alpha); sizes differ too. A
    large alpha approaches equal parts of every domain. Drawn again, up to `DIRICHLET_DRAWS` times, while a
    client has no row.

    Raises:
        DataError: a client is still empty after the last draw.
    """
    _refuse_fewer_rows(len(domains), num_clients)
    names, label = np.unique(np.asarray(domains), return_inverse=True)
    members = [np.flatnonzero(label == number) for number in range(len(names))]
    for _ in range(DIRICHLET_DRAWS):
        owner = np.empty(len(domains), dtype=np.int64)
        for rows in members:
            shares = np.cumsum(rng.dirichlet(np.full(num_clients, alpha)))
            middle = (np.arange(len(rows)) + 0.5) / len(rows)
            cut = np.minimum(np.searchsorted(shares, middle), num_clients - 1)
            owner[rng.permutation(rows)] = cut
        if _empty(owner, num_clients).size == 0:
            return owner
    refuse_empty(
        owner,
        num_clients,
        f"dirichlet with alpha {alpha:g}, drawn {DIRICHLET_DRAWS} times,",
        "fewer clients, a larger alpha, or more rows (train_rows)",
    )
    return owner


def by_key(keys: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """One client for each key, in sorted order: their names and the owners."""
    names, owner = np.unique(np.asarray(keys, dtype=np.str_), return_inverse=True)
    return tuple(str(name) for name in names), owner.astype(np.int64)


def equal_parts(num_rows: int, num_parts: int, part_rows: int | None = None) -> IntArray:
    """Consecutive parts of equal size, in the order of the rows; what is left over is owned by -1.

    Args:
        num_rows: how many rows there are.
        num_parts: how many parts to cut.
        part_rows: rows of one part; as many as possible by default.
    """
    size = num_rows // num_parts if part_rows is None else part_rows
    owner = np.arange(num_rows) // max(size, 1)
    return np.where((owner < num_parts) & (size > 0), owner, -1)


def members(owner: IntArray, num_clients: int) -> list[IntArray]:
    """The rows of each client, ascending; views of one array."""
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=num_clients))[:-1]
    return np.split(order, ends)


def client_names(num_clients: int) -> tuple[str, ...]:
    """`client-1` and so on, padded so that names sort like numbers."""
    width = len(str(num_clients))
    return tuple(f"client-{number:0{width}d}" for number in range(1, num_clients + 1))


def refuse_empty(owner: IntArray, num_clients: int, partition: str, cure: str) -> None:
    """Check that every client holds a row.

    Raises:
        DataError: one does not; the first few are named.
    """
    empty = _empty(owner, num_clients)
    if empty.size:
        first = ", ".join(str(number + 1) for number in empty[:5]) + (", ..." if empty.size > 5 else "")
        raise DataError(
            f"data.partition: {partition} leaves {empty.size} of {num_clients} clients without a row "
            f"(client {first}; {owner.size} rows in all). Use {cure}."
        )


def _empty(owner: IntArray, num_clients: int) -> IntArray:
    return np.flatnonzero(np.bincount(owner, minlength=num_clients) == 0)


def _refuse_fewer_rows(num_rows: int, num_clients: int) -> None:
    if num_rows < num_clients:
        raise DataError(
            f"data.partition: {num_rows} training rows cannot give each of {num_clients} clients one. "
            f"Set clients to at most {num_rows}, or use more rows (train_rows)."
        )
