"""Secrets of 32 bytes cut into shares, any `threshold` of which give them back while fewer say nothing.

Paper: Shamir 1979, https://doi.org/10.1145/359168.359176. A secret is cut into 9 limbs of 30 bits; each
limb is the value at 0 of a random polynomial of degree threshold - 1 over the integers modulo the prime
2^31 - 1, and a share is its value at another point. Limbs this small multiply within 64 bits, so
that NumPy does the work; each is hidden on its own by coefficients of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cotune.errors import WireError

PRIME = (1 << 31) - 1
SECRET_BYTES = 32
LIMB_BITS = 30
LIMBS = 9
SHARE_BYTES = 4 * LIMBS

Randomness = Callable[[int], bytes]
"""So many bytes that nobody can foresee; `os.urandom` outside of tests."""
Limbs = npt.NDArray[np.uint64]


def split(
    secrets: Sequence[bytes], threshold: int, points: Sequence[int], randomness: Randomness
) -> list[list[bytes]]:
    """Shares of several secrets at several points.

    Args:
        secrets: 32 bytes each.
        threshold: how many shares give a secret back, 1 to the number of points.
        points: different numbers from 1 to 2^31 - 2, one for each holder.
        randomness: where the coefficients come from.

    Returns:
        For each point one share of 36 bytes of each secret, in order.

    Raises:
        ValueError: a secret of another length, or points or threshold out of range.
    """
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold}; expected 1 to {len(points)}, the number of points")
    limbs = np.array([_limbs(secret) for secret in secrets], np.uint64).reshape(len(secrets), LIMBS)
    coefficients = _uniform((threshold - 1) * limbs.size, randomness).reshape(threshold - 1, *limbs.shape)
    at = np.array(points, np.uint64)[:, None, None]
    values: Limbs = np.zeros((len(points), *limbs.shape), np.uint64)
    for coefficient in (*coefficients, limbs):  # Horner: highest power first, the secret last
        values = (values * at + coefficient) % np.uint64(PRIME)
    packed = values.astype("<u4")
    return [[share.tobytes() for share in holder] for holder in packed]


def join(points: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """The secret that shares at these points belong to; all that are given are used.

    Raises:
        WireError: a share of another length or out of range, or shares that belong to no secret of 32 bytes.
    """
    _check_points(points)
    if any(len(share) != SHARE_BYTES for share in shares):
        lengths = sorted({len(share) for share in shares})
        raise WireError(f"shares of {lengths} bytes; expected {SHARE_BYTES}")
    values = np.array([np.frombuffer(share, "<u4") for share in shares], np.uint64)
    if (values >= PRIME).any():
        raise WireError("a share holds a number that is not below 2^31 - 1")
    limbs = np.zeros(LIMBS, np.uint64)
    for weight, value in zip(_weights(np.array(points, np.uint64)), values, strict=True):
        limbs = (limbs + weight * value) % np.uint64(PRIME)
    number = sum(int(limb) << (LIMB_BITS * place) for place, limb in enumerate(limbs))
    if int(limbs.max()) >> LIMB_BITS or number >> (8 * SECRET_BYTES):
        raise WireError("these shares belong to no secret: one is wrong, or there are too few")
    return number.to_bytes(SECRET_BYTES, "little")


def _weights(points: Limbs) -> Limbs:
    """Lagrange's weights for the value at 0: the product of x_j / (x_j - x_i) over all other points j."""
    prime = np.uint64(PRIME)
    above = np.ones(len(points), np.uint64)
    below = np.ones(len(points), np.uint64)
    for place, point in enumerate(points):
        others = (point + prime - points) % prime
        others[place] = 1
        factors = np.full(len(points), point)
        factors[place] = 1
        above, below = above * factors % prime, below * others % prime
    inverse = np.array([pow(int(number), -1, PRIME) for number in below], np.uint64)
    return above * inverse % prime


def _limbs(secret: bytes) -> list[int]:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, this one {len(secret)}")
    number = int.from_bytes(secret, "little")
    return [(number >> (LIMB_BITS * place)) & ((1 << LIMB_BITS) - 1) for place in range(LIMBS)]


def _uniform(number: int, randomness: Randomness) -> Limbs:
    """So many numbers below the prime, each equally likely: 31 bits, drawn again if they are the prime."""
    found: Limbs = np.zeros(0, np.uint64)
    while len(found) < number:
        drawn = np.frombuffer(randomness(4 * (number - len(found))), "<u4").astype(np.uint64) & np.uint64(
            PRIME
        )
        found = np.concatenate((found, drawn[drawn != PRIME]))
    return found


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise ValueError("points must be different numbers from 1 to 2^31 - 2")
