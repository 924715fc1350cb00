"""How alike are the student's answers and the reference's, as a judge sees it, from 1 to 5 (RSE)?

Paper: Lee et al. 2025, https://arxiv.org/abs/2501.12619 (response similarity evaluation). Each pair of
answers is judged in both orders; RSE is the unweighted mean of the means of the prompt sets. The reference
against itself must score 5, or the judge is unusable: then there are no numbers.

A judge that writes gives whole levels. One whose digits' likelihoods are read is anchored: its mean on
identical pairs (the reference against itself) is 5 and its mean on unrelated ones (the reference's answers to
other prompts of the set) is 1, and all else lies on the line through both, not clipped. The paper has no such
judge; `raw` keeps what it said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from cotune.answered import Answered, ask
from cotune.audit_settings import AuditConfig
from cotune.cast import Cast, cast
from cotune.errors import ConfigError
from cotune.examined import Estimate, Judge, Subject
from cotune.intervals import estimate, redrawn_set_means
from cotune.judging import (
    ASPECTS,
    MEASURES,
    OVERALL,
    Floats,
    SelfCheck,
    Shortening,
    judged,
    levels,
    named,
    self_check,
)
from cotune.likeness import strangers
from cotune.records import Array, Facts, Written, derived_rng

SAME, OTHER = "same", "other prompts"
"""Parts of the self-check: the reference against itself, and against its answers to other prompts."""
MANY_DROPPED = 0.2
"""Share of the comparisons without a valid verdict that is worth a warning."""
EXAMPLES = 2
"""Kept at each end."""
CUT = 600
"""Characters of an example's texts that are kept."""


class Config(AuditConfig):
    """Options of the audit."""

    limit: int = Field(24, gt=0, description="prompts of each set, from its beginning")
    max_new_tokens: int = Field(128, gt=0, description="longest answer")
    bootstrap: int = Field(2000, gt=0, description="draws behind an interval")


def judged_by_set(texts: Answered, rows: Floats) -> dict[str, Floats]:
    """Rows of all prompts, [prompts, ...], by set, without those that hold a NaN."""
    return {
        name: part[~np.isnan(part).reshape(len(part), -1).any(axis=1)]
        for name, part in texts.by_set(rows).items()
    }


