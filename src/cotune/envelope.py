"""Bytes on their way between machines, with a signed note of whose they are.

The signature covers sender, receiver, run, exchange and bytes, so that a reply counts for one question of one
run and for one client only. Signed envelopes are an old thing, see RFC 7515.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cotune.codec import MAX_BYTES
from cotune.errors import WireError

MAX_HEAD = 1 << 14
_WHAT = b"cotune envelope 1\x00"


@dataclass(frozen=True, slots=True)
class Head:
    """Whose bytes these are.

    sender, receiver: names of parties; run: the fingerprint; exchange: of the question, drawn at random and
    repeated in the answer; failure: for an answer that is none, its kind; reason: and why.
    """

    sender: str
    receiver: str
    run: str
    exchange: str
    failure: str = ""
    reason: str = ""

    def answered(self, failure: str = "", reason: str = "") -> Head:
        """The head of the answer."""
        return Head(self.receiver, self.sender, self.run, self.exchange, failure, reason)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What travels: a head as JSON, its signature together with the payload's, and the payload."""

    text: bytes
    signature: bytes
    payload: bytes


def seal(head: Head, payload: bytes, identity: Ed25519PrivateKey) -> Envelope:
    """Bytes under a head, signed."""
    text = json.dumps(asdict(head), sort_keys=True).encode()
    signature = identity.sign(_signed(text, payload))
    return Envelope(text, signature, payload)


def unseal(envelope: Envelope, receiver: str, run: str, keys: Mapping[str, bytes]) -> Head:
    """The head of an envelope that is meant for `receiver` and signed by one of `keys`.

    Raises:
        WireError: it is malformed, of another run, for somebody else, or not signed by who it says it is of.
    """
    head = read_head(envelope.text)
    if len(envelope.payload) > MAX_BYTES:
        raise WireError(f"it has {len(envelope.payload):,} bytes, limit {MAX_BYTES:,}")
    if head.sender not in keys:
        raise WireError(f"it says it is of {head.sender[:80]!r}, who is not registered")
    try:
        public = Ed25519PublicKey.from_public_bytes(keys[head.sender])
        public.verify(envelope.signature, _signed(envelope.text, envelope.payload))
    except InvalidSignature as error:
        raise WireError(f"it says it is of {head.sender!r}, but that party did not sign it") from error
    if head.receiver != receiver:
        raise WireError(f"it is meant for {head.receiver[:80]!r}, not for {receiver!r}")
    if head.run != run:
        raise WireError(
            f"it is of run {head.run[:80]!r}, here is {run!r}: the parties have different configurations. "
            "Give all of them the folders of one cotune deploy init"
        )
    return head


def read_head(text: bytes) -> Head:
    """A head, not verified.

    Raises:
        WireError: it is none.
    """
    if len(text) > MAX_HEAD:
        raise WireError("not an envelope of cotune: its head is too long")
    try:
        raw = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise WireError("not an envelope of cotune: its head is not JSON") from error
    names = {one.name for one in fields(Head)}
    if not isinstance(raw, dict) or raw.keys() != names or not all(isinstance(v, str) for v in raw.values()):
        raise WireError(f"not an envelope of cotune: its head must have exactly {', '.join(sorted(names))}")
    return Head(**raw)


def _signed(text: bytes, payload: bytes) -> bytes:
    return _WHAT + hashlib.sha256(text).digest() + hashlib.sha256(payload).digest()
