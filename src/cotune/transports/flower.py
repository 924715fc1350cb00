"""Clients on other machines, reached through Flower; every message is signed, both ways.

Origin: the message API of Flower, https://flower.ai/docs/framework/. Its strategies and its waiting are not
used: they sample before all nodes are there, wait without saying for whom, and do not name who is missing.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app import Message as FlowerMessage

from cotune.codec import decode, encode
from cotune.envelope import Envelope, Head, seal, unseal
from cotune.errors import RunError, WireError
from cotune.guarded import SERVER
from cotune.records import Failure, Message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HELLO = "hello"
"""Asked of every client before a run: how many examples it has."""
LOOK = 1.0
"""Seconds between two looks at who is connected."""
MOST_TRIES = 3
"""How often one message is sent to a client that lost it."""
LATE, CRASHED, REJECTED, MEMORY = "late", "crashed", "rejected", "out-of-memory"
_LOST = {3: "its message was lost", 4: "its reply was lost", 5: "its SuperNode is gone"}
_CRASHED = {
    1: "its app could not be loaded",
    2: "its app raised an error",
    6: "a Flower mod refused the message",
    7: "it did not accept the app bundle",
    8: "the process that answers died",
}
"""Flower's error codes in words: what may come back, and what will not."""
Note = Callable[[str], None]


