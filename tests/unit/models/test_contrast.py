"""Training on pairs of paths: against full logits, stacked against one by one, and what it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from cotune.losses import path_contrast
from cotune.models import head
from cotune.models.causal_lm import CausalLM
from cotune.models.contrast import (
    ContrastConfig,
    ContrastJob,
    Pair,
    _forward,
    contrast,
    encode_paths,
    informative,
    reference_sums,
)
from cotune.models.lora import LoraStack

EOS = 1
WORDS = ("because", "it", "is", "so", "then", "fox", "lake", "red", "therefore", "two")


def pairs(number: int, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(1, most + 1))))

    return [Pair(f"Q: {words(5)}?\nA:", f" {words(6)}.", f" {words(6)}!") for _ in range(number)]


def config(beta: float = 0.1, gamma: float = 0.0, **changes) -> ContrastConfig:
    tune = tiny.tune_config(**changes)
    return ContrastConfig(path_contrast.loss, path_contrast.margin, tune, beta, gamma)


def job(lm: CausalLM, stack: LoraStack, given: list[Pair], seed: int = 0, start=None) -> ContrastJob:
    """An adapter that is not its reference."""
    start = start or tiny.random_adapter(stack, seed)
    return ContrastJob(given, start, sums(lm, stack, given, seed + 100), np.random.default_rng(seed))


def sums(lm: CausalLM, stack: LoraStack, given: list[Pair], seed: int, max_length: int = 512):
    """Under the random adapter of a seed."""
    stack.load([tiny.random_adapter(stack, seed)])
    found = reference_sums(lm, given, max_length=max_length, tokens=1000)
    stack.load([])
    return found


def naive(lm: CausalLM, prompt: str, path: str) -> torch.Tensor:
    """Log-probabilities of a path's bytes and of EOS from all logits of one row; the tokens counted by hand.

    The tiny tokenizer has one token a byte and adds no BOS; no prompt here ends in a space.
    """
    before = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = [*lm.tokenizer(path, add_special_tokens=False)["input_ids"], EOS]
    ids = torch.tensor([[*before, *after]])
    table = lm.model(ids).logits[0].log_softmax(-1)
    return table[len(before) - 1 : -1].gather(1, torch.tensor(after)[:, None])[:, 0]


def naive_loss(lm: CausalLM, given: list[Pair], reference, how: ContrastConfig) -> torch.Tensor:
    """Mean over pairs, with plain autograd through full logits."""
    found = torch.zeros(())
    for i, pair in enumerate(given):
        preferred, other = naive(lm, pair.prompt, pair.preferred), naive(lm, pair.prompt, pair.other)
        z = (preferred.sum() - reference[0][i]) - (other.sum() - reference[1][i])
        found = found - F.logsigmoid(how.beta * z) - how.gamma * preferred.mean()
    return found / len(given)


def ours(lm: CausalLM, clients: list[list[Pair]], references, how: ContrastConfig):
    active = [[row for two in encode_paths(lm, given, 512) for row in two] for given in clients]
    reference = torch.cat([torch.from_numpy(np.stack(each)) for each in references], dim=1)
    share = torch.cat([torch.full((len(given),), 1 / len(given), dtype=torch.float64) for given in clients])
    return _forward(lm, active, (reference, share), how)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def lm():
    return tiny.lm()


@pytest.fixture
def stack(lm):
    return LoraStack(lm, 2, 4, "all-linear")


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("chunk", [10_000, 3], ids=["one chunk", "chunks of three"])
def test_loss_and_gradient_are_those_of_full_logits(lm, stack, monkeypatch, chunk, gamma):
    monkeypatch.setattr(head, "positions_per_chunk", lambda _: chunk)
    given, how = [*pairs(3), Pair("Q: so?\nA:", " a", "")], config(gamma=gamma)  # 3 tokens, and EOS alone
    reference = sums(lm, stack, given, 1)
    stack.load([tiny.random_adapter(stack, 2)])
    found = ours(lm, [given], [reference], how)
    expected = naive_loss(lm, given, reference, how)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = torch.autograd.grad(expected, stack.leaves)
    mine = torch.autograd.grad(found.total, stack.leaves)
    scale = max(part.abs().max().item() for part in plain)
    for one, other in zip(mine, plain, strict=True):
        assert (one - other).abs().max().item() <= 1e-5 * scale


def test_gradients_of_a_stack_are_those_of_separate_clients(lm, stack):
    clients = [pairs(n, seed) for seed, n in enumerate((3, 1, 2))]
    references = [sums(lm, stack, given, seed) for seed, given in enumerate(clients)]
    adapters = [tiny.random_adapter(stack, seed + 10) for seed in range(3)]
    stack.load(adapters)
    together = stack.gradients(ours(lm, clients, references, config()).total)
    for k in range(3):
        stack.load([adapters[k]])
        [alone] = stack.gradients(ours(lm, [clients[k]], [references[k]], config()).total)
        assert (together[k] - alone).norm() <= 1e-5 * alone.norm()


def test_a_stack_gives_the_adapters_of_separate_runs(dtype):
    """Sizes 5, 8, 0, 3: partial last batches, clients that finish early, one without pairs."""
    lm = tiny.lm(dtype=dtype)
    stack = LoraStack(lm, 2, 4, "all-linear")
    changes = {"epochs": 1.5, "batch_size": 3, "schedule": "cosine", "warmup": 0.1, "weight_decay": 0.1}
    how = config(gamma=0.1, lr=5e-3, **changes)

    def jobs():
        return [job(lm, stack, pairs(n, seed), seed) for seed, n in enumerate((5, 8, 0, 3))]

    together = contrast(lm, stack, jobs(), how, limit=4)
    assert [one.steps for one in together] == [3, 5, 0, 2]
    for k, one in enumerate(together):
        [alone] = contrast(lm, stack, [jobs()[k]], how, limit=1)
        # float32: as in test_tune.py
        assert tiny.difference(one.adapter, alone.adapter) < (1e-9 if dtype == torch.float64 else 1e-2)
        assert one.loss == pytest.approx(alone.loss, rel=1e-5)
        assert (one.steps, one.tokens, one.cut) == (alone.steps, alone.tokens, alone.cut)
        places = [(record.row, record.batch) for record in one.records]
        assert places == [(record.row, record.batch) for record in alone.records]


def test_a_pair_of_twice_the_weight_counts_as_if_it_were_there_twice():
    lm = tiny.lm(dtype=torch.float64)
    stack = LoraStack(lm, 2, 4, "all-linear")
    once, how = pairs(2), config(batch_size=3, gamma=0.3)
    twice = job(lm, stack, [*once, once[1]])
    weighted = replace(job(lm, stack, once), weights=np.array([2 / 3, 4 / 3]))
    plain = job(lm, stack, once)
    found = [contrast(lm, stack, [one], how)[0].adapter for one in (twice, weighted, plain)]
    assert tiny.difference(found[1], found[0]) < 1e-9
    assert tiny.difference(found[2], found[0]) > 1e-3


def test_a_job_without_pairs_keeps_its_adapter(lm, stack):
    empty = job(lm, stack, [], 3)
    [found] = contrast(lm, stack, [empty], config())
    assert found.adapter is empty.adapter
    assert (found.loss, found.records, found.steps, found.tokens, found.cut) == (0.0, (), 0, 0, 0)
    assert contrast(lm, stack, [], config()) == []


def test_training_makes_the_preferred_paths_likelier(lm, stack):
    given = pairs(6)
    start = tiny.random_adapter(stack, 100)  # it starts as its own reference
    [found] = contrast(lm, stack, [job(lm, stack, given, 0, start)], config(epochs=8, batch_size=3))
    first = [record for record in found.records if record.batch < 2]
    last = [record for record in found.records if record.batch >= 14]
    probability = [
        float(torch.exp(-torch.tensor([record.loss for record in part])).mean()) for part in (first, last)
    ]
    assert probability[0] == pytest.approx(0.5, abs=0.05)
    assert probability[1] > 0.7
    # and under the adapter that comes back
    stack.load([found.adapter])
    trained = reference_sums(lm, given, max_length=512, tokens=1000)
    before = sums(lm, stack, given, 100)
    assert ((trained[0] - before[0]) - (trained[1] - before[1]) > 0).all()


def test_records_are_what_a_pair_was_before_its_step(lm, stack):
    given = pairs(5)
    start = job(lm, stack, given)
    [found] = contrast(lm, stack, [start], config(batch_size=2))
    assert sorted(record.row for record in found.records) == [0, 1, 2, 3, 4]
    batches = [record.batch for record in found.records]
    assert batches == sorted(batches)
    assert set(batches) == {0, 1, 2}
    stack.load([start.adapter])
    for record in found.records:
        pair = given[record.row]
        preferred, other = naive(lm, pair.prompt, pair.preferred), naive(lm, pair.prompt, pair.other)
        assert record.loss == pytest.approx(-math.log(1 / (1 + math.exp(-0.1 * record.margin))), rel=1e-6)
        if record.batch:
            continue  # after the first step the adapter is another
        gained = preferred.sum().item() - start.reference[0][record.row]
        lost = other.sum().item() - start.reference[1][record.row]
        assert record.margin == pytest.approx(gained - lost, abs=1e-3)
        assert record.preferred_mean == pytest.approx(preferred.mean().item(), rel=1e-5)
    assert found.loss == pytest.approx(np.mean([record.loss for record in found.records]))
    rows = encode_paths(lm, given, 512)
    assert found.tokens == sum(len(row.ids) for two in rows for row in two)


def test_swapped_roles_negate_the_margin(lm, stack):
    given = pairs(4)
    swapped = [Pair(pair.prompt, pair.other, pair.preferred) for pair in given]
    references = [sums(lm, stack, each, 1) for each in (given, swapped)]
    stack.load([tiny.random_adapter(stack, 2)])
    one, other = (
        ours(lm, [each], [reference], config())
        for each, reference in zip((given, swapped), references, strict=True)
    )
    torch.testing.assert_close(one.margins, -other.margins, rtol=0, atol=1e-4)


def test_at_its_reference_a_model_prefers_nothing(lm, stack):
    given = pairs(3)
    reference = sums(lm, stack, given, 1)
    stack.load([tiny.random_adapter(stack, 1)])
    found = ours(lm, [given], [reference], config())
    torch.testing.assert_close(found.margins, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.losses, torch.full((3,), math.log(2)).double(), rtol=0, atol=1e-4)


def test_equal_paths_teach_nothing_and_are_dropped(lm, stack):
    same = [Pair("Q: so?\nA:", " it is.", " it is.")]
    reference = sums(lm, stack, same, 1)
    stack.load([tiny.random_adapter(stack, 2)])
    found = ours(lm, [same], [reference], config())
    assert found.losses.item() == pytest.approx(math.log(2), abs=1e-6)
    assert torch.autograd.grad(found.total, stack.leaves)[0].abs().max() < 1e-6
    assert informative(same) == []


def test_only_pairs_that_differ_in_more_than_white_space_are_kept():
    given = [
        Pair("Q", " a b\n", "a  b"),
        Pair("Q", " a b", " a c"),
        Pair("Q", " ab", " a b"),
        Pair("Q", "", " \n"),
        Pair("Q", "A", "a"),
    ]
    assert informative(given) == [1, 2, 4]
    assert informative([]) == []


def test_how_likely_the_prompt_is_does_not_matter(lm, stack, monkeypatch):
    """What is said where the next token belongs to a prompt, to padding or to nobody may be anything."""
    given = pairs(3)
    reference = sums(lm, stack, given, 1)
    rows = [row for two in encode_paths(lm, given, 512) for row in two]
    stack.load([tiny.random_adapter(stack, 2)])
    plain = ours(lm, [given], [reference], config(gamma=0.3))
    expected = torch.autograd.grad(plain.total, stack.leaves)
    read = lm.hidden

    def noisy(ids, **extra):
        states = read(ids, **extra)
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for r, row in enumerate(rows):
            keep[r, row.num_context - 1 : len(row.ids) - 1] = True
        return torch.where(keep[..., None], states, 100 * torch.randn_like(states))

    monkeypatch.setattr(lm, "hidden", noisy)
    found = ours(lm, [given], [reference], config(gamma=0.3))
    assert torch.equal(found.margins, plain.margins)
    assert torch.equal(found.means, plain.means)
    for one, other in zip(torch.autograd.grad(found.total, stack.leaves), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_reference_sums_are_over_the_tokens_of_training(lm, stack):
    """Also a repeated path, cut paths, and paths in any order."""
    given = pairs(5)
    given += [Pair(given[0].prompt, given[3].preferred, given[0].preferred), Pair("Q:", " so" * 60, " it")]
    for max_length in (512, 60):
        found = sums(lm, stack, given, 1, max_length)
        stack.load([tiny.random_adapter(stack, 1)])
        for two, *values in zip(encode_paths(lm, given, max_length), *found, strict=True):
            for row, value in zip(two, values, strict=True):
                table = lm.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
                places = range(row.num_context, len(row.ids))
                expected = sum(table[p - 1, row.ids[p]].item() for p in places)
                assert value == pytest.approx(expected, rel=1e-5)
        stack.load([])
    assert found[0].dtype == np.float64
    assert sums(lm, stack, [], 1)[0].shape == (0,)


def test_a_path_is_closed_with_eos_and_loses_its_end_when_too_long(lm):
    # "ab:" is 3 tokens, " xyz" 4, " x" 2, one more for EOS
    [(long, short)] = encode_paths(lm, [Pair("ab:", " xyz", " x")], 7)
    whole = lm.tokenizer("ab: xyz", add_special_tokens=False)["input_ids"]
    assert (long.ids, long.num_context, long.was_cut) == (tuple(whole), 3, True)
    assert (short.ids, short.num_context, short.was_cut) == ((*whole[:5], EOS), 3, False)


def test_a_prompt_leaves_a_quarter_to_the_path(lm):
    # 20 tokens in all: the prompt keeps its last 15, the same ones for both paths
    prompt = "abcdefghijklmnopqrstuvwxyz"
    [(long, short)] = encode_paths(lm, [Pair(prompt, " 123456789", " 1")], 20)
    text = lm.tokenizer(prompt + " 123456789", add_special_tokens=False)["input_ids"]
    assert long.ids == tuple(text[11:31])
    assert short.ids == (*text[11:28], EOS)
    assert (long.num_context, short.num_context) == (15, 15)
    assert long.was_cut
    assert short.was_cut


def test_cut_paths_are_counted_as_often_as_they_are_trained_on(lm, stack):
    given = [Pair("Q:", " long" * 10, " so"), Pair("Q:", " so", " it")]
    started = replace(job(lm, stack, given), reference=sums(lm, stack, given, 1, 20))
    [found] = contrast(lm, stack, [started], config(epochs=3, max_length=20))
    assert found.cut == 3


def test_training_changes_neither_the_base_nor_what_it_is_given(lm, stack):
    weights = {n: p.clone() for n, p in lm.model.state_dict().items()}
    given = job(lm, stack, pairs(4))
    arrays = {n: a.copy() for n, a in given.adapter.arrays.items()}
    reference = [each.copy() for each in given.reference]
    [found] = contrast(lm, stack, [given], config())
    assert all(torch.equal(weights[n], p) for n, p in lm.model.state_dict().items())
    assert all(np.array_equal(arrays[n], a) for n, a in given.adapter.arrays.items())
    assert all(np.array_equal(a, b) for a, b in zip(reference, given.reference, strict=True))
    assert any(not np.array_equal(arrays[n], a) for n, a in found.adapter.arrays.items())
    assert stack._groups == 0


def test_progress_is_told_after_every_step(lm, stack):
    seen = []
    jobs = [job(lm, stack, pairs(n, n), n) for n in (4, 2)]
    found = contrast(lm, stack, jobs, config(batch_size=2), limit=1, tick=lambda *values: seen.append(values))
    assert [values[:2] for values in seen] == [(1, 3), (2, 3), (3, 3)]
    assert sum(values[2] for values in seen) == sum(one.tokens for one in found)
    assert all(values[3] > 0 for values in seen)


def test_sums_of_other_pairs_are_refused(lm, stack):
    good = job(lm, stack, pairs(3))
    wrong = replace(good, pairs=pairs(4))
    with pytest.raises(ValueError, match=r"job 1 has 4 pairs, .* 3 sums .* Take `reference_sums`"):
        contrast(lm, stack, [good, wrong], config())
