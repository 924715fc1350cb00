"""What is under audit: local models, adapters on them, or endpoints; every answer is kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cotune.config import RuntimeConfig
from cotune.endpoint_settings import EndpointSettings
from cotune.errors import ConfigError, ModelError
from cotune.examined import Crossed, Judge
from cotune.judging import ConstrainedJudge, WrittenJudge
from cotune.models import zoo
from cotune.models.chat import chat_prompt
from cotune.models.in_turn import Loaded, Local
from cotune.models.path_cache import CachedWriter, PathCache
from cotune.models.reader import Causal, ModelReader
from cotune.models.score_cache import ScoreCache, Sums
from cotune.models.writer import LocalWriter
from cotune.pool import Writer
from cotune.readers import Readers
from cotune.records import Array, Keep, Note, Progress, Sampling, Written, silent
from cotune.wheels import cache_dir

if TYPE_CHECKING:
    from cotune.models.endpoint import EndpointWriter

ENCODER = "all-MiniLM-L6-v2"
"""Sentence encoder behind `embed`; Reimers and Gurevych 2019."""


@dataclass(slots=True)
class SentenceEncoder:
    """Looks for the encoder when it is first called for, and once; several subjects may share it."""

    runtime: RuntimeConfig
    note: Note
    _reader: ModelReader | None = field(default=None, init=False)
    _is_missing: bool = field(default=False, init=False)

    def __call__(self) -> ModelReader | None:
        """The encoder; None: it is neither on this machine nor can it be fetched."""
        if self._reader is None and not self._is_missing:
            try:
                self._reader = Readers(ENCODER, self.runtime, self.note)(ENCODER)
            except ModelError as error:
                self._is_missing = True
                self.note(f"no sentence encoder: {error}")
        return self._reader


@dataclass(slots=True)
class ModelSubject:
    """See `cotune.examined.Subject`.

    Attributes:
        load: gives the local model of a role, ready to be used until it is called again.
        endpoints: of the roles that are no local model.
        helpers: further names that `load` or `endpoints` know, which are asked and are not under audit.
        crossed: what clients sent in the clear.
        encoder: what `embed` reads with.
        identities: what each model is known by, see `identity`.
        judge, identity_judge: see `appoint`.
        cache: folder of what is kept.
        own: folder of what endpoints answered, of which only the address is known: another model may stand
            behind it tomorrow. None: `cache`.
    """

    seed: int
    roles: Mapping[str, str]
    prompt_sets: Mapping[str, Sequence[str]]
    load: Callable[[str], Loaded]
    endpoints: Mapping[str, EndpointSettings] = field(default_factory=dict)
    helpers: frozenset[str] = frozenset()
    crossed: Crossed = field(default_factory=Crossed)
    judge: Judge | None = None
    identity_judge: Writer | None = None
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    note: Note = lambda _: None
    progress: Progress = silent
    cache: Path = field(default_factory=cache_dir)
    own: Path | None = None
    encoder: SentenceEncoder | None = None
    identities: Mapping[str, str] = field(default_factory=dict)
    _remote: dict[str, EndpointWriter] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.encoder = self.encoder or SentenceEncoder(self.runtime, self.note)

    def fingerprint(self, role: str) -> str:
        """Of a model, its adapter and tokenizer; or of an endpoint."""
        return self.writer(role).fingerprint

    @property
    def mutator(self) -> Writer | None:
        """Who rewrites templates; None: nobody."""
        return self.writer("mutator") if "mutator" in self.helpers else None

    def answers(self, role: str, messages: Sequence[str], sampling: Sampling) -> list[Written]:
        """What the model of a role answers to each message of a user."""
        return self.writer(role).write(messages, sampling)

    def writer(self, role: str) -> Writer:
        """The model of a role as a writer of answers to messages, each asked once."""
        folder = self.own if self.own and role in self.endpoints else self.cache
        paths = PathCache(folder / "paths.sqlite", self.note)
        what = f"answers of {self.roles.get(role, role)}"

        def told(_what: str, done: int, total: int) -> None:
            self.progress(what, done, total)

        if role in self.endpoints:
            return CachedWriter(self._endpoint(role), paths, told, keep_empty=True)
        return Chatting(self._loaded(role), paths, told)

    def reads(self, role: str) -> bool:
        """Whether likelihoods can be had: not from an endpoint."""
        return role not in self.endpoints

    def log_probs(self, role: str, pairs: Sequence[tuple[str, str]]) -> Sums:
        """Log-probability of each target after its context, as raw text.

        Raises:
            ConfigError: the role is an endpoint, which tells none.
        """
        if role in self.endpoints:
            raise ConfigError(
                f"{role}: an endpoint tells no likelihoods of given texts; name a local model for it"
            )
        loaded = self._loaded(role)
        what = f"likelihoods of {self.roles.get(role, role)}"
        reader = ModelReader(
            Causal(loaded.lm, loaded.stack, loaded.lm.fingerprint),
            self.runtime.score_tokens,
            tick=lambda done, total: self.progress(what, done, total),
        )
        name = LocalWriter(loaded.lm, loaded.stack, loaded.adapter).fingerprint
        if loaded.stack is not None:
            reader.mount(loaded.adapter)
        try:
            cache = ScoreCache(self.cache / "scores.sqlite", self.note)
            return cache.log_probs(name, pairs, reader.log_probs)
        finally:
            if loaded.stack is not None:
                reader.mount(None)

    def embed(self, texts: Sequence[str]) -> Array | None:
        """A unit vector of each text, float32 [texts, d]; None: there is no encoder on this machine."""
        import numpy as np

        assert self.encoder is not None  # made in __post_init__
        reader = self.encoder()
        if reader is None:
            return None
        reader.tick = lambda done, total: self.progress("embedding", done, total)
        found = reader.features(list(texts), None, self.seed)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.maximum(lengths, 1e-12), np.float32)

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress."""
        self.progress(what, done, total)

    def spent(self) -> dict[str, float | None]:
        """Cost of each endpoint's answers since the audit was started, by role; None without a price."""
        return {role: writer.cost for role, writer in self._remote.items()}

    def _loaded(self, role: str) -> Loaded:
        if role not in self.roles and role not in self.helpers:
            raise ConfigError(f"audit: there is no model in the role {role!r}; there are {list(self.roles)}")
        return self.load(role)

    def _endpoint(self, role: str) -> EndpointWriter:
        from cotune.models.endpoint import EndpointWriter

        if role not in self._remote:
            self._remote[role] = EndpointWriter(self.endpoints[role])
        return self._remote[role]


