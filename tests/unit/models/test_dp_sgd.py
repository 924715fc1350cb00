"""Private tuning: gradients of single examples, their bound, the noise, and what a stack makes of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

import tiny
from cotune.errors import ConfigError
from cotune.example_privacy import PrivateConfig
from cotune.models import dp_sgd
from cotune.models.causal_lm import CausalLM, Encoded
from cotune.models.dp_sgd import clipped_sums, noised, parts, poisson_plan, tune_privately
from cotune.models.learner import Hiding, Learner
from cotune.models.lora import LoraStack
from cotune.models.tune import Privacy, TuneJob, stack_loss, tune
from cotune.protocols import Client
from cotune.records import Round


def ready(
    clients: int, dtype: torch.dtype = torch.float64
) -> tuple[CausalLM, LoraStack, list[list[Encoded]]]:
    """A model, its mounted random adapters, and a batch of 4, 1, 3, ... examples for each."""
    lm = tiny.lm(dtype=dtype)
    stack = LoraStack(lm, 2, 4, "all-linear")
    stack.load([tiny.random_adapter(stack, seed) for seed in range(clients)])
    sizes = (4, 1, 3, 5)[:clients]
    return lm, stack, [lm.encode(tiny.examples(n, seed=n), 100) for n in sizes]


def alone(lm: CausalLM, stack: LoraStack, client: int, row: Encoded) -> Tensor:
    """Gradient of one example's mean loss, unpadded, through the whole model and plain autograd."""
    adapters = stack.export()
    stack.load([adapters[client]])
    logits = lm.model(torch.tensor([row.ids])).logits[0, row.num_context - 1 : -1]
    loss = F.cross_entropy(logits, torch.tensor(row.ids[row.num_context :]))
    [found] = stack.gradients(loss)
    stack.load(adapters)
    return found


def clipped_by_hand(
    lm: CausalLM, stack: LoraStack, active: Sequence[Sequence[Encoded]], clip: float
) -> Tensor:
    """One example after the other."""
    sums = []
    for k, batch in enumerate(active):
        total = torch.zeros(stack.num_parameters, dtype=stack.values.dtype)
        for row in batch:
            grad = alone(lm, stack, k, row)
            total += grad * min(1.0, clip / grad.norm().item())
        sums.append(total)
    return torch.stack(sums)


def middle_clip(lm: CausalLM, stack: LoraStack, active: Sequence[Sequence[Encoded]]) -> float:
    """A bound that some of the examples keep to and some do not."""
    norms = [alone(lm, stack, k, row).norm().item() for k, batch in enumerate(active) for row in batch]
    assert min(norms) < np.median(norms) < max(norms)
    return float(np.median(norms))


@pytest.mark.parametrize("limit", [1 << 25, 1], ids=["few-parts", "a-row-at-a-time"])
@pytest.mark.parametrize("clients", [1, 3])
def test_clipped_sums_are_those_of_a_loop_over_examples(clients, limit, monkeypatch):
    monkeypatch.setattr(dp_sgd, "VALUES_PER_PART", limit)
    lm, stack, active = ready(clients)
    clip = middle_clip(lm, stack, active)
    found = clipped_sums(lm, stack, active, [clip] * clients)
    expected = clipped_by_hand(lm, stack, active, clip)
    # the weight of a token, one over their number, is float32 in every loss
    assert (found.sums - expected).norm() <= 1e-7 * expected.norm()
    assert found.targets.tolist() == [sum(row.num_targets for row in batch) for batch in active]


def test_in_float32_too():
    lm, stack, active = ready(3, torch.float32)
    clip = middle_clip(lm, stack, active)
    expected = clipped_by_hand(lm, stack, active, clip)
    found = clipped_sums(lm, stack, active, [clip] * 3)
    assert (found.sums - expected).norm() <= 1e-5 * expected.norm()


def test_every_client_has_its_own_bound():
    lm, stack, active = ready(3)
    clips = [1e-3, 2e-3, 3e-3]  # below every norm, so an example's share has just that length
    found = clipped_sums(lm, stack, [batch[:1] for batch in active], clips)
    assert found.sums.norm(dim=1).tolist() == pytest.approx(clips, rel=1e-9)


def test_no_bound_gives_the_ordinary_gradient():
    """The sum over examples of the gradients of their mean losses."""
    lm, stack, active = ready(3)
    found = clipped_sums(lm, stack, active, [math.inf] * 3)
    for k, batch in enumerate(active):
        loss = 0.0
        stack.activate(3)
        for row in batch:
            filled = [[row] for _ in range(3)]
            loss = loss + stack_loss(lm, filled)[0]
        expected = stack.gradients(loss)[k]
        assert (found.sums[k] - expected).norm() <= 1e-9 * expected.norm()


