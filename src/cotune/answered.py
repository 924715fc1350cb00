"""What models under audit answer to the same prompts: asked once for all audits, and laid out set by set.

Audits that compare answers ask for the same ones, the first of each set, greedily; so what one of them was
told is on disk for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from cotune.examined import Subject
from cotune.records import Array, Sampling, Written


@dataclass(frozen=True, slots=True)
class Answered:
    """The prompts of all sets in one row, the number of each set's by name, and each role's answers."""

    prompts: Sequence[str]
    sizes: Mapping[str, int]
    by_role: Mapping[str, Sequence[Written]]

    def said(self, role: str) -> list[str]:
        """The texts alone."""
        return [written.text for written in self.by_role[role]]

    def by_set(self, rows: Array) -> dict[str, Array]:
        """Values at all prompts, [prompts, ...], by set."""
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        return dict(zip(self.sizes, np.split(rows, ends), strict=True))

    def weighted(self, rows: Array) -> Array:
        """Values [prompts] such that their plain mean is the mean of the set means."""
        sizes = np.array(list(self.sizes.values()))
        found: Array = rows * np.repeat(sizes.sum() / (len(sizes) * sizes), sizes)
        return found

    def warnings(self) -> list[str]:
        """A sentence for each role that answered nothing at all somewhere."""
        empty = {role: sum(not text.strip() for text in self.said(role)) for role in self.by_role}
        return [
            f"{count} of {len(self.prompts)} answers of {role} are empty; two empty answers count as alike."
            for role, count in empty.items()
            if count
        ]


def ask(subject: Subject, roles: Sequence[str], limit: int, max_new_tokens: int) -> Answered:
    """Greedy answers of each role to the first `limit` different prompts of each set."""
    sets = {name: list(dict.fromkeys(prompts))[:limit] for name, prompts in subject.prompt_sets.items()}
    prompts = list(chain.from_iterable(sets.values()))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    found = {role: subject.answers(role, prompts, sampling) for role in roles}
    return Answered(prompts, {name: len(chosen) for name, chosen in sets.items()}, found)
