"""The two networks: who learns what, from which numbers, and that chance comes from the seed alone."""

from __future__ import annotations

import numpy as np
import torch

from cotune.models import bandit
from pools import same

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 8)).astype(np.float32)
REWARDS = np.where(X[:, 0] > 0, 0.7, 0.4)


def learned(seed=0, nets=None, epochs=3):
    return bandit.learn(nets or {}, X, REWARDS, epochs, np.random.default_rng(seed))


def test_a_fresh_network_says_its_level_whatever_it_sees():
    net = bandit.fresh(8, 32, 0.25, np.random.default_rng(0))
    found, hidden = bandit.read(net, X)
    assert found.tolist() == [0.25] * 40
    assert hidden.shape == (40, bandit.LAYERS * 32)
    assert (hidden >= 0).all()


def test_the_network_is_residual_as_written_out_by_hand():
    net = bandit.fit(bandit.fresh(8, 32, 0.5, RNG), X, REWARDS, 1, RNG)
    state, seen = np.maximum(X @ net["0.weight"].T + net["0.bias"], 0), []
    for layer in range(1, 4):
        seen.append(state)
        state = state + np.maximum(state @ net[f"{layer}.weight"].T + net[f"{layer}.bias"], 0)
    found, hidden = bandit.read(net, X)
    assert np.allclose(hidden, np.concatenate([*seen, state], axis=1), atol=1e-5)
    assert np.allclose(found, state @ net["out.weight"][0] + net["out.bias"][0], atol=1e-5)


def test_the_explorer_learns_what_the_exploiter_misses():
    exploit = bandit.part(learned(), "exploit")
    inputs, targets = bandit.explorer_data(exploit, X, REWARDS)
    found, hidden = bandit.read(exploit, X)
    assert np.array_equal(targets, REWARDS - found)
    assert inputs.shape == (40, hidden.shape[1] // 4)
    assert np.allclose(inputs[:, 0], hidden[:, :4].mean(axis=1), atol=1e-6)
    nothing_missed = bandit.explorer_data(exploit, X, found)[1]
    assert not nothing_missed.any()


def test_the_explorer_is_trained_on_that_with_the_exploiter_as_it_is_after_its_own_training():
    nets = learned(seed=3)
    rng = np.random.default_rng(3)
    exploit = bandit.fit(bandit.fresh(8, bandit.EXPLOIT_WIDTH, REWARDS.mean(), rng), X, REWARDS, 3, rng)
    assert same(bandit.part(nets, "exploit"), exploit)
    inputs, targets = bandit.explorer_data(exploit, X, REWARDS)
    explore = bandit.fit(bandit.fresh(512, bandit.EXPLORE_WIDTH, 0.0, rng), inputs, targets, 3, rng)
    assert same(bandit.part(nets, "explore"), explore)


def test_both_networks_come_nearer_to_the_rewards():
    nets = learned(epochs=40)
    errors = [np.square(REWARDS - bandit.score(nets, X, weight)).mean() for weight in (0.0, 1.0)]
    assert errors[0] < 0.5 * REWARDS.var()
    assert errors[1] < errors[0]


def test_without_exploration_the_score_is_the_exploiters():
    nets = learned()
    alone = bandit.read(bandit.part(nets, "exploit"), X)
    assert np.array_equal(bandit.score(nets, X, 0.0), alone[0])
    more = bandit.read(bandit.part(nets, "explore"), bandit.blocks(alone[1]))[0]
    assert np.allclose(bandit.score(nets, X, 0.1), alone[0] + 0.1 * more)


def test_chance_comes_from_the_seed_and_torch_keeps_its_own():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = learned(seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert same(first, learned(seed=5))
    assert not same(first, learned(seed=6))


def test_learning_goes_on_from_what_it_returned_and_changes_nothing_it_was_given():
    first = learned()
    kept = {name: array.copy() for name, array in first.items()}
    x, rewards = X.copy(), REWARDS.copy()
    second = bandit.learn({**first, "rows": np.arange(3)}, X, REWARDS, 3, np.random.default_rng(1))
    assert same(first, kept)
    assert np.array_equal(X, x)
    assert np.array_equal(REWARDS, rewards)
    assert second.keys() == first.keys()
    errors = [np.square(REWARDS - bandit.score(nets, X, 0.0)).mean() for nets in (first, second)]
    assert errors[1] < errors[0]


def test_one_record_is_enough():
    nets = bandit.learn({}, X[:1], REWARDS[:1], 2, np.random.default_rng(0))
    assert np.isfinite(bandit.score(nets, X, 0.1)).all()