def test_losses_and_targets_are_those_of_the_ordinary_loss():
    lm, stack, active = ready(3)
    found = clipped_sums(lm, stack, active, [1.0] * 3)
    stack.activate(3)
    _, sums, counts = stack_loss(lm, active)
    assert found.losses == pytest.approx(sums.numpy(), rel=1e-6)
    assert found.targets.tolist() == counts.tolist()


def test_one_example_moves_a_sum_by_the_bound_at_most():
    lm, stack, [batch] = ready(1)
    clip = 1e-2
    with_it = clipped_sums(lm, stack, [batch], [clip]).sums
    without = clipped_sums(lm, stack, [batch[1:]], [clip]).sums
    assert (with_it - without).norm().item() == pytest.approx(clip, rel=1e-9)


def test_padding_and_its_tokens_carry_no_gradient(monkeypatch):
    """A short row beside a long one, and other padding tokens: its gradient stays."""
    monkeypatch.setattr(dp_sgd, "PADDING_LIMIT", math.inf)
    lm, stack, _ = ready(1)
    short, long = Encoded((5, 6, 7, 8), 2), Encoded(tuple(range(2, 60)), 50)
    own = alone(lm, stack, 0, short)
    for pad in (0, 99):
        lm.tokenizer.pad_token_id = pad
        both = clipped_sums(lm, stack, [[short, long]], [math.inf]).sums[0]
        torch.testing.assert_close(both - alone(lm, stack, 0, long), own, rtol=1e-9, atol=1e-12)
    lm.tokenizer.pad_token_id = None


def test_an_example_without_targets_and_a_client_without_examples_count_for_nothing():
    lm, stack, [batch, *_] = ready(2)
    silent = Encoded((5, 6, 7), 3)
    found = clipped_sums(lm, stack, [[silent], []], [1.0, 1.0])
    assert not found.sums.any()
    assert found.targets.tolist() == [0, 0]
    torch.testing.assert_close(
        clipped_sums(lm, stack, [[*batch, silent], []], [1.0, 1.0]).sums,
        clipped_sums(lm, stack, [batch, []], [1.0, 1.0]).sums,
    )


def test_a_gradient_that_is_not_finite_counts_as_zero():
    grads = [
        torch.tensor([[3.0, 4.0], [math.nan, 1.0], [6.0, 8.0]]),
        torch.tensor([[0.0], [1.0], [math.inf]]),
    ]
    share = dp_sgd._shares(grads, torch.tensor([0, 0, 0]), torch.tensor([1.0]))
    assert (share @ grads[0]).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert (share @ grads[1]).tolist() == [[0.0]]


def test_afterwards_the_model_is_as_before():
    lm, stack, active = ready(2)
    ids = torch.tensor([row.ids[:8] for row in active[0][:2]])
    before = lm.hidden(ids)
    clipped_sums(lm, stack, active, [1.0, 1.0])
    assert torch.equal(lm.hidden(ids), before)
    with pytest.raises(KeyError), dp_sgd.one_each(lm, stack, torch.tensor([0, 1])):
        raise KeyError
    assert torch.equal(lm.hidden(ids), before)


def test_parts_hold_every_row_once_and_little_padding():
    lengths = [[10, 60], [11, 12, 61], []]
    rows = [[Encoded((1,) * n, 1) for n in client] for client in lengths]
    found = [(owners, [len(row.ids) for row in part]) for owners, part in parts(rows, 2)]
    # 10, 11 fill a part; 12 with 60 would pad 120 over 72 tokens, 1.67 > 1.25
    assert found == [([0, 1], [10, 11]), ([1], [12]), ([0, 1], [60, 61])]


def privacy(seed: int = 0, clip: float = 1.0, noise: float = 1.0) -> Privacy:
    return Privacy(clip, noise, np.random.default_rng(seed))


def test_noise_has_the_deviation_it_should_have():
    """Chi-squared of 200,000 values and their mean, each at an error rate of 1e-4."""
    total, size = torch.full((200_000,), 3.0, dtype=torch.float64), 200_000
    added = (noised(total, privacy(clip=0.5, noise=1.6)) - total).numpy()
    deviation = 0.5 * 1.6
    ratio = (added**2).sum() / deviation**2
    assert stats.chi2.ppf(5e-5, size) < ratio < stats.chi2.ppf(1 - 5e-5, size)
    assert abs(added.mean()) < stats.norm.ppf(1 - 5e-5) * deviation / math.sqrt(size)
    assert stats.kstest(added / deviation, "norm").pvalue > 1e-4


def test_noise_is_new_in_every_step():
    how, total = privacy(), torch.zeros(100)
    assert not torch.equal(noised(total, how), noised(total, how))


