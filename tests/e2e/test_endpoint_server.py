"""A teacher behind a chat server that others wrote: `transformers serve` with the real 135M model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import tiny
from cotune import report
from cotune.models import zoo

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
for package in ("httpx2", "openai", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason="`transformers serve` needs it: pip install '.[real]'")

WAIT_SECONDS = 180


@pytest.fixture
def server(monkeypatch):
    """URL and model name of a server of our own, ended by its process id."""
    model = str(zoo.resolve("smollm2-135m"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from transformers.cli.transformers import main; main()"
    words = ["serve", model, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _await(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr.read().decode()
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"no server after {WAIT_SECONDS} s")


def test_a_run_is_taught_by_a_server_that_others_wrote(small, tmp_path, server):
    url, model = server
    teacher = {"url": url, "model": model, "concurrency": 2}
    teach = {"guard": False, "path_tokens": 12, "probe": 0, "beta": 1.0, "slm_lr": 1e-2, "teacher": teacher}
    tiny.run(small, tmp_path / "plain", strategy="fedavg", rounds=1)
    tiny.run(small, tmp_path / "run", strategy="fedavg", allocator="everything", teach=teach, rounds=1)
    [_, first] = report.read_rounds(tmp_path / "run")
    told = first["teaching"]["endpoint"]
    assert told["answers"] == 12
    assert told["estimated"] == 0, "the server counts tokens, so none are estimated"
    assert 0 < told["tokens_out"] <= 12 * 12
    assert tiny.adapter_bytes(tmp_path / "run") != tiny.adapter_bytes(tmp_path / "plain")
