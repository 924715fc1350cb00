"""A model that selectors read from: log-probabilities and features of texts, the latter kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cotune.errors import ModelError
from cotune.models.causal_lm import CausalLM, tokenizer_digest
from cotune.models.embed import (
    Part,
    encoder_limit,
    last_tokens,
    mean_tokens,
    shared_basis,
    tokenized,
)
from cotune.models.lora import LoraStack
from cotune.models.score import Scores, context_length, score_pairs
from cotune.models.vectors import Vectors
from cotune.records import Adapter

Floats = npt.NDArray[np.float32]
Tick = Callable[[int, int], None]
"""Told how much is read, of how much: characters or pairs of texts."""

WIDE = 128
"""Directions of the shared basis that are computed and kept, however few are asked for: what was read for one
selector serves another one that asks for more or fewer."""


class Source(Protocol):
    """What is read: a causal model or an encoder."""

    fingerprint: str
    tokenizer: Any
    limit: int
    dtype: str

    def parts(self, texts: Sequence[str], tokens: int, is_raw: bool) -> Iterator[Part]:
        """All features of some texts, batch by batch."""


@dataclass(frozen=True, slots=True)
class Causal:
    """A causal language model; `stack` holds the adapter it is read with, if it can have one."""

    lm: CausalLM
    stack: LoraStack | None
    fingerprint: str

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self.lm.tokenizer

    @property
    def limit(self) -> int:
        """Tokens that it can read."""
        return context_length(self.lm)

    @property
    def dtype(self) -> str:
        """In which it computes."""
        return str(self.lm.model.dtype)

    def parts(self, texts: Sequence[str], tokens: int, is_raw: bool) -> Iterator[Part]:
        """The last token in every layer."""
        return last_tokens(self.lm, texts, tokens, is_raw)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A sentence encoder: features, but no log-probabilities."""

    model: Any
    tokenizer: Any
    fingerprint: str

    @property
    def limit(self) -> int:
        """Tokens that it can read."""
        return encoder_limit(self.model, self.tokenizer)

    @property
    def dtype(self) -> str:
        """In which it computes."""
        return str(self.model.dtype)

    def parts(self, texts: Sequence[str], tokens: int, is_raw: bool) -> Iterator[Part]:
        """The mean token of the last layer; it is of length 1 either way."""
        return mean_tokens(self.model, self.tokenizer, texts, tokens)


@dataclass(slots=True)
class ModelReader:
    """See `cotune.protocols.Reader`.

    `basis` is the dimensions and the seed of the features that were read last from the bare model.
    """

    source: Causal | Encoder
    tokens: int
    vectors: Vectors | None = None
    tick: Tick = lambda *_: None
    basis: tuple[int, int] | None = field(default=None, init=False)
    _is_bare: bool = field(default=True, init=False)
    _cut: set[bytes] = field(default_factory=set, init=False)
    _identity: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._identity = f"{self.source.fingerprint}-{tokenizer_digest(self.source.tokenizer)}"

    @property
    def num_cut(self) -> int:
        """Different texts so far that were longer than the model can read."""
        return len(self._cut)

    @property
    def fingerprint(self) -> str:
        """Of the weights without adapter, and of the tokenizer."""
        return self._identity

    def mount(self, adapter: Adapter | None) -> None:
        """Read with this adapter from now on; None: the bare model."""
        stack = self.source.stack if isinstance(self.source, Causal) else None
        if stack is None:
            if adapter is not None:
                raise ModelError("a frozen model was given an adapter to read with")
            return
        stack.load([adapter] if adapter else [])
        self._is_bare = adapter is None or adapter.is_neutral

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Log-probability of each target after its context."""
        if isinstance(self.source, Encoder):
            raise ModelError(
                "a sentence encoder has no log-probabilities: this score needs a causal language model. "
                "Name one (selector.model), or choose a score that works on features: density"
            )
        self._count_cut([context + target for context, target in pairs])
        return score_pairs(self.source.lm, pairs, tokens=self.tokens, progress=self.tick)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts."""
        return tokenized(self.source.tokenizer, texts)

    def features(
        self, texts: Sequence[str], dimensions: int | None, seed: int, *, together: bool = False
    ) -> Floats:
        """[texts, dimensions] in the shared basis of `seed`; None: all features as they are.

        Fewer dimensions are the first columns of more; up to `WIDE`, to the last bit. What is read in one
        pass changes the last bits of a text's features: `together` reads and keeps these very texts as one,
        so that it does not matter what was kept before.
        """
        if dimensions and self._is_bare:
            self.basis = (dimensions, seed)
        self._count_cut(texts)
        group = _digest("\x1f".join(texts)).hex() if together else ""
        found = self._wide(texts, dimensions and max(dimensions, WIDE), seed, group)
        return np.ascontiguousarray(found[:, :dimensions])

    def _wide(self, texts: Sequence[str], dimensions: int | None, seed: int, group: str) -> Floats:
        """[texts, dimensions]; what is in `vectors` is not read again, of a group all or nothing."""
        keys = [self._key(group + text, dimensions, seed) for text in texts]
        known = self.vectors.get(keys) if self.vectors and self._is_bare and dimensions else {}
        known = {} if group and len(known) < len(set(keys)) else known
        missing = list(dict(zip(keys, texts, strict=True)).items())
        missing = [(key, text) for key, text in missing if key not in known]
        total = sum(len(text) for text in texts)
        done = total - sum(len(text) for _, text in missing)
        for chosen, found in self._read([text for _, text in missing], dimensions, seed):
            new = {missing[i][0]: row for i, row in zip(chosen, found, strict=True)}
            known |= new
            if self.vectors and self._is_bare and dimensions:
                self.vectors.put(new)
            done += sum(len(missing[i][1]) for i in chosen)
            self.tick(min(done, total), total)
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, dimensions or 0), np.float32)

    def _read(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Iterator[Part]:
        shared: Floats | None = None
        for chosen, found in self.source.parts(texts, self.tokens, dimensions is None):
            if dimensions is None:
                yield chosen, found
                continue
            shared = shared_basis(found.shape[1], dimensions, seed) if shared is None else shared
            yield chosen, found @ shared

    def _key(self, text: str, dimensions: int | None, seed: int) -> bytes:
        how = (self._identity, self.source.dtype, str(self.source.limit), str(dimensions), str(seed))
        return _digest("\x1f".join(("features", "3", *how, text)))

    def _count_cut(self, texts: Sequence[str]) -> None:
        """Remember which texts are longer than the model reads; a token is at least one character."""
        limit = self.source.limit
        long = [text for text in texts if len(text) > limit]
        for text, ids in zip(long, self.tokenize(long), strict=True):
            if len(ids) > limit:
                self._cut.add(_digest(text))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
