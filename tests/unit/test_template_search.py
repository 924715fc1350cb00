"""The search goes back to what worked; mutations keep the slot."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cotune.records import Sampling, Written
from cotune.template_search import MUTATIONS, Search, mutate, mutation_prompt


def searched(rewards, steps, seed):
    """Rewards are planted by seed template; children are as good as the seed they come from."""
    rng, tree, roots = np.random.default_rng(seed), Search(len(rewards)), []
    total = 0.0
    for _ in range(steps):
        path = tree.select(rng)
        reward = rewards[path[0]]
        tree.update([*path, tree.expand(path[-1])], reward)
        roots.append(path[0])
        total += reward
    return total / steps, Counter(roots), tree


def test_the_good_branch_is_visited_again_and_beats_drawing_at_random():
    rewards = [0.1] * 23 + [0.9]
    found = [searched(rewards, 60, seed) for seed in range(20)]
    mean = np.mean([share for share, _, _ in found])
    # drawn at random: 0.1 + 0.8 / 24 = 0.133
    assert mean > 2 * np.mean(rewards)
    assert np.mean([visits[23] for _, visits, _ in found]) > 10


def test_twenty_steps_over_24_seeds_come_back_at_least_once_when_half_of_them_work():
    rewards = [0.0, 1.0] * 12
    visits = [searched(rewards, 20, seed)[1] for seed in range(10)]
    assert all(max(counts.values()) >= 2 for counts in visits)


def test_without_any_reward_every_seed_is_tried_before_one_comes_again():
    _, visits, _ = searched([0.0] * 15, 15, 3)
    assert set(visits.values()) == {1}
    assert len(visits) == 15


def test_children_of_children_are_changed_too_and_count_less():
    _, _, tree = searched([1.0], 40, 0)
    levels = [node.level for node in tree.nodes]
    assert max(levels) >= 3
    # the root saw all 40 rewards: each 1 - 0.1 * (level of the child - 1), at least 0.2
    assert tree.nodes[0].visits == 40
    assert tree.nodes[0].total == pytest.approx(sum(max(0.2, 1 - 0.1 * (level - 1)) for level in levels[1:]))


def test_equal_seeds_give_equal_searches():
    first, second = (searched([0.2, 0.5, 0.4], 30, 7)[2] for _ in range(2))
    assert [node.children for node in first.nodes] == [node.children for node in second.nodes]


def answering(texts):
    def ask(prompts, sampling):
        assert len(prompts) == len(texts)
        return [Written(text, 1, 1, True) for text in texts]

    return ask


@pytest.mark.parametrize(
    ("came", "text", "repaired", "replaced"),
    [
        ("Sure:\n<template>New {query} here</template>", "New {query} here", False, False),
        ("<template>New [INSERT PROMPT HERE]", "New [INSERT PROMPT HERE]", False, False),
        ("no tags {query}", "no tags {query}", False, False),
        ("<template>forgot it</template>", "forgot it\n\n{query}", True, False),
        ("", "parent {query}", False, True),
        ("<template> {query} </template>", "parent {query}", False, True),
    ],
)
def test_what_comes_back_is_repaired_or_replaced_by_its_parent(came, text, repaired, replaced):
    rng = np.random.default_rng(0)
    (found,) = mutate(["parent {query}"], ["other {query}"], answering([came]), Sampling(), rng)
    assert (found.text, found.repaired, found.replaced) == (text, repaired, replaced)


def test_all_templates_are_changed_in_one_call_by_all_five_mutations():
    parents = [f"t{n} {{query}}" for n in range(60)]
    found = mutate(parents, parents, answering(parents), Sampling(), np.random.default_rng(1))
    assert {one.kind for one in found} == set(MUTATIONS)
    assert len(MUTATIONS) == 5


def test_only_a_crossover_shows_a_second_template():
    for kind in MUTATIONS:
        prompt = mutation_prompt(kind, "ONE {query} {x}", "TWO {query}")
        assert "ONE {query} {x}" in prompt
        assert ("TWO" in prompt) == (kind == "crossover")
