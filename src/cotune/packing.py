"""Floats as integers of 8 or 4 bits that share a scale by groups, and only those that are worth sending.

A group is a stretch of a vector. Its scale is its largest size divided by the largest integer (127 or 7), and
a value is the nearest integer times the scale: one scale for a few dozen values, as in Dettmers et al. 2022
(https://arxiv.org/abs/2110.02861) and Frantar et al. 2022 (https://arxiv.org/abs/2210.17323).

**Why packing twice changes nothing.** A scale is cut to 17 significant bits and an integer has at most 7, so
their product is exact in the 24 bits of float32. The largest size in a group is then exactly 127 (or 7)
scales, and dividing it by 127 gives the same scale again. So rounded values alone say how they are packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cotune.errors import WireError
from cotune.records import Array

Floats = npt.NDArray[np.float32]
_LOW_BITS = np.uint32(0x7F)
"""What is cut off the 24 bits of a scale; 17 are left."""
SMALLEST = 2.0**-100
"""Scales below are zero: a float32 that is close to nothing has no room for 24 bits."""
SHRINK = 1 - 2.0**-30
"""What is shortened becomes so much shorter, for sums of squares are rounded too."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a vector of float32 is packed.

    bits: of one integer, 8 or 4; group: values that are sent for each scale; keep: share of the values that
    is sent at most, the largest ones.
    """

    bits: int
    group: int
    keep: float = 1.0

    @property
    def levels(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    @property
    def width(self) -> int:
        """How many neighbours in the vector share a scale; `group` of them are sent on average."""
        return max(self.group, round(self.group / self.keep))

    def most(self, num_values: int) -> int:
        """How many values of so many are sent at most."""
        return num_kept(num_values, self.keep)

    def bytes_per_value(self) -> float:
        """Bytes on the wire for each value, at most; names and header, below 300 bytes, come on top."""
        places = 0.0 if self.keep == 1 else min(1 / 8, 4 * self.keep)
        return self.keep * self.bits / 8 + 4 / self.width + places

    def rounded(self, values: Floats, longest: float | None = None) -> Floats:
        """What of finite `values` [n] is sent, zero for what is not.

        longest: the L2 norm is not to exceed this; where it would, all scales shrink alike.
        """
        codes, scales = self._coded(self._largest(values))
        sent = self._decoded(codes, scales)
        length = norm(sent)
        if longest is None or length <= longest:
            return sent
        return self._decoded(codes, _cut(scales * (longest / length * SHRINK)))

    def pack(self, values: Floats) -> dict[str, Array]:
        """`values` [n], which `rounded` has returned, in few bytes.

        Returns:
            codes: int8 [sent], or uint8 [sent / 2] with the earlier value in the lower half of a byte;
            scales: float32 [n / width]; where not all are sent also the places of those that are, as `bitmap`
            (uint8 [n / 8], the first place in the highest bit) or `indices` (uint32 [sent], ascending),
            whichever is smaller.
        """
        codes, scales = self._coded(values)
        if self.keep == 1:
            return {"codes": self._narrow(codes), "scales": scales}
        indices = np.flatnonzero(codes)
        packed = {"codes": self._narrow(codes[indices]), "scales": scales}
        if math.ceil(len(values) / 8) <= 4 * len(indices):
            return {**packed, "bitmap": np.packbits(codes != 0)}
        return {**packed, "indices": indices.astype(np.uint32)}

    def unpack(self, arrays: Mapping[str, Array], num_values: int) -> Floats:
        """The vector [num_values] that was packed; its memory does not depend on what came.

        Raises:
            WireError: this is not a vector of that length, packed in this way.
        """
        places = [{"bitmap"}, {"indices"}] if self.keep < 1 else [set[str]()]
        if not any(arrays.keys() == {"codes", "scales"} | one for one in places):
            wanted = "codes, scales" + (", and bitmap or indices" if self.keep < 1 else "")
            raise WireError(f"packed arrays {sorted(arrays)[:4]!s:.80}; expected {wanted}")
        scales = _flat(arrays, "scales", np.float32, math.ceil(num_values / self.width))
        largest = float(np.finfo(np.float32).max) / self.levels
        if not ((scales >= 0) & (scales <= largest)).all():  # NaN is not above anything
            raise WireError("packed scales: a scale is negative or not finite")
        if self.keep == 1:
            return self._decoded(self._wide(arrays, num_values), scales)
        where = self._places(arrays, num_values)
        codes = np.zeros(num_values, np.int8)
        codes[where] = self._wide(arrays, len(where))
        return self._decoded(codes, scales)

    def _largest(self, values: Floats) -> Floats:
        """`values` with zeros for all but the largest."""
        kept = self.most(len(values))
        if kept == len(values):
            return values
        chosen = np.argpartition(np.abs(values), len(values) - kept)[len(values) - kept :]
        found = np.zeros_like(values)
        found[chosen] = values[chosen]
        return found

    def _coded(self, values: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
        """Integers [n] and scales [n / width]."""
        if not len(values):
            return np.zeros(0, np.int8), np.zeros(0, np.float32)
        starts = np.arange(0, len(values), self.width)
        scales = _cut(np.maximum.reduceat(np.abs(values), starts) / np.float32(self.levels))
        wide = self._widened(scales, len(values))
        codes = np.zeros_like(values)
        np.divide(values, wide, out=codes, where=wide > 0)
        np.rint(codes, out=codes)
        np.clip(codes, -self.levels, self.levels, out=codes)
        return codes.astype(np.int8), scales

    def _decoded(self, codes: npt.NDArray[np.int8], scales: Floats) -> Floats:
        return codes * self._widened(scales, len(codes)) + np.float32(0)  # no zero has a sign

    def _widened(self, scales: Floats, num_values: int) -> Floats:
        return np.repeat(scales, self.width)[:num_values]

    def _narrow(self, codes: npt.NDArray[np.int8]) -> Array:
        """Integers as they are sent."""
        if self.bits == 8:
            return codes
        even = np.zeros(len(codes) + len(codes) % 2, np.uint8)
        even[: len(codes)] = codes.view(np.uint8) & 0xF
        return even[::2] | (even[1::2] << 4)

    def _wide(self, arrays: Mapping[str, Array], num_codes: int) -> npt.NDArray[np.int8]:
        """So many integers out of what was sent."""
        if self.bits == 8:
            codes = _flat(arrays, "codes", np.int8, num_codes)
        else:
            sent = _flat(arrays, "codes", np.uint8, (num_codes + 1) // 2)
            halves = np.stack([sent << 4, sent & 0xF0], axis=1).ravel().view(np.int8) >> 4
            codes, rest = halves[:num_codes], halves[num_codes:]
            if rest.any():
                raise WireError("packed codes: the half byte after the last value is not zero")
        if (codes < -self.levels).any():
            raise WireError(f"packed codes: a value below {-self.levels}")
        return codes

    def _places(self, arrays: Mapping[str, Array], num_values: int) -> npt.NDArray[np.int64]:
        """Where in the vector the values belong that were sent, ascending."""
        if "bitmap" in arrays:
            bits = np.unpackbits(_flat(arrays, "bitmap", np.uint8, math.ceil(num_values / 8)))
            if bits[num_values:].any():
                raise WireError(f"packed bitmap: a place beyond the {num_values:,} values")
            places = np.flatnonzero(bits)
        else:
            places = _flat(arrays, "indices", np.uint32, None).astype(np.int64)
            if (np.diff(places) <= 0).any() or (places[-1:] >= num_values).any():
                raise WireError(f"packed indices: not ascending, repeated, or beyond {num_values:,} values")
        if len(places) > self.most(num_values):
            raise WireError(f"{len(places):,} packed values; expected {self.most(num_values):,} at most")
        return places


def num_kept(num_values: int, keep: float) -> int:
    """How many of so many values a share `keep` is, rounded up."""
    return min(num_values, math.ceil(keep * num_values - 1e-9))  # 0.07 * 100 is a little above 7


def norm(values: Array) -> float:
    """L2 norm, added up in float64."""
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))


def flat(arrays: Mapping[str, Array]) -> Floats:
    """All values in one vector, float32 [values], sorted by the arrays' names."""
    parts = [np.ravel(arrays[name]) for name in sorted(arrays)]
    return np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float32, copy=False)


def shaped(values: Floats, like: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of which `values` is `flat`, in the order of `like`."""
    names = sorted(like)
    ends = np.cumsum([np.size(like[name]) for name in names])[:-1].tolist()
    parts = dict(zip(names, np.split(values, ends), strict=True)) if names else {}
    return {name: parts[name].reshape(np.shape(array)) for name, array in like.items()}


def _cut(scales: Array) -> Floats:
    """Scales of 17 significant bits, rounded down, so that no value becomes larger."""
    narrow = scales.astype(np.float32)
    cut = (narrow.view(np.uint32) & ~_LOW_BITS).view(np.float32)
    return np.where(cut < SMALLEST, np.float32(0), cut)


def _flat(arrays: Mapping[str, Array], name: str, kind: type, length: int | None) -> Array:
    """One array that came.

    Raises:
        WireError: it has another type, shape or length.
    """
    array = arrays[name]
    if array.dtype != kind or array.ndim != 1 or (length is not None and len(array) != length):
        wanted = "" if length is None else f"{length:,}"
        raise WireError(
            f"packed {name}: {array.dtype}{array.shape}; expected {np.dtype(kind)}[{wanted}]. "
            "Do client and server have the same options of quantize, and the same adapter?"
        )
    return array