class Grid(Protocol):
    """What of Flower's grid is used."""

    def get_nodes(self) -> Iterable[Any]:
        """Nodes that are connected."""

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str | None]:
        """Ids of the messages, in their order; None for one that was not taken."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        """Replies to these messages that are there; each comes once."""


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
class _Asked:
    """A message on its way: its exchange, where and when it was sent last, how often, and under which ids it
    is still awaited."""

    message: Message
    exchange: str
    num_bytes: int = 0
    last: tuple[int, str] | None = None
    tries: int = 0
    ids: set[str] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


_BODY, _HEAD = "body", "head"
_STYPE = "cotune.message"
"""How the form of our array is called; Flower carries it as it is."""


def packed(envelope: Envelope) -> RecordDict:
    """An envelope as Flower carries it; Flower itself cuts arrays into pieces of 5 MiB on the way."""
    body = Array("uint8", (len(envelope.payload),), _STYPE, envelope.payload)
    head = ConfigRecord({"text": envelope.text, "signature": envelope.signature})
    return RecordDict({_BODY: ArrayRecord({_BODY: body}), _HEAD: head})


def unpacked(content: RecordDict) -> Envelope:
    """The envelope in what Flower brought.

    Raises:
        WireError: there is none.
    """
    try:
        head: Mapping[str, Any] = content.config_records[_HEAD]
        found = Envelope(head["text"], head["signature"], content.array_records[_BODY][_BODY].data)
    except (KeyError, TypeError, AttributeError) as error:
        raise WireError("not an envelope of cotune") from error
    if not all(isinstance(part, bytes) for part in (found.text, found.signature, found.payload)):
        raise WireError("not an envelope of cotune")
    return found


Outcome = tuple[Message | Failure, int, int]


class Flower:
    """The server's side. Names of clients are bound to the keys of their nodes and of their replies."""

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        patience: Patience | None = None,
        note: Note = lambda _: None,
        clock: tuple[Callable[[], float], Callable[[float], None]] = (time.monotonic, time.sleep),
    ) -> None:
        self.grid, self.roster, self.patience, self.note = grid, roster, patience or Patience(), note
        self.now, self.sleep = clock
        self._names = {_pem(pem): client for client, pem in roster.nodes.items()}
        self._seen: dict[str, float] = {}
        self._strangers: set[int] = set()
        self._here: dict[str, Any] = {}
        self._looked = -math.inf

    @property
    def deadline(self) -> float:
        """Seconds until a client is late with a step."""
        return self.patience.deadline

    def clients(self) -> Sequence[str]:
        """Everybody who is registered, connected or not."""
        return tuple(self.roster.nodes)

    def wait(self, quorum: int, limit: float) -> dict[str, Message]:
        """Wait until all clients are connected, or a quorum after a time; returns what they say.

        Raises:
            RunError: fewer than the quorum are there, or answered.
        """
        end, told = self.now() + limit, ""
        while missing := [client for client in self.clients() if client not in self._connected()]:
            names = ", ".join(missing)
            if self.now() >= end:
                break
            if names != told:
                self.note(f"waiting for {names} ({len(self._here)} of {len(self.clients())} are connected)")
                told = names
            self.sleep(self.patience.poll)
        if len(self._here) < quorum:
            raise RunError(
                f"after {limit:g} s {len(self._here)} of {len(self.clients())} clients are connected, "
                f"{quorum} are needed; missing: {', '.join(missing)}. See that their start.sh runs and "
                "reaches this server; then start again"
            )
        found: dict[str, Message] = {}
        for outcome, _, _ in self.send([Message(client, 0, HELLO, {}, {}) for client in sorted(self._here)]):
            if isinstance(outcome, Message):
                found[outcome.client] = outcome
            else:
                self.note(f"{outcome.client} {outcome.kind}: {outcome.reason}")
        if len(found) < quorum:
            raise RunError(
                f"{len(found)} clients can take part, {quorum} are needed; see above for the others"
            )
        return found

    def send(self, messages: Sequence[Message]) -> Iterator[Outcome]:
        """Outcomes as they come, one a client; every client has one when the deadline is over."""
        waiting = {message.client: _Asked(message, secrets.token_hex(16)) for message in messages}
        for client in [client for client in waiting if client not in self.roster.nodes]:
            asked = waiting.pop(client)
            yield _failed(asked, REJECTED, "it is not registered")
        begin = self.now()
        while waiting:
            self._push(waiting, begin)
            for client, outcome in self._pull(waiting):
                del waiting[client]
                yield outcome
            for client, reason in self._overdue(waiting, begin):
                yield _failed(waiting.pop(client), LATE, reason)
            if waiting:
                self.sleep(self.patience.poll)

    def _connected(self) -> dict[str, Any]:
        """The nodes of clients that are connected now, by client; looked up once a second at most."""
        now = self.now()
        if now - self._looked < LOOK:
            return self._here
        self._looked, self._here = now, {}
        for node in self.grid.get_nodes():
            client = self._names.get(_pem(bytes(node.public_key).decode("ascii", "replace")))
            if client is not None:
                self._here[client] = node
                self._seen[client] = now
            elif node.node_id not in self._strangers:
                self._strangers.add(node.node_id)
                self.note(
                    f"node {node.node_id} is not registered with this deployment: nothing is sent to it"
                )
        return self._here

    def _push(self, waiting: Mapping[str, _Asked], begin: float) -> None:
        """Send what has not been sent yet; and again, to a node that was started anew since."""
        left = max(1.0, begin + self.patience.deadline - self.now())
        for client, node in self._connected().items():
            asked = waiting.get(client)
            place = (node.node_id, node.last_activated_at)
            if asked is None or asked.last == place or asked.tries >= MOST_TRIES:
                continue
            data = encode(asked.message)
            head = Head(SERVER, client, self.roster.run, asked.exchange)
            content = packed(seal(head, data, self.roster.identity))
            message = FlowerMessage(content, dst_node_id=node.node_id, message_type="query", ttl=left)
            [found] = [*self.grid.push_messages([message])] or [None]
            if found is not None:
                asked.ids.add(found)
                asked.tries += 1
                asked.num_bytes += len(data)
                asked.nodes.add(node.node_id)
                asked.last = place

    def _pull(self, waiting: Mapping[str, _Asked]) -> Iterator[tuple[str, Outcome]]:
        """What came, checked: at most one outcome a client."""
        client_of = {found: client for client, asked in waiting.items() for found in asked.ids}
        done: set[str] = set()
        for reply in self.grid.pull_messages(list(client_of)) if client_of else ():
            client = client_of.get(reply.metadata.reply_to_message_id)
            if client is None or client in done:
                self.note(f"node {reply.metadata.src_node_id} answered what was not asked: dropped")
                continue
            outcome = self._outcome(waiting[client], reply)
            if outcome is not None:
                done.add(client)
                yield client, outcome

    def _outcome(self, asked: _Asked, reply: FlowerMessage) -> Outcome | None:
        """A reply or a failure; None for a message that was lost and may be sent again."""
        if reply.has_error():
            code, client = reply.error.code, asked.message.client
            asked.ids.discard(reply.metadata.reply_to_message_id)
            if code in _LOST and (asked.ids or asked.tries < MOST_TRIES):
                self.note(f"{client}: {_LOST[code]}; it is asked again once it is connected")
                asked.last = asked.last if asked.ids else None
                self._looked = -math.inf  # what was seen of it is out of date
                return None
            words = _CRASHED.get(code) or _LOST.get(code) or f"Flower error {code}"
            return _failed(asked, CRASHED, f"{words}: {_line(reply.error.reason or '')}")
        came = 0
        try:
            if reply.metadata.src_node_id not in asked.nodes:
                raise WireError(f"it came from node {reply.metadata.src_node_id}, who was not asked")
            envelope = unpacked(reply.content)
            came = len(envelope.payload)
            head = unseal(envelope, SERVER, self.roster.run, self.roster.keys)
            found = self._checked(asked, head, envelope.payload)
        except WireError as error:
            return _failed(asked, REJECTED, str(error), came)
        return found, asked.num_bytes, came

    def _checked(self, asked: _Asked, head: Head, data: bytes) -> Message | Failure:
        client = asked.message.client
        if head.sender != client:
            raise WireError(f"the reply of {client!r} claims to be of {head.sender!r}")
        if head.exchange != asked.exchange:
            raise WireError("it answers another question than was asked")
        if head.failure:
            kind = head.failure if head.failure in (CRASHED, MEMORY, REJECTED) else CRASHED
            return Failure(client, asked.message.round, kind, _line(head.reason))
        found = decode(data)
        if found.client != client:
            raise WireError(f"the reply of {client!r} claims to be of {found.client[:80]!r}")
        return found

    def _overdue(self, waiting: Mapping[str, _Asked], begin: float) -> list[tuple[str, str]]:
        """Clients for whom nobody waits any longer, and why."""
        now, patience = self.now(), self.patience
        found = []
        for client in waiting:
            last = self._seen.setdefault(client, begin)
            if now - begin >= patience.deadline:
                found.append((client, f"no reply within {patience.deadline:g} s"))
            elif client not in self._here and now - last >= patience.absence:
                found.append((client, f"its node has not been connected for {patience.absence:g} s"))
        return found


def _failed(asked: _Asked, kind: str, reason: str, came: int = 0) -> Outcome:
    message = asked.message
    return Failure(message.client, message.round, kind, reason), asked.num_bytes, came


def _line(text: str) -> str:
    """The first line, of bearable length."""
    return (text.splitlines() or [""])[0][:300]


def _pem(text: str) -> str:
    """A PEM key without its line ends."""
    return "".join(text.split())


def answer(message: FlowerMessage, reply: Callable[[Envelope], Envelope]) -> FlowerMessage:
    """The client's side: what a SuperNode received, answered by `reply` (see `cotune.answering`)."""
    try:
        envelope = unpacked(message.content)
    except WireError:
        envelope = Envelope(b"", b"", b"")  # refused as any envelope is that nobody signed
    return FlowerMessage(packed(reply(envelope)), reply_to=message)
