"""KL(student || teacher) per position, times temperature squared: it avoids what the teacher rules out.

Paper: Gu et al. 2024 (MiniLLM), https://arxiv.org/abs/2306.08543.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cotune.errors import ModelError
from cotune.records import DenseLogits, Signal

KIND = "divergence"


def loss(student: Tensor, teacher: Signal, temperature: float = 1.0) -> Tensor:
    """Divergence of each position, [positions], from logits [positions, vocabulary]; dense teachers only."""
    if not isinstance(teacher, DenseLogits):
        raise ModelError("reverse_kl needs the teacher's full logits; set strategy.top_k to null.")
    log_q = torch.log_softmax(student / temperature, dim=-1)
    log_p = torch.log_softmax(teacher.logits, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1) * temperature**2
