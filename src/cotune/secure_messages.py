"""What crosses the wire in a masked sum, and what of it is signed. See `secure_client.py` for the order.

Every message names what it belongs to by a digest: `Terms.digest` says what is summed, and with whom;
`Roster.digest` adds the keys of this one sum; `Lists.digest` adds who is in it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cotune.errors import WireError
from cotune.fixed_point import Layout
from cotune.neighbours import Plan
from cotune.records import Array, Facts

Registry = Mapping[str, bytes]
"""The Ed25519 public key, 32 bytes, of each client that may take part."""
T = TypeVar("T")


def digest_of(what: str, *parts: Any) -> bytes:
    """SHA-256 of JSON values; `what` keeps digests of different things apart."""
    text = json.dumps(["cotune secure sum 1", what, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Terms:
    """What all parties know before a sum begins, each from its own configuration.

    run: the fingerprint of the run; round and attempt: which sum of it, an attempt being one more try after a
    failure; cohort: who is asked, sorted; plan: how they mask; layout: what is summed.
    """

    run: str
    round: int
    cohort: tuple[str, ...]
    plan: Plan
    layout: Layout
    attempt: int = 0
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if list(self.cohort) != sorted(set(self.cohort)) or len(self.cohort) != self.plan.num_clients:
            raise WireError(
                f"a cohort of {len(self.cohort)} names; expected {self.plan.num_clients}, different, sorted"
            )
        if self.layout.grid.num_clients < len(self.cohort):
            raise WireError(
                f"room for {self.layout.grid.num_clients} clients; the cohort has {len(self.cohort)}"
            )
        named = (self.run, self.round, self.attempt, self.cohort)
        agreed = (dataclasses.asdict(self.plan), dataclasses.asdict(self.layout))
        object.__setattr__(self, "digest", digest_of("terms", *named, *agreed))


def raw(size: int) -> Any:
    """A field of exactly so many bytes."""
    return field(metadata={"size": size})


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """A client's keys for one sum, signed with the key it is registered under.

    seal_key: for shares that others send it; mask_key: for masks; seed_hash: of the seed of its own mask.
    """

    client: str
    round: int
    seal_key: bytes = raw(32)
    mask_key: bytes = raw(32)
    seed_hash: bytes = raw(32)
    signature: bytes = raw(64)

    def statement(self, terms: Terms) -> bytes:
        """What is signed."""
        keys = [key.hex() for key in (self.seal_key, self.mask_key, self.seed_hash)]
        return digest_of("keys", terms.digest.hex(), self.client, self.round, *keys)


@dataclass(frozen=True, slots=True)
class Roster:
    """The keys of everybody who sent some, sorted by client; the same for all."""

    entries: tuple[PublicKeys, ...]

    def digest(self, terms: Terms) -> bytes:
        """Of the terms and all keys."""
        entries = [[one.client, one.statement(terms).hex(), one.signature.hex()] for one in self.entries]
        return digest_of("roster", terms.digest.hex(), entries)

    def by_client(self) -> dict[str, PublicKeys]:
        """Entries by client."""
        return {entry.client: entry for entry in self.entries}


@dataclass(frozen=True, slots=True)
class Sealed:
    """A client's shares for its neighbours, each box readable by the client it is for."""

    client: str
    boxes: Mapping[str, bytes]
    roster: bytes = raw(32)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The boxes that neighbours have sent to one client."""

    boxes: Mapping[str, bytes]
    roster: bytes = raw(32)


@dataclass(frozen=True, slots=True)
class Masked:
    """A client's contribution under its masks: `words` [values] and `extras` [1 + sums]."""

    client: str
    words: Array
    extras: Array
    roster: bytes = raw(32)


@dataclass(frozen=True, slots=True)
class Lists:
    """Of the clients that sent shares: those whose contribution came, and those whose did not; sorted."""

    alive: tuple[str, ...]
    dead: tuple[str, ...]
    roster: bytes = raw(32)

    @property
    def digest(self) -> bytes:
        """What clients sign when they agree to these lists."""
        return digest_of("lists", self.roster.hex(), self.alive, self.dead)


