"""Mean of each coordinate without its smallest and its largest values: a few lying clients move it little.

Paper: Yin et al. 2018, https://arxiv.org/abs/1803.01498 (definition 2).

Of n updates, k = floor(trim n) are cut at each end of every coordinate, and one at least. With at most k
updates of any content, the result lies between the smallest and the largest honest value of each coordinate.

Every update counts alike: a weight is what a client says of itself, and one that lies would say a large one.
All updates are held at once: n times the memory of one, and about 32 MiB to sort in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.records import Array

NEEDS_SINGLE = True
"""It reads single updates, in the clear: sums that are masked, or private only as sums, cannot use it."""


class Config(PluginConfig):
    """Options of the trimmed mean."""

    trim: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="share of the updates cut at each end, but at least one",
    )


class TrimmedMean:
    """See the module."""

    minimum = 3
    """Fewest updates: one is left when one is cut at each end."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def cut(self, num_updates: int) -> int:
        """How many of so many are cut at each end."""
        return max(1, int(self.config.trim * num_updates + 1e-9))  # 0.29 * 100 is a little below 29

    def fold(self, updates: Iterable[tuple[Mapping[str, Array], float]]) -> dict[str, Array]:
        """Arrays by name, in each array's own type.

        Raises:
            WireError: fewer than three updates.
        """
        from cotune.robust import by_column, held, middle_mean

        found = held(updates, self.minimum, "a trimmed mean")
        cut = self.cut(len(found))
        return by_column(found, lambda values: middle_mean(values, cut))


def build(config: Config) -> TrimmedMean:
    """The aggregator."""
    return TrimmedMean(config)
