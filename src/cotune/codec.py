"""Message <-> bytes: safetensors for the arrays, JSON for everything else. Never pickle.

Layout: an unsigned 64-bit little-endian length, that many bytes of JSON, then the arrays as one safetensors
block. Decoding trusts nothing: every length is checked before it is used.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from cotune.errors import WireError
from cotune.records import Message

MAX_BYTES = 1 << 31
"""Largest message; adapters are a thousandth of this."""
MAX_JSON = 1 << 26

_LENGTH = struct.Struct("<Q")
_FIELDS = {"client": str, "round": int, "action": str, "facts": dict}


def encode(message: Message) -> bytes:
    """Bytes of a message.

    Raises:
        WireError: facts are not plain JSON, an array has an unsupported type, or it is too large.
    """
    head = {name: getattr(message, name) for name in _FIELDS}
    try:
        text = json.dumps(head, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        raw = text.encode("utf-8", "surrogatepass")  # as json.loads reads it
        body = save_arrays({name: np.asarray(array, order="C") for name, array in message.arrays.items()})
    except (TypeError, ValueError, KeyError, SafetensorError) as error:
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
    try:
        head = json.loads(data[_LENGTH.size : end], parse_constant=_refuse)
        arrays = load_arrays(data[end:])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise WireError(f"message cannot be decoded: {error}") from error
    if not isinstance(head, dict) or head.keys() != _FIELDS.keys():
        raise WireError(f"message head must have exactly {', '.join(_FIELDS)}")
    for name, kind in _FIELDS.items():
        if type(head[name]) is not kind:
            raise WireError(f"message {name} must be {kind.__name__}, got {type(head[name]).__name__}")
    return Message(arrays=arrays, **head)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not allowed")
