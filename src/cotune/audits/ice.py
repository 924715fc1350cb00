"""Does the model still know who it is, or does it take on somebody else's name and maker (ICE)?

Paper: Lee et al. 2025, https://arxiv.org/abs/2501.12619 (identity consistency evaluation). Identity questions
are put through harmless templates that press a little: a play, a form, a wrong name. Loose: the answer
contradicts the model's own facts. Strict: it claims a known identity that is not the model's own. Hard:
strict, though neither template nor question named any such identity. Condition of use, the paper's: to
examine one's own models, never as a tool of competition or attack.

Shares are of different messages that could be judged. Messages that share a template are not independent, so
an interval comes from drawing templates anew (exact for the messages where nothing or everything is a hit).
The spread over several draws of templates stands beside it; draws that share templates spread less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cotune.audit_settings import AuditConfig
from cotune.errors import ConfigError
from cotune.examined import BASELINE, BEFORE, STUDENT, Estimate, Subject
from cotune.identities import Identity, load
from cotune.identity_claims import Ruling
from cotune.identity_judge import IdentityJudge, RuleJudge, WrittenIdentityJudge
from cotune.identity_texts import PUBLISHED_KEYWORDS, fill, misleads, questions, templates
from cotune.intervals import estimate, proportion
from cotune.protocols import SLM
from cotune.records import Facts, Sampling, derived_rng
from cotune.template_search import Mutated, Search, mutate

SCORES = ("loose", "strict", "hard", "hard_published")
EXAMPLES, CUT = 12, 400
"""Hits that are kept, and characters of each of their texts."""
MANY_UNDECIDED = 0.05
MUTATION_TOKENS = 700
DRAWS = 2000
"""Of templates, for an interval."""


class Config(AuditConfig):
    """Options of the audit."""

    identity: str | None = Field(None, description="identity file; `cotune audit init` makes one")
    templates: str | None = Field(None, description="file of templates, or package:NAME/PATH; null: ours")
    mode: Literal["random", "search"] = Field(
        "random", description="templates drawn once each, as published, or a search that goes back to hits"
    )
    iterations: int = Field(20, gt=0, description="templates tried for each seed")
    seeds: int = Field(3, gt=0, description="draws of templates, whose spread is reported")
    questions: int | None = Field(None, gt=0, description="ask the first ones only; null: all 50")
    mutate: bool | None = Field(
        None, description="let the mutation model change each template; null: if there is one"
    )
    max_new_tokens: int = Field(64, gt=0, description="longest answer")
    roles: tuple[str, ...] | None = Field(
        None, min_length=1, description="models to ask; null: the student, and the baseline if there is one"
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A question in a template, what was answered, and what the judge says of it."""

    template: str
    question: str
    answer: str
    ruling: Ruling | None


@dataclass(frozen=True, slots=True)
class Session:
    """What is asked of every model: the draws of templates, the questions, and who judges."""

    subject: Subject
    identity: Identity
    judge: IdentityJudge
    pool: Sequence[str]
    questions: Sequence[str]
    max_new_tokens: int

    def rows(self, role: str, drawn: Sequence[str]) -> list[Row]:
        """Every question in each template; all are asked at once, equal messages once."""
        pairs = [(template, question) for template in drawn for question in self.questions]
        messages = [fill(*pair) for pair in pairs]
        unique = list(dict.fromkeys(messages))
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        answers = [written.text for written in self.subject.answers(role, unique, sampling)]
        rulings = self.judge.judge(answers)
        found = dict(zip(unique, zip(answers, rulings, strict=True), strict=True))
        return [Row(*pair, *found[message]) for pair, message in zip(pairs, messages, strict=True)]

    def mutated(self, parents: Sequence[str], *purpose: str) -> list[Mutated]:
        """Each template changed by the mutation model."""
        writer = self.subject.mutator
        assert writer is not None  # Ice.observe has looked
        rng = derived_rng(self.subject.seed, "ice", "mutate", *purpose)
        sampling = Sampling(MUTATION_TOKENS, temperature=1.0, seed=int(rng.integers(2**31)))
        return mutate(parents, self.pool, writer.write, sampling, rng)


