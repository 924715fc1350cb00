"""Composition root: a configuration becomes the objects of one run; nothing after this holds it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cotune import build_audits, build_guards, data, families, misfits, plugins
from cotune import config as configs
from cotune import fleet as fleets
from cotune.build_audits import Scene
from cotune.build_guards import Keys, Wire, simulated_secret
from cotune.build_teacher import Around, Rationales
from cotune.build_teaching import Teaching, teaching
from cotune.checked import Known
from cotune.config import Config
from cotune.data import ByTask, Dataset
from cotune.errors import ConfigError
from cotune.evaluate import answers, summary
from cotune.federation import Federation
from cotune.fleet import Fleet
from cotune.host import SECURE, TEACH, Evaluator, Host, Hosts
from cotune.models import endpoint, zoo
from cotune.models.learner import Learner
from cotune.models.tune import Tick
from cotune.outbox import Outbox
from cotune.parties import Parties, Party, own_secret
from cotune.protocols import SLM, TUNE, Parts, Selector, SelectorParts, Transport
from cotune.readers import Readers
from cotune.records import Adapter, Event, Listener, Note
from cotune.session import Family, Session
from cotune.spending import ExampleSpending
from cotune.teach_settings import TeachConfig
from cotune.transports.inprocess import InProcess

CHUNK = 4
"""Messages in memory at a time, in stacks."""


def session(
    config: Config, out: Path, listener: Listener, note: Note = lambda _: None, parties: Parties | None = None
) -> Session:
    """Everything a run needs, loaded.

    Args:
        config: a checked configuration.
        out: the run's folder, for what clients keep.
        listener: told what happens while it runs.
        note: told what is being loaded.
        parties: clients that are reached over a network; by default all live in this process.

    Raises:
        UserError: a model, an adapter or data cannot be used.
    """
    misfits.refuse(config)
    _find_outside(config, note)
    dataset = parties.dataset if parties else build_audits.planted(config, _read(config, note), note)
    watch = _Watch(listener, config.rounds)
    stage = _stage(config, dataset, out, (watch, note), _keys(parties))
    fleet, wire, around = stage.fleet, stage.wire, stage.around
    _tell_who_is_alone(stage.crews, note)
    federation = _federation(config, parties or Hosts([crew.host for crew in stage.crews]), watch)
    federation.guards, federation.masks = wire.guards, wire.masks
    scene = Scene(fleet, dataset, stage.crews[0].readers, note, partial(watch.working, "audit"))
    observing = build_audits.observing(config, scene)
    if observing:
        federation.overhear = observing.overheard.hear
    llm, tokens, shown = fleet.llm, config.runtime.score_tokens, config.evaluate.shown
    return Session(
        families=tuple(crew.family for crew in stage.crews),
        strategy_name=config.strategy.name,
        federation=federation,
        dataset=dataset,
        evaluate_llm=evaluator(llm, dataset, watch, tokens, shown) if llm else _nothing,
        save_adapters=fleet.save,
        seed=config.seed,
        num_rounds=config.rounds,
        cohort_fraction=config.cohort.fraction,
        evaluate_every=config.evaluate.every,
        evaluate_clients=config.evaluate.clients,
        fingerprint=configs.fingerprint(config),
        keep_checkpoints=config.runtime.keep_checkpoints,
        num_cut=lambda: sum(crew.readers.num_cut for crew in stage.crews),
        roles=fleet.roles,
        allocation=around.taught.allocation if around.taught else None,
        prepare=around.taught.prepare if around.taught else lambda state: state,
        observing=observing,
        spending=wire.spending,
        example_spending=_example_spending(config),
        facts=lambda: _facts(config, stage),
    )


def _facts(config: Config, stage: Stage) -> dict[str, Any]:
    """What results.json says of everything that was built."""
    return {
        "versions": versions(),
        **stage.fleet.describe(config),
        **stage.around.rationales.describe(),
        **stage.wire.facts,
        "update_values": stage.fleet.num_values,
    }


def _example_spending(config: Config) -> dict[str, ExampleSpending]:
    """By family, where its clients' tuning is private."""
    return {
        name: ExampleSpending(model.tune.private, model.tune.batch_size, model.tune.epochs)
        for name, model in families.models(config).items()
        if model.tune.private
    }


def host(config: Config, party: Party, dataset: Dataset, note: Note = lambda _: None) -> Hosts:
    """What answers messages for one client of a deployed run, in a process of its own.

    Args:
        config: the same as the server's.
        party: the client, with its keys and its folder.
        dataset: its own examples, and the names of all clients.
        note: told what is being loaded.

    Raises:
        UserError: a model or data cannot be used.
    """
    misfits.refuse(config)
    watch = _Watch(lambda _: None, config.rounds)
    keys = Keys(own_secret(party), lambda _: party.identity, party.registry.of_clients)
    stage = _stage(config, dataset, party.folder / "state", (watch, note), keys, party.name)
    return Hosts([crew.host for crew in stage.crews], _known(config, stage, party.name))


