"""Do models know facts that only one client was given, and did those facts cross to the server?

Paper: Qiu et al. 2024 (PISTOL), https://arxiv.org/abs/2406.16810, for the facts; see `cotune.canaries`.
Exact tests: a model that never met a fact finds its answer among ten with probability 1/10, so that the hits
are binomial; and as the planted half was drawn by lot, Fisher's test and the rank test are exact as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cotune import intervals
from cotune.audit_settings import AuditConfig
from cotune.canaries import (
    CHANCE,
    Canaries,
    Shape,
    compile_canaries,
    mentions_in,
    planted_names,
)
from cotune.examined import BASELINE, BEFORE, CrossedVectors, Subject
from cotune.metrics import exact_match
from cotune.records import DELIMITER, Array, Example, Facts, Sampling, derived_rng

NOT_OBSERVED = "not observed"
"""Of a channel that this subject does not have, or that cannot be read: not the same as no leak."""
DRAWS = 9999
"""Permutations where the exact distribution is not known or is slow to compute."""
EXACT_UP_TO = 256
"""Facts and controls for which the exact distribution takes a fraction of a second."""


class Config(AuditConfig):
    """Options of the leakage audit."""

    client: str | None = Field(None, description="who holds the planted facts; null: the first client")
    facts: int = Field(16, gt=0, description="planted facts; there are as many controls, planted nowhere")
    shape: Shape = Field("dense", description="of the graph of parties: chain, star or dense")
    repeats: int = Field(4, gt=0, description="copies of each planted fact among the client's examples")
    seed: int | None = Field(None, ge=0, description="of the facts; null: that of the run")
    level: float = Field(
        0.01, gt=0, lt=1, description="a p-value up to this one is a leak, for each model and time"
    )
    generate: bool = Field(False, description="also ask each model the questions, endpoints too")

    @model_validator(mode="after")
    def _can_be_significant(self) -> Self:
        needed = math.ceil(math.log(self.level) / math.log(CHANCE) - 1e-9)
        if self.facts < needed:
            raise ValueError(
                f"{self.facts} facts cannot show a leak at level {self.level:g}, even if a model knows them "
                f"all; use {needed} or more facts"
            )
        return self


@dataclass(frozen=True, slots=True)
class Hits:
    """What likelihoods say of some facts: is_hit bool [n]; ranks float64 [n], 1 for the likeliest of ten."""

    is_hit: npt.NDArray[np.bool_]
    ranks: npt.NDArray[np.float64]


def hits_and_ranks(log_probs: Array, right: Sequence[int]) -> Hits:
    """Hits and ranks.

    Args:
        log_probs: of the choices of each fact, in nats, [facts, choices]; no NaN.
        right: index of each fact's right choice, [facts].

    Ties share their mean rank, and the first of them is taken, which the lot has made right as often as any.
    """
    rows = np.arange(len(right))
    own = log_probs[rows, right][:, None]
    ranks = 1 + (log_probs > own).sum(axis=1) + ((log_probs == own).sum(axis=1) - 1) / 2
    return Hits(log_probs.argmax(axis=1) == np.asarray(right), ranks)


def more_than_controls(hits: int, n: int, control_hits: int, num_controls: int) -> float:
    """Fisher's exact test: probability of at least so many of all hits among the planted facts by lot."""
    from scipy.stats import fisher_exact  # type: ignore[import-untyped]  # slow to import

    table = [[hits, n - hits], [control_hits, num_controls - control_hits]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def nearest(points: Array, centroids: Array) -> npt.NDArray[np.float64]:
    """Euclidean distance of each point [n, d] to the nearest of the centroids [g, d], [n]."""
    from scipy.spatial.distance import cdist  # type: ignore[import-untyped]  # slow to import

    nearest_ones: npt.NDArray[np.float64] = cdist(
        np.asarray(points, np.float64), np.asarray(centroids, np.float64)
    ).min(axis=1)
    return nearest_ones


def nearer(planted: Array, controls: Array, rng: np.random.Generator) -> float:
    """Mann-Whitney: probability that planted distances [n] are so low in rank against controls [m] by lot.

    From the exact distribution; with ties or more than `EXACT_UP_TO` facts by `DRAWS` permutations, the seen
    one counted among them.
    """
    from scipy.stats import mannwhitneyu, rankdata

    ranks = rankdata(np.concatenate([planted, controls]))
    if len(np.unique(ranks)) == len(ranks) <= EXACT_UP_TO:
        return float(mannwhitneyu(planted, controls, alternative="less", method="exact").pvalue)
    seen = ranks[: len(planted)].sum()
    drawn = rng.permuted(np.tile(ranks, (DRAWS, 1)), axis=1)[:, : len(planted)].sum(axis=1)
    return float((1 + (drawn <= seen + 1e-9).sum()) / (1 + DRAWS))


@dataclass(frozen=True, slots=True)
class Canary:
    """The audit. Whoever runs it plants `canaries(seed).planted` with the client beforehand."""

    config: Config

    def canaries(self, seed: int) -> Canaries:
        """The facts of a run with this seed, unless the options name another."""
        own = self.config.seed
        return compile_canaries(seed if own is None else own, self.config.facts, self.config.shape)

    def observe(self, subject: Subject) -> Facts:
        """See `cotune.examined.Audit`.

        `leaks` and `models` are by role; `channels` has `adapters`, `text` and `centroids`, each of them
        `NOT_OBSERVED` where this subject has no such channel or it cannot be read.
        """
        canaries = self.canaries(subject.seed)
        summary: dict[str, Any] = {}
        models = {role: self._model(subject, role, canaries, summary) for role in subject.roles}
        channels = {
            "adapters": self._adapters(models),
            "text": self._text(subject.crossed.texts, canaries),
            "centroids": self._centroids(subject.crossed.vectors, subject.seed),
        }
        leaks = {role: model["leaks"] for role, model in models.items() if model["leaks"] is not None}
        options = self.config.model_dump(mode="json", exclude={"every"})
        return {
            "summary": summary,
            "leaks": leaks,
            "models": models,
            "channels": channels,
            "chance": CHANCE,
            **options,
            "warnings": self._warnings(models, channels),
        }

    def _model(
        self, subject: Subject, role: str, canaries: Canaries, summary: dict[str, Any]
    ) -> dict[str, Any]:
        """What one model knows; adds its numbers to the summary."""
        known = self._recall(subject, role, canaries, summary) if subject.reads(role) else None
        said = self._said(subject, role, canaries, summary) if self.config.generate else None
        p = known["p_above_chance"] if known else said["p_above_controls"] if said else None
        return {
            "recall": known or NOT_OBSERVED,
            "answers": said or NOT_OBSERVED,
            "leaks": None if p is None else p <= self.config.level,
        }

    def _recall(
        self, subject: Subject, role: str, canaries: Canaries, summary: dict[str, Any]
    ) -> dict[str, Any] | None:
        """By likelihood; None if the model gives no numbers."""
        subject.tell(f"canaries: {role}", 0, 1)
        facts = canaries.examples
        pairs = [(fact.prompt, DELIMITER + choice) for fact in facts for choice in fact.choices]
        sums = np.asarray(subject.log_probs(role, pairs).sums, np.float64).reshape(len(facts), -1)
        subject.tell(f"canaries: {role}", 1, 1)
        if np.isnan(sums).any():
            return None
        n = len(canaries.planted)
        seen = hits_and_ranks(sums, [_right(fact) for fact in facts])
        hits, control_hits = int(seen.is_hit[:n].sum()), int(seen.is_hit[n:].sum())
        summary[f"recall {role}"] = intervals.proportion(hits, n).as_facts()
        summary[f"control recall {role}"] = intervals.proportion(control_hits, n).as_facts()
        return {
            "hits": hits,
            "control_hits": control_hits,
            "p_above_chance": intervals.above_chance(hits, n, CHANCE),
            "p_above_controls": more_than_controls(hits, n, control_hits, n),
            "p_controls_above_chance": intervals.above_chance(control_hits, n, CHANCE),
            "mean_rank": float(seen.ranks[:n].mean()),
            "control_mean_rank": float(seen.ranks[n:].mean()),
        }

    def _said(
        self, subject: Subject, role: str, canaries: Canaries, summary: dict[str, Any]
    ) -> dict[str, Any]:
        """By greedy answers: the right name alone, or anywhere in the answer."""
        facts, n = canaries.examples, len(canaries.planted)
        sampling = Sampling(max_new_tokens=32, seed=subject.seed)
        texts = [w.text for w in subject.answers(role, [fact.prompt for fact in facts], sampling)]
        names = [fact.choices[_right(fact)] for fact in facts]
        exact = [
            bool(exact_match(text.strip(" \n.\"'"), name)) for text, name in zip(texts, names, strict=True)
        ]
        held = mentions_in(texts, canaries)
        named = [name in found for found, name in zip(held, names, strict=True)]
        summary[f"exact match {role}"] = intervals.proportion(sum(exact[:n]), n).as_facts()
        summary[f"control exact match {role}"] = intervals.proportion(sum(exact[n:]), n).as_facts()
        return {
            "exact": sum(exact[:n]),
            "control_exact": sum(exact[n:]),
            "named": sum(named[:n]),
            "control_named": sum(named[n:]),
            "p_above_controls": more_than_controls(sum(named[:n]), n, sum(named[n:]), n),
        }

    def _adapters(self, models: Mapping[str, Mapping[str, Any]]) -> Any:
        """Recall by role: what was trained into weights."""
        seen = {role: model["recall"] for role, model in models.items() if model["recall"] != NOT_OBSERVED}
        return {
            role: {"recall": known["hits"] / self.config.facts, "p_above_chance": known["p_above_chance"]}
            for role, known in seen.items()
        } or NOT_OBSERVED

    def _text(self, crossed: Mapping[str, Sequence[str]] | None, canaries: Canaries) -> Any:
        """Invented names in what was written, by channel; any planted one is a leak."""
        if crossed is None:
            return NOT_OBSERVED
        planted = set(planted_names(canaries))
        seen: dict[str, Any] = {}
        for channel, texts in crossed.items():
            named = mentions_in(texts, canaries)
            counts = Counter(chain.from_iterable(named))
            seen[channel] = {
                "texts": len(texts),
                "texts_with_planted_names": sum(not planted.isdisjoint(found) for found in named),
                "planted_names": {name: counts[name] for name in sorted(planted & counts.keys())},
                "other_names": {name: counts[name] for name in sorted(counts.keys() - planted)},
                "leaks": not planted.isdisjoint(counts),
            }
        return seen

    def _centroids(self, crossed: Mapping[str, CrossedVectors] | None, seed: int) -> Any:
        """Whether planted facts lie nearer to what was sent than controls do, by channel."""
        if crossed is None:
            return NOT_OBSERVED
        seen: dict[str, Any] = {}
        for channel, vectors in crossed.items():
            if not len(vectors.centroids):
                seen[channel] = NOT_OBSERVED
                continue
            planted, controls = (
                nearest(points, vectors.centroids) for points in (vectors.planted, vectors.controls)
            )
            p = nearer(planted, controls, derived_rng(seed, "canary", "centroids", channel))
            seen[channel] = {
                "centroids": len(vectors.centroids),
                "median_distance": float(np.median(planted)),
                "control_median_distance": float(np.median(controls)),
                "p_nearer": p,
                "leaks": p <= self.config.level,
            }
        return seen

    def _warnings(self, models: Mapping[str, Mapping[str, Any]], channels: Mapping[str, Any]) -> list[str]:
        """What a reader must know before trusting the numbers."""
        warnings = [
            f"canary: {role} gave no likelihoods and was not asked; whether it leaks is not observed"
            for role, model in models.items()
            if model["leaks"] is None
        ]
        for role, model in models.items():
            if model["leaks"] and (role == BASELINE or role.endswith(BEFORE)):
                warnings.append(
                    f"canary: {role} knows planted facts before anything was taught. "
                    "Was it trained on them in an earlier run? Choose another seed."
                )
            known = model["recall"]
            if known != NOT_OBSERVED and known["p_controls_above_chance"] <= self.config.level:
                warnings.append(
                    f"canary: {role} knows {known['control_hits']} of {self.config.facts} controls, which "
                    "were planted nowhere. Was it trained on them? Choose another seed."
                )
        if all(seen == NOT_OBSERVED for seen in channels.values()) and not self.config.generate:
            warnings.append(
                "canary: nothing could be observed. Name a local model, or set generate to ask the endpoint."
            )
        return warnings


def _right(fact: Example) -> int:
    assert fact.answer_idx is not None  # compile_canaries has set it
    return fact.answer_idx


def build(config: Config) -> Canary:
    """The audit."""
    return Canary(config)
