"""How alike are the student's answers and the reference's, by measures that need no judge.

Origin: measures of `cotune.likeness`, after Lee et al. 2025, https://arxiv.org/abs/2501.12619, who report two
such ones beside RSE. Each is the unweighted mean of the means of the prompt sets, raw and calibrated by two
anchors: upper, the reference against itself; lower, an unrelated model against the reference or, without one,
the reference's answers to other prompts against its own. `likeness.mean` is the mean of the measures between
the means of their anchors, so that one with a narrow span adds no more noise than another: 0 as alike as
strangers, 1 as alike as a model and itself. It is a number of its own, not RSE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic import Field

from cotune.answered import Answered, ask
from cotune.audit_settings import AuditConfig
from cotune.cast import Cast, cast
from cotune.examined import Estimate, Subject
from cotune.intervals import difference_p, estimate, redrawn_set_means, set_means
from cotune.likeness import PROXIES, calibrated, embedding_f, sentences, strangers
from cotune.records import Array, Facts, derived_rng, readable

LOWER, UPPER, STUDENT, BASELINE = range(4)
"""Columns of what is measured at a prompt; without a baseline the last one is not there."""
EXAMPLES = 2
"""Kept at each end."""
CUT = 600
"""Characters of an example's answer that are kept."""

Pairs = Sequence[Sequence[tuple[str, str]]]
"""The two texts to compare at each prompt, by column."""


class Config(AuditConfig):
    """Options of the audit."""

    limit: int = Field(24, gt=0, description="prompts of each set, from its beginning")
    max_new_tokens: int = Field(128, gt=0, description="tokens of an answer, at most")


@dataclass(frozen=True, slots=True)
class Means:
    """Means of set means [..., columns] as they are, `value`, and over the prompts drawn anew, `draws`."""

    value: Array
    draws: Array
    n: int

    def of(self, *place: int) -> Estimate:
        """One of them with its interval."""
        return estimate(float(self.value[place]), np.moveaxis(self.draws, 0, -1)[place], self.n)

    def calibrated(self) -> Means:
        """Student and baseline between the two anchors; NaN where these coincide."""
        value, draws = (
            calibrated(x[..., STUDENT:], x[..., LOWER, None], x[..., UPPER, None])
            for x in (self.value, self.draws)
        )
        return Means(value, draws, self.n)


