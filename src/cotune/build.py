"""Composition root: a configuration becomes the objects of one run; nothing after this holds it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cotune import config as configs
from cotune import data, plugins
from cotune.build_teaching import Around, teaching
from cotune.config import Config, ModelConfig, ShrinkConfig
from cotune.data import ByTask, Dataset
from cotune.evaluate import answers, summary
from cotune.federation import Federation
from cotune.host import Evaluator, Host, Store
from cotune.models import causal_lm, zoo
from cotune.models.heal import Healing, heal
from cotune.models.learner import Learner
from cotune.models.lora import LoraStack, save_peft
from cotune.models.shrink import shrink
from cotune.models.tune import Tick
from cotune.protocols import Parts, Selector, SelectorParts, State
from cotune.readers import Readers
from cotune.records import Adapter, Event, Example, Listener
from cotune.session import Session
from cotune.transports.inprocess import InProcess
from cotune.wheels import cache_dir

Note = Callable[[str], None]
"""Told what is being prepared."""

CHUNK = 4
"""Messages in memory at a time, in stacks."""


def session(config: Config, out: Path, listener: Listener, note: Note = lambda _: None) -> Session:
    """Everything a run needs, loaded.

    Args:
        config: a checked configuration.
        out: the run's folder, for what clients keep.
        listener: told what happens while it runs.
        note: told what is being loaded.

    Raises:
        UserError: a model, an adapter or data cannot be used.
    """
    import torch

    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    dataset = _read(config, note)
    watch = _Watch(listener, config.rounds)
    learners = {role: learner(role, config, dataset, watch, note) for role in _roles(config)}
    parts = Parts(learners, dataset.public)
    strategy = plugins.load("strategy", config.strategy.name, config.strategy.options, parts=parts)
    aggregator = plugins.load("aggregator", config.aggregator.name, config.aggregator.options)
    readers = Readers(
        lambda: learners.get("slm") or learner("slm", config, dataset, watch, note),
        config.runtime,
        note,
        partial(watch.choosing, "reading"),
    )
    selectors = selecting(config, SelectorParts(readers, config.rounds, watch.choosing))
    slm, llm, tokens = learners.get("slm"), learners.get("llm"), config.runtime.score_tokens
    score_slm = evaluator(slm, dataset, watch, tokens) if slm else _nothing
    score_llm = evaluator(llm, dataset, watch, tokens, config.evaluate.shown) if llm else _nothing
    around = Around(out, partial(watch.working, "teach"), note)
    taught = teaching(config, learners, dataset.public, around) if config.allocator else None
    steps = (strategy, tuple(selectors.values()), taught.pupils if taught else None)
    host = Host(dataset, steps, score_slm, Store(out / "clients"), (config.seed, config.rounds))
    transport = InProcess(host, CHUNK * config.runtime.stack)
    federation = Federation(transport, aggregator, watch.hear, config.cohort.minimum)
    return Session(
        strategy=strategy,
        strategy_name=config.strategy.name,
        selectors=selectors,
        federation=federation,
        dataset=dataset,
        evaluate_llm=score_llm,
        save_adapters=_saver(learners),
        seed=config.seed,
        num_rounds=config.rounds,
        cohort_fraction=config.cohort.fraction,
        evaluate_every=config.evaluate.every,
        evaluate_clients=config.evaluate.clients,
        fingerprint=configs.fingerprint(config),
        keep_checkpoints=config.runtime.keep_checkpoints,
        passes=config.slm.tune.epochs,
        num_cut=lambda: readers.num_cut,
        roles=frozenset(learners),
        allocation=taught.allocation if taught else None,
        prepare=taught.prepare if taught else lambda state: state,
        facts={"versions": versions(), **_described(learners)},
    )


def _read(config: Config, note: Note) -> Dataset:
    note("reading data")
    dataset = data.load(config.data, config.seed)
    for text in dataset.notes:
        note(text)
    return dataset


def _roles(config: Config) -> list[str]:
    """The models that a run needs: those that its strategy trains, and both where they teach each other."""
    trained = plugins.module("strategy", config.strategy.name).TRAINS
    return sorted(trained | {"llm", "slm"} if config.allocator else trained)


def selecting(config: Config, parts: SelectorParts) -> dict[str, Selector]:
    """The selectors in their order, by name; the second of a name is called `name 2`."""
    found: dict[str, Selector] = {}
    for spec in config.selector:
        times = sum(name.split(" ")[0] == spec.name for name in found)
        found[f"{spec.name} {times + 1}" if times else spec.name] = plugins.load(
            "selector", spec.name, spec.options, parts=parts
        )
    return found


def learner(role: str, config: Config, dataset: Dataset, watch: _Watch, note: Note) -> Learner:
    """One role's model: found, cut if asked for, loaded, and given its adapters."""
    model: ModelConfig = getattr(config, role)
    folder, name = Path(zoo.resolve(model.model, revision=model.revision, progress=note)), model.model
    if model.shrink is not None:
        note(f"cutting {model.model} to {model.shrink.layers} layers")
        folder = cut(folder, model.shrink, dataset.public)
        name = str(folder)
    note(f"loading {role} {model.model}")
    runtime = config.runtime
    lm = causal_lm.load(
        folder,
        zoo.fingerprint(folder),
        device=runtime.device,
        dtype=runtime.dtype,
        remote_code=model.trust_remote_code,
    )
    stack = LoraStack(lm, model.lora.rank, model.lora.alpha, model.lora.targets)
    return Learner(role, name, lm, stack, model.tune, runtime.stack, watch.tick(role))


def cut(teacher: Path, how: ShrinkConfig, public: Sequence[Example]) -> Path:
    """The depth-pruned student of a teacher; made once for the same teacher, public texts and settings."""
    texts = [example.prompt + example.completion for example in public]
    few = texts[:: max(1, len(texts) // SHRINK_TEXTS)][:SHRINK_TEXTS]
    student = _student([zoo.fingerprint(teacher), how.layers, how.method, few])
    if not student.exists():
        shrink(teacher, student, layers=how.layers, texts=few, method=how.method)
    if how.heal_steps == 0:
        return student
    healed = _student([student.name, how.heal_steps, texts])
    if not healed.exists():
        heal(student, teacher, healed, texts=texts, healing=Healing(steps=how.heal_steps))
    return healed


def _student(made_from: Sequence[Any]) -> Path:
    """Where the student made from these values is kept; it appears there whole or not at all."""
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    return cache_dir() / "students" / digest


SHRINK_TEXTS = 32
"""Public examples on which the layers' influence is measured."""


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


def _saver(learners: Mapping[str, Learner]) -> Callable[[Path, State], None]:
    """Writes the final adapters in PEFT's format, one folder a role."""

    def save(folder: Path, state: State) -> None:
        for role, model in learners.items():
            adapter: Adapter | None = getattr(state, role)
            if adapter is not None:
                save_peft(adapter, folder / role, model.name)

    return save


def versions() -> dict[str, str]:
    """What a number depends on besides the configuration."""
    packages = ("cotune", "torch", "transformers", "peft", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _described(learners: Mapping[str, Learner]) -> dict[str, Any]:
    models = {role: {"model": m.name, "fingerprint": m.lm.fingerprint} for role, m in learners.items()}
    return {"device": str(next(iter(learners.values())).lm.device), "models": models}


def _nothing(_adapter: Adapter | None, _held_out: ByTask) -> dict[str, Any]:
    return {}
