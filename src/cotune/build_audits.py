"""Composition of a run's audits: their models by role, who judges, and what is planted beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cotune import audit_prompts, canaries, plugins
from cotune.cast import LLM
from cotune.config import Config
from cotune.data import Dataset
from cotune.endpoint_settings import EndpointSettings
from cotune.errors import ConfigError
from cotune.examined import BEFORE, UNRELATED, Crossed, CrossedVectors
from cotune.fleet import Fleet
from cotune.models import endpoint
from cotune.models.in_turn import InTurn, Loaded, Local, local
from cotune.observing import Observing, Overheard
from cotune.protocols import SLM, Reader, State
from cotune.records import Note, Progress, silent
from cotune.subject import ModelSubject, SentenceEncoder, appoint, identity, label, refuse_partial

CANARY = "canary"
HELPERS = ("judge", "mutator")
"""They are asked, and not under audit."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a run's audits are made of: its models, its data, and the reader that a selector's centres come
    from."""

    fleet: Fleet
    dataset: Dataset
    reader: Callable[[str], Reader]
    note: Note = lambda _: None
    progress: Progress = silent


def planted(config: Config, dataset: Dataset, note: Note) -> Dataset:
    """The dataset with the facts of the leakage audit among one client's examples, if there is one.

    Raises:
        ConfigError: there is no such client.
        DataError: an invented name stands in the public set.
    """
    found = _canaries(config)
    if found is None:
        return dataset
    audit, facts = found
    client = audit.config.client or dataset.clients[0]
    if client not in dataset.clients:
        raise ConfigError(
            f"audits: canary: there is no client {client!r}; expected one of "
            f"{', '.join(dataset.clients[:20])}"
        )
    texts = [example.prompt + example.completion for example in dataset.public]
    canaries.refuse_known(texts, facts)
    added = canaries.plant((), facts, audit.config.repeats)
    note(
        f"canary: {len(facts.planted)} invented facts are planted with client {client}, "
        f"{audit.config.repeats} copies each; they are trained on in this run"
    )
    return dataset.with_more(client, added)


def observing(config: Config, scene: Scene) -> Observing | None:
    """The audits of a run; None without any.

    Raises:
        UserError: a judge, a prompt file or an identity file cannot be used.
    """
    if not config.audits:
        return None
    audits = {}
    for spec in config.audits:
        options = plugins.config_class("audit", spec.name).model_validate(spec.options)
        audits[spec.name] = (plugins.load("audit", spec.name, spec.options), getattr(options, "every", 1))
    sets = audit_prompts.read(config.auditing.prompts)
    _check_outside(config, scene.fleet, scene.note)
    encoder = SentenceEncoder(config.runtime, scene.note)
    return Observing(audits, partial(_subject, config, scene, (sets, encoder)), config.gates)


def _subject(
    config: Config,
    scene: Scene,
    shared: tuple[Mapping[str, Sequence[str]], SentenceEncoder],
    state: State,
    asked: State | None,
    heard: Overheard,
) -> ModelSubject:
    """Of one observation; `shared` by all: prompt sets and the encoder."""
    subject = _bare_subject(config, scene, *shared)
    subject.load = partial(_model, scene.fleet, subject.load, state)
    if config.auditing.judge:
        appoint(subject, label(config.auditing.judge))
    texts = {"replies": heard.texts} if heard.texts else None
    subject.crossed = Crossed(texts, _vectors(config, scene, asked, heard))
    return subject


def _bare_subject(
    config: Config, scene: Scene, sets: Mapping[str, Sequence[str]], encoder: SentenceEncoder
) -> ModelSubject:
    """Models of the run and frozen ones beside them; the run's own are those of its beginning."""
    others = _outside(config, scene.fleet)
    here = {role: model for role, model in others.items() if isinstance(model, Local)}
    tested = {role: model for role, model in others.items() if role not in HELPERS}
    return ModelSubject(
        config.seed,
        _labels(config, scene.fleet) | {role: _label(model) for role, model in tested.items()},
        sets,
        partial(_model, scene.fleet, InTurn(here, config.runtime, scene.note), State()),
        {role: model for role, model in others.items() if not isinstance(model, Local)},
        frozenset(others.keys() - tested.keys()),
        runtime=config.runtime,
        note=scene.note,
        progress=scene.progress,
        encoder=encoder,
    )


