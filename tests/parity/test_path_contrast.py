"""The contrast of two paths against DPO as TRL computes it, and against the formula in plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cotune.losses.path_contrast import loss, margin

TRAINED = (
    [-149.237, -390.765, -262.9, -81.905, -126.97, -260.46, -334.464, -61.854],
    [-182.059, -275.687, -338.491, -241.267, -142.039, -115.879, -86.004, -71.342],
)
REFERENCE = (
    [-142.67, -378.772, -266.383, -94.566, -102.839, -247.645, -328.919, -82.183],
    [-172.746, -279.832, -328.276, -263.151, -135.851, -111.823, -79.569, -87.657],
)
"""(preferred, other): our own random numbers, a reference 12 nats or so away from what is trained."""

TRL = {
    0.01: [
        0.679511434, 0.777089092, 0.627000789, 0.740325101,
        0.786881184, 0.737900875, 0.688707082, 0.673278569,
    ],
    0.1: [
        0.565243359, 1.79539586, 0.22646426, 1.25705898,
        1.94808814, 1.22407987, 0.649636979, 0.512453651,
    ],
    1.0: [
        0.0622083879, 16.1380001, 1.12469287e-06, 9.22309874,
        17.943, 8.75915703, 0.344054669, 0.0178998442,
    ],
}  # fmt: skip
"""beta -> losses of `DPOTrainer.dpo_loss` of trl 0.19.1 on the numbers above.

Made from `pip download --no-deps trl==0.19.1` (the wheel's SHA-256 begins with 8a2d4277b4ba7221): the method
was cut out of trl/trainer/dpo_trainer.py by its syntax tree, with the two classes of constants that it names
in trl/trainer/dpo_config.py, and called as `dpo_loss(self, *TRAINED, *REFERENCE)` on float64 tensors, where
`self` is a SimpleNamespace with accelerator.device "cpu", reference_free False, f_divergence_type
"reverse_kl", f_divergence_params None, loss_type "sigmoid", label_smoothing 0.0 and beta. Nine digits.
"""

Sums = tuple[torch.Tensor, torch.Tensor]


def tensors(columns) -> Sums:
    return tuple(torch.tensor(column, dtype=torch.float64) for column in columns)


@pytest.mark.parametrize("beta", TRL)
def test_losses_are_those_of_trl(beta):
    found = loss(tensors(TRAINED), tensors(REFERENCE), beta)
    torch.testing.assert_close(found, torch.tensor(TRL[beta], dtype=torch.float64), rtol=1e-8, atol=1e-14)
    in_float32 = [tuple(t.float() for t in tensors(columns)) for columns in (TRAINED, REFERENCE)]
    torch.testing.assert_close(loss(*in_float32, beta), torch.tensor(TRL[beta]), rtol=1e-4, atol=1e-5)


def test_beta_is_a_tenth_unless_said():
    torch.testing.assert_close(
        loss(tensors(TRAINED), tensors(REFERENCE)), torch.tensor(TRL[0.1], dtype=torch.float64)
    )


def test_margin_and_loss_by_hand():
    # z = (-10 - -12) - (-20 - -17) = 2 + 3 = 5; -ln sigmoid(0.5) = ln(1 + e^-0.5) = ln 1.60653 = 0.47408
    trained, reference = tensors([[-10.0], [-20.0]]), tensors([[-12.0], [-17.0]])
    assert margin(trained, reference).item() == 5
    assert loss(trained, reference, 0.1).item() == pytest.approx(0.4740770)
    assert torch.exp(-loss(trained, reference, 0.1)).item() == pytest.approx(0.6224593)


sums = st.floats(-2000, 0, allow_subnormal=False)
pairs = st.lists(st.tuples(sums, sums, sums, sums), min_size=1, max_size=5)
betas = st.sampled_from([0.01, 0.1, 1.0])


def split(rows) -> tuple[Sums, Sums]:
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return (columns[0].requires_grad_(), columns[1].requires_grad_()), (columns[2], columns[3])


@given(pairs, betas)
def test_gradient_is_that_of_the_formula_and_in_closed_form(rows, beta):
    trained, reference = split(rows)
    ours = torch.autograd.grad(loss(trained, reference, beta).sum(), trained)
    z = (trained[0] - reference[0]) - (trained[1] - reference[1])
    naive = torch.log1p(torch.exp(-(beta * z).clamp(min=-500))).sum()  # exp overflows below
    weight = beta * torch.sigmoid(-beta * z.detach())
    for found, plain, sign in zip(ours, torch.autograd.grad(naive, trained), (-1, 1), strict=True):
        torch.testing.assert_close(found, sign * weight, rtol=1e-9, atol=1e-12)
        inside = beta * z.detach() > -500
        torch.testing.assert_close(found[inside], plain[inside], rtol=1e-9, atol=1e-12)


@given(pairs, betas)
def test_the_other_role_negates_the_margin(rows, beta):
    trained, reference = (tuple(t.detach() for t in two) for two in split(rows))
    swapped = trained[::-1], reference[::-1]
    assert torch.equal(margin(*swapped), -margin(trained, reference))
    # sigmoid(x) + sigmoid(-x) = 1
    both = torch.exp(-loss(trained, reference, beta)) + torch.exp(-loss(*swapped, beta))
    torch.testing.assert_close(both, torch.ones_like(both))


@given(pairs, betas)
def test_probability_is_the_sigmoid_of_the_margin_and_lies_between_0_and_1(rows, beta):
    trained, reference = (tuple(t.detach() for t in two) for two in split(rows))
    losses = loss(trained, reference, beta)
    assert (losses >= 0).all()
    found = torch.exp(-losses)
    torch.testing.assert_close(found, torch.sigmoid(beta * margin(trained, reference)))
    assert ((found >= 0) & (found <= 1)).all()


@given(pairs, betas)
def test_a_model_that_has_not_left_its_reference_has_no_preference(rows, beta):
    _, reference = split(rows)
    losses = loss(reference, reference, beta)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)))
