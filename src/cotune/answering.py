"""The client's side of a deployed run: check who asks, let the host do it, sign what comes of it.

Whatever goes wrong, there is an answer. Its one line says what kind of mistake it was; everything that could
quote an example stays in the client's own log.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cotune.codec import decode, encode
from cotune.endings import kind_of
from cotune.envelope import Envelope, Head, read_head, seal, unseal
from cotune.errors import CotuneError, DataError, WireError
from cotune.guarded import SERVER
from cotune.records import Message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Handle = Callable[[Message], Message]
SEE_LOG = "see the log on its machine"


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a client's questions are answered.

    run: the fingerprint of its own configuration; identity: its Ed25519 private key; keys: public keys of
    whom it listens to.
    """

    client: str
    run: str
    identity: Ed25519PrivateKey = field(repr=False)
    keys: Mapping[str, bytes]
    handle: Handle

    def reply(self, envelope: Envelope) -> Envelope:
        """A reply, or a failure by its kind; who is not the server gets no more than a refusal."""
        try:
            head = unseal(envelope, self.client, self.run, self.keys)
        except WireError as error:
            return self._refusal(envelope, str(error))
        found, kind, reason = self._answer(envelope.payload)
        return seal(head.answered(kind, reason), found, self.identity)

    def _refusal(self, envelope: Envelope, reason: str) -> Envelope:
        try:
            exchange = read_head(envelope.text).exchange[:64]
        except WireError:
            exchange = ""
        head = Head(self.client, SERVER, self.run, exchange, "rejected", f"it refused: {reason}"[:300])
        return seal(head, b"", self.identity)

    def _answer(self, payload: bytes) -> tuple[bytes, str, str]:
        """Bytes of the reply; else the kind of failure and why."""
        try:
            asked = decode(payload)
            if asked.client != self.client:
                raise WireError(f"a message for {asked.client[:80]!r} came to {self.client!r}")
            return encode(self.handle(asked)), "", ""
        except WireError as error:
            return b"", "rejected", _line(str(error))
        except DataError as error:  # it may quote an example
            traceback.print_exception(error)
            return b"", "crashed", f"its data cannot be used; {SEE_LOG}"
        except CotuneError as error:
            return b"", "crashed", _line(str(error))
        except Exception as error:
            traceback.print_exception(error)
            if kind_of(error) == "out-of-memory":
                return b"", "out-of-memory", f"not enough memory for {len(payload):,} bytes asked; {SEE_LOG}"
            return b"", "crashed", f"{type(error).__name__}; {SEE_LOG}"


def _line(text: str) -> str:
    return (text.splitlines() or [""])[0][:300]
