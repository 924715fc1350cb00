"""What runs on each machine of a deployed run; `cotune deploy` writes the scripts that start it.

The server's part builds the same session as `cotune run`, with Flower in place of the clients of its own
process; a client's part builds the same host, with one client in it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotune import config as configs
from cotune import deploy_party, parties
from cotune.answering import Desk
from cotune.config import Config
from cotune.deploy_party import LINK_SECRET, OUTCOME, RUNNING, write_outcome
from cotune.errors import ConfigError, CotuneError, Interrupted
from cotune.guarded import SERVER
from cotune.parties import Parties, Party
from cotune.records import Message
from cotune.remote import HELLO, Patience, Roster

if TYPE_CHECKING:
    from cotune.host import Host, Hosts

LOG = logging.getLogger("cotune")
RUN = "run"
"""The folder of a server in which the run's files are; `cotune run --out` writes the same."""


def serve(grid: Any, context: Any, folder: Path) -> None:
    """The server's part of one run, with resume where it had begun; how it ends stands in `outcome.json`.

    Args:
        grid, context: as Flower hands them to a ServerApp.
        folder: the server's.

    Raises:
        ConfigError: the run that was asked for is not the one of this folder.
        CotuneError: as `cotune run` does.
    """
    outcome = folder / OUTCOME
    write_outcome(outcome, RUNNING)
    try:
        results = _run(grid, context, folder)
    except CotuneError as error:
        found = {"state": "failed", "exit_code": error.exit_code, "message": str(error)}
        write_outcome(outcome, found)
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}; see {folder / 'logs'}"
        write_outcome(outcome, {"state": "failed", "exit_code": 3, "message": message})
        raise
    write_outcome(outcome, {"state": "done", "exit_code": 0, "results": str(results)})


def _run(grid: Any, context: Any, folder: Path) -> Path:
    from filelock import FileLock, Timeout
    from rich.console import Console

    from cotune import launch
    from cotune.transports.flower import Flower

    party, config = _party(folder)
    run = configs.fingerprint(config)
    asked = context.run_config.get("fingerprint")
    if asked != run:
        raise ConfigError(
            f"a run of fingerprint {asked!r} was asked for; {folder / parties.CONFIG} is {run!r}. Submit the "
            "app of this deployment: cotune deploy up, or server/submit.sh"
        )
    clients, nodes = party.registry.of_clients, party.registry.nodes
    try:
        with FileLock(folder / "serving.lock", timeout=0), (folder / "logs" / "run.log").open("a") as log:
            console = Console(file=log, width=110)
            note = partial(_note, console)
            patience = Patience(deadline=config.runtime.deadline_seconds)
            transport = Flower(grid, Roster(run, party.identity, clients, nodes), patience, note)
            limit = float(party.settings.get("wait_s", 600))
            said = transport.wait(config.cohort.minimum, limit)
            dataset = parties.read_server(folder, _sizes(said))
            reached = Parties(dataset, transport, parties.own_secret(party), clients)
            launch.run(config, folder / RUN, console, reached)
    except Timeout as error:
        raise ConfigError(f"{folder}: a run is being served already; wait, or stop it first") from error
    return folder / RUN


def _note(console: Any, text: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, markup=False)


def _sizes(said: Mapping[str, Message]) -> dict[str, int]:
    """How many examples clients say they have; what is no number is left out."""
    found = {client: message.facts.get("examples") for client, message in said.items()}
    return {client: count for client, count in found.items() if type(count) is int and 0 <= count < 1 << 40}


def _party(folder: Path) -> tuple[Party, Config]:
    """A party and its configuration, on the device that its settings name."""
    party = parties.load(folder)
    config = configs.load(folder / parties.CONFIG)
    runtime = config.runtime.model_copy(update={"device": str(party.settings.get("device", "auto"))})
    return party, config.model_copy(update={"runtime": runtime})


@dataclass(frozen=True)
class _Client:
    """A client's host, made when a message first needs it, and kept."""

    party: Party
    config: Config

    @cached_property
    def dataset(self) -> Any:
        """What it may read."""
        tasks = [source.task for source in self.config.data.sources]
        found = parties.read_client(self.party.folder, self.party.name, tasks)
        for note in found.notes:
            LOG.warning(note)
        return found

    @cached_property
    def host(self) -> Host | Hosts:
        """With its model."""
        from cotune import build

        return build.host(self.config, self.party, self.dataset, LOG.info)

    def handle(self, message: Message) -> Message:
        """The reply to one message."""
        if message.action == HELLO:
            facts = {"examples": self.dataset.num_train(self.party.name)}
            return Message(message.client, message.round, message.action, {}, facts)
        return self.host.handle([message])[0]


@cache
def desk(folder: Path) -> Desk:
    """Where the messages for the client in a folder are answered; one a process."""
    party, config = _party(folder)
    keys = {SERVER: party.registry.identities[SERVER]}
    client = _Client(party, config)
    return Desk(party.name, configs.fingerprint(config), party.identity, keys, client.handle)


def answer(message: Any, context: Any) -> Any:
    """A ClientApp's part: the reply to a Flower message; the node's configuration names the folder."""
    from cotune.transports import flower

    began = time.monotonic()
    found = flower.answer(message, desk(Path(str(context.node_config["folder"]))).reply)
    LOG.info("answered in %.2f s", time.monotonic() - began)
    return found


def _prepare() -> None:
    """Import what takes seconds while others are still starting, not when the first message waits."""
    from cotune import build

    assert build


def _serve(folder: Path) -> int:
    from cotune.transports import flower

    party, _ = _party(folder)
    _prepare()
    secret = (folder / LINK_SECRET).read_bytes()
    place = flower.Place(str(party.settings["server"]), (folder / "ca.crt").read_bytes(), secret)
    return 0 if flower.serve_one_run(place, partial(serve, folder=folder)) else 1


def _answer(folder: Path) -> int:
    from cotune.transports import flower

    party, _ = _party(folder)
    _prepare()
    place = flower.Place(
        f"127.0.0.1:{party.settings['runtime_port']}", None, (folder / LINK_SECRET).read_bytes()
    )
    flower.answer_messages(place, answer)
    return 0


def _start(folder: Path) -> int:
    deploy_party.start(folder)
    return 0


def _submit(folder: Path) -> int:
    number = deploy_party.submit(folder, configs.fingerprint(configs.load(folder / parties.CONFIG)))
    LOG.info("run %s was submitted", number)
    return 0


VERBS: Mapping[str, Callable[[Path], int]] = {
    "start": _start,
    "serve": _serve,
    "answer": _answer,
    "submit": _submit,
}


def main(words: Sequence[str]) -> int:
    """`python -m cotune.deployed VERB FOLDER`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    if len(words) != 2 or words[0] not in VERBS:
        LOG.error("expected one of %s, and the folder of a party", ", ".join(VERBS))
        return 2
    try:
        return VERBS[words[0]](Path(words[1]).resolve())
    except Interrupted as error:
        LOG.info("%s", error)
        return 0
    except CotuneError as error:
        LOG.error("cotune: %s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
