"""A real chat server on this machine, that behaves as badly as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_UP = "hang up"


def answer(prompt, reason="stop", usage=True, **message):
    """What a good server sends."""
    body = {
        "choices": [
            {"message": {"role": "assistant", "content": f"so {prompt}", **message}, "finish_reason": reason}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    return 200, body if usage else {"choices": body["choices"]}


class ChatServer(ThreadingHTTPServer):
    """`script(prompt, nth)` says what happens when a prompt comes for the nth time, from 0.

    It returns a status, a body (JSON, or bytes as they are) and perhaps headers; or HANG_UP.
    """

    def __init__(self, script=lambda prompt, nth: answer(prompt), port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.script, self.lock = script, threading.Lock()
        self.bodies, self.headers, self.times = [], [], []
        self.asked = Counter()
        self.busy = self.most_busy = 0
        self.is_dead = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """A caller that has given up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            nth = server.asked[prompt]
            server.asked[prompt] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.busy += 1
            server.most_busy = max(server.busy, server.most_busy)
        done = server.script(prompt, nth)
        with server.lock:
            server.busy -= 1
        if done == HANG_UP or server.is_dead or self.path != "/v1/chat/completions":
            self.close_connection = True
            return
        status, said, headers = (*done, {})[:3]
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(*args, **kwargs):
    server = ChatServer(*args, **kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.is_dead = True
        server.shutdown()
        server.server_close()
        thread.join()
