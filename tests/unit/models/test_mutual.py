"""Equation (6) of FedCoLLM against a dense reference written here with plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from cotune.errors import ModelError
from cotune.losses import forward_kl
from cotune.models import head
from cotune.models.causal_lm import CausalLM, check_vocabularies
from cotune.models.learner import Learner
from cotune.models.lora import LoraStack
from cotune.models.mutual import Divergence, Mutual, mutual_loss
from cotune.models.tune import target_states

PLAIN = Divergence(forward_kl.loss, weight=1.0, temperature=1.0, top_k=None, slm_lr=None)
EXAMPLES = tiny.examples(5)
ALL_STEPS = (1, (0.0, 1.0))


def learner(role: str, lm: CausalLM, lr: float = 1e-2) -> Learner:
    return Learner(role, role, lm, LoraStack(lm, 2, 4, "all-linear"), tiny.tune_config(lr=lr))


@pytest.fixture
def pair() -> tuple[Learner, Learner]:
    return learner("llm", tiny.lm(1, layers=3)), learner("slm", tiny.lm(2, layers=2))


def starts(pair):
    return tuple(tiny.random_adapter(one.stack, seed) for seed, one in enumerate(pair))


def dense(pair, how: Divergence) -> tuple[torch.Tensor, list[float]]:
    """Full logits, shifted by one, masked to the completion; every row on its own, so without padding."""
    sums, count = [torch.zeros(()) for _ in range(4)], 0
    for example in EXAMPLES:
        [row] = pair[0].lm.encode([example], 512)
        ids = torch.tensor([row.ids])
        f, g = (one.lm.model(ids).logits[0, :-1].float() for one in pair)
        labels = ids[0, 1:]
        mask = torch.arange(len(labels)) >= row.num_context - 1
        t = how.temperature
        log_f, log_g = (f / t).log_softmax(-1), (g / t).log_softmax(-1)
        terms = [
            F.cross_entropy(f, labels, reduction="none"),
            F.cross_entropy(g, labels, reduction="none"),
            F.kl_div(log_f, log_g.detach(), log_target=True, reduction="none").sum(-1) * t**2,
            F.kl_div(log_g, log_f.detach(), log_target=True, reduction="none").sum(-1) * t**2,
        ]
        sums = [total + (term * mask).sum() for total, term in zip(sums, terms, strict=True)]
        count += int(mask.sum())
    means = [total / count for total in sums]
    return means[0] + means[1] + how.weight * (means[2] + means[3]), [m.item() for m in means]


def ours(pair, how: Divergence):
    batch = pair[0].lm.batch(pair[0].lm.encode(EXAMPLES, 512))
    hiddens = tuple(target_states(one.lm, batch) for one in pair)
    loss, sums = mutual_loss(*pair, hiddens, batch.target, how)
    return loss, (sums / len(batch.target)).tolist(), batch


def mounted(pair):
    for one, start in zip(pair, starts(pair), strict=True):
        one.stack.load([start])
    return [*pair[0].stack.leaves, *pair[1].stack.leaves]


@pytest.mark.parametrize("chunk", [10_000, 3], ids=["one chunk", "chunks of three"])
@pytest.mark.parametrize("top_k", [None, tiny.VOCAB], ids=["dense", "top-k of all"])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_losses_and_gradients_equal_the_dense_reference(pair, monkeypatch, weight, temperature, top_k, chunk):
    monkeypatch.setattr(head, "positions_per_chunk", lambda _: chunk)
    how = replace(PLAIN, weight=weight, temperature=temperature, top_k=top_k)
    leaves = mounted(pair)
    expected, parts = dense(pair, how)
    found, means, _ = ours(pair, how)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert means == pytest.approx(parts, rel=1e-5)
    for one, other in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-6)


def test_top_k_is_below_the_dense_divergence(pair):
    mounted(pair)
    _, full, _ = ours(pair, PLAIN)
    _, few, _ = ours(pair, replace(PLAIN, top_k=5))
    assert few[:2] == pytest.approx(full[:2])
    assert 0 < few[2] < full[2]
    assert 0 < few[3] < full[3]


def test_the_peer_is_a_constant(pair):
    """Only f's own terms reach f: removing g's terms changes nothing in f's gradient."""
    leaves = mounted(pair)
    loss, _, batch = ours(pair, PLAIN)
    num_f = len(pair[0].stack.leaves)
    of_f = torch.autograd.grad(loss, leaves[:num_f])
    f = pair[0].lm.project(target_states(pair[0].lm, batch))
    g = pair[1].lm.project(target_states(pair[1].lm, batch)).detach()
    divergence = F.kl_div(f.log_softmax(-1), g.log_softmax(-1), log_target=True, reduction="sum")
    alone = F.cross_entropy(f, batch.target) + divergence / len(batch.target)
    for one, other in zip(of_f, torch.autograd.grad(alone, leaves[:num_f]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-6)


def test_identical_models_do_not_diverge():
    twins = learner("llm", tiny.lm(1)), learner("slm", tiny.lm(1))
    _, means, _ = ours(twins, replace(PLAIN, temperature=2.0))
    assert means[2:] == pytest.approx([0, 0], abs=1e-6)


def test_both_sides_step_at_once_from_the_parameters_before_the_step(pair):
    given = starts(pair)
    mutual = Mutual(*pair, PLAIN, given, ALL_STEPS)
    losses = mutual.step(EXAMPLES)
    llm, slm, means = mutual.finish()

    leaves = mounted(pair)
    expected, _ = dense(pair, PLAIN)
    grads = torch.autograd.grad(expected, leaves)
    num_f = len(pair[0].stack.leaves)
    for one, start, part, after in zip(pair, given, (grads[:num_f], grads[num_f:]), (llm, slm), strict=True):
        size = torch.cat([g.flatten() for g in part]).norm().item()
        factor = min(1.0, 1.0 / size)
        for name, grad in zip(one.stack.names(), part, strict=True):
            g = grad[0].numpy() * factor
            # the first step of Adam: g / (|g| + eps), times lr; skip where g is rounding only
            moved = after.arrays[name] - start.arrays[name]
            sure = np.abs(g) > 1e-4
            np.testing.assert_allclose(moved[sure], (-1e-2 * g / (np.abs(g) + 1e-8))[sure], rtol=1e-3)
    assert losses.pop("tokens") == sum(len(row.ids) for row in pair[0].lm.encode(EXAMPLES, 512))
    assert means == pytest.approx(losses)


def test_weight_zero_is_plain_cross_entropy_for_both(pair):
    how = replace(PLAIN, weight=0.0)
    mutual = Mutual(*pair, how, starts(pair), ALL_STEPS)
    losses = mutual.step(EXAMPLES)
    mounted(pair)
    _, parts = dense(pair, how)
    assert losses["llm"] == pytest.approx(parts[0], rel=1e-5)
    assert losses["slm_public"] == pytest.approx(parts[1], rel=1e-5)
    assert losses.keys() == {"llm", "slm_public", "tokens"}


def test_weight_zero_does_not_let_a_side_notice_its_peer(pair):
    how = replace(PLAIN, weight=0.0)
    other = learner("slm", tiny.lm(7, layers=1))
    found = []
    for slm in (pair[1], other):
        mutual = Mutual(pair[0], slm, how, starts((pair[0], slm)), ALL_STEPS)
        mutual.step(EXAMPLES)
        found.append(mutual.finish()[0])
    assert all(np.array_equal(found[0].arrays[n], found[1].arrays[n]) for n in found[0].arrays)


def test_on_labels_alone_each_model_reads_its_own_tokens(pair):
    foreign = learner("slm", CausalLM(tiny.llama(2), tiny.tokenizer(is_turned=True), "foreign"))
    how = replace(PLAIN, weight=0.0)
    losses = Mutual(pair[0], foreign, how, starts((pair[0], foreign)), ALL_STEPS).step(EXAMPLES)
    foreign.stack.load([tiny.random_adapter(foreign.stack, 1)])
    terms = []
    for example in EXAMPLES:
        [row] = foreign.lm.encode([example], 512)
        logits = foreign.lm.model(torch.tensor([row.ids])).logits[0]
        labels = torch.tensor(row.ids[row.num_context :])
        terms += F.cross_entropy(logits[row.num_context - 1 : -1], labels, reduction="none").tolist()
    assert losses["slm_public"] == pytest.approx(np.mean(terms), rel=1e-5)


def test_other_vocabularies_are_refused_with_both_sizes():
    small, large = tiny.lm(), tiny.lm(vocab_size=300)
    with pytest.raises(ModelError, match=r"300 and 258 logits.*slm.shrink.*strategy.distill_weight=0"):
        check_vocabularies(large, small)
    with pytest.raises(ModelError, match="different vocabularies"):
        check_vocabularies(small, CausalLM(tiny.llama(), tiny.tokenizer(is_turned=True), "foreign"))
    check_vocabularies(small, tiny.lm(3, layers=1))


def test_slm_lr_counts_for_the_slm_alone(pair):
    given = starts(pair)
    found = []
    for slm_lr in (None, 1e-3):
        mutual = Mutual(*pair, replace(PLAIN, slm_lr=slm_lr), given, ALL_STEPS)
        mutual.step(EXAMPLES)
        found.append(mutual.finish())
    name = next(iter(given[0].arrays))
    assert np.array_equal(found[0][0].arrays[name], found[1][0].arrays[name])
    # the first step of Adam is as long as its rate: a tenth of the rate, a tenth of the way
    name = next(iter(given[1].arrays))
    steps = [np.abs(one[1].arrays[name] - given[1].arrays[name]).max() for one in found]
    assert steps[1] == pytest.approx(0.1 * steps[0], rel=1e-3)
