"""One party of a deployed run: its processes are started, watched, started again, and stopped by their ids.

A server is a SuperLink and the process that runs the federation; a client is a SuperNode and the process that
answers its messages. Each writes to a log of its own.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cotune import parties, whole
from cotune.errors import ConfigError, Interrupted, RunError
from cotune.parties import Party

LOG = logging.getLogger("cotune")
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}
"""Flower installs nothing, asks nobody about updates, and tells nobody what it does."""
LINK_SECRET = "link.key"
"""Proves to a SuperLink or SuperNode that a process on this machine belongs to it."""
OUTCOME = "outcome.json"
RUNNING = {"state": "running"}
GRACE = 10.0
"""Seconds that a process gets to stop by itself."""
PAUSE = 2.0
"""Seconds before a process that ended is started again."""
SUPERNODE = (
    "import os, sys; from flwr.supernode.cli.flower_supernode import flower_supernode; "
    "del sys.argv[0]; flower_supernode(); os._exit(1)"
)
"""A SuperNode that gives up, as after a cut in the middle of a TLS handshake, does not end by itself."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process of a party; one that `stays` is started again when it ends."""

    name: str
    words: tuple[str, ...]
    stays: bool = True


def environment(folder: Path) -> dict[str, str]:
    """Of all processes of a party; Flower keeps its own files in the party's folder."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    home = {"FLWR_HOME": str(folder / "flower"), "COTUNE_PARTY": str(folder)}
    return {**os.environ, **QUIET, **home, "PATH": path, "PYTHONUNBUFFERED": "1"}


def commands(party: Party) -> tuple[Command, ...]:
    """What runs on a party's machine."""
    folder, settings = party.folder, party.settings
    if party.is_server:
        link = [
            *("flower-superlink", "--host", str(settings["bind"]), "--port", str(settings["port"])),
            *("--ssl-certfile", str(folder / "server.crt"), "--ssl-keyfile", str(folder / "server.key")),
            *("--ssl-ca-certfile", str(folder / "ca.crt"), "--database", str(folder / "superlink.db")),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--isolation", "process", "--superexec-auth-secret-file", str(folder / LINK_SECRET)),
        ]
        serving = Command("federation", _ours("serve", folder))
        return (Command("superlink", tuple(link), stays=False), serving)
    config = {"client": party.name, "folder": str(folder), "device": str(settings.get("device", "auto"))}
    node = [
        *(sys.executable, "-c", SUPERNODE, "flower-supernode", "--superlink", str(settings["server"])),
        *("--root-certificates", str(folder / "ca.crt"), "--host", "127.0.0.1"),
        *("--port", str(settings["runtime_port"]), "--isolation", "process"),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--superexec-auth-secret-file", str(folder / LINK_SECRET)),
        *("--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())),
    ]
    return (Command("supernode", tuple(node)), Command("answers", _ours("answer", folder)))


def _ours(verb: str, folder: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "cotune.deployed", verb, str(folder))


class Processes:
    """What runs of a party, by name."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.commands = {command.name: command for command in commands(party)}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._due: dict[str, float] = dict.fromkeys(self.commands, 0.0)

    def tend(self) -> str | None:
        """Start what should run; the name of a process that has ended and may not be started again."""
        now = time.monotonic()
        for name, command in self.commands.items():
            process = self.running.get(name)
            if process is not None and process.poll() is not None:
                self._ended(name, process.returncode)
                if not command.stays:
                    return name
                del self.running[name]
                self._due[name] = now + PAUSE
            if name not in self.running and now >= self._due[name]:
                self.running[name] = self._start(command)
        return None

    def stop(self) -> None:
        """End all of them, the last one first."""
        end([*reversed(self.running.values())], GRACE)
        self.running.clear()

    def _start(self, command: Command) -> subprocess.Popen[bytes]:
        logs = self.party.folder / "logs"
        logs.mkdir(exist_ok=True)
        try:
            with (logs / f"{command.name}.log").open("ab") as log:
                return subprocess.Popen(
                    command.words,
                    cwd=self.party.folder,
                    env=environment(self.party.folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        except FileNotFoundError as error:
            raise ConfigError(
                f"{command.words[0]}: not found. Flower is missing here: pip install 'cotune[flower]'"
            ) from error

    def _ended(self, name: str, code: int) -> None:
        """A federation that died in the middle of a run could not say so itself."""
        path = self.party.folder / OUTCOME
        if name == "federation" and read_outcome(path) == RUNNING:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            write_outcome(path, {"state": "failed", "exit_code": 3, "message": f"its process ended ({how})"})


def end(processes: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    """End processes by their ids: first in a friendly way, and after a while by force."""
    for process in processes:
        process.terminate()
    last = time.monotonic() + grace_seconds
    for process in processes:
        try:
            process.wait(max(0.1, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(folder: Path) -> None:
    """Run a party until it is told to stop (Ctrl-C or SIGTERM).

    Raises:
        ConfigError: its folder cannot be used.
        RunError: a process ended that cannot simply be started again.
    """
    party = parties.load(folder.resolve())
    processes = Processes(party)
    LOG.info("%s: started; logs are in %s. Stop: Ctrl-C", party.name, party.folder / "logs")
    with Stopping():
        try:
            ended = _tended(processes)
        except KeyboardInterrupt as error:
            raise Interrupted(f"{party.name}: stopped") from error
        finally:
            processes.stop()
    raise RunError(f"{party.name}: {ended} ended; see {party.folder / 'logs' / ended}.log")


def _tended(processes: Processes) -> str:
    """Look after processes until one ends that may not be started again."""
    while (ended := processes.tend()) is None:
        time.sleep(0.5)
    return ended


class Stopping:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt; once, so that stopping itself is not interrupted."""

    def __enter__(self) -> None:
        signals = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._stop) for number in signals}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt


