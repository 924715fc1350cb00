"""How fast an audit asks an endpoint that answers in a tenth of a second, sixteen requests at a time.

    python benchmarks/audit_speed.py --out benchmarks/results/audit_speed.json

The endpoint is a server of this machine that waits 100 ms and answers. The ideal is n / 16 x 0.1 s. The
server counts how many requests it had at once. `--models A,B` also times likeness on 200 prompts with two
local models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from cotune.audit import Question, run
from cotune.endpoint_settings import EndpointSettings

WAIT, AT_ONCE = 0.1, 16


class Slow:
    """Answers every chat request after `WAIT` seconds, and a GET with the most requests it had at once."""

    def __init__(self) -> None:
        self.busy = self.most = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which is kept."""
        while head := (await reader.readline()).decode():
            length = 0
            while (line := (await reader.readline()).decode().strip().lower()) != "":
                length = int(line.split(":")[1]) if line.startswith("content-length") else length
            body = json.loads(await reader.readexactly(length)) if length else {}
            raw = str(self.most).encode() if head.startswith("GET") else await self.answer(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw))
            await writer.drain()
        writer.close()

    async def answer(self, body: dict[str, Any]) -> bytes:
        """What a model would have taken a while to write."""
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(WAIT)
        self.busy -= 1
        message = {"role": "assistant", "content": f"So you ask: {body['messages'][0]['content'][:80]}"}
        usage = {"prompt_tokens": 9, "completion_tokens": 9}
        return json.dumps(
            {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        ).encode()


def serve(port: int) -> None:
    """In a process of its own, so that it takes no time from the audit."""

    async def forever() -> None:
        server = await asyncio.start_server(Slow().talk, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(forever())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1600)
    parser.add_argument("--models", help="student,reference: also time likeness with local models")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {"endpoint": endpoint(options.prompts)}
    if options.models:
        found["local"] = local(*options.models.split(","), options.new_tokens)
    text = json.dumps(found, indent=2)
    print(text)
    options.out.write_text(text + "\n", encoding="utf-8")


def endpoint(number: int) -> dict[str, Any]:
    """Answers of one endpoint, asked through the subject of an audit with an empty cache."""
    from cotune import audit
    from cotune.records import Sampling

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(3)
    url = f"http://127.0.0.1:{port}/v1"
    models = {
        role: EndpointSettings(url=url, model=role, concurrency=AT_ONCE) for role in ("student", "reference")
    }
    asked = Question(models, [{"name": "likeness"}])
    subject = audit.subject(asked, print, lambda *_: None)
    subject.cache = Path(tempfile.mkdtemp())
    subject.answers("student", ["warm"], Sampling())
    prompts = [f"Question {i}: what is {i} plus one?" for i in range(number)]
    began = time.perf_counter()
    subject.answers("student", prompts, Sampling(max_new_tokens=32))
    seconds = time.perf_counter() - began
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as told:
        most = int(told.read())
    server.terminate()
    ideal = number / AT_ONCE * WAIT
    return {
        "prompts": number,
        "seconds": seconds,
        "ideal": ideal,
        "share": ideal / seconds,
        "most": most,
    }


def local(student: str, reference: str, tokens: int) -> dict[str, Any]:
    """Likeness of two local models on 200 prompts, from nothing."""
    folder = Path(tempfile.mkdtemp())
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"Tell me something about the number {i}.\n" for i in range(200)))
    audits = [{"name": "likeness", "limit": 200, "max_new_tokens": tokens}]
    asked = Question({"student": student, "reference": reference}, audits, [str(prompts)])
    began = time.perf_counter()
    found = run(asked, folder / "out", print, lambda *_: None)
    return {
        "prompts": 200,
        "new_tokens": tokens,
        "seconds": time.perf_counter() - began,
        "parts": found["seconds"],
    }


if __name__ == "__main__":
    main()