@dataclass(frozen=True, slots=True)
class Table:
    """What is known once the judge has spoken; `scores` by part, [prompts, 2 orders, 4]."""

    texts: Answered
    scores: Mapping[str, Floats]
    check: SelfCheck
    seed: int
    draws: int

    def of(self, *parts: str) -> dict[str, Estimate]:
        """Each measure of a part, or of one part minus another, with its interval.

        Prompts are drawn anew inside their set, and the anchors with them. A prompt counts if all parts have
        valid verdicts in both orders.
        """
        anchors = (SAME, OTHER) if self.check.is_anchored else ()
        rows = np.stack([self.scores[part].mean(axis=1) for part in (*parts, *anchors)], axis=1)

        def compute(means: Floats) -> Floats:
            ends = (means[..., -2:-1, :], means[..., -1:, :]) if anchors else None
            found = levels(means[..., : len(parts), :], ends)
            return found[..., 0, :] - found[..., 1, :] if len(parts) > 1 else found[..., 0, :]

        groups = judged_by_set(self.texts, rows)
        return self._estimates("-".join(parts), list(groups.values()), compute)

    def raw(self, part: str) -> Floats:
        """Mean of the set means of what the judge said, [4]; NaN if it said nothing."""
        groups = judged_by_set(self.texts, self.scores[part].mean(axis=1)).values()
        means = [group.mean(axis=0) for group in groups if len(group)]
        return np.mean(means, axis=0) if means else np.full(len(ASPECTS), np.nan)

    def order(self, part: str) -> Estimate:
        """Mean overall level with the reference first minus that with the reference second."""

        def compute(means: Floats) -> Floats:
            found = self.check.levels(means)
            return found[..., 0, :] - found[..., 1, :]

        groups = judged_by_set(self.texts, self.scores[part])
        return self._estimates(f"{part} order", list(groups.values()), compute)["overall"]

    def by_set(self, part: str) -> dict[str, dict[str, Any]]:
        """Overall level of each set between the anchors of all; `raw`, and what was asked and dropped."""
        lost = self.texts.by_set(_dropped(self.scores[part]))
        groups = judged_by_set(self.texts, self.scores[part].mean(axis=1))
        return {
            name: {
                **self._estimates(f"{part} in {name}", [group], self.check.levels)["overall"].as_facts(),
                "raw": float(group[:, OVERALL].mean()) if len(group) else None,
                "asked": int(lost[name].size),
                "dropped": int(lost[name].sum()),
            }
            for name, group in groups.items()
        }

    def examples(self, cast: Cast) -> list[dict[str, Any]]:
        """The least and the most similar answers of student and reference, least first."""
        scores = self.scores[cast.student].mean(axis=1)
        order = [
            int(row) for row in np.argsort(scores[:, OVERALL], kind="stable") if not np.isnan(scores[row, 0])
        ]
        chosen = order if len(order) <= 2 * EXAMPLES else [*order[:EXAMPLES], *order[-EXAMPLES:]]
        sets = [name for name, size in self.texts.sizes.items() for _ in range(size)]
        found = np.where(self.check.is_usable, self.check.levels(scores), np.nan)
        return [
            {
                "set": sets[row],
                "prompt": self.texts.prompts[row][:CUT],
                "student": self.texts.by_role[cast.student][row].text[:CUT],
                "reference": self.texts.by_role[cast.reference][row].text[:CUT],
                "scores": named(MEASURES, found[row]),
                "raw": named(ASPECTS, scores[row]),
            }
            for row in chosen
        ]

    def _estimates(
        self, purpose: str, groups: Sequence[Floats], compute: Callable[[Floats], Floats]
    ) -> dict[str, Estimate]:
        """What is computed of the mean of the set means, [5 measures]; sets without a prompt are left out."""
        full = [group for group in groups if len(group)]
        n = sum(len(group) for group in full)
        if not full:
            return dict.fromkeys(MEASURES, Estimate(None, None, None, 0))
        shape = full[0].shape[1:]
        flat = [group.reshape(len(group), -1) for group in full]
        drawn = redrawn_set_means(flat, derived_rng(self.seed, "rse", purpose), self.draws)
        value = compute(np.mean([group.mean(axis=0) for group in full], axis=0))
        again = compute(drawn.reshape(-1, *shape))
        value = np.where(self.check.is_usable, value, np.nan)
        return {name: estimate(float(value[k]), again[:, k], n) for k, name in enumerate(MEASURES)}


