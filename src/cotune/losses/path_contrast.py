"""-log sigmoid of beta times the margin: of two reasoning paths, the preferred one gains on the other.

Paper: Rafailov et al. 2023 (DPO), https://arxiv.org/abs/2305.18290, equation (7); LaDa uses it in both
directions, https://arxiv.org/abs/2602.18749. Neither label smoothing nor length normalisation: what is
compared are joint probabilities of whole paths.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

KIND = "preference"

Sums = tuple[Tensor, Tensor]
"""Log-probabilities of whole paths in nats: of the preferred ones and of the others, [pairs] each."""


def margin(trained: Sums, reference: Sums) -> Tensor:
    """z of each pair, [pairs]: how much more the preferred path gained on its reference than the other.

    Args:
        trained: under the model that learns.
        reference: under the frozen one.
    """
    return (trained[0] - reference[0]) - (trained[1] - reference[1])


def loss(trained: Sums, reference: Sums, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta z) of each pair, [pairs]; log 2 while nothing is learned.

    Args:
        trained: under the model that learns; the gradient goes here.
        reference: under the frozen one.
        beta: how fast a margin counts as learned; small ones let the model move far from its reference.
    """
    return -F.logsigmoid(beta * margin(trained, reference))
