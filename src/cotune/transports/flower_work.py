"""The processes that do a party's work for its SuperLink or SuperNode, with the code that is installed here.

Origin: isolation mode `process` of Flower, https://flower.ai/docs/framework/. Flower's own executor starts
a new process for every message and runs the code that came in the app bundle. This one stays, so that a
model is loaded once; and what came in the bundle is not run: who reaches the server's port runs no code here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.app import Context, Message, RecordDict
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

LOG = logging.getLogger("cotune")
POLL = 0.2
"""Seconds between two looks for work."""
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


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


def answer_messages(place: Place, answer: Callable[[Message, Context], Message]) -> None:
    """Answer one message after the other, until the process that started this one is gone.

    A server that dies while it sends leaves messages behind whose content never comes; waiting for that takes
    hours. So each message is fetched in a thread of its own, and only answering is done one at a time.
    """
    turn = threading.Lock()
    while (token := _next(place, TaskType.CLIENT_APP)) is not None:
        work = (place, token, answer, turn)
        threading.Thread(target=_answer_in_turn, args=work, daemon=True).start()


def _answer_in_turn(
    place: Place, token: str, answer: Callable[[Message, Context], Message], turn: threading.Lock
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
            time.sleep(POLL)
    return None
