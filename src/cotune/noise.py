"""Gaussian noise out of a key stream, which nobody can foretell or take off without the secret.

Words come from the cipher of `masks.py` under a key of 256 bits, since noise of a generator that was not
made to resist analysis might be taken off again. Box and Muller 1958 turn two words into two normal numbers;
the largest of these is below `REACH`, so that what is noised has a hard bound and needs no clamping. An
ideal normal number lies beyond it with probability 2e-21.

**Noise follows from what it hides.** The key is derived from the secret, the purpose, the deviation and the
values themselves. A round done again with the same values gives the same numbers, which tell nobody more.
With *other* values, or another deviation, it gives unrelated noise: if it did not, the difference of two
replies would be free of noise. Without the secret, the noise cannot be told from one that does not depend on
the values.

**Floating point.** Mironov 2012, https://doi.org/10.1145/2382196.2382264, shows that the gaps between
numbers which a sampler can give betray the value under the noise. Here sums of value and noise are rounded
to a grid that does not depend on the values, 2^-17 to 2^-16 of the deviation wide. Some 2^36 results of
float64 fall into each cell where the numbers are likely, so which results are possible no longer depends on
the value; how likely they are is right to about that precision. That is an argument, no proof; exact
samplers (Canonne et al. 2020, https://arxiv.org/abs/2004.00010) would give one, more slowly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cotune.masks import KEY_BYTES, masked
from cotune.records import Array

REACH = 9.5
"""No normal number made here is larger: sqrt(-2 ln 2^-65) = 9.493."""
FINENESS = 16
"""Noised values are rounded to 2^-16 of the power of two below the deviation."""


def noised(
    arrays: Mapping[str, Array], deviation: float, secret: bytes, purpose: tuple[str, ...]
) -> dict[str, Array]:
    """Arrays with independent Gaussian noise on every value, float32.

    Args:
        arrays: float32 by name.
        deviation: standard deviation of the noise; 0 leaves everything as it is.
        secret: 16 to 64 bytes that the noise cannot be found without.
        purpose: what the noise is for; other words give unrelated noise.
    """
    if deviation == 0:
        return dict(arrays)
    step = 2.0 ** (math.floor(math.log2(deviation)) - FINENESS)
    key = _derived(secret, *(word.encode() for word in (*purpose, deviation.hex())), _digest(arrays))
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        total = gaussian(_derived(key, name.encode()), array.size) * deviation + array.ravel()
        found[name] = (np.rint(total / step) * step).astype(np.float32).reshape(array.shape)
    return found


def gaussian(key: bytes, size: int) -> npt.NDArray[np.float64]:
    """Standard normal numbers [size] that follow from a key of 32 bytes; a key is for one use."""
    words = masked([np.zeros(2 * ((size + 1) // 2), "<u8")], [key])[0]
    return normal(words)[:size]


def normal(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Standard normal numbers out of uniform 64-bit words, an even number of them: [words]."""
    half = len(words) // 2
    radius = words[:half].astype(np.float64)
    radius += 0.5  # never zero, whose logarithm there is not
    radius *= 2.0**-64
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = words[half:] * (2.0**-63 * math.pi)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _digest(arrays: Mapping[str, Array]) -> bytes:
    """32 bytes that stand for names and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], "<f4")
        digest.update(_framed(name.encode(), str(array.shape).encode()))
        digest.update(array.data)
    return digest.digest()


def _derived(secret: bytes, *words: bytes) -> bytes:
    """A key of 32 bytes for these words; another list of words gives an unrelated one."""
    return hashlib.blake2b(_framed(*words), key=secret, digest_size=KEY_BYTES).digest()


def _framed(*words: bytes) -> bytes:
    """Words joined so that no other words give the same bytes."""
    return b"".join(len(word).to_bytes(8, "big") + word for word in words)
