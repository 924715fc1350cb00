"""A deployment with real processes on loopback, TLS on: it gives what the embedded run gives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from cotune import config, deploy, report

SMALL = {"runtime": {"device": "cpu", "threads": 1, "stack": 1}}
"""A deployed client trains alone; embedded, stacks of one do the same sums in the same order."""
UP = "import sys; from pathlib import Path; from cotune import deploy_up; "
UP += "deploy_up.up(Path(sys.argv[1]), lambda line: print(line, flush=True))"

pytestmark = pytest.mark.real


def free_ports(number):
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20_000, 60_000, 37):
        with_room = []
        try:
            for port in range(first, first + number):
                with_room.append(socket.socket())
                with_room[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in with_room:
                one.close()
        return first
    raise AssertionError("no free ports")


def made(small, folder, **changes):
    """A deployment of the tiny configuration."""
    checked = config.from_dict(tiny.raw_config(small, **SMALL, **changes))
    deploy.init(checked, folder, deploy.Address(port=free_ports(4)))
    return folder


class Up:
    """`cotune deploy up` in a process of its own, as a user has it."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "server" / "run"
        self.process = subprocess.Popen(
            [sys.executable, "-c", UP, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, what, seconds=240.0):
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end, (self.folder / "server/logs/run.log").read_text()
            time.sleep(0.2)

    def has_round(self, index):
        return any(line["round"] == index for line in report.read_rounds(self.run))

    def ended(self, seconds=300.0):
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said


def processes(folder, *words):
    """Ids of processes whose command line names a folder and has these words; Linux only."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line and all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


def kill(folder, *words):
    hit = processes(folder, *words)
    assert hit, words
    for number in hit:
        os.kill(number, signal.SIGKILL)


def same(embedded, deployed):
    """Equal numbers, and equal bytes of both adapters."""
    one, other = (json.loads((run / "results.json").read_text()) for run in (embedded, deployed))
    for name in ("fingerprint", "rounds", "status", "metrics", "models", "examples"):
        assert one[name] == other[name], name
    for role in ("slm", "llm"):
        assert tiny.adapter_bytes(embedded, role) == tiny.adapter_bytes(deployed, role)
    return one, other


def test_a_deployed_run_gives_the_numbers_and_the_bytes_of_the_embedded_one(small, tmp_path):
    tiny.run(small, tmp_path / "embedded", **SMALL)
    folder = made(small, tmp_path / "deployed")
    code, said = Up(folder).ended()
    assert code == 0, said
    one, other = same(tmp_path / "embedded", folder / "server/run")
    assert one["traffic"] == other["traffic"]
    assert not other["failures"]
    assert not processes(folder)


def test_killed_node_and_killed_server_change_nothing_in_the_end(small, tmp_path):
    tiny.run(small, tmp_path / "embedded", rounds=4, **SMALL)
    folder = made(small, tmp_path / "deployed", rounds=4)
    first = Up(folder)
    first.until(lambda: first.has_round(1))
    kill(folder / "clients" / "client-2", "flower-supernode")
    first.until(lambda: first.has_round(2))
    kill(folder / "server", "cotune.deployed start")
    kill(folder / "server", "flower-superlink")
    kill(folder / "server", "cotune.deployed serve")
    code, said = first.ended()
    assert code != 0
    assert "Go on with: cotune deploy up" in said
    assert not processes(folder)
    code, said = Up(folder).ended()
    assert code == 0, said
    same(tmp_path / "embedded", folder / "server/run")
    assert [line["round"] for line in report.read_rounds(folder / "server/run")] == [0, 1, 2, 3, 4]
    assert not processes(folder)


def test_ctrl_c_stops_everything_that_was_started(small, tmp_path):
    folder = made(small, tmp_path / "deployed")
    going = Up(folder)
    going.until(lambda: processes(folder / "clients" / "client-3", "flower-supernode"))
    os.kill(going.process.pid, signal.SIGINT)
    code, said = going.ended(60.0)
    assert code != 0
    assert "interrupted" in said
    assert not processes(folder)
