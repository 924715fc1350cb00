"""Can one tell from a model's loss which examples it was trained on?

Paper: Yeom et al. 2018, https://arxiv.org/abs/1709.01604 (attack by loss); Carlini et al. 2022,
https://arxiv.org/abs/2112.03570 (true positives at few false ones, and the calibration by a model that has
not seen the examples, which here is the same model before the run).

An attack can only be trusted where both sets are alike: two attacks that never ask the model, on length and
on domain alone, stand beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cotune import intervals, sources
from cotune.audit_settings import AuditConfig
from cotune.errors import ConfigError, DataError
from cotune.examined import BASELINE, BEFORE, STUDENT, Subject
from cotune.records import Array, Example, Facts, derived_rng
from cotune.rows import optional_text, own_id, text

Floats = npt.NDArray[np.float64]

FALSE_ALARMS = {"1%": 0.01, "10%": 0.1}
"""Shares of false positives at which true ones are reported."""
ALIKE = 0.6
"""Largest area under the curve that length or domain alone may reach."""
FEW = 50
"""Below so many examples a side, the numbers say little."""
NOT_OBSERVED = "not observed"


class Config(AuditConfig):
    """Options of membership inference."""

    members: str | None = Field(
        None, description="JSONL file of {prompt, completion} that was trained on; needed"
    )
    non_members: str | None = Field(
        None, description="JSONL file of {prompt, completion} of the same kind that was not; needed"
    )
    limit: int = Field(200, gt=1, description="examples a side, drawn by the seed")
    draws: int = Field(1000, gt=0, description="bootstrap draws for each interval")


class Sides(NamedTuple):
    """As many examples of one side as of the other."""

    members: Sequence[Example]
    others: Sequence[Example]


def true_positives(members: Array, others: Array, share: float) -> float:
    """Share of members [n] above a threshold that at most `share` of the others [m] are above."""
    allowed = int(share * len(others) + 1e-9)
    threshold = np.sort(np.asarray(others))[::-1][allowed]
    return float((np.asarray(members) > threshold).mean())


def domain_scores(members: Sequence[str], others: Sequence[str]) -> tuple[Floats, Floats]:
    """How member-like each domain is, for each example [n] and [m], judged by the other half of both sides.

    Cross-fitted on halves (the sides come in random order), so that many domains of one example each do not
    look like a difference.
    """
    folds = [[side[fold::2] for side in (members, others)] for fold in (0, 1)]
    rates = []
    for mine, theirs in folds:
        ours, all_ = Counter(mine), Counter([*mine, *theirs])
        rates.append({domain: ours[domain] / count for domain, count in all_.items()})
    first, second = (
        np.array([rates[1 - row % 2].get(domain, 0.5) for row, domain in enumerate(side)])
        for side in (members, others)
    )
    return first, second


def read_file(path: str) -> list[Example]:
    """Examples of a JSONL file; `id` and `domain` may be missing.

    Raises:
        DataError: it cannot be read, or a row has no prompt or completion.
    """
    return [
        Example(
            id=own_id(row, where),
            prompt=text(row, "prompt", where),
            completion=text(row, "completion", where),
            domain=optional_text(row, "domain", where),
        )
        for where, row in sources.read(path)
    ]


@dataclass(frozen=True, slots=True)
class Membership:
    """The audit."""

    config: Config

    def observe(self, subject: Subject) -> Facts:
        """See `cotune.examined.Audit`.

        `models` has, by role, the attack by `loss` and the one `calibrated` by the same model before the run;
        `controls` has the area under the curve by length and by domain alone.

        Raises:
            ConfigError: the subject has no examples and no files were named.
            DataError: a file cannot be read, a side is empty, or an example stands on both sides.
        """
        sides = self._sides(subject)
        controls, warnings = self._controls(sides, subject.seed)
        summary: dict[str, Any] = {}
        models: dict[str, Any] = {}
        losses = {role: _losses(subject, role, sides) for role in subject.roles if subject.reads(role)}
        for role in subject.roles:
            if role not in losses:
                models[role] = NOT_OBSERVED
                continue
            before = losses.get(_untaught(role, subject.roles))
            attacks = {"loss": losses[role]}
            if before is not None:
                attacks["calibrated"] = losses[role] - before
            models[role] = {
                name: self._attack(role, name, values, subject.seed) for name, values in attacks.items()
            }
            summary |= {f"AUC {role}, {name}": models[role][name]["auc"] for name in attacks}
            warnings += self._doubts(role, losses[role], models[role]["loss"]["auc"])
        if not losses:
            warnings.append(
                "membership: no model gives likelihoods, so nothing was observed. Name a local one."
            )
        return {
            "summary": summary,
            "models": models,
            "controls": controls,
            "examples": len(sides.members),
            "warnings": warnings,
        }

    def _sides(self, subject: Subject) -> Sides:
        """Equal numbers of examples, drawn by the seed."""
        members = _given(self.config.members, "members")
        others = _given(self.config.non_members, "non_members")
        texts = {(example.prompt, example.completion) for example in members}
        both = sum((example.prompt, example.completion) in texts for example in others)
        if both:
            raise DataError(
                f"membership: {both} of {len(others)} non-members stand among the members too. "
                "Give non-members that no model was trained on."
            )
        size = min(len(members), len(others), self.config.limit)
        if size < 2:
            raise DataError(
                f"membership: {len(members)} members and {len(others)} non-members; expected two or "
                "more of each."
            )
        return Sides(
            *(_drawn(side, size, subject.seed, which) for which, side in enumerate((members, others)))
        )

    def _attack(self, role: str, name: str, values: Floats, seed: int) -> dict[str, Any]:
        """Low values [2, examples] speak for membership; examples without a value are left out."""
        members, others = (-side[np.isfinite(side)] for side in values)
        rng = derived_rng(seed, "membership", role, name)
        found = {"auc": intervals.bootstrap_auc(members, others, rng, self.config.draws).as_facts()}
        for label, share in FALSE_ALARMS.items():
            at = partial(_true_positives_of, share=share)
            estimate = intervals.bootstrap_of([members, others], at, rng, self.config.draws)
            found[f"tpr at {label} fpr"] = estimate.as_facts()
        return found

    def _controls(self, sides: Sides, seed: int) -> tuple[dict[str, Any], list[str]]:
        """What can be told without a model; an attack may use either direction of length."""
        lengths = [np.array([len(e.prompt) + len(e.completion) for e in side], float) for side in sides]
        if intervals.auc(*lengths) < 0.5:
            lengths = [-side for side in lengths]
        domains = domain_scores(*([example.domain for example in side] for side in sides))
        controls: dict[str, Any] = {}
        warnings = []
        for name, (members, others) in {"length": lengths, "domain": domains}.items():
            rng = derived_rng(seed, "membership", name)
            area = intervals.bootstrap_auc(members, others, rng, self.config.draws)
            controls[f"AUC by {name} alone"] = area.as_facts()
            if area.value is not None and area.value > ALIKE:
                warnings.append(
                    f"membership: {name} alone tells members from non-members with AUC {area.value:.2f}, so "
                    "that an attack on the models proves little. Give sets that are alike."
                )
        if len(sides.members) < FEW:
            warnings.append(
                f"membership: {len(sides.members)} examples a side; expected {FEW} or more for intervals "
                "that mean something."
            )
        return controls, warnings

    @staticmethod
    def _doubts(role: str, losses: Floats, area: Mapping[str, Any]) -> list[str]:
        """What speaks against the numbers of one model."""
        doubts = []
        missing = int((~np.isfinite(losses)).sum())
        if missing:
            doubts.append(
                f"membership: {role} gave no loss for {missing} of {losses.size} examples, left out."
            )
        is_untaught = role == BASELINE or role.endswith(BEFORE)
        if is_untaught and area["value"] is not None and area["value"] > ALIKE:
            doubts.append(
                f"membership: {role}, which was not taught yet, tells members from non-members with AUC "
                f"{area['value']:.2f}: the sets differ, or it knew them before. Trust the calibrated "
                "attack only."
            )
        return doubts


def _untaught(role: str, roles: Mapping[str, str]) -> str:
    """The role of the same model before it was taught; empty if there is none."""
    name = BASELINE if role == STUDENT else role + BEFORE
    return name if name in roles else ""


def _given(path: str | None, name: str) -> Sequence[Example]:
    """Examples of one side."""
    if path is None:
        raise ConfigError(
            f"membership.{name}: nothing is known of which examples were trained on; expected a JSONL file "
            f"of {{prompt, completion}}. Name one: {name}: FILE"
        )
    return read_file(path)


def _drawn(side: Sequence[Example], size: int, seed: int, which: int) -> list[Example]:
    """`size` of the examples, in random order."""
    rng = derived_rng(seed, "membership", "examples", str(which))
    return [side[row] for row in rng.permutation(len(side))[:size].tolist()]


def _losses(subject: Subject, role: str, sides: Sides) -> Floats:
    """Loss per token of each completion, [2, examples]: members, non-members; NaN without tokens."""
    examples = [*sides.members, *sides.others]
    subject.tell(f"membership: {role}", 0, len(examples))
    read = subject.log_probs(role, [(example.prompt, example.completion) for example in examples])
    subject.tell(f"membership: {role}", len(examples), len(examples))
    losses = np.full(len(examples), np.nan)
    np.divide(-np.asarray(read.sums, np.float64), read.counts, out=losses, where=np.asarray(read.counts) > 0)
    return losses.reshape(2, -1)


def _true_positives_of(groups: Sequence[Array], share: float) -> float:
    return true_positives(groups[0], groups[1], share)


def build(config: Config) -> Membership:
    """The audit."""
    return Membership(config)