class Likeness:
    """The audit."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def observe(self, subject: Subject) -> Facts:
        """`mean` and `proxies` hold each number of student, baseline and anchors; `examples` four prompts.

        Raises:
            ConfigError: there is no student or no reference.
        """
        parts = cast(subject.roles)
        roles = (parts.reference, parts.student, parts.baseline, parts.unrelated)
        answered = ask(
            subject, [role for role in roles if role], self.config.limit, self.config.max_new_tokens
        )
        pairs = _pairs(answered, parts, derived_rng(subject.seed, "likeness", "strangers"))
        names, rows = _measured(subject, pairs)
        found = _found(answered, names, rows, derived_rng(subject.seed, "likeness", "draws"))
        return {
            **found,
            "summary": _summary(found),
            "warnings": _warnings(answered, found),
            "cast": asdict(parts),
            "anchor": "unrelated model" if parts.unrelated else "other prompts",
            "sets": dict(answered.sizes),
            "examples": _examples(answered, parts, names, rows),
        }


def _pairs(answered: Answered, parts: Cast, rng: np.random.Generator) -> Pairs:
    reference = answered.said(parts.reference)
    if parts.unrelated:
        lower = answered.said(parts.unrelated)
    else:
        lower = [reference[row] for row in strangers(list(answered.sizes.values()), rng)]
    columns = [lower, reference, answered.said(parts.student)]
    if parts.baseline:
        columns.append(answered.said(parts.baseline))
    return [list(zip(answers, reference, strict=True)) for answers in columns]


def _measured(subject: Subject, pairs: Pairs) -> tuple[list[str], Array]:
    """Names of the measures, and each of them at each prompt, [prompts, measures, columns]."""
    vectors = _vectors(subject, pairs)
    names = [*PROXIES, *(["embedding_f"] if vectors is not None else [])]
    n = len(pairs[UPPER])
    rows = np.empty((n, len(names), len(pairs)))
    for row in range(n):
        for column, texts in enumerate(pairs):
            a, b = texts[row]
            values = [proxy(a, b) for proxy in PROXIES.values()]
            rows[row, :, column] = (
                values if vectors is None else [*values, embedding_f(vectors[a], vectors[b])]
            )
        subject.tell("comparing answers", row + 1, n)
    return names, rows


def _vectors(subject: Subject, pairs: Pairs) -> dict[str, Array] | None:
    """Of the sentences of each answer, [sentences, d]; None: there is no encoder."""
    answers = dict.fromkeys(chain.from_iterable(chain.from_iterable(pairs)))
    split = {answer: sentences(answer) for answer in answers}
    different = list(dict.fromkeys(chain.from_iterable(split.values())))
    if not different:
        return {answer: np.empty((0, 1), np.float32) for answer in answers}
    vectors = subject.embed(different)
    if vectors is None:
        return None
    place = {sentence: row for row, sentence in enumerate(different)}
    return {answer: vectors[[place[part] for part in parts]] for answer, parts in split.items()}


def _found(answered: Answered, names: Sequence[str], rows: Array, rng: np.random.Generator) -> dict[str, Any]:
    """`mean` and `proxies`."""
    n, flat = len(rows), rows.reshape(len(rows), -1)
    draws = redrawn_set_means(list(answered.by_set(flat).values()), rng).reshape(-1, *rows.shape[1:])
    raw = Means(set_means(list(answered.by_set(rows).values())), draws, n)
    scaled = raw.calibrated()
    proxies = {name: _proxy(answered, raw, scaled, rows, place, rng) for place, name in enumerate(names)}
    usable = ~np.isnan(scaled.value[:, 0])
    if not usable.any():
        nothing = Estimate(None, None, None, n).as_facts()
        return {"mean": {"student": nothing}, "proxies": proxies}
    value, draws = raw.value[usable].mean(axis=0), raw.draws[:, usable].mean(axis=1)
    mean = Means(value, draws, n).calibrated()  # pooled: a measure with a narrow span adds no more noise
    return {"mean": _mean(answered, mean, rows[:, usable, STUDENT:].mean(axis=1), rng), "proxies": proxies}


def _proxy(
    answered: Answered, raw: Means, scaled: Means, rows: Array, place: int, rng: np.random.Generator
) -> dict[str, Any]:
    """One measure: its anchors, and student and baseline raw and calibrated."""
    facts: dict[str, Any] = {
        "lower": raw.of(place, LOWER).as_facts(),
        "upper": raw.of(place, UPPER).as_facts(),
        "calibrated": scaled.of(place, 0).as_facts(),
    }
    one = Means(raw.value[place, STUDENT:], raw.draws[:, place, STUDENT:], raw.n)
    facts |= _mean(answered, one, rows[:, place, STUDENT:], rng)
    if "baseline" in facts:
        facts["baseline_calibrated"] = scaled.of(place, 1).as_facts()
    return facts


def _mean(answered: Answered, means: Means, rows: Array, rng: np.random.Generator) -> dict[str, Any]:
    """Student and, if there is one, baseline, and what the first gained on the second.

    rows: [prompts, 1 or 2], values of which only the differences matter.
    """
    facts: dict[str, Any] = {"student": means.of(0).as_facts()}
    if rows.shape[1] == 1:
        return facts
    gain = Means(means.value[:1] - means.value[1:], means.draws[:, :1] - means.draws[:, 1:], means.n)
    student, baseline = (answered.weighted(rows[:, column]) for column in range(2))
    return {
        **facts,
        "baseline": means.of(1).as_facts(),
        "gain": gain.of(0).as_facts(),
        "gain_p": difference_p(student, baseline, rng),
    }


def _summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers by name: `likeness.mean`, `likeness.mean.gain`, `likeness.structure.calibrated`, ..."""
    summary = {}
    for name, facts in [("mean", found["mean"]), *found["proxies"].items()]:
        summary[f"likeness.{name}"] = facts["student"]
        for part in ("calibrated", "baseline", "gain"):
            if part in facts:
                summary[f"likeness.{name}.{part}"] = facts[part]
    return summary


def _warnings(answered: Answered, found: Mapping[str, Any]) -> list[str]:
    warnings = answered.warnings()
    if "embedding_f" not in found["proxies"]:
        warnings.append("There is no sentence encoder on this machine: embedding_f is left out of the mean.")
    flat = [name for name, facts in found["proxies"].items() if facts["calibrated"]["value"] is None]
    if flat:
        warnings.append(
            f"The two anchors coincide for {', '.join(flat)}: no calibrated value, and left out of the mean. "
            f"More prompts, or an unrelated model, set them apart."
        )
    return warnings


def _examples(answered: Answered, parts: Cast, names: Sequence[str], rows: Array) -> list[dict[str, Any]]:
    """The prompts at which student and reference are least and most alike by the mean of the raw measures."""
    order = np.argsort(rows[:, :, STUDENT].mean(axis=1), kind="stable").tolist()
    ends = dict.fromkeys([*order[:EXAMPLES], *order[-EXAMPLES:]])
    return [
        {
            "prompt": readable(answered.prompts[row])[:CUT],
            "student": readable(answered.said(parts.student)[row])[:CUT],
            "reference": readable(answered.said(parts.reference)[row])[:CUT],
            "values": dict(zip(names, rows[row, :, STUDENT].tolist(), strict=True)),
        }
        for row in ends
    ]


def build(config: Config) -> Likeness:
    """The audit."""
    return Likeness(config)