def submit(folder: Path, fingerprint: str) -> str:
    """Register the clients' nodes with the running SuperLink, and ask it for a run; returns Flower's number.

    Raises:
        RunError: the SuperLink does not answer, or refuses the run.
    """
    party = parties.load(folder.resolve())
    home = party.folder / "flower"
    home.mkdir(exist_ok=True)
    profile = f'address = "{party.settings["server"]}"\nroot-certificates = "{party.folder / "ca.crt"}"\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "cotune"\n\n[superlink.cotune]\n{profile}')
    keys = sorted((party.folder / "nodes").glob("*.pub"))
    for few in (keys[at : at + 4] for at in range(0, len(keys), 4)):
        _register(party, few)
    config = f'config="{parties.CONFIG}" fingerprint="{fingerprint}"'
    words = ["flwr", "run", str(party.folder / "app"), "cotune", "--run-config", config, "--format", "json"]
    found = subprocess.run(words, env=environment(party.folder), capture_output=True, text=True, check=False)
    answer = _json(found.stdout)
    if found.returncode or not answer.get("success"):
        raise RunError(f"the SuperLink took no run: {_said(found.stdout, found.stderr)}")
    return str(answer["run-id"])


def _register(party: Party, keys: Sequence[Path]) -> None:
    """Some nodes at a time: each takes seconds, of which most is Python starting."""
    words = [["flwr", "supernode", "register", str(key), "cotune", "--format", "json"] for key in keys]
    running = [
        subprocess.Popen(
            each, env=environment(party.folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for each in words
    ]
    for key, process in zip(keys, running, strict=True):
        said, _ = process.communicate()
        if not _json(said).get("success") and "already in use" not in " ".join(said.split()):
            raise RunError(f"{key.name}: the SuperLink did not register this node: {_said(said)}")


def _json(text: str) -> Mapping[str, Any]:
    """The JSON object in what a command said; empty if there is none."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[begin : end + 1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(*texts: str) -> str:
    return " ".join(" ".join(texts).split())[-500:]


def read_outcome(path: Path) -> dict[str, Any] | None:
    """How the server's last run ended, or that it is running; None before the first."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_outcome(path: Path, outcome: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    whole.write(path, json.dumps(outcome))
