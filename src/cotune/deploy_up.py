"""A deployment on one machine, for trial: all is started, followed, and stopped when the run is over."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cotune import config as configs
from cotune import deploy_party, parties
from cotune.deploy import DEPLOYMENT
from cotune.deploy_party import GRACE, OUTCOME, read_outcome
from cotune.errors import ConfigError, CotuneError, Interrupted, RunError, UserError
from cotune.guarded import SERVER
from cotune.parties import Party
from cotune.records import Note

READY_S = 120.0
"""Longest wait for the server to answer on its port."""
LOOK = 0.5


def up(folder: Path, note: Note = lambda _: None) -> Path:
    """Start all parties of a deployment on this machine, run or resume its run, and stop them.

    Args:
        folder: as `deploy.init` wrote it.
        note: told what happens, a line at a time; the server's own lines among them.

    Returns:
        The folder of the finished run.

    Raises:
        ConfigError: there is no deployment, or its port is taken.
        RunError: something ended before the run did; start again to go on.
        Interrupted: Ctrl-C or SIGTERM. Nothing that was started is left.
    """
    deployment = _deployment(folder)
    server = parties.load((folder / SERVER).resolve())
    _refuse_taken(server)
    homes = {SERVER: server.folder}
    homes |= {name: (folder / home).resolve() for name, home in deployment["clients"].items()}
    running: dict[str, subprocess.Popen[bytes]] = {}
    with _stopping(running, folder):
        began = time.monotonic()
        running[SERVER] = _start(homes[SERVER])
        note("starting the server")
        _wait_for_port(server, running[SERVER])
        note(f"the server answers after {time.monotonic() - began:.0f} s; starting {len(homes) - 1} clients")
        (server.folder / OUTCOME).unlink(missing_ok=True)
        run_log = server.folder / "logs" / "run.log"
        place = run_log.stat().st_size if run_log.exists() else 0
        config = configs.load(server.folder / parties.CONFIG)
        number = deploy_party.submit(server.folder, configs.fingerprint(config))
        running |= {name: _start(home) for name, home in homes.items() if name != SERVER}
        note(f"run {number} was submitted after {time.monotonic() - began:.0f} s")
        return _follow(server, running, (run_log, place), note)


def _deployment(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / DEPLOYMENT).read_text(encoding="utf-8"))
        return {"clients": dict(found["clients"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: no deployment ({type(error).__name__}). Make one: cotune deploy init {folder} "
            "--config CONFIG"
        ) from error


def _refuse_taken(server: Party) -> None:
    host, port = str(server.settings["bind"]), int(server.settings["port"])
    with socket.socket() as probe, suppress(OSError):
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1" if host == "0.0.0.0" else host, port)) == 0:
            raise ConfigError(
                f"port {port}: in use, perhaps by this deployment. Stop what runs there, or change port and "
                f"server in {server.folder / parties.PARTY} (and server in the clients' ones)."
            )


def _start(home: Path) -> subprocess.Popen[bytes]:
    """A party's own start, as its script does it; in a group of its own, so that Ctrl-C reaches us alone."""
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / "start.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cotune.deployed", "start", str(home)],
            env=deploy_party.environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for_port(server: Party, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers with its certificate.

    Raises:
        RunError: it does not.
    """
    host, _, port = str(server.settings["server"]).rpartition(":")
    context = ssl.create_default_context(cafile=str(server.folder / "ca.crt"))
    end, said = time.monotonic() + READY_S, ""
    while time.monotonic() < end and process.poll() is None:
        try:
            with (
                socket.create_connection((host, int(port)), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                return
        except OSError as error:  # ssl's own errors, too
            said = str(error)
            time.sleep(LOOK)
    raise RunError(f"the server does not answer at {host}:{port} ({said}); see {server.folder / 'logs'}")


def _follow(
    server: Party, running: dict[str, subprocess.Popen[bytes]], log: tuple[Path, int], note: Note
) -> Path:
    """Pass on what the server writes, until its run has ended.

    Raises:
        CotuneError: as the run ended.
    """
    lines = _lines(*log)
    while True:
        outcome = read_outcome(server.folder / OUTCOME) or {}
        for line in next(lines):
            note(line)
        if outcome.get("state") == "done":
            return Path(str(outcome["results"]))
        if outcome.get("state") == "failed":
            raise _error(outcome, server)
        ended = [name for name, process in running.items() if process.poll() is not None]
        if SERVER in ended:
            raise RunError(f"the server ended; see {server.folder / 'logs'}. Go on with: {_again(server)}")
        for name in ended:
            note(f"{name} ended; see {server.folder.parent / 'clients'}")
            del running[name]
        time.sleep(LOOK)


def _error(outcome: dict[str, Any], server: Party) -> CotuneError:
    message = str(outcome.get("message", "the run failed"))
    if outcome.get("exit_code") == UserError.exit_code:
        return ConfigError(message)
    return RunError(f"{message.split(' Go on with')[0]}. Go on with: {_again(server)}")


def _again(server: Party) -> str:
    return f"cotune deploy up {server.folder.parent}"


def _lines(path: Path, place: int) -> Iterator[list[str]]:
    """Whole lines that have come since the last look."""
    rest = b""
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(place)
                rest += file.read()
                place = file.tell()
        *whole, rest = rest.split(b"\n")
        yield [line.decode("utf-8", "replace") for line in whole if line.strip()]


@contextmanager
def _stopping(running: dict[str, subprocess.Popen[bytes]], folder: Path) -> Iterator[None]:
    """Whatever happens, all that was started is stopped, by its process id."""
    with deploy_party.Stopping():
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted. Go on with: cotune deploy up {folder}") from error
        finally:
            deploy_party.end(list(running.values()), 2 * GRACE)  # each party ends its own processes