def _known(config: Config, stage: Stage, client: str) -> Known:
    """All that a server of this run may ask a client for. A step of another name would go past the guards of
    updates, and would be another sum of the same round."""
    module = plugins.module("strategy", config.strategy.name)
    sends = getattr(module, "UPDATES", False)
    return Known(
        frozenset({client}),
        config.rounds,
        getattr(module, "ACTIONS", frozenset({TUNE})),
        len(config.selector),
        frozenset([SECURE] * bool(stage.wire.outbox.masking) + [TEACH] * bool(config.allocator)),
        [slm.fresh(config.seed) for slm in stage.fleet.slms.values()],
        frozenset({TUNE} if sends else ()),
    )


def _keys(parties: Parties | None) -> Keys | None:
    """The server's keys in a deployed run."""
    return Keys(parties.secret, _nobody, parties.identities) if parties else None


def _nobody(client: str) -> Any:
    raise AssertionError(f"the server has no key of {client!r}")


@dataclass(frozen=True, slots=True)
class Stage:
    """Models, wire and crews of one process."""

    fleet: Fleet
    wire: Wire
    around: Surroundings
    crews: list[Crew]


def _stage(
    config: Config,
    dataset: Dataset,
    out: Path,
    told: tuple[_Watch, Note],
    keys: Keys | None,
    client: str | None = None,
) -> Stage:
    """What both sides have; `client`: the only one that lives in this process, which then has no LLM."""
    import torch

    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    watch, note = told
    fleet = fleets.load(config, dataset, watch.tick, note, client)
    fleet = fleet.hiding(config, keys.secret if keys else simulated_secret(config.seed))
    around = Around(out, partial(watch.working, "teach"), note)
    models, is_server = (fleet.llm, fleet.slms), client is None
    taught = None
    if config.allocator:
        taught = teaching(config, models, dataset, around, is_server=is_server)
    else:
        _tell_unread(config, fleet, note)
    rationales = Rationales(config, cache(partial(_llm, config, fleet, dataset, told)), around)
    wire = build_guards.wire(config, families.members(config, dataset.clients), out, fleet.num_values, keys)
    common = Surroundings(dataset, out, watch, note, taught, rationales, wire.outbox)
    crews = [_crew(config, fleet, name, common) for name in fleet.members]
    _refuse_partial_choice(config, wire, crews[0].family)
    return Stage(fleet, wire, common, crews)


def _tell_unread(config: Config, fleet: Fleet, note: Note) -> None:
    """Settings of teaching that a run without an allocator does not read."""
    options = plugins.config_class("strategy", config.strategy.name).model_validate(config.strategy.options)
    is_audited = bool(config.audits) and fleet.llm is None  # then the teacher stands for the LLM
    is_asked = is_audited or getattr(options, "rationales", None) == "teacher"
    unread = config.teach.model_copy(update={"teacher": None}) if is_asked else config.teach
    if unread != TeachConfig():
        note(
            "teach: nothing of it is read without an allocator, but teach.teacher by audits and where it "
            "writes rationales (strategy step_by_step with rationales: teacher)"
        )


def _refuse_partial_choice(config: Config, wire: Wire, family: Family) -> None:
    """A choice that only the cohort takes part in, where a masked sum expects everybody."""
    narrow = [name for name, selector in family.selectors.items() if not selector.asks_all]
    if wire.masks and config.cohort.fraction < 1 and narrow:
        raise ConfigError(
            f"selector {narrow[0]} chooses anew for each cohort, and masked sums of what it counts need all "
            "clients. Let it choose once (every: 0), ask everybody (cohort.fraction: 1), or take aggregator "
            "mean."
        )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all families have in common: the data, the run's folder, who is told, the teaching, who writes
    rationales, and what replies go through before they leave."""

    dataset: Dataset
    out: Path
    watch: _Watch
    note: Note
    taught: Teaching | None
    rationales: Rationales
    outbox: Outbox


def _llm(config: Config, fleet: Fleet, dataset: Dataset, told: tuple[_Watch, Note]) -> Learner:
    """The LLM, loaded now if the strategy has no use for it."""
    watch, note = told
    how = (config.runtime, dataset.public, note)
    return fleet.llm or fleets.learner("llm", config.llm, watch.tick, how)


@dataclass(frozen=True, slots=True)
class Crew:
    """Both sides of one family: what the server does for it, and the host of its clients."""

    family: Family
    host: Host
    readers: Readers


def _crew(config: Config, fleet: Fleet, name: str, around: Surroundings) -> Crew:
    """A strategy, selectors and a host for the clients of one family."""
    watch, dataset, clients = around.watch, around.dataset, fleet.members[name]
    learners = fleet.of(name)
    slm, how = learners.get(SLM), (config.runtime, dataset.public, around.note)
    parts = Parts(learners, dataset.public, len(fleet.members), around.note, around.rationales)
    strategy = plugins.load("strategy", config.strategy.name, config.strategy.options, parts=parts)
    readers = Readers(
        lambda: slm or fleets.learner(SLM, config.slm, watch.tick, how),
        config.runtime,
        around.note,
        partial(watch.choosing, "reading"),
    )
    selectors = selecting(config, SelectorParts(readers, config.rounds, watch.choosing))
    pupil = around.taught.pupils[name] if around.taught else None
    host = Host(
        dataset.only(clients),
        (strategy, tuple(selectors.values()), pupil),
        evaluator(slm, dataset, watch, config.runtime.score_tokens) if slm else _nothing,
        around.out / "clients",
        (config.seed, config.rounds),
        around.outbox,
    )
    passes = families.models(config)[name].tune.epochs
    return Crew(Family(name, clients, strategy, selectors, passes), host, readers)


def _federation(config: Config, where: Hosts | Parties, watch: _Watch) -> Federation:
    """The server's view of its clients, wherever they live."""
    aggregator = plugins.load("aggregator", config.aggregator.name, config.aggregator.options)
    transport: Transport
    if isinstance(where, Hosts):
        transport = InProcess(where, CHUNK * config.runtime.stack)
    else:
        transport = where.transport
    return Federation(transport, aggregator, watch.hear, config.cohort.minimum)


