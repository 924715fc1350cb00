"""Losses on next-token logits without keeping them: position by position, a chunk at a time.

The gradient with respect to the hidden states is taken chunk by chunk during the forward pass, so that at any
time the logits of one chunk are alive. Origin of the idea: fused linear cross-entropy (Hsu et al. 2024,
https://arxiv.org/abs/2410.10989); here for any loss, in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cotune.records import DenseLogits, Signal, TopKLogits

LOGITS_PER_CHUNK = 1 << 22
"""Logits alive at a time, per model: 4 Mi values are 16 MiB in float32."""
FEWEST_POSITIONS = 64
"""Of a chunk, however large the vocabulary: the head's weights are read once a chunk, and for few positions
reading them costs more than multiplying."""

PartLoss = Callable[[slice, tuple[Tensor, ...]], Tensor]
"""(positions, hidden states of those positions, one tensor per model) -> their share of a scalar sum."""


def positions_per_chunk(vocab_size: int) -> int:
    """How many positions meet the head at a time."""
    return max(FEWEST_POSITIONS, LOGITS_PER_CHUNK // vocab_size)


def chunked(loss: PartLoss, hiddens: tuple[Tensor, ...], vocab_size: int) -> Tensor:
    """Sum of `loss` over chunks of positions, differentiable in every hidden tensor.

    Args:
        loss: called with a slice of positions and the hidden states [chunk, width] there.
        hiddens: one tensor [positions, width] per model, all with the same positions.
        vocab_size: sets the size of a chunk.
    """
    size = positions_per_chunk(vocab_size)
    out: Tensor = _Chunked.apply(loss, size, *hiddens)  # type: ignore[no-untyped-call]
    return out


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: PartLoss, size: int, *hiddens: Tensor) -> Tensor:
        grads = [torch.zeros_like(h) for h in hiddens]
        kind = torch.promote_types(hiddens[0].dtype, torch.float32)
        total = torch.zeros((), dtype=kind, device=hiddens[0].device)
        for start in range(0, hiddens[0].shape[0], size):
            part = slice(start, min(start + size, hiddens[0].shape[0]))
            leaves = tuple(h[part].detach().requires_grad_() for h in hiddens)
            with torch.enable_grad():
                value = loss(part, leaves)
            for grad, piece in zip(grads, torch.autograd.grad(value, leaves), strict=True):
                grad[part] = piece
            total += value.detach()
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *(outer[0] * grad for grad in ctx.saved_tensors)


def token_log_probs(
    project: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, vocab_size: int
) -> Tensor:
    """Log-probability of each target, [positions], differentiable in the hidden states.

    A position's value depends on its own hidden state alone, so its gradient is taken at once and multiplied
    later by whatever the loss makes of the value. So a loss may need sums over all positions, and still every
    position meets the head once.

    Args:
        project: hidden states [chunk, width] to logits [chunk, vocabulary].
        hidden: [positions, width].
        target: next tokens, [positions].
        vocab_size: sets the size of a chunk.
    """
    size = positions_per_chunk(vocab_size)
    out: Tensor = _TokenLogProbs.apply(project, size, hidden, target)  # type: ignore[no-untyped-call]
    return out


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, project: Callable[[Tensor], Tensor], size: int, hidden: Tensor, target: Tensor
    ) -> Tensor:
        grad = torch.zeros_like(hidden)
        kind = torch.promote_types(hidden.dtype, torch.float32)
        values = torch.zeros(hidden.shape[0], dtype=kind, device=hidden.device)
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            leaf = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                found = -nn.functional.cross_entropy(project(leaf), target[part], reduction="none")
                [grad[part]] = torch.autograd.grad(found.sum(), leaf)
            values[part] = found.detach()
        ctx.save_for_backward(grad)
        return values

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        [grad] = ctx.saved_tensors
        return None, None, outer[0].to(grad.dtype)[:, None] * grad, None


def signal(logits: Tensor, temperature: float, top_k: int | None = None) -> Signal:
    """What a teacher emits at some positions: its logits over the temperature, all or the k largest.

    Args:
        logits: [positions, vocabulary]; detached here, for a peer is a constant inside the other's loss.
        temperature: softens both sides alike.
        top_k: keep that many; the others become one class, the rest of the mass.
    """
    scaled = logits.detach() / temperature
    if top_k is None or top_k >= scaled.shape[-1]:
        return DenseLogits(scaled)
    values, indices = scaled.topk(top_k, dim=-1)
    rest = scaled.scatter(-1, indices, float("-inf")).logsumexp(-1)
    return TopKLogits(values, indices, rest)
