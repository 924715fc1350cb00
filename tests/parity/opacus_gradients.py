"""Sums of clipped example gradients as opacus makes them, for `test_opacus.py`.

Repository: https://github.com/meta-pytorch/opacus, version 1.6.0 (from the package index). Made by

    pip install opacus==1.6.0
    PYTHONPATH=tests python tests/parity/opacus_gradients.py

A is a linear layer and so is B, beside a frozen one: opacus' GradSampleModule takes each example's gradient,
and its DPOptimizer clips and adds them up. Weights, adapter and tokens come from NumPy, so that no version of
torch or transformers changes what is compared.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from cotune.models.causal_lm import CausalLM, Encoded
from cotune.models.lora import LoraStack
from cotune.records import Adapter

FILE = Path(__file__).with_suffix(".json")
RANK, ALPHA, CLIPS = 2, 4.0, (0.3, 3.4, 30.0)
"""Under the first bound every example is cut, under the second some, under the last none."""


def model() -> CausalLM:
    """A Llama of two layers and width 16 in float64."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    raw = tiny.llama(**sizes).double()
    rng = np.random.default_rng(11)
    for _, weight in sorted(raw.named_parameters()):
        drawn = torch.from_numpy(rng.standard_normal(tuple(weight.shape)))
        weight.data = 1 + 0.1 * drawn if weight.dim() == 1 else 0.2 * drawn
    raw.tie_weights()
    return CausalLM(raw, tiny.tokenizer(), "opacus")


def adapter(stack: LoraStack) -> Adapter:
    """A and B random."""
    return tiny.random_adapter(stack, seed=12, size=0.3)


def rows() -> list[Encoded]:
    """Five rows of 4 to 13 tokens."""
    rng = np.random.default_rng(13)
    shapes = ((4, 2), (9, 3), (13, 12), (7, 1), (11, 6))
    return [Encoded(tuple(rng.integers(2, 258, size).tolist()), start) for size, start in shapes]


class WithLora(nn.Module):
    """A frozen layer beside two linear ones."""

    def __init__(self, frozen: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.frozen = frozen
        self.a = nn.Linear(a.shape[1], a.shape[0], bias=False, dtype=a.dtype)
        self.b = nn.Linear(b.shape[1], b.shape[0], bias=False, dtype=b.dtype)
        self.a.weight.data, self.b.weight.data = a.clone(), b.clone()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x) + ALPHA / RANK * self.b(self.a(x))
        return out


def row_losses(logits: Tensor, batch: list[Encoded]) -> list[Tensor]:
    """Mean cross-entropy of each row's completion."""
    found = []
    for own, row in zip(logits, batch, strict=True):
        start, end = row.num_context, len(row.ids)
        found.append(F.cross_entropy(own[start - 1 : end - 1], torch.tensor(row.ids[start:])))
    return found


def theirs() -> dict[str, Any]:
    """Norms of the examples' gradients, and for each bound the sum of the cut ones by name."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    lm = model()
    stack = LoraStack(lm, RANK, ALPHA, "all-linear")
    given, raw, trained = adapter(stack), lm.model, {}
    for site in stack.sites:
        parent, _, last = site.path.rpartition(".")
        a, b = (torch.from_numpy(given.arrays[name]) for name in site.names())
        wrapped = WithLora(raw.get_submodule(site.path), a, b)
        setattr(raw.get_submodule(parent), last, wrapped)
        trained |= dict(zip(site.names(), (wrapped.a.weight, wrapped.b.weight), strict=True))
    module = GradSampleModule(raw.train(), loss_reduction="sum")
    batch, found = rows(), {}
    longest = max(len(row.ids) for row in batch)
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in batch])
    for clip in CLIPS:
        plain = torch.optim.SGD(list(trained.values()), lr=0.0)
        how = {"noise_multiplier": 0.0, "max_grad_norm": clip, "expected_batch_size": 1}
        optimiser = DPOptimizer(plain, loss_reduction="sum", **how)
        optimiser.zero_grad()
        torch.stack(row_losses(module(ids).logits, batch)).sum().backward()
        samples = [weight.grad_sample.flatten(1) for weight in trained.values()]
        norms = torch.cat(samples, dim=1).norm(dim=1)
        optimiser.clip_and_accumulate()
        found[str(clip)] = {name: weight.summed_grad.flatten().tolist() for name, weight in trained.items()}
    return {
        "opacus": version("opacus"),
        "command": "PYTHONPATH=tests python tests/parity/opacus_gradients.py",
        "norms": norms.tolist(),
        "sums": {
            clip: {name: [float(f"{value:.9g}") for value in values] for name, values in sums.items()}
            for clip, sums in found.items()
        },
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(theirs()) + "\n", encoding="utf-8")