class Rse:
    """The audit."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def observe(self, subject: Subject) -> Facts:
        """Levels of the student in `summary` (overall is RSE), all models in `models`, and examples.

        Raises:
            ConfigError: there is no judge, no student or no reference.
        """
        judge, played = _judge(subject), cast(subject.roles)
        roles = (played.reference, played.student, played.baseline, played.unrelated)
        texts = ask(subject, [role for role in roles if role], self.config.limit, self.config.max_new_tokens)
        table = self._table(subject, judge, texts, played)
        wanted = [role for role in (played.student, played.baseline, played.unrelated) if role]
        models = [role for role in wanted if role in table.scores]
        facts = {role: _model(table, role) for role in models}
        return {
            "summary": _summary(table, played, facts),
            "warnings": _warnings(table, played, models),
            "usable": not table.check.why,
            "judge": {"name": judge.name, "fingerprint": judge.fingerprint, "is_anchored": judge.is_anchored},
            "self_check": table.check.as_facts(),
            "anchors": _anchors(table, played) if judge.is_anchored else None,
            "sets": dict(texts.sizes),
            "models": facts,
            "answers": {role: _counts(texts.by_role[role], judge) for role in texts.by_role},
            "examples": table.examples(played) if models else [],
        }

    def _table(self, subject: Subject, judge: Judge, texts: Answered, played: Cast) -> Table:
        reference = texts.said(played.reference)
        others = strangers(list(texts.sizes.values()), derived_rng(subject.seed, "rse", "strangers"))
        known = {SAME: reference, OTHER: [reference[row] for row in others]}
        against = {role: texts.said(role) for role in texts.by_role if role != played.reference}

        def scored(what: str, answers: Mapping[str, Sequence[str]]) -> dict[str, Floats]:
            pairs = {part: list(zip(reference, said, strict=True)) for part, said in answers.items()}
            subject.tell(what, 0, len(texts.prompts))
            found = judged(judge, texts.prompts, pairs)
            subject.tell(what, len(texts.prompts), len(texts.prompts))
            return dict(found)

        scores = scored("checking the judge", known)
        rows = np.stack([scores[SAME].mean(axis=1), scores[OTHER].mean(axis=1)], axis=1)
        check = self_check(list(judged_by_set(texts, rows).values()), judge.is_anchored)
        if not check.why:  # a judge that cannot be used is not asked about anybody
            scores |= scored("judging", against)
        return Table(texts, scores, check, subject.seed, self.config.bootstrap)


def _judge(subject: Subject) -> Judge:
    if subject.judge is None:
        raise ConfigError(
            "audit rse: nobody judges; expected a model that is not under audit itself. Name one (a local "
            "model or an endpoint) as the judge, or leave rse out: the audit `likeness` needs no judge."
        )
    return subject.judge


def _model(table: Table, role: str) -> dict[str, Any]:
    """What is known of a model against the reference."""
    return {
        **{name: found.as_facts() for name, found in table.of(role).items()},
        "raw": named(ASPECTS, table.raw(role)),
        "order": table.order(role).as_facts(),
        "sets": table.by_set(role),
    }


def _summary(table: Table, played: Cast, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The student's measures, its difference between the two orders, and what it is to be compared with."""
    if not models:
        nothing = Estimate(None, None, None, 0).as_facts()
        return dict.fromkeys((*MEASURES, "order"), nothing)
    found = {name: models[played.student][name] for name in (*MEASURES, "order")}
    if played.baseline:
        found["baseline"] = models[played.baseline]["overall"]
        found["gain"] = table.of(played.student, played.baseline)["overall"].as_facts()
    if played.unrelated:
        found["unrelated"] = models[played.unrelated]["overall"]
    return found


def _anchors(table: Table, played: Cast) -> dict[str, Any]:
    """Raw means that became 5 and 1, and the student's."""
    arrays = {"same": table.check.same, "unrelated": table.check.other}
    if played.student in table.scores:
        arrays["raw"] = table.raw(played.student)
    return {name: named(ASPECTS, values) for name, values in arrays.items()}


def _counts(answers: Sequence[Written], judge: Judge) -> dict[str, int]:
    """Answers without a word, those that the length cap cut, and those of which the judge saw head and tail.

    An empty answer is an answer: it is compared as it is.
    """
    longest = judge.longest if isinstance(judge, Shortening) else None
    return {
        "empty": sum(not written.text.strip() for written in answers),
        "unfinished": sum(not written.finished for written in answers),
        "shortened": sum(longest is not None and len(written.text) > longest for written in answers),
    }


def _dropped(scores: Floats) -> Array:
    """Which comparisons have no verdict: bool [prompts, 2 orders]."""
    return np.asarray(np.isnan(scores).any(axis=-1))


def _warnings(table: Table, played: Cast, models: Sequence[str]) -> list[str]:
    found = [_unusable(table, played)] if table.check.why else []
    for part in (*models, SAME, OTHER):
        lost = _dropped(table.scores[part])
        of = part if part in models else f"{played.reference} against itself ({part})"
        if lost.all():
            found.append(f"{of}: the judge gave no valid verdict on any of {lost.size} comparisons")
            continue
        if lost.mean() > MANY_DROPPED:
            found.append(
                f"{of}: {lost.sum()} of {lost.size} comparisons have no valid verdict and are left out"
            )
        empty = [name for name, rows in table.texts.by_set(lost).items() if rows.any(axis=1).all()]
        found += [f"{of}: no prompt of the set {name!r} was judged; the mean is without it" for name in empty]
    return found


def _unusable(table: Table, played: Cast) -> str:
    answers = table.texts.said(played.reference)
    repeated = len(answers) - len(set(answers))
    return (
        f"the judge is unusable and there is no RSE: {table.check.why}. "
        + (f"{repeated} of {len(answers)} answers of the reference repeat another one. " if repeated else "")
        + "Name a stronger judge; the audit `likeness` needs none"
    )


def build(config: Config) -> Rse:
    """The audit."""
    return Rse(config)
