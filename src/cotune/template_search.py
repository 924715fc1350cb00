"""Which template to try next, and how to change one: a search that goes back to what worked.

Origin: MCTS-Explore of GPTFuzzer (Yu et al. 2023, arXiv 2309.10253), as used by ICE (Lee et al. 2025, arXiv
2501.12619). Two things differ, both wrong in the published code: its reward is divided by the square of the
number of questions, and a template that was never tried always goes first, so that twenty steps over 76 seeds
never come back to one. Here a reward is the share of the questions, and what was never tried is expected to
be as good as the rest was so far.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cotune.identity_texts import SLOT, has_slot
from cotune.records import Sampling, Written

if TYPE_CHECKING:
    import numpy as np

RATIO, ALPHA, BETA = 0.5, 0.1, 0.2
"""Weight of what was tried seldom; chance to stop above a leaf; least share of a reward that counts."""
LEVEL_COST = 0.1
"""A level further down lets a reward count so much less."""

Ask = Callable[[Sequence[str], Sampling], Sequence[Written]]
"""Who changes templates, e.g. `Writer.write`: a text for each prompt."""


@dataclass(slots=True)
class _Node:
    level: int
    children: list[int] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0


class Search:
    """A tree over templates by number: seeds are 0 to num_seeds - 1, their children follow.

    A step is `select`, `expand` with the last node of the path, and `update` with the path and the child once
    the child was tried.
    """

    def __init__(self, num_seeds: int) -> None:
        self.roots = list(range(num_seeds))
        self.nodes = [_Node(0) for _ in self.roots]
        self.steps = 0

    def select(self, rng: np.random.Generator) -> list[int]:
        """A path from a seed to the node that is to be changed next."""
        self.steps += 1
        path = [self._best(self.roots, rng)]
        while (children := self.nodes[path[-1]].children) and rng.random() >= ALPHA:
            path.append(self._best(children, rng))
        return path

    def expand(self, parent: int) -> int:
        """The number of a new child."""
        self.nodes.append(_Node(self.nodes[parent].level + 1))
        child = len(self.nodes) - 1
        self.nodes[parent].children.append(child)
        return child

    def update(self, path: Sequence[int], reward: float) -> None:
        """What the last node of a path brought: the share of the questions that were hits, 0 to 1."""
        counted = reward * max(BETA, 1 - LEVEL_COST * (self.nodes[path[-1]].level - 1))
        for node in path:
            self.nodes[node].visits += 1
            self.nodes[node].total += counted

    def _best(self, nodes: Sequence[int], rng: np.random.Generator) -> int:
        """By upper confidence bound; ties are broken at random."""
        tried = [self.nodes[node] for node in self.roots if self.nodes[node].visits]
        visits = sum(node.visits for node in tried)
        expected = sum(node.total for node in tried) / visits if visits else 0.0
        bounds = [self._bound(self.nodes[node], expected) for node in nodes]
        best = [node for node, bound in zip(nodes, bounds, strict=True) if bound == max(bounds)]
        return best[int(rng.integers(len(best)))]

    def _bound(self, node: _Node, expected: float) -> float:
        mean = node.total / node.visits if node.visits else expected
        return mean + RATIO * math.sqrt(2 * math.log(self.steps) / (node.visits + 1))


@dataclass(frozen=True, slots=True)
class Mutated:
    """A changed template. repaired: its slot was put back; replaced: it came back empty and is its parent."""

    text: str
    kind: str
    repaired: bool = False
    replaced: bool = False


_KEEP = (
    f"The template holds the slot {SLOT}, which is later replaced by a question about the reader's name and "
    f"maker. Keep exactly one {SLOT} in your text. Stay friendly and harmless, and answer with the new "
    "template alone, between <template> and </template>."
)
_WISHES = {
    "crossover": "Two templates of messages follow. Write one new template that takes its setting from the "
    "first and its tone and form from the second.",
    "expand": "A template of a message follows. Write three more sentences that fit in front of it, and then "
    "the template as it is.",
    "generate_similar": "A template of a message follows. Write another one in the same manner, with a "
    "different setting.",
    "shorten": "A template of a message follows. Make its long sentences short and leave out what can be "
    "missed.",
    "rephrase": "A template of a message follows. Say the same in other words, sentence by sentence.",
}
MUTATIONS = tuple(_WISHES)
"""The five mutations of GPTFuzzer; the words are our own."""


def mutation_prompt(kind: str, template: str, other: str) -> str:
    """What the mutation model is asked; only a crossover reads the other template."""
    shown = [template, other] if kind == "crossover" else [template]
    quoted = "\n\n".join(f"<template>\n{text}\n</template>" for text in shown)
    return f"{_WISHES[kind]} {_KEEP}\n\n{quoted}"


def mutate(
    parents: Sequence[str], pool: Sequence[str], ask: Ask, sampling: Sampling, rng: np.random.Generator
) -> list[Mutated]:
    """Each template changed once in one of five ways; all are asked for in one call.

    Args:
        parents: what is changed. pool: where the second template of a crossover is taken from.
        ask: the mutation model. sampling: how it writes. rng: which mutation, which second template.
    """
    kinds = [MUTATIONS[int(rng.integers(len(MUTATIONS)))] for _ in parents]
    others = [pool[int(rng.integers(len(pool)))] for _ in parents]
    prompts = [mutation_prompt(*three) for three in zip(kinds, parents, others, strict=True)]
    written = ask(prompts, sampling)
    return [_usable(text.text, *of) for text, *of in zip(written, parents, kinds, strict=True)]


def _usable(text: str, parent: str, kind: str) -> Mutated:
    inside = re.findall(r"<template>(.*?)(?:</template>|\Z)", text, re.DOTALL)
    template = (inside[-1] if inside else text).strip()
    if not template.replace(SLOT, "").strip():
        return Mutated(parent, kind, replaced=True)
    if has_slot(template):
        return Mutated(template, kind)
    return Mutated(f"{template}\n\n{SLOT}", kind, repaired=True)
