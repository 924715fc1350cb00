"""Composition of the two halves of teaching, where a configuration names an allocator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cotune import plugins, reasoning
from cotune.allocation import Allocation, Teacher
from cotune.config import Config
from cotune.errors import ConfigError
from cotune.lessons import Tutor, with_pace
from cotune.models.contrast import ContrastConfig
from cotune.models.learner import Learner
from cotune.models.path_cache import CachedWriter, PathCache
from cotune.models.reader import Causal, ModelReader
from cotune.models.tune import TuneJob
from cotune.models.vectors import Vectors
from cotune.models.writer import LocalWriter
from cotune.pool import Allocator, Writer
from cotune.protocols import State
from cotune.pupils import Pupils, Rules
from cotune.records import Adapter, Example, Progress, Sampling, derived_rng
from cotune.scrub import Scrubber
from cotune.shelf import Shelf
from cotune.wheels import cache_dir

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Teaching:
    """Both halves, and what comes before the first round."""

    allocation: Allocation
    pupils: Pupils
    prepare: Callable[[State], State]


@dataclass(frozen=True, slots=True)
class Around:
    """Where a run lives: its folder, who is told of progress, and who is told in words."""

    out: Path
    progress: Progress
    note: Note


def teaching(
    config: Config, learners: Mapping[str, Learner], pool: Sequence[Example], around: Around
) -> Teaching:
    """What `allocator` and `teach` say, as objects.

    Raises:
        ConfigError: the strategy's clients do not tune what they are sent, or there are no public examples.
    """
    _refuse_misfits(config, pool)
    teach = config.teach
    sampling = Sampling(teach.path_tokens, teach.temperature, 1.0, config.seed, reasoning.STOP)
    rules = Rules(teach.guard, teach.probe, sampling, teach.max_chars, teach.private_paths)
    tutors = {role: _tutor(config, role, learner, pool, around.note) for role, learner in learners.items()}
    readers = {role: _reader(config, learner, around) for role, learner in learners.items()}
    writers = {role: _writer(learner, around) for role, learner in learners.items()}
    scrubber = Scrubber(teach.scrub, teach.max_chars)
    clients, server = Shelf(around.out / "clients"), Shelf(around.out / "server")
    allocator = _allocator(config)
    pupils = Pupils(tutors["slm"], allocator, writers["slm"], readers["slm"], scrubber, clients, rules)
    teacher = Teacher(writers["llm"], tutors["llm"], readers["llm"])
    allocation = Allocation(teacher, allocator, pool, server, rules)
    return Teaching(allocation, pupils, partial(_prepared, config, learners, pool))


def _allocator(config: Config) -> Allocator:
    assert config.allocator is not None
    found: Allocator = plugins.load("allocator", config.allocator.name, config.allocator.options)
    return found


def _refuse_misfits(config: Config, pool: Sequence[Example]) -> None:
    if not getattr(plugins.module("strategy", config.strategy.name), "TEACHABLE", False):
        fitting = [
            name
            for name in plugins.names("strategy")
            if getattr(plugins.module("strategy", name), "TEACHABLE", False)
        ]
        raise ConfigError(
            f"allocator: clients of strategy {config.strategy.name!r} do not tune an adapter that they are "
            f"sent, so they cannot be taught before it. Take one of: {', '.join(fitting)}; or no allocator."
        )
    if not pool:
        raise ConfigError(
            "allocator: there are no public examples to teach with. Set public_rows of a source above 0."
        )


def _tutor(config: Config, role: str, learner: Learner, pool: Sequence[Example], note: Note) -> Tutor:
    teach = config.teach
    loss = plugins.module("loss", "path_contrast")
    plain = ContrastConfig(loss.loss, loss.margin, learner.config, teach.beta, teach.gamma)
    lr = teach.slm_lr if role == "slm" else teach.llm_lr
    paced = with_pace(plain, lr=lr, batch_size=teach.batch_size, epochs=teach.epochs)
    known = Vectors(cache_dir() / "paths.sqlite", note)
    return Tutor(learner, pool, paced, known, config.runtime.score_tokens)


def _reader(config: Config, learner: Learner, around: Around) -> ModelReader:
    vectors = Vectors(cache_dir() / "features.sqlite", around.note)
    causal = Causal(learner.lm, learner.stack, learner.lm.fingerprint)
    return ModelReader(causal, config.runtime.score_tokens, vectors, partial(around.progress, "reading"))


def _writer(learner: Learner, around: Around) -> Callable[[Adapter | None], Writer]:
    cache = PathCache(cache_dir() / "paths.sqlite", around.note)
    return lambda adapter: CachedWriter(
        LocalWriter(learner.lm, learner.stack, adapter), cache, around.progress
    )


def _prepared(
    config: Config, learners: Mapping[str, Learner], pool: Sequence[Example], state: State
) -> State:
    """Both adapters after a short tuning on the public rationales, the same for every allocator."""
    found = state if state.llm else state.replace(llm=learners["llm"].fresh(config.seed))
    paths = [reasoning.on_path(example, example.rationale) for example in pool if example.rationale.strip()]
    if not config.teach.prepare or not paths:
        return found
    for role, learner in sorted(learners.items()):
        job = TuneJob(paths, getattr(found, role), derived_rng(config.seed, "prepare", role))
        tuned = learner.prepared([job], config.teach.prepare)
        found = found.replace(**{role: tuned[0].adapter})
    return found
