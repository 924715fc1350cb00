"""How many examples lie near each one: the mean of a kernel over all, exact or from sketches that add up.

Paper: Sachdeva et al. 2024 (Density), https://arxiv.org/abs/2402.09668; the sketch is that of Coleman and
Shrivastava 2020, https://arxiv.org/abs/1912.02283.

The score is the density itself, in (0, 1]: `top_k` takes the
crowded end, `end: low` the rare one, and `inverse_propensity` spreads evenly, which is what the paper means
(its printed algorithm samples in proportion to the density).

The kernel is exp(-distance / bandwidth) between features of length 1. A table of the sketch hashes
every point by `HASHES` random projections cut into steps; the chance that two points share a bucket is nearly
that kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Pool, Reader
from cotune.ranking import by_pool, tellers
from cotune.records import Array, derived_rng

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cotune.ranking import Rows, Scores

NEEDS = frozenset({"features"})

LADDER = tuple(2.0**power for power in range(-6, 2))
"""Bandwidths a sketch is made for when none is set: all clients must agree on them before anybody looks."""
HASHES = 4
BLOCK = 512
"""Rows that are hashed, or held against all others, at once."""
SAMPLE = 2000
"""Rows, evenly spaced, from which the median distance is taken."""

Tick = Callable[[int], None]
"""Told how many points are done."""


class Config(PluginConfig):
    """Options of density."""

    method: Literal["sketch", "exact"] = Field(
        "sketch",
        description="sketch: among all clients' examples, by summed counts; exact: among a client's own",
    )
    bandwidth: float | None = Field(
        None,
        gt=0,
        description="of features of length 1; null: the median distance (sketch: nearest power of 2)",
    )
    tables: int = Field(64, gt=0, description="hash tables of the sketch for each bandwidth")
    buckets: int = Field(256, gt=1, description="counts in each table")
    exact_up_to: int = Field(
        20_000, gt=0, description="a client with more examples sketches them, even if exact"
    )
    dimensions: int | None = Field(
        128, gt=0, description="features are projected to so many; null: as they are"
    )
    seed: int = Field(
        0,
        ge=0,
        description="of projections and hashes; the same on all clients; with FedHDS's, texts are read once "
        "for both",
    )


class Density:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ladder = (config.bandwidth,) if config.bandwidth else LADDER

    def template(self) -> Mapping[str, Array]:
        """Counts [tables, buckets], tables of one bandwidth after those of the one before it."""
        import numpy as np

        if self.config.method == "exact":
            return {}
        return {"counts": np.zeros((len(self.ladder) * self.config.tables, self.config.buckets))}

    def share(self, pools: Sequence[Pool], reader: Reader) -> list[Mapping[str, Array]]:
        """Each pool's own counts."""
        if self.config.method == "exact":
            return [{} for _ in pools]
        found, ticks = self._features(pools, reader), tellers(pools, "hashing")
        return [{"counts": self.sketch(x, tick)} for x, tick in zip(found, ticks, strict=True)]

    def score(self, pools: Sequence[Pool], reader: Reader, shared: Mapping[str, Array]) -> list[Scores]:
        """Density at each example; NaN where its features are not finite."""
        found, ticks = self._features(pools, reader), tellers(pools, "comparing")
        if self.config.method == "sketch":
            return [self.read(shared["counts"], x, tick) for x, tick in zip(found, ticks, strict=True)]
        return [self._own(x, tick) for x, tick in zip(found, ticks, strict=True)]

    def sketch(self, x: Scores, tick: Tick = lambda _: None) -> Scores:
        """How many points of [n, dimensions] fall into each bucket, [tables, buckets]; whole numbers, so that
        sums are exact."""
        import numpy as np

        counts = np.zeros(len(self.ladder) * self.config.tables * self.config.buckets, np.int64)
        for _, places in self._hashed(x, tick):
            inside = places + np.arange(places.shape[1]) * self.config.buckets
            counts += np.bincount(inside.ravel(), minlength=len(counts))
        return counts.reshape(-1, self.config.buckets).astype(np.float64)

    def read(self, counts: Scores, x: Scores, tick: Tick = lambda _: None) -> Scores:
        """Density at each point of [n, dimensions], of counts [tables, buckets] that hold it and others, [n].

        Of several bandwidths, the one under which two points share a bucket with a chance nearest to 1/e is
        read: for an exact kernel that is about the median distance. What chance alone puts together is taken
        off. NaN for a point that is not finite.
        """
        import numpy as np

        found, total, noise = np.full(len(x), np.nan), counts[0].sum(), 1 / counts.shape[1]
        if not total:
            return found
        groups = np.split(np.arange(len(counts)), len(self.ladder))
        together = np.square(counts / total).sum(axis=1)
        chance = [(together[group].mean() - noise) / (1 - noise) for group in groups]
        group = groups[int(np.argmin(np.abs(np.asarray(chance) - np.exp(-1))))]
        for rows, places in self._hashed(x, tick):
            shares = counts[group, places[:, group]].mean(axis=1) / total
            found[rows] = np.clip((shares - noise) / (1 - noise), 1 / total, 1.0)
        return found

    def _hashed(self, x: Scores, tick: Tick) -> Iterator[tuple[Rows, npt.NDArray[np.int64]]]:
        """Some finite rows of [n, dimensions] at a time, and their bucket in each table, [rows, tables]."""
        import numpy as np

        rng = derived_rng(self.config.seed, "density")
        num_tables = len(self.ladder) * self.config.tables
        steps = np.repeat(np.asarray(self.ladder), self.config.tables) * HASHES * np.sqrt(2 / np.pi)
        lines = rng.standard_normal((x.shape[1], num_tables, HASHES)) / steps[:, None]
        offsets = rng.random((num_tables, HASHES))
        factors = rng.integers(2**63, size=(num_tables, HASHES), dtype=np.uint64) * 2 + 1
        rows = np.flatnonzero(np.isfinite(x).all(axis=1))
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            cells = np.floor(np.tensordot(x[part], lines, axes=1) + offsets).astype(np.int64)
            mixed = (cells.astype(np.uint64) * factors).sum(axis=2, dtype=np.uint64)
            yield part, ((mixed >> np.uint64(33)) % np.uint64(self.config.buckets)).astype(np.int64)
            tick(start + len(part))

    def _features(self, pools: Sequence[Pool], reader: Reader) -> list[Scores]:
        """[examples, dimensions] of each pool, float64, of length 1."""
        import numpy as np

        texts = [example.prompt + example.completion for pool in pools for example in pool.examples]
        if not texts:
            return [np.zeros((0, 1)) for _ in pools]
        x = reader.features(texts, self.config.dimensions, self.config.seed).astype(np.float64)
        for start in range(0, len(x), BLOCK):
            part = x[start : start + BLOCK]
            lengths = np.sqrt(np.square(part).sum(axis=1, keepdims=True))
            np.divide(part, lengths, out=part, where=lengths != 0)
        return by_pool(x, pools)

    def _own(self, x: Scores, tick: Tick) -> Scores:
        if len(x) > self.config.exact_up_to:
            return self.read(self.sketch(x), x, tick)
        return exact(x, self.config.bandwidth, tick)


