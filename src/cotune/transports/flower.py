"""Clients on other machines, reached through Flower; every message is signed, both ways.

Origin: the message API of Flower, https://flower.ai/docs/framework/. Its strategies and its waiting are not
used: they sample before all nodes are there, wait without saying for whom, and do not name who is missing.

Its isolation mode `process` hands the work to processes of ours: Flower's own executor starts a new process
for every message and runs the code that came in the app bundle. Ours stays, so that a model is loaded once;
and what came in the bundle is not run: who reaches the server's port runs no code here.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from cotune.codec import encode
from cotune.envelope import Envelope, Head, seal, unseal
from cotune.errors import RunError, WireError
from cotune.guarded import SERVER
from cotune.records import Message, Note
from cotune.remote import (
    CRASHED,
    CRASHES,
    HELLO,
    LATE,
    LOST,
    REJECTED,
    Asked,
    Outcome,
    Patience,
    Roster,
    checked,
    failed,
    line,
    pem,
)

LOG = logging.getLogger("cotune")
TASK_POLL = 0.2
"""Seconds between two looks for work."""
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
LOOK = 1.0
"""Seconds between two looks at who is connected."""
MOST_TRIES = 3
"""How often one message is sent to a client that lost it."""


class Grid(Protocol):
    """What of Flower's grid is used."""

    def get_nodes(self) -> Iterable[Any]:
        """Nodes that are connected."""

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str | None]:
        """Ids of the messages, in their order; None for one that was not taken."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        """Replies to these messages that are there; each comes once."""


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
        self._names = {pem(key): client for client, key in roster.nodes.items()}
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
        waiting = {message.client: Asked(message, secrets.token_hex(16)) for message in messages}
        for client in [client for client in waiting if client not in self.roster.nodes]:
            asked = waiting.pop(client)
            yield failed(asked, REJECTED, "it is not registered")
        begin = self.now()
        while waiting:
            self._push(waiting, begin)
            for client, outcome in self._pull(waiting):
                del waiting[client]
                yield outcome
            for client, reason in self._overdue(waiting, begin):
                yield failed(waiting.pop(client), LATE, reason)
            if waiting:
                self.sleep(self.patience.poll)

    def _connected(self) -> dict[str, Any]:
        """The nodes of clients that are connected now, by client; looked up once a second at most."""
        now = self.now()
        if now - self._looked < LOOK:
            return self._here
        self._looked, self._here = now, {}
        for node in self.grid.get_nodes():
            client = self._names.get(pem(bytes(node.public_key).decode("ascii", "replace")))
            if client is not None:
                self._here[client] = node
                self._seen[client] = now
            elif node.node_id not in self._strangers:
                self._strangers.add(node.node_id)
                self.note(
                    f"node {node.node_id} is not registered with this deployment: nothing is sent to it"
                )
        return self._here

    def _push(self, waiting: Mapping[str, Asked], begin: float) -> None:
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

    def _pull(self, waiting: Mapping[str, Asked]) -> Iterator[tuple[str, Outcome]]:
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

    def _outcome(self, asked: Asked, reply: FlowerMessage) -> Outcome | None:
        """A reply or a failure; None for a message that was lost and may be sent again."""
        if reply.has_error():
            code, client = reply.error.code, asked.message.client
            asked.ids.discard(reply.metadata.reply_to_message_id)
            if code in LOST and (asked.ids or asked.tries < MOST_TRIES):
                self.note(f"{client}: {LOST[code]}; it is asked again once it is connected")
                asked.last = asked.last if asked.ids else None
                self._looked = -math.inf  # what was seen of it is out of date
                return None
            words = CRASHES.get(code) or LOST.get(code) or f"Flower error {code}"
            return failed(asked, CRASHED, f"{words}: {line(reply.error.reason or '')}")
        came = 0
        try:
            if reply.metadata.src_node_id not in asked.nodes:
                raise WireError(f"it came from node {reply.metadata.src_node_id}, who was not asked")
            envelope = unpacked(reply.content)
            came = len(envelope.payload)
            head = unseal(envelope, SERVER, self.roster.run, self.roster.keys)
            found = checked(asked, head, envelope.payload)
        except WireError as error:
            return failed(asked, REJECTED, str(error), came)
        return found, asked.num_bytes, came

    def _overdue(self, waiting: Mapping[str, Asked], begin: float) -> list[tuple[str, str]]:
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


def answer(message: FlowerMessage, reply: Callable[[Envelope], Envelope]) -> FlowerMessage:
    """The client's side: what a SuperNode received, answered by `reply` (see `cotune.answering`)."""
    try:
        envelope = unpacked(message.content)
    except WireError:
        envelope = Envelope(b"", b"", b"")  # refused as any envelope is that nobody signed
    return FlowerMessage(packed(reply(envelope)), reply_to=message)