def _outside(config: Config, fleet: Fleet) -> dict[str, Local | EndpointSettings]:
    """Models that the run does not hold, by role; an endpoint that teaches stands for its LLM."""
    auditing = config.auditing
    named = {"judge": auditing.judge, "mutator": auditing.mutator, UNRELATED: auditing.unrelated}
    named |= {LLM: config.teach.teacher} if fleet.llm is None else {}
    return {role: local(m) if isinstance(m, str) else m for role, m in named.items() if m is not None}


def _label(model: Local | EndpointSettings) -> str:
    if not isinstance(model, Local):
        return label(model)
    return model.model if model.adapter is None else f"{model.model}+{model.adapter}"


def _check_outside(config: Config, fleet: Fleet, note: Note) -> None:
    """Find what the run does not hold before anything is trained, and refuse who would judge itself."""
    known = {role: model.lm.fingerprint for role, model in fleet.models.items()}
    for role, model in _outside(config, fleet).items():
        if not isinstance(model, Local):
            endpoint.check(model)
        known[role] = identity(model, note)
    judge = config.auditing.judge
    if judge is not None:
        tested = {role: own for role, own in known.items() if role not in HELPERS}
        refuse_partial((label(judge), known["judge"]), tested, config.auditing.force_judge)


def _labels(config: Config, fleet: Fleet) -> dict[str, str]:
    """The run's models as they are and as they were, by role."""
    described = fleet.describe(config)["models"]
    now = {role: model["label"] for role, model in described.items()}
    return {**now, **{role + BEFORE: f"{label}, untuned" for role, label in now.items()}}


def _model(fleet: Fleet, others: Callable[[str], Loaded], state: State, role: str) -> Loaded:
    """A model of the run with the adapter of a state, or a frozen one."""
    learner = fleet.models.get(role.removesuffix(BEFORE))
    if learner is None:
        return others(role)
    adapter = None if role.endswith(BEFORE) else state.adapters().get(role)
    return Loaded(learner.lm, learner.stack, adapter)


def _canaries(config: Config) -> tuple[Any, canaries.Canaries] | None:
    for spec in config.audits:
        if spec.name == CANARY:
            audit = plugins.load("audit", CANARY, spec.options)
            return audit, audit.canaries(config.seed)
    return None


def _vectors(
    config: Config, scene: Scene, asked: State | None, heard: Overheard
) -> dict[str, CrossedVectors] | None:
    """Centres that crossed, with the facts in the same basis; None where there are none to compare."""
    import numpy as np

    found = _canaries(config)
    spec = next((spec for spec in config.selector if spec.name == "fedhds"), None)
    if found is None or spec is None or not heard.centres:
        return None
    how: Any = plugins.config_class("selector", spec.name).model_validate(spec.options)
    if how.mode != "shared_basis":
        return None
    reader = scene.reader(how.model)
    centres = [
        sent
        for model, sent in heard.centres
        if model == reader.fingerprint and sent.shape[1] == how.dimensions
    ]
    if not centres:  # of other families, whose basis is another one
        return None
    reader.mount(asked.slm if asked and how.model == SLM else None)
    texts = [[e.prompt + e.completion for e in half] for half in (found[1].planted, found[1].controls)]
    features = [reader.features(half, how.dimensions, how.seed) for half in texts]
    reader.mount(None)
    if how.noise:
        features = [np.tanh(half) for half in features]
    return {spec.name: CrossedVectors(np.concatenate(centres), *features)}
