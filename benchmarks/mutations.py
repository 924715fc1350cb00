"""Changes of a valid message: in its bytes, its JSON head, its table of arrays, its values."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cotune.codec import encode
from cotune.errors import WireError
from cotune.records import Message

POISON: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**400, -(10**400), 0.0, -0.5, 1e300, 1e-320, "", "x",
    "\ud800", "\0", "a" * 3000, "../..", [], {}, [[]], {"": 0}, [0] * 50, [None], {"adapter": {}}, "client-2",
    "tune",
)  # fmt: skip
RAW_POISON = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e400", b"1" * 5000, b"[" * 900 + b"]" * 900,
    b'"\\ud800"', b"[" * 100_000, b'{"a":' * 70 + b"0" + b"}" * 70, b'"\xff\xfe"', b"0x10", b"", b"01",
    b'{"a":1,"a":2}',
)  # fmt: skip
LENGTHS = (0, 1, 7, 8, 255, 1 << 16, 1 << 26, (1 << 26) + 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
SIZES = (-1, 0, 1, 2, 3, 4, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1.5, "2", [2])
ODD_ACTIONS = ("", "select/9/pick", "select/0/", "select/-1/x", "select/x", "teach/", "tune ", "secure/x/y")
KINDS = ("F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "f32", "", 3, None)


def parted(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Head, table of arrays and their bytes, of a valid message."""
    (length,) = struct.unpack_from("<Q", data)
    (table,) = struct.unpack_from("<Q", data, 8 + length)
    start = 16 + length
    return data[8 : 8 + length], data[start : start + table], data[start + table :]