@dataclass(frozen=True, slots=True)
class Place:
    """Where work is handed out: an address, the certificate of who hands it out (None: on this machine,
    without TLS), and the secret that proves that one may take it."""

    address: str
    certificates: bytes | None
    secret: bytes

    def client(self, *interceptors: Any, is_patient: bool = True) -> RuntimeHttpClient:
        """A connection; a patient one tries again by itself."""
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.certificates is None,
            root_certificates=self.certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="cotune"), *interceptors],
            retry_invoker=make_simple_http_retry_invoker() if is_patient else None,
        )


def answer_messages(place: Place, answer: Callable[[FlowerMessage, Context], FlowerMessage]) -> None:
    """Answer one message after the other, until the process that started this one is gone.

    A server that dies while it sends leaves messages behind whose content never comes; waiting for that takes
    hours. So each message is fetched in a thread of its own, and only answering is done one at a time.
    """
    turn = threading.Lock()
    while (token := _next(place, TaskType.CLIENT_APP)) is not None:
        work = (place, token, answer, turn)
        threading.Thread(target=_answer_in_turn, args=work, daemon=True).start()


def _answer_in_turn(
    place: Place, token: str, answer: Callable[[FlowerMessage, Context], FlowerMessage], turn: threading.Lock
) -> None:
    with place.client(RuntimeTokenHttpInterceptor(token)) as client:
        beat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        beat.start()
        try:
            message, context, _run, _bundle = pull_task_input(client)
            with turn:
                push_message(client, answer(message, context), context)
            _finished(client, context, SubStatus.COMPLETED)
        except (httpx.HTTPError, ObjectPullError) as error:  # no SuperNode, or a run that has ended
            LOG.warning("a message was dropped: %s", error)
        finally:
            beat.stop()


def _finished(client: RuntimeHttpClient, context: Context, how: str) -> None:
    output = PushTaskOutputRequest(context=context_to_proto(context), sub_status=how, details="")
    client.PushTaskOutput(output)


def serve_one_run(place: Place, main: Callable[[HttpGrid, Context], None]) -> bool:
    """Wait for a run and do the server's part of it; whether there was one and it ended well."""
    token = _next(place, TaskType.SERVER_APP)
    if token is None:
        return False
    grid = HttpGrid(place.address, place.certificates is None, place.certificates, token=token)
    beat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    beat.start()
    status, details = SubStatus.FAILED, "stopped"
    try:
        found = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        grid.set_run(run_from_proto(found.run))
        TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, found.run.run_id
        TaskIdentity.node_id = found.context.node_id
        context = context_from_proto(found.context)
        context.run_config = {**context.run_config, **grid.run.override_config}
        context.state = RecordDict()
        main(grid, context)
        status, details = SubStatus.COMPLETED, ""
    except Exception as error:
        details = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        grid._retry_invoker.max_tries = 1
        grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        beat.stop()
        grid.close()
    return status == SubStatus.COMPLETED


def _next(place: Place, kind: TaskType) -> str | None:
    """The token of a piece of work; None once the parent process is gone."""
    parent = os.getppid()
    signed = SuperExecAuthHttpInterceptor(master_secret=place.secret, protected_methods=_ACQUIRE)
    with place.client(signed, is_patient=False) as client:
        while os.getppid() == parent:
            try:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
            except httpx.HTTPError as error:
                LOG.warning("no connection to %s: %s", place.address, error)
                time.sleep(1)
                continue
            if found.HasField("task") and found.token:
                return str(found.token)
            time.sleep(TASK_POLL)
    return None
