"""Do the models of all parties come to answer alike: every SLM with every other one and with the LLM.

Origin: proposed here; a federation in which everybody learns from one teacher may end with one voice. The
likeness of two models is the mean of word bigrams and of the cosine of whole answers (`cotune.likeness`),
each calibrated: 1 is a model and itself, 0 a model's answers to other prompts, averaged over all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from cotune.answered import Answered, ask
from cotune.audit_settings import AuditConfig
from cotune.errors import ConfigError
from cotune.examined import BEFORE, UNRELATED, Estimate, Subject
from cotune.intervals import estimate, redrawn_set_means, set_means
from cotune.likeness import calibrated, embedding, strangers, word_ngrams
from cotune.records import Array, Facts, derived_rng


class Config(AuditConfig):
    """Options of the audit."""

    limit: int = Field(24, gt=0, description="prompts of each set, from its beginning")
    max_new_tokens: int = Field(128, gt=0, description="tokens of an answer, at most")


@dataclass(frozen=True, slots=True)
class Meter:
    """Likeness of two answers by word bigrams and, given vectors of all that are not blank, by cosine."""

    vectors: Mapping[str, Array] | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the measures."""
        return ("word_ngrams",) if self.vectors is None else ("word_ngrams", "embedding")

    def rows(self, ours: Sequence[str], theirs: Sequence[str]) -> Array:
        """At each prompt: [prompts, measures]."""
        return np.array([self._of(a, b) for a, b in zip(ours, theirs, strict=True)])

    def _of(self, a: str, b: str) -> list[float]:
        words = word_ngrams(a, b)
        if self.vectors is None:
            return [words]
        blank = not a.strip(), not b.strip()
        cosine = float(all(blank)) if any(blank) else embedding(self.vectors[a], self.vectors[b])
        return [words, cosine]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Calibrated likeness of pairs of roles: the value, [pairs], and over prompts drawn anew, [draws, pairs].

    n: prompts. NaN where the anchors coincide.
    """

    roles: Sequence[tuple[str, str]]
    value: Array
    draws: Array
    n: int

    def among(self, roles: Sequence[str]) -> tuple[float, Array]:
        """Mean over the pairs of these roles, and over each draw, [draws]."""
        chosen = [self.roles.index(pair) for pair in combinations(roles, 2)]
        return float(self.value[chosen].mean()), self.draws[:, chosen].mean(axis=1)

    def mean(self, roles: Sequence[str]) -> Estimate:
        """The same as an estimate."""
        return estimate(*self.among(roles), self.n)

    def matrix(self, roles: Sequence[str]) -> list[list[float | None]]:
        """[roles, roles], symmetric; None where there is no value."""
        known = dict(zip(self.roles, self.value.tolist(), strict=True))
        found = {pair: None if np.isnan(value) else value for pair, value in known.items()}
        return [[1.0 if a == b else found.get((a, b), found.get((b, a))) for b in roles] for a in roles]


class Homogenisation:
    """The audit."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def observe(self, subject: Subject) -> Facts:
        """`roles`; the matrices `now` and `before` in their order; the `change` of the mean between models.

        `before` is None and so is `change` unless two of the models at least have a state before the run.

        Raises:
            ConfigError: there are fewer than two models.
        """
        roles = [role for role in subject.roles if not role.endswith(BEFORE) and role != UNRELATED]
        if len(roles) < 2:
            raise ConfigError(
                f"homogenisation: came {', '.join(roles) or 'no model'}; expected at least two models, to be "
                f"compared with each other: add `--reference MODEL`, or in a run let both sides be trained."
            )
        known = [role for role in roles if role + BEFORE in subject.roles]
        past = [role + BEFORE for role in known] if len(known) > 1 else []
        answered = ask(subject, [*roles, *past], self.config.limit, self.config.max_new_tokens)
        meter = Meter(_vectors(subject, answered))
        pairs = _likeness(subject, answered, meter, [*combinations(roles, 2), *combinations(past, 2)])
        return {
            "roles": roles,
            "names": [subject.roles[role] for role in roles],
            "now": pairs.matrix(roles),
            "before": pairs.matrix([role + BEFORE for role in roles]) if past else None,
            "change": _change(pairs, known).as_facts() if past else None,
            "sets": dict(answered.sizes),
            "measures": list(meter.names),
            "summary": _summary(pairs, roles, known if past else []),
            "warnings": _warnings(answered, meter, pairs),
        }


def _likeness(subject: Subject, answered: Answered, meter: Meter, pairs: Sequence[tuple[str, str]]) -> Pairs:
    sizes = list(answered.sizes.values())
    others = strangers(sizes, derived_rng(subject.seed, "homogenisation", "strangers"))
    spoken = [answered.said(role) for role in answered.by_role]
    shuffled = [(texts, [texts[row] for row in others]) for texts in spoken]
    lower = np.mean([meter.rows(*both) for both in shuffled], axis=0)
    columns = [lower]
    for done, (a, b) in enumerate(pairs, 1):
        columns.append(meter.rows(answered.said(a), answered.said(b)))
        subject.tell("comparing models", done, len(pairs))
    rows = np.stack(columns, axis=1)  # [prompts, 1 + pairs, measures]
    groups = np.split(rows.reshape(len(rows), -1), np.cumsum(sizes)[:-1])
    draws = redrawn_set_means(groups, derived_rng(subject.seed, "homogenisation", "draws"))
    value, drawn = (
        calibrated(means[..., 1:, :], means[..., :1, :], np.ones(1))
        for means in (set_means(groups).reshape(rows.shape[1:]), draws.reshape(-1, *rows.shape[1:]))
    )
    usable = ~np.isnan(value[0])
    usable |= not usable.any()  # none: all stay, and all is NaN
    return Pairs(pairs, value[:, usable].mean(axis=-1), drawn[..., usable].mean(axis=-1), len(rows))


def _vectors(subject: Subject, answered: Answered) -> dict[str, Array] | None:
    """Of each answer that is not blank, [d]; None: there is no encoder."""
    texts = list(
        dict.fromkeys(text for role in answered.by_role for text in answered.said(role) if text.strip())
    )
    vectors = subject.embed(texts) if texts else np.empty((0, 1))
    return None if vectors is None else dict(zip(texts, vectors, strict=True))


def _change(pairs: Pairs, roles: Sequence[str]) -> Estimate:
    """Mean between these models now minus before the run: positive, they grew alike."""
    (now, now_draws), (before, before_draws) = pairs.among(roles), pairs.among([r + BEFORE for r in roles])
    return estimate(now - before, now_draws - before_draws, pairs.n)


def _summary(pairs: Pairs, roles: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    summary = {"homogenisation.now": pairs.mean(known or roles).as_facts()}
    if known:
        summary["homogenisation.before"] = pairs.mean([role + BEFORE for role in known]).as_facts()
        summary["homogenisation.change"] = _change(pairs, known).as_facts()
    return summary


def _warnings(answered: Answered, meter: Meter, pairs: Pairs) -> list[str]:
    warnings = answered.warnings()
    if meter.vectors is None:
        warnings.append("There is no sentence encoder on this machine: word bigrams alone are compared.")
    if np.isnan(pairs.value).all():
        warnings.append(
            "The models give every prompt the same answer, or there is one prompt only: without anchors that "
            "differ there is no calibrated likeness. More prompts set them apart."
        )
    return warnings


def build(config: Config) -> Homogenisation:
    """The audit."""
    return Homogenisation(config)