def appoint(subject: ModelSubject, name: str) -> None:
    """Let the helper `judge` judge, under this name: an endpoint by what it writes, a local model by the
    likelihoods of its digits.

    Rulings on identity are asked of an endpoint only; a small local model is no match for rules.
    """
    if "judge" in subject.endpoints:
        writer = subject.writer("judge")
        subject.judge, subject.identity_judge = WrittenJudge(writer, name), writer
    else:
        reader = RoleReader(subject, "judge")
        subject.judge = ConstrainedJudge(reader, name, reader.chat)


def identity(model: Local | EndpointSettings, note: Note) -> str:
    """What a model is known by: a hash of its weights without adapter, or an endpoint's address and model."""
    if isinstance(model, Local):
        return zoo.fingerprint(zoo.resolve(model.model, progress=note))
    return f"{model.url.rstrip('/')}#{model.model}"


def label(model: str | EndpointSettings) -> str:
    """For people."""
    return model if isinstance(model, str) else f"{model.model} at {model.url}"


def refuse_partial(judge: tuple[str, str], tested: Mapping[str, str], forced: bool) -> None:
    """Refuse a judge that is one of the models under test, unless it is forced.

    Args:
        judge: its name, and what identifies it: a fingerprint of its weights, or address and model.
        tested: the same of the models under test, by role.
        forced: the user wants it so.

    Raises:
        ConfigError: it is; names the role.
    """
    own = sorted(role for role, identity in tested.items() if identity == judge[1])
    if own and not forced:
        raise ConfigError(
            f"judge {judge[0]!r} is the {own[0]} itself: a model favours what it would write. Name a judge "
            "of a third family, or force it (--force-judge, auditing.force_judge)."
        )


@dataclass(frozen=True, slots=True)
class Chatting:
    """See `cotune.pool.Writer`: a local model that is given users' messages in its own chat template."""

    loaded: Loaded
    paths: PathCache
    progress: Progress

    @property
    def fingerprint(self) -> str:
        """Of the model, its adapter and tokenizer."""
        return self._local().fingerprint

    def write(self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None = None) -> list[Written]:
        """What the model answers to each message."""
        texts = [chat_prompt(self.loaded.lm.tokenizer, message) for message in prompts]
        local = self._local()
        cached = CachedWriter(local, self.paths, self.progress, keep_empty=True, together=local.together)
        return cached.write(texts, sampling, keep)

    def _local(self) -> LocalWriter:
        return LocalWriter(self.loaded.lm, self.loaded.stack, self.loaded.adapter)


@dataclass(frozen=True, slots=True)
class RoleReader:
    """A local model of a subject as something that tells likelihoods, loaded when it is asked."""

    subject: ModelSubject
    role: str

    @property
    def fingerprint(self) -> str:
        """Of the model, its adapter and tokenizer."""
        return self.subject.fingerprint(self.role)

    def chat(self, message: str) -> str:
        """A user's message in the model's chat template."""
        return chat_prompt(self.subject.load(self.role).lm.tokenizer, message)

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> Sums:
        """Log-probability of each target after its context, for (context, target) pairs."""
        return self.subject.log_probs(self.role, pairs)