def joined(head: bytes, table: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head + struct.pack("<Q", len(table)) + table + body


def of_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bits flipped, cut, repeated, spliced with another message, other lengths, or nothing left of it."""
    changed, place = bytearray(data), rng.randrange(len(data))
    end = min(len(data), place + rng.randrange(1, 40))
    match rng.randrange(8):
        case 0:
            for _ in range(rng.randrange(1, 9)):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            changed[place:place] = data[place:end] * rng.randrange(1, 5)
        case 3:
            changed[place:] = other[rng.randrange(len(other)) :]
        case 4:
            struct.pack_into("<Q", changed, 0, rng.choice(LENGTHS))
        case 5:
            struct.pack_into("<Q", changed, 8 + len(parted(data)[0]), rng.choice(LENGTHS))
        case 6:
            del changed[place:end]
        case _:
            return rng.randbytes(rng.randrange(300))
    return bytes(changed)


def of_head(data: bytes, rng: random.Random) -> bytes:
    """The JSON head as text: a value that JSON or we do not know, a name twice, another encoding."""
    head, table, body = parted(data)
    colons = [i for i, byte in enumerate(head) if byte in b":,["]
    place = rng.choice(colons) + 1
    end = next((i for i in range(place, len(head)) if head[i] in b",]}"), len(head))
    match rng.randrange(6):
        case 0 | 1 | 2:
            head = head[:place] + rng.choice(RAW_POISON) + head[end:]
        case 3:
            end_of_it = (b',"client":"client-2"}', b',"round":3}', b',"more":1}', b"}}", b",}")
            head = head[:-1] + rng.choice(end_of_it)
        case 4:
            other = rng.choice(("utf-16", "utf-32-le", "utf-8-sig"))
            head = head.decode("utf-8", "surrogatepass").encode(other, "ignore")
        case _:
            head = head[:place] + b" \n" + head[place:]
    return joined(head, table, body)


def of_table(data: bytes, rng: random.Random) -> bytes:
    """The table of arrays lies about types, shapes, places or names."""
    head, table, body = parted(data)
    rows: dict[str, Any] = json.loads(table)
    rows.setdefault("x", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    name = rng.choice(list(rows))
    row = rows[name]
    match rng.randrange(8):
        case 0:
            row["dtype"] = rng.choice(KINDS)
        case 1 | 2:
            row["shape"] = [rng.choice(SIZES) for _ in range(rng.randrange(4))]
        case 3 | 4:
            row["data_offsets"] = [
                rng.choice((*SIZES, len(body))) for _ in range(rng.choice((1, 2, 2, 2, 3)))
            ]
        case 5:
            rows[rng.choice(("", "__metadata__", "a" * 3000, "\0"))] = rows.pop(name)
        case 6:
            rows["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, 3, None))
        case _:
            rows |= {f"more{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(40)}
    table = json.dumps(rows).encode()
    if rng.random() < 0.1:
        table = table[:-1] + b"," + table[1:]
    return joined(head, table, body)


def of_values(message: Message, words: tuple[Sequence[str], Sequence[str]], rng: random.Random) -> Message:
    """A well-formed message with another client, round, action, array or fact; `words`: clients, actions."""
    names, actions = words
    for _ in range(rng.choice((1, 1, 2))):
        match rng.randrange(6):
            case 0:
                message = replace(message, client=rng.choice((*names, "eve", "", "\ud800", "../x")))
            case 1:
                message = replace(message, round=rng.choice((-1, 0, 1, 2, 5, 6, 2**70, 10**400)))
            case 2:
                message = replace(message, action=rng.choice((*ODD_ACTIONS, *actions)))
            case 3:
                message = replace(message, arrays=of_arrays(message.arrays, rng))
            case _:
                message = replace(message, facts=of_facts(message.facts, rng))
    return message


def of_arrays(arrays: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    found = dict(arrays)
    name = rng.choice(list(found) or ["new"])
    array = found.get(name, np.zeros((2, 3), np.float32))
    match rng.randrange(6):
        case 0:
            found.pop(name, None)
        case 1:
            found[rng.choice(("new", "", "a" * 2000))] = array
        case 2:
            kind = rng.choice((np.float64, np.float16, np.int32, np.uint8, np.bool_))
            with np.errstate(invalid="ignore", over="ignore"):
                found[name] = np.nan_to_num(array).astype(kind)
        case 3:
            found[name] = rng.choice((array.T, array.ravel(), array[None], array[:0], array.ravel()[:1]))
        case 4:
            found[name] = np.full(array.shape, rng.choice((np.nan, np.inf, -np.inf, 3e38)), np.float32)
        case _:
            found = dict.fromkeys(found, array)
    return {one: np.asarray(value) for one, value in found.items()}


def of_facts(facts: Mapping[str, Any], rng: random.Random) -> Any:
    """One value somewhere in the facts is another, is gone, or is new."""
    if not facts or rng.random() < 0.2:
        new = rng.choice(("adapter", "told", "weight", "sums", "x", "refused"))
        return {**facts, new: rng.choice(POISON)}
    name = rng.choice(list(facts))
    inner = facts[name]
    if isinstance(inner, dict) and rng.random() < 0.6:
        return {**facts, name: of_facts(inner, rng)}
    if isinstance(inner, list) and inner and rng.random() < 0.6:
        place = rng.randrange(len(inner))
        return {**facts, name: [*inner[:place], rng.choice(POISON), *inner[place + 1 :]]}
    if rng.random() < 0.2:
        return {one: value for one, value in facts.items() if one != name}
    return {**facts, name: rng.choice(POISON)}


def mutated(
    message: Message, other: Message, words: tuple[Sequence[str], Sequence[str]], rng: random.Random
) -> bytes:
    """The bytes of a message, changed in one of four ways; sometimes not at all.

    `other` may be spliced with it; `words`: names of clients and of actions that are used in its place.
    """
    if rng.random() < 0.5:
        try:
            return encode(of_values(message, words, rng))
        except WireError:  # refused before it was sent
            return encode(message)
    data = encode(message)
    match rng.randrange(10):
        case 0:
            return data
        case 1 | 2 | 3:
            return of_bytes(data, encode(other), rng)
        case 4 | 5 | 6:
            return of_head(data, rng)
    return of_table(data, rng)
