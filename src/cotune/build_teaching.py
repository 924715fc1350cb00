"""Composition of the two halves of teaching, where a configuration names an allocator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cotune import plugins, reasoning
from cotune.allocation import Allocation, Teacher
from cotune.config import Config
from cotune.data import Dataset
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
from cotune.protocols import SLM, State
from cotune.pupils import Pupils, Rules
from cotune.records import Adapter, Example, Progress, Sampling, derived_rng
from cotune.scrub import Scrubber
from cotune.shelf import Shelf
from cotune.wheels import cache_dir

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Teaching:
    """Both halves, the clients' by family, and what comes before the first round. In a process of one client
    there is no server's half."""

    allocation: Allocation | None
    pupils: Mapping[str, Pupils]
    prepare: Callable[[State], State]


@dataclass(frozen=True, slots=True)
class Around:
    """Where a run lives: its folder, who is told of progress, and who is told in words."""

    out: Path
    progress: Progress
    note: Note


Models = tuple[Learner | None, Mapping[str, Learner]]
"""The LLM, unless an endpoint stands for it, and the SLM of each family."""


def teaching(
    config: Config, models: Models, dataset: Dataset, around: Around, *, is_server: bool = True
) -> Teaching:
    """What `allocator` and `teach` say, as objects.

    Raises:
        ConfigError: the strategy's clients do not tune what they are sent, there are no public examples, or
            an endpoint cannot do what is asked of the LLM.
    """
    pool = dataset.public
    if not pool:
        raise ConfigError(
            "allocator: there are no public examples to teach with. Set public_rows of a source above 0."
        )
    teach = config.teach
    sampling = Sampling(teach.path_tokens, teach.temperature, 1.0, config.seed, reasoning.STOP)
    rules = Rules(teach.guard, teach.probe, sampling, teach.max_chars, teach.private_paths)
    allocator, (llm, slms) = _allocator(config), models
    if teach.probe and "probe" not in allocator.needs:
        around.note(
            f"teach.probe: {teach.probe} items are measured and not taught, and this allocator does not read "
            "what they show; with probe 0 they teach"
        )
    pupils = {
        name: Pupils(
            _tutor(config, SLM, slm, pool, around),
            allocator,
            _writer(slm, around),
            _reader(config, slm, around),
            Scrubber(teach.scrub, teach.max_chars),
            Shelf(around.out / "clients"),
            rules,
            dataset.measured,
        )
        for name, slm in slms.items()
    }
    prepare = partial(_prepared, config, models, pool)
    if not is_server:
        return Teaching(None, pupils, prepare)
    teacher = _local(config, llm, pool, around) if llm else _remote(config, around)
    allocation = Allocation(teacher, allocator, pool, Shelf(around.out / "server"), rules)
    return Teaching(allocation, pupils, prepare)


def _local(config: Config, llm: Learner, pool: Sequence[Example], around: Around) -> Teacher:
    """The LLM of this process, which learns too."""
    tutor = _tutor(config, "llm", llm, pool, around)
    return Teacher(_writer(llm, around), tutor, _reader(config, llm, around))


@dataclass
class Rationales:
    """Who writes rationales where nothing is traded: the endpoint that is named, else the LLM as it is.

    It is made when it is first asked for, and once. `load`: loads the LLM.
    """

    config: Config
    load: Callable[[], Learner]
    around: Around
    _found: Teacher | None = None
    _llm: Learner | None = None

    def __call__(self) -> Writer:
        """The writer."""
        if self._found is None and self.config.teach.teacher:
            self._found = _remote(self.config, self.around)
        elif self._found is None:
            self._llm = self.load()
            self._found = Teacher(_writer(self._llm, self.around), None, None, self._llm.name)
        return self._found.writer(None)

    def describe(self) -> dict[str, Any]:
        """For results.json: the model, and what an endpoint has answered since the run was last started."""
        if self._found is None:
            return {}
        own = {"fingerprint": self._llm.lm.fingerprint} if self._llm else {}
        return {"teacher": {"model": self._found.model, **own, **self._found.spent()}}


def _remote(config: Config, around: Around) -> Teacher:
    """An endpoint, which only writes."""
    from cotune.models.endpoint import EndpointWriter

    assert config.teach.teacher is not None
    makes_sense = reasoning.has_answer if config.teach.guard else bool  # unguarded, any text teaches
    endpoint = EndpointWriter(config.teach.teacher, makes_sense=makes_sense)
    cached = CachedWriter(endpoint, PathCache(cache_dir() / "paths.sqlite", around.note), around.progress)

    def spent() -> dict[str, float | None]:
        usage = asdict(endpoint.usage)
        return {**{name.removeprefix("num_"): count for name, count in usage.items()}, "cost": endpoint.cost}

    return Teacher(lambda _: cached, None, None, config.teach.teacher.model, spent)


def _allocator(config: Config) -> Allocator:
    assert config.allocator is not None
    name, options = config.allocator.name, dict(config.allocator.options)
    if "beta" in plugins.module("allocator", name).Config.model_fields and options.get("beta") is None:
        options["beta"] = config.teach.beta
    found: Allocator = plugins.load("allocator", name, options)
    return found


def _tutor(config: Config, role: str, learner: Learner, pool: Sequence[Example], around: Around) -> Tutor:
    teach = config.teach
    loss = plugins.module("loss", "path_contrast")
    plain = ContrastConfig(loss.loss, loss.margin, learner.config, teach.beta, teach.gamma)
    lr = teach.slm_lr if role == "slm" else teach.llm_lr
    paced = with_pace(plain, lr=lr, batch_size=teach.batch_size, epochs=teach.epochs)
    known = Vectors(around.out / "sums" / f"{role}.sqlite", around.note)
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


def _prepared(config: Config, models: Models, pool: Sequence[Example], state: State) -> State:
    """All adapters after a short tuning on the public rationales, the same for every allocator."""
    llm, slms = models
    found = state.replace(llm=llm.fresh(config.seed)) if llm and state.llm is None else state
    paths = [reasoning.on_path(example, example.rationale) for example in pool if example.rationale.strip()]
    teach, adapters = config.teach, found.adapters()
    of_slm = teach.prepare if teach.slm_prepare is None else teach.slm_prepare
    for name, learner in {**({"llm": llm} if llm else {}), **slms}.items():
        passes = teach.prepare if name == "llm" else of_slm
        if passes and paths:
            job = TuneJob(paths, adapters[name], derived_rng(config.seed, "prepare", name))
            adapters[name] = learner.prepared([job], passes)[0].adapter
    return State(adapters.pop(SLM, None), adapters.pop("llm", None), adapters)
