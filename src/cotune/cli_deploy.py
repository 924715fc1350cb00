"""`cotune deploy`: the same configuration between real machines, over Flower."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Run between machines over Flower: write what each party needs, or try it all on this machine.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="folder of the deployment", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]


@app.command()
def init(
    folder: Folder,
    config: Annotated[Path, typer.Option(help="YAML file, as for `cotune run`")],
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="deal all rows to so many clients, whatever the file says"),
    ] = None,
    host: Annotated[str, typer.Option(help="the server's name, as clients reach it")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65000, help="of the server")] = 9191,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="path=value")] = None,
    as_json: Json = False,
) -> None:
    """Write a folder for the server and one for each client: keys, certificate, data, a start script."""
    from cotune import config as configs
    from cotune import deploy

    dealt = [f"data.partition={{name: iid, clients: {clients}}}"] if clients else []
    found = deploy.init(
        configs.load(config, [*(overrides or []), *dealt]), folder, deploy.Address(host, port), _tell
    )
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(f"{folder}: who gets what stands in {folder / 'README.md'}")
        print(f"try it on this machine: cotune deploy up {folder}")


@app.command()
def up(folder: Folder, as_json: Json = False) -> None:
    """Start all parties on this machine, for trial: run, or go on with a run, and stop them at its end."""
    from cotune import deploy_up
    from cotune.report import read_results

    run = deploy_up.up(folder, _tell)
    if as_json:
        print(json.dumps(read_results(run), indent=2, ensure_ascii=False))
    else:
        print(run)


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
