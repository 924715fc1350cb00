"""Divergences against `F.kl_div` and against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cotune.errors import ModelError
from cotune.losses import forward_kl, jsd, reverse_kl
from cotune.models.head import signal
from cotune.records import DenseLogits, ReasoningPath, TopKLogits

LOSSES = {"forward_kl": forward_kl.loss, "reverse_kl": reverse_kl.loss, "jsd": jsd.loss}
TEMPERATURES = [0.5, 1.0, 3.0]


def logits(seed: int, rows: int = 7, size: int = 40, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def probabilities(values: torch.Tensor, temperature: float) -> np.ndarray:
    x = values.double().numpy() / temperature
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * (np.log(p) - np.log(q))).sum(-1)


def numpy_loss(name: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> np.ndarray:
    q, p = probabilities(student, temperature), probabilities(teacher, temperature)
    m = (p + q) / 2
    found = {
        "forward_kl": numpy_kl(p, q),
        "reverse_kl": numpy_kl(q, p),
        "jsd": numpy_kl(p, m) / 2 + numpy_kl(q, m) / 2,
    }
    return found[name] * temperature**2


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_float64_numpy(name, temperature):
    student, teacher = logits(1), logits(2)
    ours = LOSSES[name](student, signal(teacher, temperature), temperature)
    assert ours.shape == (7,)
    np.testing.assert_allclose(ours.numpy(), numpy_loss(name, student, teacher, temperature), rtol=2e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_in_both_directions_equals_torch(temperature):
    student, teacher = logits(1), logits(2)
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    given = signal(teacher, temperature)
    forward = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * temperature**2
    reverse = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1) * temperature**2
    torch.testing.assert_close(forward_kl.loss(student, given, temperature), forward)
    torch.testing.assert_close(reverse_kl.loss(student, given, temperature), reverse)


def test_forward_kl_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - ln(3)/2 = 0.14384
    student, teacher = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert forward_kl.loss(student, DenseLogits(teacher)).item() == pytest.approx(0.1438410, abs=1e-6)
    # the other way: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.13081
    assert reverse_kl.loss(student, DenseLogits(teacher)).item() == pytest.approx(0.1308120, abs=1e-6)


def test_top_k_by_hand():
    # p = (1/2, 1/4, 1/8, 1/8), q uniform, k = 2: classes p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2)
    # 1/2 ln 2 + 0 + 1/4 ln(1/2) = ln(2)/4 = 0.17329
    teacher, student = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log(), torch.zeros(1, 4)
    assert forward_kl.loss(student, signal(teacher, 1.0, 2)).item() == pytest.approx(0.1732868, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_model_does_not_diverge_from_itself(name):
    same = logits(3, scale=8.0)
    for temperature in TEMPERATURES:
        found = LOSSES[name](same, signal(same, temperature), temperature)
        torch.testing.assert_close(found, torch.zeros(7), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_divergence_is_not_negative_and_ignores_a_constant(name):
    for seed in range(20):
        student, teacher = logits(seed), logits(seed + 100)
        found = LOSSES[name](student, signal(teacher, 2.0), 2.0)
        assert (found >= 0).all()
        shifted = LOSSES[name](student + 7.0, signal(teacher - 11.0, 2.0), 2.0)
        torch.testing.assert_close(found, shifted, rtol=1e-4, atol=1e-5)


def test_jensen_shannon_is_symmetric_and_at_most_ln_2():
    student, teacher = logits(1, scale=40.0), logits(2, scale=40.0)
    one, other = jsd.loss(student, DenseLogits(teacher)), jsd.loss(teacher, DenseLogits(student))
    torch.testing.assert_close(one, other)
    assert (one <= np.log(2) + 1e-6).all()


def test_top_k_of_the_whole_vocabulary_is_the_dense_loss():
    student, teacher = logits(1), logits(2)
    scaled = teacher / 2.0
    values, indices = scaled.topk(40, dim=-1)
    everything = TopKLogits(values, indices, torch.full((7,), -60.0))
    dense = forward_kl.loss(student, DenseLogits(scaled), 2.0)
    torch.testing.assert_close(forward_kl.loss(student, signal(teacher, 2.0, 40), 2.0), dense)
    torch.testing.assert_close(forward_kl.loss(student, everything, 2.0), dense, rtol=1e-4, atol=1e-4)


def test_top_k_is_a_lower_bound_that_rises_to_the_dense_loss():
    student, teacher = logits(1), logits(2)
    dense = forward_kl.loss(student, signal(teacher, 1.0))
    before = torch.zeros(7)
    for k in (1, 2, 5, 10, 20, 39):
        found = forward_kl.loss(student, signal(teacher, 1.0, k))
        assert (found >= before - 1e-5).all()  # a finer partition never lowers a KL (log-sum inequality)
        assert (found <= dense + 1e-5).all()
        before = found


def test_top_k_signal_keeps_the_whole_mass():
    found = signal(logits(2), 1.0, 5)
    assert isinstance(found, TopKLogits)
    mass = torch.logaddexp(found.values.logsumexp(-1), found.rest)
    torch.testing.assert_close(mass, logits(2).logsumexp(-1))


def test_gradient_is_finite_where_the_student_leaves_nothing_to_the_rest():
    student = torch.zeros(2, 40)
    student[:, :5] = 60.0
    student.requires_grad_()
    forward_kl.loss(student, signal(logits(2, rows=2), 1.0, 5)).sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_is_a_constant(name):
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    LOSSES[name](student, signal(teacher, 2.0), 2.0).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_of_forward_kl_is_q_minus_p_times_the_temperature(temperature):
    student, teacher = logits(1).requires_grad_(), logits(2)
    forward_kl.loss(student, signal(teacher, temperature), temperature).sum().backward()
    # d/dz KL(p || softmax(z / T)) T^2 = T (q - p)
    expected = probabilities(student.detach(), temperature) - probabilities(teacher, temperature)
    np.testing.assert_allclose(student.grad.numpy(), temperature * expected, atol=2e-6)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_dense_losses_say_so_when_they_get_top_k(name):
    with pytest.raises(ModelError, match=r"full logits; set strategy.top_k to null"):
        LOSSES[name](logits(1), signal(logits(2), 1.0, 3))


def test_forward_kl_refuses_text():
    with pytest.raises(ModelError, match="ReasoningPath"):
        forward_kl.loss(logits(1), ReasoningPath("because"))