def job(stack: LoraStack, number: int, seed: int, **changes: float) -> TuneJob:
    start = tiny.random_adapter(stack, seed)
    return TuneJob(
        tiny.examples(number, seed=seed),
        start,
        np.random.default_rng(0),
        private=privacy(seed, **changes),
    )


def test_a_stack_gives_the_adapters_of_separate_runs():
    lm = tiny.lm(dtype=torch.float64)
    stack = LoraStack(lm, 2, 4, "all-linear")
    config = tiny.tune_config(epochs=1.5, batch_size=3, schedule="cosine", weight_decay=0.1)

    def jobs() -> list[TuneJob]:
        return [job(stack, n, seed, clip=0.1, noise=0.5) for seed, n in enumerate((5, 8, 3, 5))]

    together = tune_privately(lm, stack, jobs(), config, limit=3)
    for k, one in enumerate(together):
        [single] = tune_privately(lm, stack, [jobs()[k]], config, limit=1)
        assert tiny.difference(one.adapter, single.adapter) < 1e-9
        assert one.loss == pytest.approx(single.loss, rel=1e-5)
        assert (one.steps, one.tokens, one.cut) == (single.steps, single.tokens, single.cut)
    assert stack._groups == 0  # nothing stays mounted


def test_one_step_on_everything_by_hand():
    """All four examples in the one step, which is Adam's first: it goes by lr against the gradient's sign."""
    lm = tiny.lm(dtype=torch.float64)
    stack = LoraStack(lm, 2, 4, "all-linear")
    given = job(stack, 4, 0, clip=0.1, noise=0.7)
    config = tiny.tune_config(lr=1e-3, batch_size=4, clip=1e9)
    [done] = tune_privately(lm, stack, [given], config)

    stack.load([given.adapter])
    before = stack.values.clone()
    total = clipped_by_hand(lm, stack, [lm.encode(given.examples, 512)], 0.1)[0]
    rng = np.random.default_rng(0)
    rng.random((1, 4))  # who is in the step: everybody
    grad = (total + torch.from_numpy(rng.standard_normal(total.numel())) * 0.07) / 4
    stack.load([done.adapter])
    torch.testing.assert_close(stack.values - before, -1e-3 * (grad / (grad.abs() + 1e-8))[None])
    assert done.steps == 1


def test_without_noise_and_bound_all_examples_are_learned_as_in_public():
    """One batch of everything, all of one length, so that a mean over tokens is one over examples."""
    lm = tiny.lm(dtype=torch.float64)
    stack = LoraStack(lm, 2, 4, "all-linear")
    rows = [e for e in tiny.examples(30) if e.completion == " lake"][:4]
    start = tiny.random_adapter(stack)
    config = tiny.tune_config(epochs=3, batch_size=4)
    rng = np.random.default_rng(0)
    [public] = tune(lm, stack, [TuneJob(rows, start, rng)], config)
    [private] = tune_privately(
        lm, stack, [TuneJob(rows, start, rng, private=privacy(clip=1e9, noise=0.0))], config
    )
    assert tiny.difference(public.adapter, private.adapter) < 1e-9
    assert public.loss == pytest.approx(private.loss)
    assert public.steps == private.steps == 3


def test_training_without_noise_lowers_the_loss():
    lm = tiny.lm()
    stack = LoraStack(lm, 4, 8, "all-linear")
    start = stack.fresh(np.random.default_rng(0))

    def loss(epochs: float) -> float:
        given = TuneJob(tiny.examples(12), start, np.random.default_rng(0), private=privacy(noise=0.0))
        return tune_privately(lm, stack, [given], tiny.tune_config(epochs=epochs))[0].loss

    assert loss(10) < 0.85 * loss(1)


def test_batches_are_poisson_samples():
    """2,000 steps over 10 examples with q = 0.3: how often each is there, how large a batch is, and two
    examples together, at error rates of about 1e-4 over all."""
    lm, config = tiny.lm(), tiny.tune_config(batch_size=3, epochs=600)
    stack = LoraStack(lm, 2, 4, "attention")
    given = job(stack, 10, 1)
    plan = poisson_plan(lm, given, config)
    assert len(plan.batches) == 2000
    keys = [row.ids for row in lm.encode(given.examples, 512)]
    present = np.array([[key in {row.ids for row in batch} for key in keys] for batch in plan.batches])
    assert present.sum() == sum(len(batch) for batch in plan.batches)  # nobody twice in one batch
    low, high = stats.binom.ppf([5e-6, 1 - 5e-6], 2000, 0.3)
    assert ((low <= present.sum(0)) & (present.sum(0) <= high)).all()
    sizes = np.bincount(present.sum(1), minlength=11)
    expected = 2000 * stats.binom.pmf(np.arange(11), 10, 0.3)
    many = expected > 5
    assert (
        stats.chisquare([*sizes[many], sizes[~many].sum()], [*expected[many], expected[~many].sum()]).pvalue
        > 1e-4
    )
    assert sizes[0] > 0  # empty batches happen: 2,000 x 0.7^10 = 56


