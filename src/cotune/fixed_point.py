"""Floats as integers modulo 2^bits, so that many clients' numbers can be added under masks without overflow.

**Why a sum cannot overflow.** Let n clients each give integers of size at most L = floor(M / n), where
M = 2^(bits-1) - 1. Then the true sum S of any m <= n of them has |S| <= n L <= M. The interval from -M to M
holds 2^bits - 1 integers, fewer than there are residues, so no two of its members are equal modulo 2^bits:
S is known exactly from S mod 2^bits, by reading the residue as a signed number. `Grid.encode` refuses what
lies beyond the bound, and cuts to L after rounding, so the premise always holds.

**What rounding costs.** One step is bound / L. A number is off by at most half a step (rounded to nearest) or
less than one (rounded at random, which is right on average), so a sum of m numbers by at most m times that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cotune.errors import ConfigError, DataError
from cotune.records import Array

KINDS: Mapping[int, Any] = {16: np.dtype("<u2"), 32: np.dtype("<u4"), 64: np.dtype("<u8")}
EXACT = 1 << 53
"""Beyond this a float64 skips integers."""
SLACK = 1e-6
"""How far above the bound a clipped value may lie, as a share of it: what rounding in float32 can do."""
CHUNK = 1 << 15
"""Values that are encoded at a time: they stay in the processor's cache."""
LARGEST_SUM = float(1 << 30)
"""Largest weight or metric of one client. With up to 1,024 clients its step is 2^-23: counts stay exact."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Which integers stand for the floats from -bound to bound, so that `num_clients` of them can be added.

    bits: of one integer, 16, 32 or 64; bound: largest size of one client's number.

    Raises:
        ConfigError: other bits, a bound that is not positive and finite, or more clients than integers.
    """

    bits: int
    bound: float
    num_clients: int

    def __post_init__(self) -> None:
        if self.bits not in KINDS:
            raise ConfigError(f"bits {self.bits}; expected one of {', '.join(map(str, KINDS))}")
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ConfigError(f"bound {self.bound}; expected a positive number")
        if self.num_clients < 1 or self.levels < 1:
            most = (1 << (self.bits - 1)) - 1
            raise ConfigError(f"{self.num_clients:,} clients; {self.bits} bits hold the sum of 1 to {most:,}")

    @property
    def levels(self) -> int:
        """L: the integer that stands for the bound."""
        return min(((1 << (self.bits - 1)) - 1) // self.num_clients, EXACT)

    @property
    def step(self) -> float:
        """What one unit stands for."""
        return self.bound / self.levels

    def encode(self, values: Array, rng: np.random.Generator | None = None, factor: float = 1.0) -> Array:
        """Integers modulo 2^bits for `values` times `factor`, of their shape; rounded at random with `rng`.

        Raises:
            DataError: a value is not finite or lies beyond the bound.
        """
        flat = np.ravel(values)
        coded = np.empty(len(flat), KINDS[self.bits])
        for start in range(0, len(flat), CHUNK):
            part = slice(start, start + CHUNK)
            coded[part] = self._rounded(flat[part], rng, factor)
        return coded.reshape(np.shape(values))

    def _rounded(self, values: Array, rng: np.random.Generator | None, factor: float) -> Array:
        """Signed integers of one stretch of values."""
        scaled = np.multiply(values, factor * (self.levels / self.bound), dtype=np.float64)
        largest = float(max(scaled.max(), -scaled.min()))
        if not largest <= self.levels * (1 + SLACK):  # NaN is not below anything
            worst = largest * self.step
            raise DataError(f"a value of size {worst:.6g}; expected at most {self.bound:.6g}: clip it first")
        if rng is not None:
            scaled += rng.random(scaled.shape, np.float32)
            np.floor(scaled, out=scaled)
        else:
            np.rint(scaled, out=scaled)
        np.clip(scaled, -self.levels, self.levels, out=scaled)
        # through int64: a negative float has no defined unsigned value
        return scaled.astype(np.int64)

    def decode(self, total: Array) -> npt.NDArray[np.float64]:
        """The sum that a residue modulo 2^bits stands for, float64 of the shape of `total`."""
        signed = np.ascontiguousarray(total, KINDS[self.bits]).view(f"<i{self.bits // 8}")
        return signed.astype(np.float64) * self.step

    def error(self, num_summed: int, *, is_random: bool = False) -> float:
        """How far the sum of so many encoded numbers can lie from the true one.

        Besides the steps, eight roundings of float64 are allowed for: 2^-50 of the bound for each number.
        """
        return num_summed * (self.step * (1.0 if is_random else 0.5) + self.bound * 2.0**-50)


class Encoded(NamedTuple):
    """What one client adds to the sum: `words` [values] for its arrays; `extras` [1 + sums] for numbers."""

    words: Array
    extras: Array


class Summed(NamedTuple):
    """A weighted mean of arrays by name, plain sums by name, and the weight and number of clients in them."""

    arrays: dict[str, Array]
    sums: dict[str, float]
    weight: float
    num_clients: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a client's arrays, its weight and its metrics stand in the vectors that are summed.

    shapes: name and shape of each array, sorted by name; sums: names of numbers that are added up; grid: of
    the arrays, whose bound is the clipping bound; largest_weight: of one client; is_random: whether arrays
    are rounded at random. Arrays are multiplied by weight / largest_weight <= 1 before they are encoded, so
    the clipping bound still holds.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    sums: tuple[str, ...]
    grid: Grid
    largest_weight: float = 1.0
    is_random: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.largest_weight <= LARGEST_SUM:
            raise ConfigError(f"largest_weight {self.largest_weight}; expected above 0, to {LARGEST_SUM:g}")

    @property
    def num_words(self) -> int:
        """Values of all arrays."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def extras(self) -> Grid:
        """The grid of weights and metrics."""
        return Grid(64, LARGEST_SUM, self.grid.num_clients)

    def encode(
        self,
        arrays: Mapping[str, Array],
        weight: float,
        sums: Mapping[str, float],
        rng: np.random.Generator | None = None,
    ) -> Encoded:
        """One client's contribution; `rng` is needed only if `is_random`.

        Raises:
            DataError: other names or shapes than laid out, a weight or value out of range.
        """
        if not 0 < weight <= self.largest_weight:
            raise DataError(f"weight {weight}; expected above 0 and at most {self.largest_weight}")
        if self.is_random and rng is None:
            raise DataError("rounding at random needs a generator; none was given")
        found = tuple((name, np.shape(arrays[name])) for name in sorted(arrays))
        if found != self.shapes:
            odd = sorted(map(str, set(found) ^ set(self.shapes)))[:1]
            raise DataError(f"other arrays than laid out, first difference {odd}")
        if sums.keys() != set(self.sums):
            raise DataError(
                f"other sums than laid out, first difference {min(sums.keys() ^ set(self.sums))!r}"
            )
        flat = [np.ravel(arrays[name]) for name, _ in self.shapes]
        values = np.concatenate(flat) if flat else np.zeros(0)
        numbers = np.array([weight, *(sums[name] for name in self.sums)], np.float64)
        chance = rng if self.is_random else None
        words = self.grid.encode(values, chance, weight / self.largest_weight)
        return Encoded(words, self.extras.encode(numbers))

    def decode(self, total: Encoded, num_clients: int) -> Summed:
        """What the unmasked vectors of so many clients say; arrays come back as float32.

        Raises:
            DataError: the weights do not add up to a positive number.
        """
        weight, *numbers = self.extras.decode(total.extras).tolist()
        if weight <= 0:
            raise DataError(f"weights add up to {weight}; expected a positive number")
        mean = self.grid.decode(total.words) * (self.largest_weight / weight)
        ends = np.cumsum([math.prod(shape) for _, shape in self.shapes])[:-1]
        parts: Sequence[Array] = np.split(mean, ends) if self.shapes else []
        arrays = {
            name: part.reshape(shape).astype(np.float32)
            for (name, shape), part in zip(self.shapes, parts, strict=True)
        }
        return Summed(arrays, dict(zip(self.sums, numbers, strict=True)), weight, num_clients)

    def error(self, weight: float, num_clients: int) -> float:
        """How far a value of the mean can lie from the true one, before it is rounded to float32.

        The first part is the rounding of the arrays; the second that of the weights they are divided by.
        """
        words = self.grid.error(num_clients, is_random=self.is_random) * self.largest_weight / weight
        return words + self.grid.bound * self.extras.error(num_clients) / weight
