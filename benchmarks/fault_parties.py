"""Parties of a deployed run, each in processes of its own: started, killed, stopped, cut off, and looked at.

Nothing here knows what should come of it; `fault_deployed.py` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotune import deploy_party, report, waiting
from cotune.config import Config
from cotune.deploy import Address, init

SERVER = "server"
PATIENCE = 300.0
"""Longest time in seconds in which nothing at all happens."""
STARTER, ANSWERS, SERVE = "cotune.deployed start", "cotune.deployed answer", "cotune.deployed serve"
NODE, LINK = "flower-supernode", "flower-superlink"
HELD = "Received successfully"
"""What a SuperNode logs once a message is on its machine."""


class Stuck(Exception):
    """Nothing happens any more, or the run has ended badly."""


@dataclass(frozen=True)
class Seen:
    """What `status.json` says, and of which process."""

    round: int
    phase: str
    asked: int
    answered: int
    awaited: tuple[str, ...]
    pid: int

    @property
    def key(self) -> tuple[int, str, int, int]:
        """What changes when the run goes on."""
        return self.round, self.phase, self.asked, self.answered


class Trial:
    """A deployment on this machine whose parties live and die one by one.

    `trace`: what was seen of the run, in order. All processes are known by their command lines, which name
    the folder of their party; nothing else is ever touched.
    """

    def __init__(self, config: Config, folder: Path, port: int, stopping: threading.Event) -> None:
        self.folder, self.run, self.port, self.stopping = folder, folder / SERVER / "run", port, stopping
        self.clients: dict[str, str] = init(config, folder, Address(port=port))["clients"]
        self.trace: list[Seen] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.begun = time.monotonic()

    def home(self, party: str) -> Path:
        """A party's folder."""
        return self.folder / (SERVER if party == SERVER else self.clients[party])

    def start(self, party: str) -> None:
        """As its start.sh does."""
        home = self.home(party)
        (home / "logs").mkdir(exist_ok=True)
        with (home / "logs" / "start.log").open("ab") as log:
            words = [sys.executable, "-m", "cotune.deployed", "start", str(home)]
            self.started.append(
                subprocess.Popen(
                    words,
                    env=deploy_party.environment(home),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def submit(self) -> None:
        """As its submit.sh does, once the server answers."""
        self.until(self._answers, "the server does not answer")
        (self.home(SERVER) / deploy_party.OUTCOME).unlink(missing_ok=True)
        words = [sys.executable, "-m", "cotune.deployed", "submit", str(self.home(SERVER))]
        said = subprocess.run(words, capture_output=True, text=True, check=False)
        if said.returncode:
            raise Stuck(f"no run: {said.stdout[-300:]}{said.stderr[-300:]}")

    def start_all(self) -> None:
        """Everybody, and the run."""
        for party in (SERVER, *self.clients):
            self.start(party)
        self.submit()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    # --- looking ---

    def status(self) -> Seen | None:
        """What the run's file says now; None before there is one."""
        try:
            facts = json.loads((self.run / waiting.STATUS).read_text())
            numbers = (facts["round"], facts["phase"], facts["asked"], facts["answered"])
            return Seen(*numbers, tuple(facts["awaited"]), facts["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def look(self) -> Seen | None:
        """The same, kept in the trace if it is new.

        Raises:
            Stuck: nothing new for too long.
            KeyboardInterrupt: everything is to stop.
        """
        if self.stopping.is_set():
            raise KeyboardInterrupt
        seen = self.status()
        if seen and (not self.trace or (seen.key, seen.pid) != (self.trace[-1].key, self.trace[-1].pid)):
            self.trace.append(seen)
            self.begun = time.monotonic()
        if time.monotonic() - self.begun > PATIENCE:
            raise Stuck(f"nothing new for {PATIENCE:.0f} s; last: {self.trace[-1:]}; {self.outcome()}")
        return seen

    def until(self, is_so: Callable[[], bool], why: str, seconds: float = PATIENCE) -> None:
        """Look until something is so.

        Raises:
            Stuck: it does not become so.
        """
        end = self.begun = time.monotonic()
        end += seconds
        while not is_so():
            self.look()
            if time.monotonic() > end:
                raise Stuck(f"{why} within {seconds:.0f} s; last: {self.trace[-1:]}")
            time.sleep(0.002)

    def outcome(self) -> dict[str, Any]:
        """How the server says that its run has ended."""
        return deploy_party.read_outcome(self.home(SERVER) / deploy_party.OUTCOME) or {}

    def is_over(self) -> bool:
        """Whether the run is done.

        Raises:
            Stuck: it has failed.
        """
        found = self.outcome()
        if found.get("state") == "failed":
            raise Stuck(f"the run failed: {found}")
        return found.get("state") == "done"

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl."""
        return report.read_rounds(self.run) if (self.run / report.ROUNDS).is_file() else []

    def held(self, client: str) -> int:
        """How many messages have reached a client's machine."""
        path = self.home(client) / "logs" / "supernode.log"
        return path.read_text(errors="replace").count(HELD) if path.is_file() else 0

    # --- doing ---

    def processes(self, party: str, *words: str) -> list[int]:
        """Ids of a party's processes, those with the first word first; Linux only."""
        found = [line for line in _command_lines() if f"{self.home(party)}/" in f"{line[1]}/"]
        return [number for word in words or ("",) for number, line in found if word in line]

    def signal(self, number: signal.Signals, party: str, *words: str) -> int:
        """Send one to the processes of a party that have one of these words; how many there were."""
        hit = self.processes(party, *words)
        for each in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)
        return len(hit)

    def stop(self) -> list[int]:
        """End everything, kindly first; what was left of it after its starters had ended."""
        for party in (*self.clients, SERVER):
            self.signal(signal.SIGCONT, party)
            self.signal(signal.SIGTERM, party, STARTER)
        end = time.monotonic() + 2 * deploy_party.GRACE
        left = self._all()
        while left and time.monotonic() < end:
            time.sleep(0.2)
            left = self._all()
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for process in self.started:
            process.wait()
        return left

    def _all(self) -> list[int]:
        for process in self.started:
            process.poll()
        return [number for party in (SERVER, *self.clients) for number in self.processes(party)]


def _command_lines() -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").rstrip()
            if int(path.parent.name) != os.getpid():
                found.append((int(path.parent.name), line))
    return found


def free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(31_000, 60_000, 43):
        sockets = [socket.socket() for _ in range(number)]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for place, one in enumerate(map(stack.enter_context, sockets)):
                one.bind(("127.0.0.1", first + place))
            return first
    raise Stuck("no free ports")


# --- the network between two parties ---

UP, DOWN = "up", "down"
"""From a client to the server, and back."""


class Wire:
    """A forwarding of TCP connections that can lose what one side sends.

    TCP would send again what was lost. As no connection outlives a cut here in which it lost something, what
    is in it counts as lost for good: that is the harder case, of a cut that lasts.
    """

    def __init__(self, port: int, target: int) -> None:
        self.cut: frozenset[str] = frozenset()
        self._target, self._torn = target, set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._open: set[socket.socket] = {self._listener}
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def without(self, *ways: str) -> Iterator[None]:
        """Nothing arrives that goes these ways, until the block is over."""
        self.cut = frozenset(ways)
        try:
            yield
        finally:
            self.cut = frozenset()
            for one in list(self._torn):
                self._close(one)
            self._torn.clear()

    def close(self) -> None:
        """Everything."""
        for one in list(self._open):
            self._close(one)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # nobody is there yet, or any more
                    client.close()
                    continue
                self._open.update((client, server))
                for way, source, sink in ((UP, client, server), (DOWN, server, client)):
                    threading.Thread(target=self._pump, args=(way, source, sink), daemon=True).start()

    def _pump(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if way in self.cut:
                    self._torn.update((source, sink))
                else:
                    sink.sendall(data)
        if way in self.cut:  # the other side does not hear of an end, either
            self._torn.update((source, sink))
        else:
            self._close(source)
            self._close(sink)

    def _close(self, one: socket.socket) -> None:
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def through(trial: Trial, client: str, wire_port: int) -> Wire:
    """A wire between a client and the server of a deployment that has not been started yet."""
    path = trial.home(client) / "party.json"
    settings = json.loads(path.read_text())
    settings["server"] = f"localhost:{wire_port}"
    path.write_text(json.dumps(settings))
    return Wire(wire_port, trial.port)
