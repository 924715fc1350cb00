"""Masks against the published test vectors, and by statistics."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chisquare

from cotune.errors import WireError
from cotune.masks import CHUNK, masked, pair_key, public_of

KEY = bytes(range(32))


def stream(key: bytes, size: int) -> bytes:
    """The key stream in one piece, from single blocks of AES: E(0), E(1), ..."""
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return cipher.update(b"".join(i.to_bytes(16, "big") for i in range(-(-size // 16))))[:size]


@pytest.mark.parametrize("kind", ["<u2", "<u4", "<u8"])
@pytest.mark.parametrize("size", [0, 1, 7, CHUNK // 8 + 3])
def test_a_mask_is_the_key_stream_of_the_counter(kind, size):
    zeros = np.zeros(size, kind)
    expected = np.frombuffer(stream(KEY, zeros.nbytes), kind)
    assert (masked([zeros], [KEY])[0] == expected).all()
    assert (masked([zeros], [], [KEY])[0] == zeros - expected).all()


def test_known_answer_of_aes_256():
    """FIPS 197, appendix C.3, key 00..1f: the block 00112233..ff; by it the block cipher above is AES-256."""
    cipher = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert cipher.update(block).hex() == "8ea2b7ca516745bfeafc49904b496089"


def test_arrays_take_consecutive_stretches_of_the_stream():
    words, extras = masked([np.zeros(6, np.uint32), np.zeros(2, np.uint64)], [KEY])
    assert words.tobytes() + extras.tobytes() == stream(KEY, 40)


def test_what_is_added_can_be_taken_away_and_arguments_stay():
    given = np.arange(1000, dtype=np.uint32)
    keys = [bytes([i]) * 32 for i in range(5)]
    under = masked([given], keys[:3], keys[3:])
    assert (masked(under, keys[3:], keys[:3])[0] == given).all()
    assert (under[0] != given).any()
    assert given.tolist() == list(range(1000))


def test_a_mask_looks_uniform():
    """256 values of each of the four bytes, 200,000 draws each; one key in 100,000 would fail."""
    words = masked([np.zeros(200_000, np.uint32)], [KEY])[0]
    for column in words.view(np.uint8).reshape(-1, 4).T:
        assert chisquare(np.bincount(column, minlength=256)).pvalue > 1e-5


def test_masks_of_two_keys_are_unrelated():
    first, second = (masked([np.zeros(100_000, np.uint32)], [bytes([i]) * 32])[0] for i in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(100_000)
    assert not (first == second).sum() > 3


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        masked([np.zeros(3, np.uint32)], [b"short"])


def test_both_sides_agree_and_purpose_and_salt_part_keys():
    one = bytes(range(32))
    other = bytes(range(1, 33))
    assert pair_key(one, public_of(other), b"s", b"p") == pair_key(other, public_of(one), b"s", b"p")
    keys = {pair_key(one, public_of(other), salt, why) for salt in (b"s", b"t") for why in (b"p", b"q")}
    assert len(keys) == 4


@pytest.mark.parametrize("public", [bytes(32), b"short"])
def test_a_key_that_gives_everybody_the_same_is_refused(public):
    with pytest.raises(WireError, match="no key to agree on"):
        pair_key(bytes(range(32)), public, b"", b"")


def test_a_million_parameters_under_eleven_masks_take_less_than_a_second():
    began = time.process_time()
    masked([np.zeros(1_000_000, np.uint32)], [bytes([i]) * 32 for i in range(11)])
    assert time.process_time() - began < 1
