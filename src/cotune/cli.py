"""The command line: thin commands. Heavy imports happen inside them, so that `--help` is quick.

With `--json` a command prints exactly one JSON document on standard output; all else goes to standard error.
"""

from __future__ import annotations

import gc
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cotune.cli_deploy import app as deploy_app
from cotune.errors import CotuneError

app = typer.Typer(
    help="Tune one large language model on a server and many small ones on clients, together.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(
    help="Models by name: where they come from and whether they are here.", no_args_is_help=True
)
app.add_typer(models_app, name="models")
audit_app = typer.Typer(
    help="Did the student become a copy, does it know who it is, does it leak?", invoke_without_command=True
)
app.add_typer(audit_app, name="audit")
app.add_typer(deploy_app, name="deploy")


class Origin(StrEnum):
    """Where a model may come from."""

    auto = "auto"
    hub = "hub"
    package = "package"


ConfigFile = Annotated[Path, typer.Argument(help="YAML file", metavar="CONFIG")]
RunFolder = Annotated[Path, typer.Argument(help="folder of a run", metavar="DIR")]
Override = Annotated[list[str] | None, typer.Option("--set", help="path=value, e.g. slm.tune.lr=1e-3")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Out = Annotated[Path | None, typer.Option("--out", help="folder to write to")]


def main() -> None:
    """Entry point: mistakes end with one message and the exit code of their kind."""
    gc.set_threshold(50_000, 20, 20)  # imports make a million objects that stay: less looking among them
    try:
        code = app(standalone_mode=False)  # the code of a typer.Exit, and 130 of Ctrl-C, are returned
    except CotuneError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("aborted", 130)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own usage errors
            _fail(error.format_message() + " See --help.", 2)
        raise
    if code == 130:
        _fail("interrupted", 130)
    sys.exit(code)


def _fail(message: str, code: int) -> None:
    print(f"cotune: {message}", file=sys.stderr)
    sys.exit(code)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def run(config: ConfigFile, overrides: Override = None, out: Out = None, as_json: Json = False) -> None:
    """Co-tune: all rounds of a configuration, with evaluation before and after."""
    from cotune import launch

    _show(launch.start(config, overrides or [], out, _console()), as_json)


@app.command()
def resume(folder: RunFolder, as_json: Json = False) -> None:
    """Go on with a run from its last checkpoint."""
    from cotune import launch

    _show(launch.resume(folder, _console()), as_json)


@app.command()
def compare(
    config: ConfigFile,
    strategies: Annotated[
        str, typer.Option(help="names, separated by commas")
    ] = "standalone,fedavg,fedcollm,centralized",
    seeds: Annotated[int, typer.Option(min=1, help="runs of each, with seed, seed + 1, ...")] = 3,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run several strategies on identical data; print the paper's two tables with mean and spread."""
    from cotune import compare as comparing
    from cotune import tables

    console = _console()
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    found = comparing.compare(config, overrides or [], names, seeds, (out, console))
    if as_json:
        _print(found)
    elif sys.stdout.isatty():
        _out_console().print(*tables.compare_tables(found))
    else:
        print(tables.compare_text(found))


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Option(help="catalogue name, folder, or hub id")],
    task: Annotated[str, typer.Option(help="one of `cotune plugins`, e.g. multiple_choice")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder")] = None,
    data: Annotated[
        str | None, typer.Option(help="JSONL (.gz) or hub id; the task's own rows by default")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="first rows only")] = None,
    metric: Annotated[
        str | None, typer.Option(help="path_accuracy: by the answer that a written path ends on")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model, with or without an adapter, on a task."""
    from cotune import launch

    found = launch.evaluate_model((model, adapter), task, data, limit, metric)
    if as_json:
        _print(found)
    else:
        print(
            "  ".join(
                f"{name} {value:.4g}" for name, value in found.items() if isinstance(value, int | float)
            )
        )


@app.command()
def select(
    out: Annotated[Path, typer.Option(help="folder to write to; it must be new or empty")],
    data: Annotated[str, typer.Option(help="JSONL (.gz) or hub id; the task's own rows by default")] = "",
    method: Annotated[
        str, typer.Option(help="selectors of `cotune plugins`, joined by commas: noise_floor,fedhds")
    ] = "fedhds",
    partition: Annotated[str, typer.Option(help="one, iid, dirichlet:ALPHA[:KEY] or by_key:KEY")] = "one",
    clients: Annotated[int, typer.Option(min=1, help="of iid and dirichlet")] = 1,
    keep: Annotated[float | None, typer.Option(help="share of the examples to keep, e.g. 0.015")] = None,
    model: Annotated[
        str, typer.Option(help="read with: catalogue name, folder, or hub id; default: the method's own")
    ] = "",
    task: Annotated[str, typer.Option(help="how rows are read; guessed from the first row by default")] = "",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="option=value of the last method, e.g. min_group=5")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 7,
    as_json: Json = False,
) -> None:
    """Choose examples from a file: coreset.jsonl, selection.json, map.html."""
    from cotune import coreset, launch_select

    methods = launch_select.methods(method, overrides or [])
    dealt = launch_select.partition(partition, clients)
    asked = coreset.Question(data, methods, task, dealt, model, keep, seed)
    found = launch_select.select(asked, out, _console())
    if as_json:
        _print(found.facts)
    else:
        print(launch_select.sentence(found, out))


@audit_app.callback()
def audit(
    ctx: typer.Context,
    student: Annotated[
        str, typer.Option(help="MODEL, MODEL+ADAPTER, folder of an adapter, or URL#MODEL of an endpoint")
    ] = "",
    reference: Annotated[str, typer.Option(help="what the student may have become a copy of")] = "",
    baseline: Annotated[
        str, typer.Option(help="a student that was not taught; `untuned`: the student without its adapter")
    ] = "",
    unrelated: Annotated[str, typer.Option(help="a model that has nothing to do with them")] = "",
    judge: Annotated[str, typer.Option(help="who compares answers; without one there is no RSE")] = "",
    mutator: Annotated[str, typer.Option(help="who rewrites the templates of ICE")] = "",
    identity: Annotated[Path | None, typer.Option(help="identity.yaml, see cotune audit init")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="JSONL, .txt or hub id, a set each; our own by default")
    ] = None,
    members: Annotated[str, typer.Option(help="rows the student was trained on")] = "",
    non_members: Annotated[str, typer.Option(help="like rows that it was not trained on")] = "",
    audits: Annotated[str, typer.Option(help="of `cotune plugins`, joined by commas")] = "",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="AUDIT.OPTION=VALUE, e.g. rse.limit=50")
    ] = None,
    force_judge: Annotated[bool, typer.Option(help="let a model under test judge")] = False,
    api_key_env: Annotated[str, typer.Option(help="variable that holds the endpoints' key")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="requests to an endpoint at a time")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 7,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare a student with what it may have become a copy of: audit.json, audit.html."""
    if ctx.invoked_subcommand:
        return
    from cotune import audit as auditing
    from cotune import launch_audit
    from cotune.errors import ConfigError

    if out is None:
        raise ConfigError("--out: name a folder to write to")
    named = {"student": student, "reference": reference, "baseline": baseline, "unrelated": unrelated}
    named |= {"judge": judge, "mutator": mutator}
    endpoint = {"concurrency": concurrency, **({"api_key_env": api_key_env} if api_key_env else {})}
    models = {role: launch_audit.model(text, endpoint) for role, text in named.items() if text}
    given = {"judge": judge, "identity": identity, "members": members, "non_members": non_members}
    asked = auditing.Question(
        models,
        launch_audit.specs(audits, overrides or [], given),
        prompts or [],
        seed,
        force_judge,
    )
    found = launch_audit.run(asked, out, _console())
    if as_json:
        _print(found)
    else:
        print("\n".join(launch_audit.lines(found, out)))


@audit_app.command(name="init")
def audit_init(
    name: Annotated[str, typer.Option(help="what the model is called")],
    maker: Annotated[str, typer.Option(help="who made it")],
    out: Annotated[Path, typer.Option(help="file to write")] = Path("identity.yaml"),
) -> None:
    """Write identity.yaml: who a model is, and who it is not."""
    from cotune import identities

    print(identities.write(out, name, maker))


@audit_app.command()
def recount(
    path: Annotated[
        Path,
        typer.Argument(
            help="a folder of logs in the reference repository's format, or an RSE table in a file"
        ),
    ],
    as_json: Json = False,
) -> None:
    """Count the loose, strict and hard hits of published logs again, or average an RSE table."""
    from cotune import recount as recounting

    found: list[recounting.Row] | list[recounting.RseRow]
    found = recounting.averages(path) if path.is_file() else recounting.recount(path)
    if as_json:
        _print([row.as_facts() for row in found])
    else:
        print("\n".join(row.line() for row in found))


@app.command()
def status(folder: RunFolder, as_json: Json = False) -> None:
    """Say how far a run is and who is awaited, while it goes on or after it was stopped."""
    from cotune import waiting

    found = waiting.status(folder)
    if as_json:
        _print(found)
    else:
        print(waiting.describe(found))


@app.command()
def report(folder: RunFolder, as_json: Json = False) -> None:
    """Make report.html again from the files of a run."""
    from cotune import report as reports

    page = reports.render(folder)
    if as_json:
        _print({"report": str(page), **reports.read_results(folder)})
    else:
        print(page)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and the first thing that is wrong."""
    from cotune import doctor as checks

    found = checks.examine()
    if as_json:
        _print({"ok": all(check.is_fine for check in found), "checks": [check.as_dict() for check in found]})
    else:
        print("\n".join(check.line() for check in found))
    if not all(check.is_fine for check in found):
        raise typer.Exit(2)


@app.command()
def plugins(as_json: Json = False) -> None:
    """List every plug-in with its first line."""
    from cotune import plugins as slots

    found = {slot: {name: slots.summary(slot, name) for name in slots.names(slot)} for slot in slots.FOLDERS}
    if as_json:
        _print(found)
        return
    for slot, entries in found.items():
        for name, line in entries.items():
            print(f"{slot:<11} {name:<16} {line}")


@app.command()
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of a configuration file."""
    from cotune import schema as schemas

    del as_json  # the schema is JSON either way
    print(schemas.text())


@models_app.command(name="list")
def list_models(as_json: Json = False) -> None:
    """Models that have a short name, and whether they are on this machine."""
    from dataclasses import asdict

    from cotune.models import zoo

    found = zoo.cached()
    if as_json:
        _print([{**asdict(card), "path": str(card.path)} for card in found])
        return
    for card in found:
        print(f"{card.name:<20} {'here' if card.present else 'not here':<9} {card.licence:<12} {card.path}")


@models_app.command()
def pull(
    name: Annotated[str, typer.Argument(help="a name from `cotune models list`, or a hub id")],
    source: Annotated[Origin, typer.Option("--from", help="where it may come from")] = Origin.auto,
    as_json: Json = False,
) -> None:
    """Fetch a model, check its hash, convert it once, and keep it."""
    from cotune.models import zoo

    is_hub_id = "/" in name
    path = (
        zoo.resolve(name, progress=_note)
        if is_hub_id
        else zoo.pull(name, source=source.value, progress=_note)
    )
    if as_json:
        _print({"name": name, "path": str(path), "fingerprint": zoo.fingerprint(path)})
    else:
        print(path)


def _note(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _console() -> Any:
    """Where progress goes: standard error, so that standard output stays clean."""
    from rich.console import Console

    return Console(stderr=True)


def _out_console() -> Any:
    from rich.console import Console

    return Console()


def _show(results: dict[str, Any], as_json: bool) -> None:
    from cotune import tables

    if as_json:
        _print(results)
    elif sys.stdout.isatty():
        _out_console().print(tables.summary_table(results))
    else:
        print("\n".join(tables.summary_lines(results)))
