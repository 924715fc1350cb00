"""Two small networks that learn rewards: the second one learns what the first one misses.

Paper: EE-Net (Ban et al. 2022), https://arxiv.org/abs/2110.03177, with hidden states in the place of
gradients, as LaDa, https://arxiv.org/abs/2602.18749, has it. The last layers begin at zero, so that items
about which nothing was learned are all alike. Networks are named arrays; torch's own randomness is not used.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cotune.records import Array

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

LAYERS = 4
EXPLOIT_WIDTH = 512
EXPLORE_WIDTH = 128
"""The spec leaves it open; a wider one doubles the cost."""
BLOCK = 4
"""Neighbouring hidden states of the first network that the second one sees as their mean."""
LR = 1e-4
WEIGHT_DECAY = 1e-5
STEPS = 12
"""Wanted in one pass over the records: batches are as large as that makes them, within the next two."""
SMALLEST, LARGEST = 16, 128


def learn(
    nets: Mapping[str, Array], x: Floats, rewards: Values, epochs: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Train the exploiter on rewards, then, with the exploiter as it is now, the explorer on what is left.

    Args:
        nets: what this function returned before, to go on from; other names are left out. Empty: begin.
        x: [records, d], of about unit scale; at least one record.
        rewards: [records].
        epochs: passes over all records, for each network.
        rng: order of the records, and first weights.

    Returns:
        `exploit.*` and `explore.*`, float32.
    """
    exploit = part(nets, "exploit") or fresh(x.shape[1], EXPLOIT_WIDTH, float(rewards.mean()), rng)
    exploit = fit(exploit, x, rewards, epochs, rng)
    inputs, targets = explorer_data(exploit, x, rewards)
    explore = part(nets, "explore") or fresh(inputs.shape[1], EXPLORE_WIDTH, 0.0, rng)
    explore = fit(explore, inputs, targets, epochs, rng)
    named = {"exploit": exploit, "explore": explore}
    return {f"{role}.{name}": array for role, net in named.items() for name, array in net.items()}


def score(nets: Mapping[str, Array], x: Floats, lambda_explore: float) -> Values:
    """Exploiter + lambda * explorer, [items], for x [items, d]."""
    found, hidden = read(part(nets, "exploit"), x)
    if lambda_explore:
        found = found + lambda_explore * read(part(nets, "explore"), blocks(hidden))[0]
    return found


def explorer_data(exploit: Mapping[str, Array], x: Floats, rewards: Values) -> tuple[Floats, Values]:
    """What the explorer learns: from the exploiter's hidden states in blocks, what that misses, r - f1(x)."""
    found, hidden = read(exploit, x)
    return blocks(hidden), rewards - found


def blocks(hidden: Floats) -> Floats:
    """Means of `BLOCK` neighbours, [records, states / BLOCK]."""
    means: Floats = hidden.reshape(len(hidden), hidden.shape[1] // BLOCK, BLOCK).mean(axis=2)
    return means


def part(nets: Mapping[str, Array], role: str) -> dict[str, Array]:
    """The arrays of one network, without its name before them."""
    start = f"{role}."
    return {name.removeprefix(start): array for name, array in nets.items() if name.startswith(start)}


def fresh(num_inputs: int, width: int, level: float, rng: np.random.Generator) -> dict[str, Array]:
    """A network that says `level` whatever it sees."""
    net: dict[str, Array] = {}
    for layer in range(LAYERS):
        fan_in = width if layer else num_inputs
        bound = 1 / np.sqrt(fan_in)
        net[f"{layer}.weight"] = rng.uniform(-bound, bound, (width, fan_in)).astype(np.float32)
        net[f"{layer}.bias"] = rng.uniform(-bound, bound, width).astype(np.float32)
    net["out.weight"] = np.zeros((1, width), np.float32)
    net["out.bias"] = np.full(1, level, np.float32)
    return net


def fit(
    net: Mapping[str, Array], x: Floats, targets: Values, epochs: int, rng: np.random.Generator
) -> dict[str, Array]:
    """The network after Adam on the squared error, `epochs` passes; `net` stays as it is."""
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in net.items()}
    adam = torch.optim.Adam(list(weights.values()), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    inputs, wanted = torch.tensor(x), torch.tensor(targets, dtype=torch.float32)
    size = min(LARGEST, max(SMALLEST, -(-len(x) // STEPS)))
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(x)))
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            adam.zero_grad()
            loss = F.mse_loss(forward(weights, inputs[rows])[0], wanted[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}


@torch.no_grad()
def read(net: Mapping[str, Array], x: Floats) -> tuple[Values, Floats]:
    """What the network says, [items], and its hidden states side by side, [items, LAYERS * width]."""
    weights = {name: torch.tensor(array) for name, array in net.items()}
    found, hidden = forward(weights, torch.tensor(x))
    return found.double().numpy(), hidden.numpy()


def forward(weights: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A residual network: [n] and [n, LAYERS * width] of x [n, d]."""
    state = F.linear(x, weights["0.weight"], weights["0.bias"]).relu()
    seen = [state]
    for layer in range(1, LAYERS):
        state = state + F.linear(state, weights[f"{layer}.weight"], weights[f"{layer}.bias"]).relu()
        seen.append(state)
    return F.linear(state, weights["out.weight"], weights["out.bias"])[:, 0], torch.cat(seen, dim=1)