def _tell_who_is_alone(crews: Sequence[Crew], note: Note) -> None:
    for crew in crews if len(crews) > 1 else ():
        if len(crew.family.clients) == 1:
            note(f"family {crew.family.name} has one client: what is summed over it is that client's own")


def _read(config: Config, note: Note) -> Dataset:
    note("reading data")
    dataset = data.load(config.data, config.seed)
    for text in dataset.notes:
        note(text)
    return dataset


def _find_outside(config: Config, note: Note) -> None:
    """See that a teacher's endpoint and frozen models that selectors read with can be used, before anything
    is trained."""
    if config.teach.teacher:
        endpoint.check(config.teach.teacher)
    for spec in config.selector:
        options = plugins.config_class("selector", spec.name).model_validate(spec.options)
        name = getattr(options, "model", SLM)
        if name != SLM:
            zoo.resolve(name, progress=note)


def selecting(config: Config, parts: SelectorParts) -> dict[str, Selector]:
    """The selectors in their order, by name; the second of a name is called `name 2`."""
    found: dict[str, Selector] = {}
    for spec in config.selector:
        times = sum(name.split(" ")[0] == spec.name for name in found)
        found[f"{spec.name} {times + 1}" if times else spec.name] = plugins.load(
            "selector", spec.name, spec.options, parts=parts
        )
    return found


def evaluator(model: Learner, dataset: Dataset, watch: _Watch, tokens: int, shown: int = 0) -> Evaluator:
    """Scores an adapter of `model` on held-out examples, task by task; `shown` answers are kept as text."""

    def run(adapter: Adapter | None, held_out: ByTask) -> dict[str, Any]:
        model.stack.load([adapter] if adapter else [])
        found: dict[str, Any] = {}
        for done, (task, examples) in enumerate(held_out.items()):
            watch.evaluating(model.role, task, done, len(held_out))
            given = answers(model.lm, examples, dataset.metrics[task], tokens=tokens)
            found[task] = {
                **summary(given, dataset.metrics[task]),
                "answers": [round(answer.score, 4) for answer in given],
                "shown": [answer.text for answer in given[:shown]],
            }
        model.stack.load([])
        return found

    return run


class _Watch:
    """Passes events on, and turns what the models do into events of the round that was heard of last."""

    def __init__(self, listener: Listener, num_rounds: int) -> None:
        self.listener, self.num_rounds, self.round = listener, num_rounds, 0

    def hear(self, event: Event) -> None:
        """Pass an event on."""
        self.round = event.round
        self.listener(event)

    def tick(self, role: str) -> Tick:
        """What the training loop of `role` calls after each step."""

        def step(done: int, total: int, tokens: int, loss: float) -> None:
            facts = {"tokens": tokens, f"loss_{role}": loss}
            self.listener(Event(self.round, self.num_rounds, "tune", done, total, facts))

        return step

    def choosing(self, what: str, done: int, total: int) -> None:
        """What a selector does: it reads texts, groups them, and so on."""
        self.working("select", what, done, total)

    def working(self, phase: str, what: str, done: int, total: int) -> None:
        """One kind of work of a phase."""
        self.listener(Event(self.round, self.num_rounds, phase, done, total, {"what": what}))

    def evaluating(self, role: str, task: str, done: int, total: int) -> None:
        """One task of one model is about to be scored."""
        facts = {"role": role, "task": task}
        self.listener(Event(self.round, self.num_rounds, "evaluate", done, total, facts))


@cache
def versions() -> dict[str, str]:
    """What a number depends on besides the configuration."""
    packages = ("cotune", "torch", "transformers", "peft", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _nothing(_adapter: Adapter | None, _held_out: ByTask) -> dict[str, Any]:
    return {}
