"""The update that lies closest to its neighbours, or the mean of several such: clients far off are left out.

Paper: Blanchard et al. 2017, https://arxiv.org/abs/1703.02757 (section 4; Multi-Krum: section 5).

With n updates of which f = `num_rejected` may be of any content, an update's score is the sum of squared
distances to the n - f - 2 others that are closest to it. Those with the `keep` lowest scores are averaged; of
two with equal scores, the one comes first that is smaller in the first coordinate in which they differ, so
the order of the clients changes nothing.

Every update counts alike: a weight is what a client says of itself, and one that lies would say a large one.
All updates are held at once: n times the memory of one, about 32 MiB for differences, and n x n distances.
The time grows with n squared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cmp_to_key
from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.records import Array

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cotune.robust import Held

NEEDS_SINGLE = True
"""It reads single updates, in the clear: sums that are masked, or private only as sums, cannot use it."""


class Config(PluginConfig):
    """Options of Krum."""

    num_rejected: int = Field(1, ge=0, description="updates of any content that it withstands")
    keep: int = Field(1, ge=1, description="updates that are averaged; 1 is Krum, more is Multi-Krum")


class Krum:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def minimum(self) -> int:
        """Fewest updates: 2 f + 3, by the paper's proposition, and enough to keep."""
        return max(2 * self.config.num_rejected + 3, self.config.keep + self.config.num_rejected)

    def fold(self, updates: Iterable[tuple[Mapping[str, Array], float]]) -> dict[str, Array]:
        """Arrays by name, in each array's own type.

        Raises:
            WireError: too few updates.
        """
        from cotune.robust import by_column, held

        rejected, keep = self.config.num_rejected, self.config.keep
        found = held(updates, self.minimum, f"krum (num_rejected {rejected}, keep {keep})")
        scored: list[float] = scores(distances(found), rejected).tolist()

        def order(one: int, other: int) -> int:
            by_score = (scored[one] > scored[other]) - (scored[one] < scored[other])
            return by_score or compared(found[one], found[other])

        chosen = sorted(range(len(found)), key=cmp_to_key(order))[:keep]
        return by_column([found[place] for place in chosen], lambda values: values.mean(axis=1))


def distances(updates: Held) -> npt.NDArray[np.float64]:
    """Squared L2 distances between updates, float64 [clients, clients].

    Differences are taken before anything is squared, so that close updates far from zero are told apart.
    """
    import numpy as np

    from cotune.robust import columns

    total = np.zeros((len(updates), len(updates)))
    for name in sorted(updates[0]):
        for _, values in columns(updates, name):
            rows = np.ascontiguousarray(values.T)
            for place, row in enumerate(rows[:-1]):
                total[place, place + 1 :] += np.square(rows[place + 1 :] - row).sum(axis=1)
    found: npt.NDArray[np.float64] = total + total.T
    return found


def scores(distances: npt.NDArray[np.float64], num_rejected: int) -> npt.NDArray[np.float64]:
    """Sum of the distances of each update to its n - f - 2 closest others; [clients]."""
    import numpy as np

    others = distances + np.diag(np.full(len(distances), np.inf))
    nearest = np.sort(others, axis=1)[:, : len(distances) - num_rejected - 2]
    found: npt.NDArray[np.float64] = nearest.sum(axis=1)
    return found


def compared(one: Mapping[str, Array], other: Mapping[str, Array]) -> int:
    """-1 or 1: which update is smaller in the first coordinate in which they differ; 0: they are equal."""
    import numpy as np

    for name in sorted(one):
        places = np.flatnonzero(one[name] != other[name])
        if len(places):
            first = places[0]
            return -1 if one[name].flat[first] < other[name].flat[first] else 1
    return 0


def build(config: Config) -> Krum:
    """The aggregator."""
    return Krum(config)
