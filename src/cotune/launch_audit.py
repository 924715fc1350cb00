"""`cotune audit`: the question from the command line, progress, and the files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cotune import audit, audit_page, whole
from cotune.audit import Model, Question
from cotune.endpoint_settings import EndpointSettings
from cotune.errors import ConfigError, Paused, RunError
from cotune.launch_select import Shown
from cotune.overrides import plain_value

PAGE = "audit.html"
_ENDPOINT = re.compile(r"(?P<url>https?://[^#]+)#(?P<model>.+)")


def model(text: str, endpoint: Mapping[str, Any]) -> Model:
    """A local model as it is, `URL#MODEL` as an endpoint with these further settings.

    Raises:
        ConfigError: an address without the model's name.
    """
    found = _ENDPOINT.fullmatch(text)
    if found:
        return EndpointSettings.model_validate({**found.groupdict(), **endpoint})
    if text.startswith(("http://", "https://")):
        raise ConfigError(
            "an endpoint without a model: which one? Expected URL#MODEL, e.g. http://localhost:8000/v1#llama"
        )
    return text


def specs(names: str, options: Sequence[str], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Audits by name with their options.

    Args:
        names: joined by commas; empty: all that can be asked with what is given.
        options: `audit.option=value`.
        given: `judge`, `identity`, `members`, `non_members`, where the user named them.

    Raises:
        ConfigError: an option is not of that form, or belongs to no audit that is asked.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        wanted = ["likeness", *(["rse"] if given.get("judge") else [])]
        wanted += ["ice"] if given.get("identity") else []
        wanted += ["membership"] if given.get("members") else []
    found = {name: {"name": name} for name in wanted}
    own = {"ice": {"identity": given.get("identity")}}
    own["membership"] = {key: given.get(key) for key in ("members", "non_members")}
    for name, values in own.items():
        if name in found:
            found[name] |= {key: str(value) for key, value in values.items() if value}
    for option in options:
        place, equals, value = option.partition("=")
        name, dot, key = place.partition(".")
        if not equals or not dot or name not in found:
            raise ConfigError(
                f"--set {option!r}: expected AUDIT.OPTION=VALUE with one of {', '.join(found)}, e.g. "
                f"--set {wanted[0]}.limit=10"
            )
        found[name][key] = plain_value(value)
    return list(found.values())


def run(asked: Question, out: Path, console: Console) -> dict[str, Any]:
    """Ask, and write audit.json and audit.html.

    Raises:
        RunError: an endpoint cannot be reached; the same command goes on.
    """
    try:
        with Shown(console) as shown:
            found = audit.run(asked, out, shown.note, shown.tell)
    except Paused as error:
        raise RunError(f"{error}. Go on with the same command: {out} keeps what was answered") from error
    whole.write(out / PAGE, audit_page.render(found))
    return found


def lines(found: Mapping[str, Any], out: Path) -> list[str]:
    """What an audit says, a line a number, and where the page is."""
    told = []
    for name, facts in found["audits"].items():
        told += [f"{name:<15} {key:<32} {_told(value)}" for key, value in facts["summary"].items()]
        told += [f"{name:<15} warning: {warning}" for warning in facts["warnings"]]
    return [*told, str(out / PAGE)]


def _told(estimate: Mapping[str, Any]) -> str:
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "none"
    between = f"  ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{value:.3f}{between}  n {estimate.get('n')}"
