"""`cotune audit`: questions about a pair of models, asked in turn; what they say is kept at once."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cotune import audit_prompts, plugins, whole
from cotune.config import RuntimeConfig, check_plugins
from cotune.endpoint_settings import EndpointSettings
from cotune.errors import ConfigError, DataError
from cotune.examined import BASELINE, REFERENCE, STUDENT, UNRELATED
from cotune.models import endpoint
from cotune.models.in_turn import InTurn, local
from cotune.models.lora import WEIGHTS
from cotune.records import Note, Progress
from cotune.report import plain
from cotune.subject import ModelSubject, appoint, identity, label, refuse_partial

RESULTS, QUESTION = "audit.json", "question.json"
UNTUNED = "untuned"
"""As a baseline: the student without its adapter."""
ROLES = (STUDENT, REFERENCE, BASELINE, UNRELATED)
Model = str | EndpointSettings


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    models: by role, also of `judge` and `mutator`: MODEL, MODEL+ADAPTER, an adapter's folder, or an endpoint.
    audits: `{name: ..., option: ...}`; prompts: files or hub ids.
    """

    models: Mapping[str, Model]
    audits: Sequence[Mapping[str, Any]]
    prompts: Sequence[str] = ()
    seed: int = 7
    force_judge: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def check(asked: Question) -> None:
    """Refuse what cannot be asked, before anything is loaded or written.

    Raises:
        ConfigError: a role, an audit or an option is wrong.
        ModelError: a model cannot be found.
    """
    for role in (STUDENT, REFERENCE):
        if role not in asked.models:
            raise ConfigError(f"--{role}: a model is missing")
    if not asked.audits:
        raise ConfigError("--audits: name at least one; see cotune plugins")
    check_plugins("audit", asked.audits)
    names = [spec["name"] for spec in asked.audits]
    for spec in asked.audits:
        if names.count(spec["name"]) > 1:
            raise ConfigError(f"--audits: {spec['name']} is there twice")
        _refuse_without(asked, spec)
    for model in asked.models.values():
        if not isinstance(model, str):
            endpoint.check(model)


def _refuse_without(asked: Question, spec: Mapping[str, Any]) -> None:
    """Refuse an audit that lacks what it asks with; else it would say so after all others are done."""
    name = spec["name"]
    if name == "rse" and "judge" not in asked.models:
        raise ConfigError(
            "--audits rse: nobody judges. Name a model or an endpoint that is not under test (--judge), or "
            "take likeness, which needs none"
        )
    if name == "canary" and spec.get("seed") is None:
        raise ConfigError(
            "--audits canary: which facts were planted? --set canary.seed=SEED of the run, and canary.facts, "
            "canary.shape as in its configuration. Nothing is planted here"
        )
    needed = {"ice": ("identity",), "membership": ("members", "non_members")}.get(name, ())
    for key in needed:
        if not spec.get(key):
            made = " cotune audit init makes one." if key == "identity" else ""
            raise ConfigError(f"--audits {name}: name a file with --{key.replace('_', '-')}.{made}")


def subject(asked: Question, note: Note, progress: Progress) -> ModelSubject:
    """The models, ready to be asked; nothing is loaded yet."""
    models = dict(asked.models)
    if models.get(BASELINE) == UNTUNED:
        models[BASELINE] = untuned(models[STUDENT])
    here = {role: local(model) for role, model in models.items() if isinstance(model, str)}
    remote = {role: model for role, model in models.items() if not isinstance(model, str)}
    roles = {role: label(models[role]) for role in ROLES if role in models}
    if asked.models.get(BASELINE) == UNTUNED:
        roles[BASELINE] = f"{roles[STUDENT]}, without its adapter"
    known = {role: identity(here.get(role) or remote[role], note) for role in models}
    if "judge" in models:
        tested = {role: known[role] for role in roles}
        refuse_partial((label(models["judge"]), known["judge"]), tested, asked.force_judge)
    found = ModelSubject(
        asked.seed,
        roles,
        audit_prompts.read(asked.prompts),
        InTurn(here, asked.runtime, note),
        remote,
        frozenset(role for role in models if role not in ROLES),
        runtime=asked.runtime,
        note=note,
        progress=progress,
        identities=known,
    )
    if "judge" in models:
        appoint(found, label(models["judge"]))
    return found


