"""Median of each coordinate: right as long as fewer than half of the clients lie.

Paper: Yin et al. 2018, https://arxiv.org/abs/1803.01498 (definition 1).

Of an even number of updates it is the mean of the two in the middle. While fewer than half may be of any
content, the result lies between the smallest and the largest honest value of each coordinate.

Every update counts alike: a weight is what a client says of itself, and one that lies would say a large one.
All updates are held at once: n times the memory of one, and about 32 MiB to sort in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cotune.plugins import PluginConfig
from cotune.records import Array

NEEDS_SINGLE = True
"""It reads single updates, in the clear: sums that are masked, or private only as sums, cannot use it."""


class Config(PluginConfig):
    """No options."""


class Median:
    """See the module."""

    minimum = 3
    """Fewest updates: of two, a lying one would move the result as far as it likes."""

    def fold(self, updates: Iterable[tuple[Mapping[str, Array], float]]) -> dict[str, Array]:
        """Arrays by name, in each array's own type.

        Raises:
            WireError: fewer than three updates.
        """
        from cotune.robust import by_column, held, middle_mean

        found = held(updates, self.minimum, "a median")
        cut = (len(found) - 1) // 2
        return by_column(found, lambda values: middle_mean(values, cut))


def build(_config: Config) -> Median:
    """The aggregator."""
    return Median()
