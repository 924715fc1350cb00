"""Chunked losses and their gradients equal the plain ones, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cotune.models import head
from cotune.models.head import chunked, signal, token_log_probs
from cotune.records import DenseLogits, TopKLogits

POSITIONS, WIDTH, VOCAB = 11, 6, 9
LINEAR = nn.Linear(WIDTH, VOCAB).requires_grad_(False).double()


def hidden(seed: int) -> torch.Tensor:
    made = torch.randn(POSITIONS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


def target() -> torch.Tensor:
    return torch.arange(POSITIONS) % VOCAB


@pytest.mark.parametrize(("vocab", "expected"), [(49_152, 85), (262_144, 64), (10_000_000, 64)])
def test_a_chunk_is_4_mi_logits_but_never_few_positions(vocab, expected):
    assert head.positions_per_chunk(vocab) == expected


@pytest.mark.parametrize("chunk", [1, 2, 5, 11, 1000])
def test_cross_entropy_equals_the_dense_one_for_any_chunk(monkeypatch, chunk):
    monkeypatch.setattr(head, "positions_per_chunk", lambda _: chunk)
    ours, plain = hidden(0), hidden(0)
    seen = []

    def part_loss(part, states):
        seen.append(part.stop - part.start)
        return F.cross_entropy(LINEAR(states[0]), target()[part], reduction="sum")

    (3 * chunked(part_loss, (ours,), VOCAB)).backward()
    dense = F.cross_entropy(LINEAR(plain), target(), reduction="sum")
    (3 * dense).backward()
    assert max(seen) == min(chunk, POSITIONS)
    assert sum(seen) == POSITIONS
    torch.testing.assert_close(chunked(part_loss, (ours,), VOCAB), dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_a_loss_of_two_models_has_both_gradients(monkeypatch, chunk):
    monkeypatch.setattr(head, "positions_per_chunk", lambda _: chunk)

    def both(part, states):
        f, g = LINEAR(states[0]).log_softmax(-1), LINEAR(states[1]).log_softmax(-1)
        return F.kl_div(f, g, log_target=True, reduction="sum")

    ours, plain = (hidden(0), hidden(1)), (hidden(0), hidden(1))
    chunked(both, ours, VOCAB).backward()
    both(slice(None), plain).backward()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_no_positions_give_zero_and_a_gradient_of_zero():
    empty = torch.zeros(0, WIDTH, requires_grad=True)
    found = chunked(lambda part, states: states[0].sum(), (empty,), VOCAB)
    found.backward()
    assert found.item() == 0
    assert empty.grad.shape == (0, WIDTH)


@pytest.mark.parametrize("chunk", [1, 4, 11, 1000])
def test_token_log_probs_and_their_gradient_are_those_of_all_logits(monkeypatch, chunk):
    """Under a loss that joins positions: the weight of one depends on the values of others."""
    monkeypatch.setattr(head, "positions_per_chunk", lambda _: chunk)
    ours, plain = hidden(0), hidden(0)
    seen = []

    def project(states):
        seen.append(len(states))
        return LINEAR(states)

    def joined(values):
        return values[:4].sum() ** 2 + 3 * values[4:].sum()

    found = token_log_probs(project, ours, target(), VOCAB)
    dense = LINEAR(plain).log_softmax(-1).gather(1, target()[:, None])[:, 0]
    torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-12)
    joined(found).backward()
    joined(dense).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)
    assert max(seen) == min(chunk, POSITIONS)
    assert sum(seen) == POSITIONS  # each position meets the head once


def test_token_log_probs_of_bfloat16_are_float32():
    states = hidden(0).detach().bfloat16().requires_grad_()
    found = token_log_probs(lambda part: LINEAR(part.double()).float(), states, target(), VOCAB)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert states.grad.dtype == torch.bfloat16


def test_signal_is_all_logits_over_the_temperature():
    logits = torch.arange(6.0).view(2, 3)
    found = signal(logits, 2.0)
    assert isinstance(found, DenseLogits)
    assert found.logits.tolist() == [[0, 0.5, 1.0], [1.5, 2.0, 2.5]]
    assert isinstance(signal(logits, 2.0, 3), DenseLogits)


def test_signal_of_the_top_k_sums_up_the_rest():
    found = signal(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), 1.0, 2)
    assert isinstance(found, TopKLogits)
    assert (found.values.tolist(), found.indices.tolist()) == ([[3.0, 2.0]], [[1, 3]])
    # ln(e^0 + e^1) = ln(3.71828) = 1.31326
    assert found.rest.item() == pytest.approx(1.3132617)


def test_signal_is_detached():
    assert not signal(torch.zeros(1, 3, requires_grad=True), 1.0).logits.requires_grad