def untuned(student: Model) -> str:
    """The student's model without its adapter.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(student, str) or local(student).adapter is None:
        raise ConfigError(
            f"--baseline {UNTUNED}: the student has no adapter. Give the baseline's model by name."
        )
    return local(student).model


def run(asked: Question, out: Path, note: Note, progress: Progress) -> dict[str, Any]:
    """Ask everything that the folder does not hold yet; each audit is written as soon as it is done.

    Args:
        asked: the question; see `check`.
        out: a new folder, or one of the same question.
        note: told in words what is done.
        progress: told how far it is.

    Raises:
        UserError: the question cannot be asked, or the folder holds something else.
        Paused: an endpoint cannot be reached; asking again goes on.
    """
    check(asked)
    audits = {spec["name"]: plugins.load("audit", spec["name"], _options(spec)) for spec in asked.audits}
    found = subject(asked, note, progress)
    named = fingerprint(asked, found)
    _claim(asked, named, out)
    found.own = out
    if found.judge:  # its answers too are kept in the folder
        appoint(found, found.judge.name)
    record = _begun(asked, named, found, out)
    before = record["cost"]
    for name, audit in audits.items():
        if name in record["audits"]:
            continue
        began = time.perf_counter()
        try:
            record["audits"][name] = plain(audit.observe(found))
            record["seconds"][name] = round(time.perf_counter() - began, 3)
        finally:  # what was answered was paid for, also where the next answer did not come
            record["cost"] = _sum(before, found.spent())
            _write(out, record)
    record["status"] = "done"
    _write(out, record)
    return record


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "name"}


def _sum(before: Mapping[str, float | None], now: Mapping[str, float | None]) -> dict[str, float | None]:
    """Costs by role; None stays None, for nobody knows the price."""
    return {**before, **{role: c if c is None else c + (before.get(role) or 0) for role, c in now.items()}}


def _begun(asked: Question, named: str, found: ModelSubject, out: Path) -> dict[str, Any]:
    """What the folder holds of this question, or the head of a new record."""
    path = out / RESULTS
    if path.is_file():
        return _read(path)
    packages = ("cotune", "torch", "transformers", "numpy")
    return {
        "status": "running",
        "fingerprint": named,
        "models": {role: {"name": name} for role, name in found.roles.items()},
        "judge": {"name": found.judge.name} if found.judge else None,
        "seed": asked.seed,
        "prompt_sets": audit_prompts.described(found.prompt_sets),
        "audits": {},
        "seconds": {},
        "cost": {},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def fingerprint(asked: Question, found: ModelSubject) -> str:
    """16 hexadecimal digits that name the question, with the contents of all files that it names.

    How patiently endpoints are asked does not count.
    """
    named = {
        "models": {
            role: [label(model), found.identities[role], _adapter(model)]
            for role, model in asked.models.items()
        },
        "audits": [{key: [value, _content(value)] for key, value in spec.items()} for spec in asked.audits],
        "prompts": audit_prompts.described(found.prompt_sets),
        "seed": asked.seed,
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def _adapter(model: Model) -> str | None:
    """The content of a model's adapter; None without one."""
    adapter = local(model).adapter if isinstance(model, str) else None
    return _content(str(adapter / WEIGHTS)) if adapter else None


def _content(value: Any) -> str | None:
    """A hash of the file that an option names; None if it names none."""
    path = Path(value).expanduser() if isinstance(value, str) and value else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    """What a stopped audit has written.

    Raises:
        DataError: somebody else has written there.
    """
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"audits": dict, "seconds": dict, "cost": dict}
        if all(isinstance(kept[key], kind) for key, kind in wanted.items()):
            return kept
        problem = f"expected objects under {', '.join(wanted)}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise DataError(f"{path}: not what an audit has written ({problem}). Remove it, or name a new folder")


def _claim(asked: Question, named: str, out: Path) -> None:
    """Make the folder this question's own; one that holds another is refused."""
    path = out / QUESTION
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            kept = None
        if kept != named:
            holds = "another audit, or one of what has changed since," if kept else "something else"
            raise ConfigError(f"--out {out}: in use, it holds {holds}. Give the name of a new folder.")
        return
    out.mkdir(parents=True, exist_ok=True)
    question = {
        "fingerprint": named,
        "models": {role: label(model) for role, model in asked.models.items()},
        "audits": [dict(spec) for spec in asked.audits],
        "prompts": list(asked.prompts),
        "seed": asked.seed,
    }
    _atomic(path, question)


def _write(out: Path, record: Mapping[str, Any]) -> None:
    _atomic(out / RESULTS, record)


def _atomic(path: Path, value: Mapping[str, Any]) -> None:
    whole.write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
