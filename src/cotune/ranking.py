"""What scores and policies have in common: order, counts, and a score that a client computes on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cotune.protocols import Pool, Reader
from cotune.records import Array, Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores = npt.NDArray[np.float64]
    Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LocalScore:
    """A score that needs nothing from other clients: `compute` scores some pools."""

    compute: Callable[[Sequence[Pool], Reader], list[Scores]]

    def template(self) -> Mapping[str, Array]:
        """Nothing is summed."""
        return {}

    def share(self, pools: Sequence[Pool], reader: Reader) -> list[Mapping[str, Array]]:
        """Nothing is sent."""
        return [{} for _ in pools]

    def score(self, pools: Sequence[Pool], reader: Reader, shared: Mapping[str, Array]) -> list[Scores]:
        """[examples] of each pool."""
        return self.compute(pools, reader)


def tellers(pools: Sequence[Pool], what: str) -> Iterator[Callable[[int], None]]:
    """For each pool a function that takes how many of its examples are done and tells it as a part of all."""
    total, before = sum(len(pool.examples) for pool in pools), 0

    def tell(progress: Progress, others: int, done: int) -> None:
        progress(what, others + done, total)

    for pool in pools:
        yield partial(tell, pool.progress, before)
        before += len(pool.examples)


def by_pool(values: Scores, pools: Sequence[Pool]) -> list[Scores]:
    """Values of all examples of all pools, [sum of examples], cut into one array a pool."""
    import numpy as np

    ends = np.cumsum([len(pool.examples) for pool in pools])
    return np.split(values, ends[:-1])


def usable(scores: Scores) -> Rows:
    """Rows whose score is a number, in their own order."""
    import numpy as np

    return np.flatnonzero(~np.isnan(scores)).astype(np.int64)


def high_first(scores: Scores) -> Rows:
    """Usable rows, highest score first; equal ones in their own order."""
    import numpy as np

    rows = usable(scores)
    return rows[np.argsort(-scores[rows], kind="stable")]


def count_of(keep: float, total: int) -> int:
    """How many a share of `total` rows is: the nearest whole number, at least one if there is any."""
    return min(total, max(1, int(keep * total + 0.5)))
