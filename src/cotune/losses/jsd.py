"""Jensen-Shannon divergence per position, times temperature squared: bounded and symmetric.

Paper: Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, equation (1) with beta 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cotune.errors import ModelError
from cotune.records import DenseLogits, Signal

KIND = "divergence"


def loss(student: Tensor, teacher: Signal, temperature: float = 1.0) -> Tensor:
    """Divergence of each position, [positions], from logits [positions, vocabulary]; dense teachers only."""
    if not isinstance(teacher, DenseLogits):
        raise ModelError("jsd needs the teacher's full logits; set strategy.top_k to null.")
    log_q = torch.log_softmax(student / temperature, dim=-1)
    log_p = torch.log_softmax(teacher.logits, dim=-1)
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    both = log_q.exp() * (log_q - log_m) + log_p.exp() * (log_p - log_m)
    return both.sum(-1) / 2 * temperature**2
