"""KL(teacher || student) per position, times temperature squared.

Paper: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; FedCoLLM equation (5), direction as in its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cotune.errors import ModelError
from cotune.records import DenseLogits, Signal, TopKLogits

KIND = "divergence"


def loss(student: Tensor, teacher: Signal, temperature: float = 1.0) -> Tensor:
    """Divergence of each position, [positions].

    Args:
        student: logits [positions, vocabulary].
        teacher: logits already divided by the temperature; all of them, or the top k and the rest of the mass
            (then the student's rest is one class too, so the result is a lower bound of the dense one).
        temperature: divides the student's logits; the square keeps gradients comparable.
    """
    log_q = torch.log_softmax(student / temperature, dim=-1)
    if isinstance(teacher, DenseLogits):
        log_p = torch.log_softmax(teacher.logits, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
    if not isinstance(teacher, TopKLogits):
        raise ModelError(f"forward_kl needs logits as teacher signal, got {type(teacher).__name__}.")
    kept = torch.cat([teacher.values, teacher.rest[:, None]], dim=-1)
    log_p = torch.log_softmax(kept, dim=-1)
    head = log_q.gather(-1, teacher.indices)
    # 1 - sum of the head, kept away from 0 so that its logarithm has a finite gradient
    rest = torch.log1p(-head.exp().sum(-1).clamp(max=1 - 1e-6))
    log_q = torch.cat([head, rest[:, None]], dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
