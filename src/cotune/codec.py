"""Message <-> bytes: safetensors for the arrays, JSON for everything else. Never pickle.

Layout: an unsigned 64-bit little-endian length, that many bytes of JSON, then the arrays as one safetensors
block. Decoding trusts nothing: every length is checked before it is used, and what is small on the wire but
large in memory (values, names, shapes, nesting) has a limit. Decoding takes at most 10 times the message and
320 MiB. What would be refused when it comes is already refused when it is sent.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from cotune.errors import WireError
from cotune.records import Array, Message

MAX_BYTES = 1 << 31
"""Largest message; adapters are a thousandth of this."""
MAX_JSON = 1 << 26
MAX_VALUES = 1 << 21
"""Names and values in a head, counted by the marks between them; in memory one takes up to 90 bytes."""
MAX_DEPTH = 64
"""Lists in lists, so that whatever walks through facts has stack enough."""
MAX_HEADER = 1 << 22
"""Bytes of names, types and shapes of arrays; in memory they take 33 times as much."""

_LENGTH = struct.Struct("<Q")
_FIELDS = {"client": str, "round": int, "action": str, "facts": dict}
_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    SafetensorError,
)


def encode(message: Message) -> bytes:
    """Bytes of a message.

    Raises:
        WireError: facts are not plain JSON, an array has an unsupported type, or it is too large.
    """
    head = {name: getattr(message, name) for name in _FIELDS}
    try:
        text = json.dumps(head, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        raw = text.encode("utf-8", "surrogatepass")  # half a pair of surrogates is text to JSON, too
        arrays = {name: np.asarray(array, order="C") for name, array in message.arrays.items()}
        body = save_arrays(arrays)
        _check_sizes(raw, body)
        _check_depth(head)
        _check_types(arrays)
    except _ERRORS as error:
        raise WireError(
            f"message {message.action!r} of {message.client!r} cannot be encoded: {error}"
        ) from error
    size = _LENGTH.size + len(raw) + len(body)
    if size > MAX_BYTES:
        largest = max(message.arrays, key=lambda name: message.arrays[name].nbytes)
        raise WireError(
            f"message {message.action!r} has {size:,} bytes, limit {MAX_BYTES:,}; largest: {largest!r}. "
            "Lower lora.rank or adapt fewer layers."
        )
    return b"".join((_LENGTH.pack(len(raw)), raw, body))


def decode(data: bytes) -> Message:
    """The message in `data`.

    Raises:
        WireError: the bytes are not one well-formed message.
    """
    if not _LENGTH.size <= len(data) <= MAX_BYTES:
        raise WireError(f"message of {len(data):,} bytes; expected {_LENGTH.size} to {MAX_BYTES:,}")
    (length,) = _LENGTH.unpack_from(data)
    if length > min(MAX_JSON, len(data) - _LENGTH.size):
        raise WireError(f"message head claims {length:,} bytes; {len(data) - _LENGTH.size:,} are there")
    end = _LENGTH.size + length
    raw, body = data[_LENGTH.size : end], data[end:]
    try:
        _check_sizes(raw, body)
        text = raw.decode("utf-8", "surrogatepass")  # left to itself, json also reads UTF-16 and UTF-32
        head = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
        _check_depth(head)
        arrays = load_arrays(body)
        _check_types(arrays)
    except _ERRORS as error:
        raise WireError(f"message cannot be decoded: {error!s:.300}") from error
    if not isinstance(head, dict) or head.keys() != _FIELDS.keys():
        raise WireError(f"message head must have exactly {', '.join(_FIELDS)}")
    for name, kind in _FIELDS.items():
        if type(head[name]) is not kind:
            raise WireError(f"message {name} must be {kind.__name__}, got {type(head[name]).__name__}")
    return Message(arrays=arrays, **head)


def _check_sizes(raw: bytes, body: bytes) -> None:
    """Refuse what would take far more memory than its bytes; nothing has been parsed yet."""
    if len(raw) > MAX_JSON:
        raise ValueError(f"a head of {len(raw):,} bytes, limit {MAX_JSON:,}")
    values = sum(map(raw.count, (b"{", b"[", b":", b",")))
    if values > MAX_VALUES:
        raise ValueError(f"a head with {values:,} marks of names and values, limit {MAX_VALUES:,}")
    header = int.from_bytes(body[: _LENGTH.size], "little")
    if header > MAX_HEADER:
        raise ValueError(f"names and shapes of arrays claim {header:,} bytes, limit {MAX_HEADER:,}")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [each for some in inner for each in some if isinstance(each, dict | list | tuple)]
        if not level:
            return
    raise ValueError(f"facts nested more than {MAX_DEPTH} deep")


def _check_types(arrays: Mapping[str, Array]) -> None:
    """Whole and floating-point numbers, and booleans whose bytes are 0 or 1."""
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name:.80}: {array.dtype} is no type of real numbers")
        if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise ValueError(f"{name:.80}: a boolean is neither 0 nor 1")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits:.40} is too large for a number")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not allowed")