@dataclass(frozen=True, slots=True)
class Consent:
    """A client's signature under the lists."""

    client: str
    signature: bytes = raw(64)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Signatures under the lists by client."""

    signatures: Mapping[str, bytes]
    lists: bytes = raw(32)


@dataclass(frozen=True, slots=True)
class Opened:
    """A client's shares of the seeds of those alive and of the mask keys of those dead, by whose they are."""

    client: str
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]
    lists: bytes = raw(32)


def sign(identity: Ed25519PrivateKey, statement: bytes) -> bytes:
    """Signature of 64 bytes."""
    return identity.sign(statement)


def verify(registry: Registry, client: str, signature: bytes, statement: bytes, what: str) -> None:
    """Check a signature.

    Raises:
        WireError: the client is not registered, or has not signed this statement.
    """
    if client not in registry:
        raise WireError(f"{what} of {client!r}, who is not registered")
    try:
        Ed25519PublicKey.from_public_bytes(registry[client]).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise WireError(
            f"{what} of {client!r}: the signature does not fit; expected one by its registered key, "
            "for this sum and no other"
        ) from error


def check_keys(keys: PublicKeys, terms: Terms, registry: Registry) -> None:
    """Refuse keys that are not of this sum, or not signed for it by somebody who was asked.

    Raises:
        WireError: says what came and what was expected.
    """
    if keys.client not in terms.cohort:
        raise WireError(f"keys of {keys.client!r}, who is not in the cohort")
    if keys.round != terms.round:
        raise WireError(f"keys of {keys.client!r} for round {keys.round}; this is round {terms.round}")
    verify(registry, keys.client, keys.signature, keys.statement(terms), "keys")


def pack(message: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """Facts and arrays of a message, as `Message` carries them; bytes are base64."""
    facts: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for one in dataclasses.fields(message):
        value = getattr(message, one.name)
        if isinstance(value, np.ndarray):
            arrays[one.name] = value
        elif one.type == "tuple[PublicKeys, ...]":
            facts[one.name] = [pack(entry)[0] for entry in value]
        else:
            facts[one.name] = _plain(value)
    return facts, arrays


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def unpack(kind: type[T], facts: Facts, arrays: Mapping[str, Array] | None = None) -> T:
    """The message in facts and arrays, as `pack` left it.

    Raises:
        WireError: a field is missing, unknown, or of another type or length.
    """
    found: dict[str, Any] = {}
    if not isinstance(facts, Mapping):
        raise WireError(f"{kind.__name__} is no object, but {type(facts).__name__}")
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    came = {**facts, **(arrays or {})}
    if came.keys() != fields.keys():
        odd = sorted(map(str, came.keys() ^ fields.keys()))[:3]
        raise WireError(f"{kind.__name__} with other fields than expected, first differences {odd}")
    for name, one in fields.items():
        try:
            found[name] = _READ[str(one.type)](came[name])
        except (TypeError, ValueError, AttributeError) as error:
            raise WireError(f"{kind.__name__}.{name} is not of type {one.type}: {error}") from error
        size = one.metadata.get("size")
        if size is not None and len(found[name]) != size:
            raise WireError(f"{kind.__name__}.{name} has {len(found[name])} bytes; expected {size}")
    return kind(**found)


def _exactly(kind: type[T]) -> Callable[[Any], T]:
    def read(value: Any) -> T:
        if type(value) is not kind:
            raise TypeError(f"{type(value).__name__} came")
        return value

    return read


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(_exactly(str)(value), validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error


def _vector(value: Any) -> Array:
    array: Array = _exactly(np.ndarray)(value)
    if array.ndim != 1:
        raise ValueError(f"{array.ndim} dimensions")
    return array


_READ: Mapping[str, Callable[[Any], Any]] = {
    "str": _exactly(str),
    "int": _exactly(int),
    "bytes": _bytes,
    "Array": _vector,
    "tuple[str, ...]": lambda value: tuple(map(_exactly(str), _exactly(list)(value))),
    "tuple[PublicKeys, ...]": lambda value: tuple(unpack(PublicKeys, one) for one in _exactly(list)(value)),
    "Mapping[str, bytes]": lambda value: {
        _exactly(str)(n): _bytes(v) for n, v in _exactly(dict)(value).items()
    },
}
"""How a field of each type is read."""
