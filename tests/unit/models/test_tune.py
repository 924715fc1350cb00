"""The training loop: stacked equals one by one, and each client is on its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from cotune.config import TuneConfig
from cotune.models import causal_lm
from cotune.models.causal_lm import Encoded
from cotune.models.lora import LoraStack
from cotune.models.tune import Plan, RowOptimiser, TuneJob, lr_factor, plan_batches, stack_loss, stacks, tune
from cotune.records import Example

LR = 5e-3


def job(stack: LoraStack, number: int, seed: int, span: tuple[float, float] = (0.0, 1.0)) -> TuneJob:
    start = tiny.random_adapter(stack, seed)
    return TuneJob(tiny.examples(number, seed=seed), start, np.random.default_rng(seed), span)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_stack_gives_the_adapters_of_separate_runs(dtype):
    """Sizes 5, 8, 3: partial last batches, clients that finish early; 1.5 epochs: a fraction of a pass."""
    lm = tiny.lm(dtype=dtype)
    stack = LoraStack(lm, 2, 4, "all-linear")
    config = tiny.tune_config(
        lr=LR, epochs=1.5, batch_size=3, schedule="cosine", warmup=0.1, weight_decay=0.1
    )

    def jobs():
        return [job(stack, n, seed) for seed, n in enumerate((5, 8, 3, 5))]

    together = tune(lm, stack, jobs(), config, limit=4)
    for k, one in enumerate(together):
        [alone] = tune(lm, stack, [jobs()[k]], config, limit=1)
        # float32: Adam divides by the gradient's own size, so where that is rounding only, a step may differ
        # by its whole length; in float64 nothing is near rounding
        assert tiny.difference(one.adapter, alone.adapter) < (1e-9 if dtype == torch.float64 else 1e-2)
        assert one.loss == pytest.approx(alone.loss, rel=1e-5)
        assert (one.steps, one.tokens, one.cut) == (alone.steps, alone.tokens, alone.cut)


def test_examples_are_encoded_alike_at_once_and_one_by_one(monkeypatch):
    lm = tiny.lm()
    rows = [
        *tiny.examples(7),
        Example(id="e", prompt="Say", completion=" it."),
        Example(id="f", prompt="", completion="x"),
    ]
    whole = lm.encode(rows, 40)
    assert whole == [found for row in rows for found in lm.encode([row], 40)]
    monkeypatch.setattr(causal_lm, "AT_ONCE", 4)
    assert lm.encode(rows, 40) == whole
    assert lm.encode([], 40) == []


def test_gradients_of_a_stack_are_those_of_separate_clients():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "all-linear")
    adapters = [tiny.random_adapter(stack, seed) for seed in range(3)]
    batches = [lm.encode(tiny.examples(n, seed=n), 100) for n in (4, 1, 3)]
    stack.load(adapters)
    together = stack.gradients(stack_loss(lm, batches)[0])
    for k, adapter in enumerate(adapters):
        stack.load([adapter])
        alone = stack.gradients(stack_loss(lm, batches[k : k + 1])[0])[0]
        assert (together[k] - alone).norm() <= 1e-6 * alone.norm()


def test_loss_of_a_client_is_the_mean_over_its_completion_tokens():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    stack.load([tiny.random_adapter(stack)])
    rows = lm.encode(tiny.examples(3), 100)
    loss, sums, counts = stack_loss(lm, [rows])
    losses = []
    for row in rows:
        logits = lm.model(torch.tensor([row.ids])).logits[0]
        for place in range(row.num_context, len(row.ids)):
            losses.append(F.cross_entropy(logits[place - 1], torch.tensor(row.ids[place])).item())
    assert counts.tolist() == [len(losses)]
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert sums.item() == pytest.approx(np.sum(losses), rel=1e-5)


def test_padding_on_the_right_does_not_change_the_loss():
    lm = tiny.lm()
    short, long = Encoded((5, 6, 7, 8), 2), Encoded(tuple(range(2, 60)), 50)
    alone = lm.batch([short])
    padded = lm.batch([short, long])
    mine = padded.row == 0
    states = lm.hidden(padded.ids)[padded.row, padded.position][mine]
    expected = lm.hidden(alone.ids)[alone.row, alone.position]
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-6)
    assert padded.target[mine].tolist() == alone.target.tolist() == [7, 8]


def test_a_client_does_not_notice_who_came_before_it():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    [first] = tune(lm, stack, [job(stack, 6, 1)], tiny.tune_config())
    tune(lm, stack, [job(stack, 9, 2), job(stack, 3, 3)], tiny.tune_config())
    [again] = tune(lm, stack, [job(stack, 6, 1)], tiny.tune_config())
    assert tiny.difference(first.adapter, again.adapter) == 0


def test_results_come_in_the_order_of_the_jobs():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    found = tune(lm, stack, [job(stack, n, n) for n in (2, 9, 5, 1)], tiny.tune_config(batch_size=1))
    assert [one.steps for one in found] == [2, 9, 5, 1]


def test_training_changes_neither_the_base_nor_the_given_adapter():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "all-linear")
    weights = {n: p.clone() for n, p in lm.model.state_dict().items()}
    given = job(stack, 6, 1)
    before = {n: a.copy() for n, a in given.adapter.arrays.items()}
    tune(lm, stack, [given], tiny.tune_config())
    assert all(torch.equal(weights[n], p) for n, p in lm.model.state_dict().items())
    assert all(np.array_equal(before[n], a) for n, a in given.adapter.arrays.items())
    assert stack._groups == 0  # nothing stays mounted


def test_training_lowers_the_loss():
    lm = tiny.lm()
    stack = LoraStack(lm, 4, 8, "all-linear")
    start = stack.fresh(np.random.default_rng(0))
    examples = tiny.examples(12)

    def loss(epochs):
        given = TuneJob(examples, start, np.random.default_rng(0))
        return tune(lm, stack, [given], tiny.tune_config(epochs=epochs))[0].loss

    assert loss(20) < 0.75 * loss(1)  # the mean over all passes, so the last ones are lower still


@pytest.mark.parametrize(
    ("number", "epochs", "size", "sizes"),
    [
        (5, 1.0, 2, [1, 2, 2]),
        (5, 2.0, 5, [5, 5]),
        (4, 1.5, 4, [2, 4]),  # a whole pass, then half of one
        (3, 0.1, 2, [1]),  # never less than one example
    ],
)
def test_batches_cover_the_wanted_passes(number, epochs, size, sizes):
    config = tiny.tune_config(epochs=epochs, batch_size=size)
    plan = plan_batches(tiny.lm(), tiny.examples(number), config, np.random.default_rng(0))
    assert sorted(len(batch) for batch in plan.batches) == sizes


def test_a_pass_meets_every_example_once():
    lm, examples = tiny.lm(), tiny.examples(37)
    plan = plan_batches(lm, examples, tiny.tune_config(), np.random.default_rng(0))
    seen = sorted(row.ids for batch in plan.batches for row in batch)
    assert seen == sorted(row.ids for row in lm.encode(examples, 512))


def test_a_job_without_examples_is_refused():
    with pytest.raises(ValueError, match="without examples"):
        plan_batches(tiny.lm(), [], tiny.tune_config(), np.random.default_rng(0))


def plan(lengths, steps=1) -> Plan:
    return Plan(tuple(tuple(Encoded((1,) * n, 1) for n in lengths) for _ in range(steps)))


def test_clients_of_similar_length_share_a_stack():
    # lengths 10, 50, 11, 49: stacking 10 with 50 would pad 2 x 50 over 60 tokens, 1.67 > 1.25
    assert stacks([plan([10]), plan([50]), plan([11]), plan([49])], 8) == [[0, 2], [1, 3]]


def test_a_stack_is_never_larger_than_its_limit():
    assert [len(group) for group in stacks([plan([10])] * 7, 3)] == [3, 3, 1]


def test_the_longest_job_is_first_in_its_stack():
    assert stacks([plan([10], 1), plan([10], 3), plan([10], 2)], 8) == [[1, 2, 0]]


def optimiser(config: TuneConfig, work) -> tuple[LoraStack, RowOptimiser]:
    stack = LoraStack(tiny.lm(), 2, 4, ["q_proj"])
    stack.load([tiny.random_adapter(stack, seed) for seed in range(len(work))])
    return stack, RowOptimiser(stack, config, work)


def test_the_first_step_of_adam_by_hand():
    # m / sqrt(v) after bias correction is g / |g| = 1 at the first step: every value moves by lr x factor.
    # One step of span (0, 1): place 0.5, cosine factor (1 + cos(pi / 2)) / 2 = 0.5. Decay 0.1:
    # x (1 - lr 0.5 0.1)
    config = tiny.tune_config(lr=0.01, schedule="cosine", weight_decay=0.1, clip=1e9)
    stack, rows = optimiser(config, [(1, (0.0, 1.0))])
    before = stack.values.clone()
    rows.step(torch.ones_like(before), 1)
    torch.testing.assert_close(stack.values, before * (1 - 0.01 * 0.5 * 0.1) - 0.01 * 0.5, rtol=0, atol=1e-7)


def test_each_client_is_clipped_on_its_own():
    stack, rows = optimiser(tiny.tune_config(clip=1.0), [(1, (0.0, 1.0))] * 2)
    grads = torch.ones_like(stack.values)
    grads[0] *= 100.0
    grads[1] *= 1e-4
    rows.step(grads.clone(), 2)
    size = math.sqrt(stack.num_parameters)
    # norm 100 sqrt(n) becomes 1 (torch divides by norm + 1e-6); norm 1e-4 sqrt(n) < 1 stays
    assert rows.rows[0].grad.norm().item() == pytest.approx(1.0, rel=1e-4)
    assert rows.rows[1].grad.norm().item() == pytest.approx(1e-4 * size, rel=1e-4)


def test_clients_that_are_done_stand_still():
    stack, rows = optimiser(tiny.tune_config(), [(2, (0.0, 1.0)), (1, (0.0, 1.0))])
    rows.step(torch.ones_like(stack.values), 2)
    before = stack.values.clone()
    rows.step(torch.ones_like(stack.values), 1)
    assert torch.equal(stack.values[1], before[1])
    assert not torch.equal(stack.values[0], before[0])


@pytest.mark.parametrize(
    ("schedule", "place", "factor"),
    [
        ("constant", 0.7, 1.0),
        ("linear", 0.1, 0.9),  # the warm-up ends at 0.1
        ("linear", 0.55, 0.45),  # 1 - 0.55
        ("linear", 1.0, 0.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 0.25, 0.8535534),  # a quarter: (1 + cos(pi / 4)) / 2
        ("cosine", 1.0, 0.0),
        ("cosine", 0.05, 0.4969221),  # half of the warm-up: (1 + cos(pi / 20)) / 4
        ("constant", 0.0, 0.0),
    ],
)
def test_share_of_the_learning_rate_by_hand(schedule, place, factor):
    config = tiny.tune_config(schedule=schedule, warmup=0.1)
    assert lr_factor(config, place) == pytest.approx(factor, abs=1e-6)


def test_two_rounds_follow_one_schedule():
    # steps at 1/8, 3/8 of the run in round 1 and 5/8, 7/8 in round 2; linear: 7/8, 5/8, 3/8, 1/8 of the rate
    found = []
    for span in ((0.0, 0.5), (0.5, 1.0)):
        stack, rows = optimiser(tiny.tune_config(lr=1.0, schedule="linear"), [(2, span)])
        for _ in range(2):
            rows.step(torch.zeros_like(stack.values), 1)
            found.append(rows.optimisers[0].param_groups[0]["lr"])
    assert found == pytest.approx([7 / 8, 5 / 8, 3 / 8, 1 / 8])