def exact(x: Scores, bandwidth: float | None, tick: Tick = lambda _: None) -> Scores:
    """Mean of exp(-distance / bandwidth) over all points, itself among them, [n]; blocks of rows at a time.

    Without a bandwidth it is the median distance between two points. NaN for a point that is not finite.
    """
    import numpy as np

    found = np.full(len(x), np.nan)
    rows = np.flatnonzero(np.isfinite(x).all(axis=1))
    points = x[rows]
    if not len(rows):
        return found
    width = bandwidth or median_distance(points)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        apart = distances(points[part], points)
        found[rows[part]] = np.exp(-apart / width).mean(axis=1) if width else (apart == 0).mean(axis=1)
        tick(start + len(apart))
    return found


def median_distance(points: Scores) -> float:
    """Of all pairs of rows; of `SAMPLE` evenly spaced rows where there are more. 0 for one point."""
    import numpy as np

    some = points[np.linspace(0, len(points) - 1, min(len(points), SAMPLE)).astype(np.int64)]
    pairs = distances(some, some)[np.triu_indices(len(some), 1)]
    return float(np.median(pairs)) if len(pairs) else 0.0


def distances(left: Scores, right: Scores) -> Scores:
    """Euclidean, [left, right]; what rounding leaves of a distance of 0 is 0."""
    import numpy as np

    squares = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1) - 2 * left @ right.T
    return np.sqrt(np.where(squares > 1e-12, squares, 0.0))


def build(config: Config) -> Density:
    """The score."""
    return Density(config)