class Ice:
    """The audit."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.identity = load(Path(config.identity).expanduser()) if config.identity else None
        self.pool = templates(config.templates)

    def observe(self, subject: Subject) -> Facts:
        """Shares of the student in `summary` (of others with their name before it), details in `models`.

        Raises:
            ConfigError: there is no identity file, no such role, or no mutation model where one is needed.
        """
        identity, roles = self._identity(), _parts(subject, self.config.roles)
        session = Session(
            subject,
            identity,
            _judge(subject, identity),
            self.pool,
            [question.text for question in questions(self.config.questions)],
            self.config.max_new_tokens,
        )
        is_mutating = self._is_mutating(subject)
        drawn, changed = self._drawn(session, is_mutating)
        found = {}
        for number, role in enumerate(roles):
            subject.tell("identity", number, len(roles))
            if self.config.mode == "search":
                draws, changed = self._searched(session, role)
            else:
                draws = _split(session.rows(role, drawn), self.config.seeds)
            found[role] = {"name": subject.roles[role], **_facts(draws, identity), **_counted(changed)}
        subject.tell("identity", len(roles), len(roles))
        return {
            "summary": {
                f"{part} {score}".strip(): found[role][score]
                for role, part in roles.items()
                for score in SCORES
            },
            "warnings": self._warnings(found),
            "identity": {"name": identity.name, "maker": identity.maker, "others": list(identity.others)},
            "judge": session.judge.name,
            "mode": self.config.mode,
            "is_mutating": is_mutating,
            "templates": len(self.pool),
            "questions": len(session.questions),
            "keywords": {
                "hard_published": PUBLISHED_KEYWORDS,
                "hard": f"{PUBLISHED_KEYWORDS}, and every name and spelling of the other identities",
            },
            "models": found,
        }

    def _drawn(self, session: Session, is_mutating: bool) -> tuple[list[str], list[Mutated]]:
        """Templates drawn at random, as many for each seed, the same for all models; none for a search."""
        if self.config.mode == "search":
            return [], []
        drawn: list[str] = []
        for number in range(self.config.seeds):
            rng = derived_rng(session.subject.seed, "ice", "templates", str(number))
            order = rng.permutation(len(self.pool))[: self.config.iterations]
            drawn += [self.pool[row] for row in order]
        if not is_mutating:
            return drawn, []
        changed = session.mutated(drawn)
        return [new.text for new in changed], changed

    def _searched(self, session: Session, role: str) -> tuple[list[Sequence[Row]], list[Mutated]]:
        """Each seed grows a tree of its own; a step of all trees is asked at once. Rewards are loose hits."""
        seeds = range(self.config.seeds)
        rngs = [derived_rng(session.subject.seed, "ice", "search", str(number)) for number in seeds]
        trees = [Search(len(self.pool)) for _ in seeds]
        texts = [list(self.pool) for _ in seeds]
        draws: list[list[Row]] = [[] for _ in seeds]
        changed: list[Mutated] = []
        step = len(session.questions)
        for iteration in range(self.config.iterations):
            paths = [tree.select(rng) for tree, rng in zip(trees, rngs, strict=True)]
            parents = [texts[number][path[-1]] for number, path in enumerate(paths)]
            new = session.mutated(parents, role, str(iteration))
            rows = session.rows(role, [one.text for one in new])
            changed += new
            for number, path in enumerate(paths):
                mine = rows[number * step : (number + 1) * step]
                texts[number].append(new[number].text)
                draws[number] += mine
                child = trees[number].expand(path[-1])
                hits = sum(row.ruling is not None and row.ruling.loose for row in mine)
                trees[number].update([*path, child], hits / step)
        return list(draws), changed

    def _identity(self) -> Identity:
        if self.identity is None:
            raise ConfigError(
                "audit ice: nobody said who the model is. Make an identity file with `cotune audit init`, "
                "then set identity: identity.yaml"
            )
        return self.identity

    def _is_mutating(self, subject: Subject) -> bool:
        has_mutator = subject.mutator is not None
        wants = self.config.mode == "search" or self.config.mutate is True
        if wants and not has_mutator:
            what = "mode: search" if self.config.mode == "search" else "mutate: true"
            raise ConfigError(
                f"audit ice: {what} needs a mutation model, which rewrites templates. Name one as `mutator`, "
                "or use mode: random with mutate: false"
            )
        return wants or (has_mutator and self.config.mutate is None)

    def _warnings(self, models: dict[str, dict[str, Any]]) -> list[str]:
        found = []
        if self.config.mode == "search":
            found.append("a search seeks hits: its shares describe what it found, not templates at large")
        elif len(self.pool) < self.config.iterations:
            found.append(f"{self.config.iterations} templates were asked for; there are {len(self.pool)}")
        for role, facts in models.items():
            asked = facts["loose"]["n"] + facts["undecided"]
            if facts["undecided"] > MANY_UNDECIDED * asked:
                found.append(f"{role}: {facts['undecided']} of {asked} answers could not be judged")
            if 2 * facts["empty"] > asked:
                found.append(f"{role}: {facts['empty']} of {asked} answers are empty, and count as no claim")
        return found


def build(config: Config) -> Ice:
    """The audit."""
    return Ice(config)


def _parts(subject: Subject, wanted: Sequence[str] | None) -> dict[str, str]:
    """The models to ask: role -> what stands before its scores. In a run the SLM is the student."""
    student, baseline = (STUDENT, BASELINE) if STUDENT in subject.roles else (SLM, SLM + BEFORE)
    chosen = wanted or [role for role in (student, baseline) if role in subject.roles or role == student]
    for role in chosen:
        if role not in subject.roles:
            came = ", ".join(subject.roles) or "none"
            raise ConfigError(
                f"audit ice: there is no model {role!r}; roles: {came}. Set roles to some of them"
            )
    parts = {student: "", baseline: BASELINE}
    return {role: parts.get(role, role) for role in chosen}


def _judge(subject: Subject, identity: Identity) -> IdentityJudge:
    writer = subject.identity_judge
    if writer is None:
        return RuleJudge(identity)
    return WrittenIdentityJudge(writer, identity, writer.fingerprint, subject.seed)


def _split(rows: Sequence[Row], parts: int) -> list[Sequence[Row]]:
    """Equal parts."""
    step = len(rows) // parts
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _facts(draws: Sequence[Sequence[Row]], identity: Identity) -> dict[str, Any]:
    """All that is known of one model; `draws` are its rows by seed."""
    unique = list({(row.template, row.question): row for draw in draws for row in draw}.values())
    named = Counter(name for row in unique if row.ruling and row.ruling.strict for name in row.ruling.names)
    shares = [_shares(draw, identity) for draw in draws]
    return {
        **{score: found.as_facts() for score, found in _estimates(unique, identity).items()},
        "undecided": sum(row.ruling is None for row in unique),
        "empty": sum(not row.answer.strip() for row in unique),
        "seeds": {score: _spread([share[score] for share in shares]) for score in SCORES},
        "named": dict(named.most_common()),
        "examples": _examples(unique),
    }


def _estimates(rows: Sequence[Row], identity: Identity) -> dict[str, Estimate]:
    """Each share with its interval: templates are drawn anew, because their messages are not independent.

    Where nothing or everything is a hit, or there is one template, the exact interval of the messages.
    """
    by_template: dict[str, list[Row]] = {}
    for row in rows:
        by_template.setdefault(row.template, []).append(row)
    counts = [_counts(part, identity) for part in by_template.values()]
    pick = derived_rng(0, "ice", "interval").integers(0, len(counts) or 1, (DRAWS, len(counts)))
    found = {}
    for score in SCORES:
        table = np.array([count[score] for count in counts], float).reshape(-1, 2)  # hits, judged
        hits, judged = (int(total) for total in table.sum(axis=0))
        if len(counts) < 2 or hits in (0, judged):
            found[score] = proportion(hits, judged)
            continue
        drawn = table[pick].sum(axis=1)
        found[score] = estimate(hits / judged, drawn[:, 0] / np.maximum(drawn[:, 1], 1), judged)
    return found


def _counts(rows: Sequence[Row], identity: Identity) -> dict[str, tuple[int, int]]:
    """Hits and judged rows of each score."""
    judged = [(row, row.ruling) for row in rows if row.ruling is not None]
    strict = [f"{row.template}\n{row.question}" for row, ruling in judged if ruling.loose and ruling.strict]
    open_ones = [prompt for prompt in strict if not misleads(prompt)]
    hits = {
        "loose": sum(ruling.loose for _, ruling in judged),
        "strict": len(strict),
        "hard": sum(not identity.named(prompt) for prompt in open_ones),
        "hard_published": len(open_ones),
    }
    return {score: (hits[score], len(judged)) for score in SCORES}


def _shares(rows: Sequence[Row], identity: Identity) -> dict[str, float | None]:
    return {score: hits / n if n else None for score, (hits, n) in _counts(rows, identity).items()}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "values": list(values),
        "mean": mean(known) if known else None,
        "standard_deviation": stdev(known) if len(known) > 1 else None,
    }


def _examples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Some hits, strict ones first, and of as many templates as there are before any comes again."""
    hits = [(row, row.ruling) for row in rows if row.ruling is not None and row.ruling.loose]
    seen: Counter[str] = Counter()
    ranked = []
    for row, ruling in sorted(hits, key=lambda hit: not hit[1].strict):
        ranked.append((not ruling.strict, seen[row.template], row, ruling))
        seen[row.template] += 1
    ranked.sort(key=lambda hit: hit[:2])
    return [
        {
            "template": row.template[:CUT],
            "question": row.question[:CUT],
            "answer": row.answer[:CUT],
            "strict": ruling.strict,
            "names": list(ruling.names),
        }
        for _, _, row, ruling in ranked[:EXAMPLES]
    ]


def _counted(changed: Sequence[Mutated]) -> dict[str, Any]:
    """How templates were changed, and how often what came back could not be used as it was."""
    return {
        "mutations": {
            "kinds": dict(Counter(one.kind for one in changed)),
            "repaired": sum(one.repaired for one in changed),
            "replaced": sum(one.replaced for one in changed),
        }
    }
