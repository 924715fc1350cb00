"""Clients on other machines, as their server sees them: who they are, and what befell a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cotune.codec import decode
from cotune.envelope import Head
from cotune.errors import WireError
from cotune.records import Failure, Message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HELLO = "hello"
"""Asked of every client before a run: how many examples it has."""
LATE, CRASHED, REJECTED, MEMORY = "late", "crashed", "rejected", "out-of-memory"
LOST = {
    3: "its message was lost",
    4: "its reply was lost",
    5: "its SuperNode is gone",
    8: "the process that answers died",
}
CRASHES = {
    1: "its app could not be loaded",
    2: "its app raised an error",
    6: "a Flower mod refused the message",
    7: "it did not accept the app bundle",
}
"""Flower's error codes in words: LOST is asked again, and what crashed is not."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited, in seconds.

    deadline: for one exchange with all clients; absence: for a client whose node is not connected, from when
    it was seen last; poll: between two looks.
    """

    deadline: float = 600.0
    absence: float = 120.0
    poll: float = 0.2


@dataclass(frozen=True, slots=True)
class Roster:
    """Who takes part, as the server knows it.

    run: the fingerprint; identity: the server's Ed25519 private key; keys: public keys of all clients;
    nodes: the PEM key of each client's SuperNode.
    """

    run: str
    identity: Ed25519PrivateKey = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)
    nodes: Mapping[str, str] = field(repr=False)


@dataclass(slots=True)
class Asked:
    """A message on its way: its exchange, where and when it was sent last, how often, and under which ids it
    is still awaited."""

    message: Message
    exchange: str
    num_bytes: int = 0
    last: tuple[int, str] | None = None
    tries: int = 0
    ids: set[str] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


Outcome = tuple[Message | Failure, int, int]


def failed(asked: Asked, kind: str, reason: str, came: int = 0) -> Outcome:
    """The outcome of a message that brought no usable reply."""
    message = asked.message
    return Failure(message.client, message.round, kind, reason), asked.num_bytes, came


def checked(asked: Asked, head: Head, data: bytes) -> Message | Failure:
    """What a signed reply brings: the message, or why the client has none.

    Raises:
        WireError: it is of somebody else, or answers another question.
    """
    client = asked.message.client
    if head.sender != client:
        raise WireError(f"the reply of {client!r} claims to be of {head.sender!r}")
    if head.exchange != asked.exchange:
        raise WireError("it answers another question than was asked")
    if head.failure:
        kind = head.failure if head.failure in (CRASHED, MEMORY, REJECTED) else CRASHED
        return Failure(client, asked.message.round, kind, line(head.reason))
    found = decode(data)
    if found.client != client:
        raise WireError(f"the reply of {client!r} claims to be of {found.client[:80]!r}")
    return found


def line(text: str) -> str:
    """The first line, of bearable length."""
    return (text.splitlines() or [""])[0][:300]


def pem(text: str) -> str:
    """A PEM key without its line ends."""
    return "".join(text.split())
