"""Gates: what follows when an audit says that models have taught each other too much. Pure.

Origin: Distillation Quantification measures only; the gates turn its two metrics, and planted canaries, into
decisions: closeness to the teacher is bought with task gain, a foreign identity and a leak are not bought at
all. Every decision is returned with the numbers it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cotune.audit_settings import GatesConfig
from cotune.changes import mean_score
from cotune.protocols import State

Action = Literal["lower", "stop"]
SCALES = (("rse", "overall", (1.0, 5.0)), ("likeness", "likeness.mean", (0.0, 1.0)))
"""Audit, name in its summary, and its scale; the first that is there counts as similarity. A number beyond
its scale counts as the end of it: who is less alike than strangers are has grown alike only above them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a gate does after a round, why in words, and the numbers behind it."""

    gate: str
    action: Action
    reason: str
    numbers: Mapping[str, float]

    def as_facts(self) -> dict[str, Any]:
        """For rounds.jsonl."""
        return {
            "gate": self.gate,
            "action": self.action,
            "reason": self.reason,
            "numbers": dict(self.numbers),
        }


def decide(records: Sequence[Mapping[str, Any]], config: GatesConfig) -> list[Decision]:
    """What follows from the last of some rounds.

    Args:
        records: lines of rounds.jsonl in their order; those with `audits` count, the first of them is the
            state before anything was taught.
        config: limits and actions.

    Returns:
        One decision at most for each gate; none where there is no later observation than the first.
    """
    observed = [record for record in records if record.get("audits")]
    if len(observed) < 2 or observed[-1] is not records[-1]:
        return []
    found = [_similarity(observed, config), _identity(observed, config), _canary(observed, config)]
    return [decision for decision in found if decision is not None]


def is_stopped(record: Mapping[str, Any]) -> bool:
    """Whether a gate has ended the run after the round of this line of rounds.jsonl."""
    return any(decision["action"] == "stop" for decision in record.get("gates", ()))


def lowered(state: State, decisions: Sequence[Decision], config: GatesConfig) -> State:
    """The state with less weight on distillation, once for all decisions of a round that ask for it."""
    if not any(decision.action == "lower" for decision in decisions):
        return state
    return state.replace(distil=state.distil * config.factor)


def _similarity(observed: Sequence[Mapping[str, Any]], config: GatesConfig) -> Decision | None:
    """Growth since the start without task gain since the last audit."""
    if config.on_similarity == "off":
        return None
    for audit, name, scale in SCALES:
        seen = _measured(observed, audit, name)
        if len(seen) < 2:
            continue
        first, last = (min(max(one[0], scale[0]), scale[1]) for one in (seen[0], seen[-1]))
        growth = (last - first) / (scale[1] - scale[0])
        gain = _accuracy(seen[-1][1], seen[-2][1])
        if growth <= config.similarity or gain is None or gain >= config.min_gain:
            return None
        reason = (
            f"{audit} grew from {first:.3f} to {last:.3f}, {growth:.1%} of its scale (limit "
            f"{config.similarity:.1%}), and the SLMs gained {100 * gain:+.1f} points since the last audit "
            f"(asked for: {100 * config.min_gain:.1f})"
        )
        numbers = {"first": first, "last": last, "growth": growth, "gain": gain}
        return Decision("similarity", config.on_similarity, reason, numbers)
    return None


def _identity(observed: Sequence[Mapping[str, Any]], config: GatesConfig) -> Decision | None:
    """More answers in which the student claims somebody else's identity, or the first ones unprompted."""
    seen = _measured(observed, "ice", "strict")
    if config.on_identity == "off" or len(seen) < 2:
        return None
    first, last = seen[0][0], seen[-1][0]
    hard = [value for value, _ in _measured(observed, "ice", "hard")]
    is_new = bool(hard) and hard[0] == 0 < hard[-1]
    if last - first <= config.identity and not is_new:
        return None
    reason = (
        f"the strict share of ICE grew from {first:.3f} to {last:.3f} (limit +{config.identity:.3f})"
        + (f", {hard[-1]:.3f} of it unprompted where there was none" if is_new else "")
        + ": the student claims to be another model"
    )
    return Decision(
        "identity", config.on_identity, reason, {"first": first, "last": last, "growth": last - first}
    )


def _canary(observed: Sequence[Mapping[str, Any]], config: GatesConfig) -> Decision | None:
    """A planted fact is known where it was not planted, and was not known before."""
    if config.on_canary == "off":
        return None
    before, now = (_leaks(observed[i]) for i in (0, -1))
    new = sorted(role for role, leaks in now.items() if leaks and not before.get(role))
    if not new:
        return None
    recalls = {role: _value(observed[-1], "canary", f"recall {role}") for role in new}
    known = {role: "" if value is None else f" (recall {value:.2f})" for role, value in recalls.items()}
    told = ", ".join(f"{role}{known[role]}" for role in new)
    numbers = {role: value for role, value in recalls.items() if value is not None}
    return Decision("canary", config.on_canary, f"planted facts leaked into {told}", numbers)


def _leaks(record: Mapping[str, Any]) -> Mapping[str, bool]:
    """By model, and by channel for what crossed in the clear."""
    audit = record["audits"].get("canary", {})
    found = dict(audit.get("leaks") or {})
    for kind, channels in (audit.get("channels") or {}).items():
        if kind == "adapters" or not isinstance(channels, Mapping):
            continue  # adapters are the models' own leaks
        found |= {
            f"{kind} {name}": bool(seen.get("leaks"))
            for name, seen in channels.items()
            if isinstance(seen, Mapping)
        }
    return found


def _measured(
    observed: Sequence[Mapping[str, Any]], audit: str, name: str
) -> list[tuple[float, Mapping[str, Any]]]:
    """A number in each record that has it, with the record; none if the last has it not.

    Audits may be asked at different rounds, so that each number has its own first and its own last but one.
    """
    values = [(_value(record, audit, name), record) for record in observed]
    found = [(value, record) for value, record in values if value is not None]
    return found if found and found[-1][1] is observed[-1] else []


def _value(record: Mapping[str, Any], audit: str, name: str) -> float | None:
    estimate = record["audits"].get(audit, {}).get("summary", {}).get(name) or {}
    value = estimate.get("value")
    return None if value is None else float(value)


def _accuracy(now: Mapping[str, Any], before: Mapping[str, Any]) -> float | None:
    """Gain of the SLMs' mean task metric between two rounds; None where one of them was not measured."""
    means = [mean_score(record.get("metrics", {}).get("slm")) for record in (now, before)]
    return None if means[0] is None or means[1] is None else means[0] - means[1]
