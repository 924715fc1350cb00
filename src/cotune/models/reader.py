"""A model that selectors read from: log-probabilities and features of texts, the latter kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cotune.errors import ModelError
from cotune.models.causal_lm import CausalLM
from cotune.models.embed import Part, last_tokens, mean_tokens, shared_basis
from cotune.models.lora import LoraStack
from cotune.models.score import Scores, score_pairs
from cotune.models.vectors import Vectors
from cotune.records import Adapter

Floats = npt.NDArray[np.float32]
Tick = Callable[[int, int], None]
"""Told how much is read, of how much: characters or pairs of texts."""


class Source(Protocol):
    """What is read: a causal model or an encoder."""

    fingerprint: str

    def parts(self, texts: Sequence[str], tokens: int) -> Iterator[tuple[Part, int]]:
        """All features of some texts, batch by batch, with the number of texts that were cut."""


@dataclass(frozen=True, slots=True)
class Causal:
    """A causal language model; `stack` holds the adapter it is read with, if it can have one."""

    lm: CausalLM
    stack: LoraStack | None
    fingerprint: str

    def parts(self, texts: Sequence[str], tokens: int) -> Iterator[tuple[Part, int]]:
        """The last token in every layer."""
        return last_tokens(self.lm, texts, tokens)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A sentence encoder: features, but no log-probabilities."""

    model: Any
    tokenizer: Any
    fingerprint: str

    def parts(self, texts: Sequence[str], tokens: int) -> Iterator[tuple[Part, int]]:
        """The mean token of the last layer."""
        return mean_tokens(self.model, self.tokenizer, texts, tokens)


@dataclass(slots=True)
class ModelReader:
    """See `cotune.protocols.Reader`.

    `num_cut` counts texts that were longer than the model can read; `basis` is the dimensions and the seed of
    the features that were read last from the bare model.
    """

    source: Causal | Encoder
    tokens: int
    vectors: Vectors | None = None
    tick: Tick = lambda *_: None
    num_cut: int = 0
    basis: tuple[int, int] | None = field(default=None, init=False)
    _is_bare: bool = field(default=True, init=False)

    @property
    def fingerprint(self) -> str:
        """Of the weights, without adapter."""
        return self.source.fingerprint

    def mount(self, adapter: Adapter | None) -> None:
        """Read with this adapter from now on; None: the bare model."""
        stack = self.source.stack if isinstance(self.source, Causal) else None
        if stack is None:
            if adapter is not None:
                raise ModelError("a frozen model was given an adapter to read with")
            return
        stack.load([adapter] if adapter else [])
        self._is_bare = adapter is None or not any(
            array.any() for name, array in adapter.arrays.items() if "lora_B" in name
        )

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Log-probability of each target after its context."""
        if isinstance(self.source, Encoder):
            raise ModelError(
                "a sentence encoder has no log-probabilities: this score needs a causal language model. "
                "Name one (selector.model), or choose a score that works on features: density"
            )
        return score_pairs(self.source.lm, pairs, tokens=self.tokens, progress=self.tick)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts."""
        source = self.source
        tokenizer = source.tokenizer if isinstance(source, Encoder) else source.lm.tokenizer
        found: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []
        return found

    def features(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Floats:
        """[texts, dimensions] in the shared basis of `seed`; None: all features as they are."""
        if dimensions and self._is_bare:
            self.basis = (dimensions, seed)
        keys = [self._key(text, dimensions, seed) for text in texts]
        known = self.vectors.get(keys) if self.vectors and self._is_bare and dimensions else {}
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
        for (chosen, found), num_cut in self.source.parts(texts, self.tokens):
            self.num_cut += num_cut
            if dimensions is None:
                yield chosen, found
                continue
            shared = shared_basis(found.shape[1], dimensions, seed) if shared is None else shared
            yield chosen, found @ shared

    def _key(self, text: str, dimensions: int | None, seed: int) -> bytes:
        words = ("features", "1", self.fingerprint, str(dimensions), str(seed), text)
        return hashlib.sha256("\x1f".join(words).encode("utf-8", "surrogatepass")).digest()
