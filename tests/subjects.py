"""A subject without a model: it answers from tables or functions, and remembers what it was asked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotune.examined import Crossed, Judge
from cotune.pool import Writer
from cotune.records import Sampling, Written

Answers = Mapping[str, str] | Callable[[str], str]
"""Message -> text. A table without the message raises KeyError: the audit asked for what it should not."""
DIMENSIONS = 64


@dataclass(frozen=True)
class FakeLogProbs:
    """`sums` in nats and `counts` in words, [targets]."""

    sums: Any
    counts: Any


class FakeSubject:
    """What `examined.Subject` promises.

    answers: of each role. judge: handed on. embed: whether there is a sentence encoder (vectors are hashed
    counts of words: equal words, equal vectors). log_probs: (role, context, target) -> log-probability; None:
    nobody can be read. `asked` and `told` are what the audit asked and said.
    """

    def __init__(
        self,
        answers: Mapping[str, Answers],
        prompt_sets: Mapping[str, Sequence[str]] | None = None,
        judge: Judge | None = None,
        embed: bool = True,
        log_probs: Callable[[str, str, str], float] | None = None,
        seed: int = 0,
    ) -> None:
        self.seed, self.judge = seed, judge
        self.crossed: Crossed = Crossed()
        self.identity_judge: Writer | None = None
        self.mutator: Writer | None = None
        self.prompt_sets = prompt_sets or {"plain": ["Why is the sky blue?", "How is bread baked?"]}
        self.roles = {role: f"model of {role}" for role in answers}
        self.asked: list[tuple[str, tuple[str, ...], Sampling]] = []
        self.told: list[tuple[str, int, int]] = []
        self._answers, self._has_encoder, self._log_prob = answers, embed, log_probs

    def fingerprint(self, role: str) -> str:
        return f"fingerprint of {self.roles[role]}"

    def answers(self, role: str, messages: Sequence[str], sampling: Sampling) -> list[Written]:
        self.asked.append((role, tuple(messages), sampling))
        given = self._answers[role]
        texts = [given(message) if callable(given) else given[message] for message in messages]
        return [
            Written(text, len(message.split()), len(text.split()), finished=True)
            for message, text in zip(messages, texts, strict=True)
        ]

    def reads(self, role: str) -> bool:
        return role in self.roles and self._log_prob is not None

    def log_probs(self, role: str, pairs: Sequence[tuple[str, str]]) -> FakeLogProbs:
        assert self._log_prob is not None, f"{role} cannot be read; ask `reads` first"
        sums = [self._log_prob(role, context, target) for context, target in pairs]
        counts = [max(1, len(target.split())) for _, target in pairs]
        return FakeLogProbs(np.array(sums, np.float64), np.array(counts, np.int64))

    def embed(self, texts: Sequence[str]) -> Any:
        if not self._has_encoder:
            return None
        return np.stack([unit(text) for text in texts]) if texts else np.zeros((0, DIMENSIONS), np.float32)

    def tell(self, what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.told.append((what, done, total))


def unit(text: str) -> Any:
    """A unit vector of hashed counts of words, float32 [DIMENSIONS]; a text without words has one too."""
    vector = np.zeros(DIMENSIONS, np.float32)
    for word in text.casefold().split() or [""]:
        vector[zlib.crc32(word.encode("utf-8", "replace")) % DIMENSIONS] += 1
    return vector / np.linalg.norm(vector)
