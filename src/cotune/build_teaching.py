"""Composition of the two halves of teaching, where a configuration names an allocator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cotune import plugins, reasoning
from cotune.allocation import Allocation, Teacher
from cotune.build_teacher import Around, remote, writer
from cotune.config import Config
from cotune.data import Dataset
from cotune.errors import ConfigError
from cotune.lessons import Tutor, with_pace
from cotune.models.contrast import ContrastConfig
from cotune.models.learner import Learner
from cotune.models.reader import Causal, ModelReader
from cotune.models.score import context_length
from cotune.models.tune import TuneJob
from cotune.models.vectors import Vectors
from cotune.pool import Allocator
from cotune.protocols import SLM, State
from cotune.pupils import Pupils, Rules
from cotune.records import Example, Note, Sampling, derived_rng
from cotune.scrub import Scrubber
from cotune.shelf import Shelf
from cotune.teach_settings import TeachConfig
from cotune.wheels import cache_dir


@dataclass(frozen=True, slots=True)
class Teaching:
    """Both halves, the clients' by family, and what comes before the first round. In a process of one client
    there is no server's half."""

    allocation: Allocation | None
    pupils: Mapping[str, Pupils]
    prepare: Callable[[State], State]


Models = tuple[Learner | None, Mapping[str, Learner]]
"""The LLM, unless an endpoint stands for it, and the SLM of each family."""


def teaching(
    config: Config, models: Models, dataset: Dataset, around: Around, *, is_server: bool = True
) -> Teaching:
    """What `allocator` and `teach` say, as objects.

    Raises:
        ConfigError: there are no public examples, or paths may be so long that no question fits before them.
        DataError: a public example cannot be asked for a path, or its right answer is not known.
    """
    pool, teach = dataset.public, config.teach
    if not pool:
        raise ConfigError(
            "allocator: there are no public examples to teach with. Set public_rows of a source above 0."
        )
    _check(pool, teach, models, around.note)
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
            writer(slm, around),
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
    teacher = _local(config, llm, pool, around) if llm else remote(config, around, teach.guard)
    allocation = Allocation(teacher, allocator, pool, Shelf(around.out / "server"), rules)
    return Teaching(allocation, pupils, prepare)


def _check(pool: Sequence[Example], teach: TeachConfig, models: Models, note: Note) -> None:
    """See what cannot work before anything is written or trained."""
    prompts = [reasoning.path_prompt(example) for example in pool]
    for example in pool:
        reasoning.answer_of(example)
    llm, slms = models
    for learner in [*([llm] if llm else []), *slms.values()]:
        heads = [len(head) for head, _ in learner.lm.encode_pairs([(prompt, "") for prompt in prompts])]
        _check_room(learner, heads, teach.path_tokens, note)
    has_any = any(example.rationale.strip() for example in pool)
    if (teach.prepare or teach.slm_prepare) and not has_any:
        note(
            "teach.prepare: no public row has a rationale, so nobody is prepared; take a source that has them"
        )


def _check_room(learner: Learner, heads: Sequence[int], path_tokens: int, note: Note) -> None:
    """Whether questions of so many tokens and a path fit into what a model reads, and what it learns from."""
    whole, most = context_length(learner.lm), learner.config.max_length
    if path_tokens >= whole:
        raise ConfigError(
            f"teach.path_tokens: got {path_tokens}; {learner.name} reads {whole} tokens at most, "
            f"the question included. Expected {max(1, whole - max(heads))} or less."
        )
    num_cut = sum(head > whole - path_tokens for head in heads)
    if num_cut:
        note(
            f"teach.path_tokens: {num_cut} of {len(heads)} public questions lose their start, for "
            f"{learner.name} reads {whole} tokens at most; shorter paths leave more room"
        )
    lengths = [head + path_tokens + 1 for head in heads]  # and the token that ends a text
    num_long = sum(length > most for length in lengths)
    if num_long > num_cut:
        note(
            f"tune.max_length: {learner.name} learns from {most} tokens; with the longest path "
            f"{num_long} of {len(heads)} public questions have more, which lose the start of the question "
            f"or the answer at the end. {max(lengths)} hold them all"
        )


def _local(config: Config, llm: Learner, pool: Sequence[Example], around: Around) -> Teacher:
    """The LLM of this process, which learns too."""
    tutor = _tutor(config, "llm", llm, pool, around)
    return Teacher(writer(llm, around), tutor, _reader(config, llm, around))


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
