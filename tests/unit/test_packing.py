"""Packed vectors: bits by hand, and bytes of others that are refused or do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.errors import WireError
from cotune.packing import Coding, num_kept


def test_places_by_hand():
    """Places 0 and 9 of 16: 2 bytes as a bitmap, 8 as indices. Place 40 of 64: 8 bytes and 4."""
    packed = Coding(8, 2, 0.125).pack(np.array([127, *[0] * 8, 127, *[0] * 6], np.float32))
    assert packed["bitmap"].tolist() == [0b1000_0000, 0b0100_0000]
    assert packed["codes"].tolist() == [127, 127]
    one = np.zeros(64, np.float32)
    one[40] = -2
    packed = Coding(8, 2, 0.02).pack(one)
    assert (packed["indices"].tolist(), packed["indices"].dtype) == ([40], np.uint32)
    assert packed["codes"].tolist() == [-127]


def genuine(keep: float, bits: int = 8, size: int = 100):
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    coding = Coding(bits, 8, keep)
    return coding, coding.pack(coding.rounded(values))


def changed(name, value):
    return lambda packed: {**packed, name: value(packed[name])}


BAD = {
    "no codes": (1.0, lambda p: {"scales": p["scales"]}, "expected codes, scales"),
    "nothing": (1.0, lambda p: {}, "expected codes, scales"),
    "one more": (1.0, lambda p: {**p, "x": p["codes"]}, "expected codes, scales"),
    "places of all": (1.0, lambda p: {**p, "bitmap": np.zeros(13, np.uint8)}, "expected codes, scales"),
    "no places": (0.2, lambda p: {k: p[k] for k in ("codes", "scales")}, "and bitmap or indices"),
    "both places": (0.2, lambda p: {**p, "indices": np.zeros(0, np.uint32)}, "and bitmap or indices"),
    "few codes": (1.0, changed("codes", lambda a: a[1:]), r"int8\(99,\); expected int8\[100\]"),
    "codes of another type": (1.0, changed("codes", lambda a: a.astype(np.float32)), "expected int8"),
    "codes of another shape": (1.0, changed("codes", lambda a: a.reshape(10, 10)), "expected int8"),
    "-128": (1.0, changed("codes", lambda a: np.full_like(a, -128)), "below -127"),
    "many scales": (1.0, changed("scales", lambda a: np.tile(a, 2)), r"expected float32\[13\]"),
    "half scales": (1.0, changed("scales", lambda a: a.astype(np.float16)), "expected float32"),
    "a negative scale": (1.0, changed("scales", lambda a: -a), "negative or not finite"),
    "a scale NaN": (1.0, changed("scales", lambda a: a * np.float32(np.nan)), "negative or not finite"),
    "a huge scale": (1.0, changed("scales", lambda a: a * 0 + np.float32(3e38)), "negative or not finite"),
    "a short bitmap": (0.2, changed("bitmap", lambda a: a[1:]), r"expected uint8\[13\]"),
    "a bit beyond": (0.2, changed("bitmap", lambda a: a | np.uint8(1)), "a place beyond the 100 values"),
    "a full bitmap": (0.2, changed("bitmap", lambda a: np.packbits(np.ones(100, bool))), "20 at most"),
    "fewer places": (0.2, changed("bitmap", lambda a: a & np.uint8(0x0F)), "expected int8"),
    "an index beyond": (0.02, changed("indices", lambda a: a + np.uint32(100)), "beyond 100 values"),
    "an index twice": (0.02, changed("indices", lambda a: a * 0), "repeated"),
    "indices turned": (0.02, changed("indices", lambda a: a[::-1].copy()), "not ascending"),
    "signed indices": (0.02, changed("indices", lambda a: a.astype(np.int32)), "expected uint32"),
    "many indices": (0.02, changed("indices", lambda a: np.arange(100, dtype=np.uint32)), "2 at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_packed_like_this_is_refused(case):
    keep, change, words = BAD[case]
    coding, packed = genuine(keep)
    assert len(coding.unpack(packed, 100)) == 100
    with pytest.raises(WireError, match=words):
        coding.unpack(change(packed), 100)


@pytest.mark.parametrize(("size", "byte", "words"), [(3, 0x10, "half byte"), (4, 0x80, "below -7")])
def test_half_bytes_that_cannot_be_are_refused(size, byte, words):
    coding, packed = genuine(1.0, 4, size)
    packed["codes"][-1] = byte
    with pytest.raises(WireError, match=words):
        coding.unpack(packed, size)


@given(st.sampled_from([(1.0, 8), (1.0, 4), (0.2, 4), (0.02, 8)]), st.data())
def test_flipped_bytes_are_refused_or_give_a_finite_vector(form, data):
    coding, packed = genuine(*form)
    name = data.draw(st.sampled_from(sorted(packed)))
    raw = bytearray(packed[name].tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = coding.unpack({**packed, name: np.frombuffer(raw, packed[name].dtype)}, 100)
    except WireError:
        return
    assert found.shape == (100,)
    assert np.isfinite(found).all()


def test_a_share_of_values_is_rounded_up():
    assert [num_kept(n, k) for n, k in ((0, 0.5), (1, 0.01), (100, 0.07), (101, 0.5), (3, 1.0))] == [
        0,
        1,
        7,
        51,
        3,
    ]