def test_a_step_without_examples_is_noise_only(monkeypatch):
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    empty = dp_sgd.Plan(((), ()))
    monkeypatch.setattr(dp_sgd, "poisson_plan", lambda *_: empty)
    given = job(stack, 5, 0)
    [done] = tune_privately(lm, stack, [given], tiny.tune_config())
    assert (done.steps, done.tokens, done.loss) == (2, 0, 0.0)
    assert tiny.difference(given.adapter, done.adapter) > 0


def test_the_public_generator_decides_nothing():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")

    def run(public: int, secret: int) -> object:
        start = tiny.random_adapter(stack, 1)
        rng = np.random.default_rng(public)
        given = TuneJob(tiny.examples(6), start, rng, private=privacy(secret, noise=0.0))
        return tune_privately(lm, stack, [given], tiny.tune_config(batch_size=2))[0].adapter

    assert tiny.difference(run(1, 5), run(2, 5)) == 0
    assert tiny.difference(run(1, 5), run(1, 6)) > 0  # without noise: it is the batches that differ


def test_sums_of_a_private_job_tell_nothing_of_its_examples():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    [done] = tune_privately(lm, stack, [job(stack, 6, 0)], tiny.tune_config(batch_size=2))
    assert done.sums == {"steps": 3.0}


def test_a_job_that_does_not_say_how_is_refused():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    public = dataclasses.replace(job(stack, 3, 0), private=None)
    with pytest.raises(ConfigError, match=r"without privacy here.*Set slm\.tune\.private to null"):
        tune_privately(lm, stack, [job(stack, 3, 1), public], tiny.tune_config())
    with pytest.raises(ValueError, match="tune_privately"):
        tune(lm, stack, [public, job(stack, 3, 1)], tiny.tune_config())


def test_an_example_that_comes_twice_is_refused():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    given = job(stack, 3, 0)
    twice = dataclasses.replace(given, examples=(*given.examples, given.examples[1]))
    with pytest.raises(ConfigError, match=r"4 rows to train on, but only 3 different examples"):
        tune_privately(lm, stack, [twice], tiny.tune_config())


SETTINGS = PrivateConfig(clip=0.5, noise_multiplier=1.0, delta=1e-5)


def draws(stack: LoraStack, secret: bytes = b"s" * 32, **changes: object) -> list[float]:
    """The first numbers of a client's generator in a round; `changes` of what its training depends on."""
    examples = tiny.examples(4)[: changes.pop("number", 4)]
    client = Client(str(changes.pop("id", "a")), examples, Round(int(changes.pop("round", 1)), 3, 7, ("a",)))
    start = tiny.random_adapter(stack, int(changes.pop("start", 0)))
    hiding = Hiding(SETTINGS.model_copy(update=changes.pop("settings", {})), lambda _: secret)
    return hiding.of(client, start, tiny.tune_config(**changes)).rng.random(3).tolist()


def test_noise_is_the_same_only_when_everything_is():
    stack = LoraStack(tiny.lm(), 2, 4, "attention")
    others = [
        {"secret": b"t" * 32},
        {"id": "b"},
        {"round": 2},
        {"start": 1},
        {"number": 3},
        {"lr": 1e-3},
        {"epochs": 2.0},
        {"settings": {"clip": 0.6}},
    ]
    found = [draws(stack)] + [draws(stack, **other) for other in others]
    assert draws(stack) == found[0]
    assert len({tuple(one) for one in found}) == len(found)


def test_a_learner_that_hides_tunes_its_clients_in_private():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    plain = Learner("slm", "tiny", lm, stack, tiny.tune_config())
    hiding = dataclasses.replace(plain, hiding=Hiding(SETTINGS, lambda _: b"s" * 32))
    now = Round(1, 2, 7, ("a", "b"))
    clients = [Client("a", tiny.examples(6), now), Client("b", tiny.examples(4, seed=1), now)]
    starts = [tiny.random_adapter(stack, 1)] * 2
    first, again = hiding.tune_clients(clients, starts), hiding.tune_clients(clients, starts)
    assert [one.is_private for one in first] == [True, True]
    assert tiny.difference(first[0].adapter, again[0].adapter) == 0
    assert [one.is_private for one in plain.tune_clients(clients, starts)] == [False, False]
    with pytest.raises(ConfigError, match="without privacy"):
        hiding.tune([TuneJob(tiny.examples(3), starts[0], np.random.default_rng(0))])
