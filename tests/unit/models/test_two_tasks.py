"""The two-task loss against a dense reference written here, and its ends: labels alone, rationales alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from cotune.models.learner import Learner
from cotune.models.lora import LoraStack
from cotune.models.tune import TuneJob
from cotune.models.two_tasks import Balance, TwoTasks, explanation, rows_by_task, with_a_task

ALL_STEPS = (1, (0.0, 1.0))
EOS = 1


def with_rationales(number, every=1):
    """Examples of which each `every`th has a rationale; all rationales are equally long."""
    return [
        replace(example, rationale=f"{example.completion} stands there.\n" if row % every == 0 else " \n")
        for row, example in enumerate(tiny.examples(number))
    ]


MIXED = with_rationales(5, every=2)


def learner(dtype=torch.float32, **changes) -> Learner:
    lm = tiny.lm(2, dtype=dtype)
    return Learner("slm", "slm", lm, LoraStack(lm, 2, 4, "all-linear"), tiny.tune_config(**changes))


def start(slm):
    return tiny.random_adapter(slm.stack, 1)


def token_losses(slm, context, target, closes):
    """Cross-entropy of each byte of the target; one row at a time, so without padding."""
    ids = tiny.tokenizer()(context + target)["input_ids"] + [EOS] * closes
    count = len(target) + closes
    logits = slm.lm.model(torch.tensor([ids])).logits[0]
    return F.cross_entropy(logits[-count - 1 : -1], torch.tensor(ids[-count:]), reduction="none")


def dense(slm, examples):
    """Mean over all target tokens of labels, and of the rationales that there are."""
    labels = [token_losses(slm, e.prompt, e.completion, 0) for e in examples]
    rationales = [
        token_losses(slm, f"explain: {e.prompt}", f" {e.rationale.strip()}", 1)
        for e in examples
        if e.rationale.strip()
    ]
    return torch.cat(labels).mean(), torch.cat(rationales).mean()


def assert_close(found, expected):
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.2, 0.0])
def test_loss_and_gradient_equal_the_dense_reference(weight):
    slm = learner(torch.float64, clip=1e9)
    tasks = TwoTasks(slm, Balance(weight), start(slm), ALL_STEPS)
    losses = tasks.step(MIXED)
    found = tasks.rows.rows[0].grad
    slm.stack.load([start(slm)])
    label, rationale = dense(slm, MIXED)
    expected = weight * label + (1 - weight) * rationale
    assert weight * losses.get("label", 0) + (1 - weight) * losses.get("rationale", 0) == pytest.approx(
        expected.item(), rel=1e-6
    )
    named = {"label": label, "rationale": rationale}
    counted = [name for name, share in (("label", weight), ("rationale", 1 - weight)) if share]
    assert {name: losses[name] for name in losses if name != "tokens"} == pytest.approx(
        {name: named[name].item() for name in counted}, rel=1e-6
    )
    assert_close(found, slm.stack.gradients(expected)[0])


def trained(slm, examples, balance, epochs=2.4, span=(0.25, 0.5)):
    """As the strategy does it."""
    fitting = with_a_task(slm, examples, balance)
    batches = slm.batches(fitting, epochs, np.random.default_rng(5))
    tasks = TwoTasks(slm, balance, start(slm), (len(batches), span))
    steps = [tasks.step(batch) for batch in batches]
    adapter, means = tasks.finish()
    return adapter.arrays, means, steps


def tuned(slm, examples, epochs=2.4, span=(0.25, 0.5)):
    """Plain training on these examples, as clients do it."""
    [done] = slm.prepared([TuneJob(examples, start(slm), np.random.default_rng(5), span)], epochs)
    return done.adapter.arrays, done.loss, done.tokens


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one | other)


def test_weight_one_is_training_on_labels_bit_for_bit():
    slm = learner(schedule="cosine", warmup=0.3, weight_decay=0.1)
    examples = with_rationales(10, every=2)
    arrays, means, steps = trained(slm, examples, Balance(1.0))
    expected, loss, tokens = tuned(slm, examples)
    assert same(arrays, expected)
    assert means == pytest.approx({"label": loss})
    assert sum(step["tokens"] for step in steps) == tokens
    assert not same(arrays, trained(slm, examples, Balance(0.9))[0])


def test_weight_zero_is_training_on_rationales_behind_the_prefix_bit_for_bit():
    slm = learner(schedule="cosine", warmup=0.3, weight_decay=0.1)
    examples = with_rationales(10, every=2)
    asked = [
        replace(e, prompt=f"explain: {e.prompt}", completion=f" {e.rationale.strip()}", choices=())
        for e in examples[::2]
    ]
    arrays, means, steps = trained(slm, examples, Balance(0.0))
    expected, loss, tokens = tuned(slm, asked)
    assert same(arrays, expected)
    assert means == pytest.approx({"rationale": loss})
    assert sum(step["tokens"] for step in steps) == tokens


def test_without_a_rationale_an_example_has_the_label_task_alone():
    slm = learner(torch.float64, clip=1e9)
    bare = MIXED[1::2]
    assert with_a_task(slm, MIXED, Balance(0.3)) == MIXED
    assert with_a_task(slm, MIXED, Balance(0.0)) == MIXED[::2]
    tasks = TwoTasks(slm, Balance(0.3), start(slm), ALL_STEPS)
    assert set(tasks.step(bare)) == {"label", "tokens"}
    found = tasks.rows.rows[0].grad
    slm.stack.load([start(slm)])
    label = torch.cat([token_losses(slm, e.prompt, e.completion, 0) for e in bare]).mean()
    assert_close(found, slm.stack.gradients(0.3 * label)[0])
    with pytest.raises(ValueError, match="with_a_task"):
        TwoTasks(slm, Balance(0.0), start(slm), ALL_STEPS).step(bare)


def test_means_over_steps_weigh_each_target_token_alike():
    slm = learner(lr=1e-9)  # nothing moves, so both steps have the losses of the start
    tasks = TwoTasks(slm, Balance(0.5), start(slm), (2, (0.0, 1.0)))
    tasks.step(MIXED[:1])
    tasks.step(MIXED[1:])
    _, means = tasks.finish()
    slm.stack.load([start(slm)])
    label, rationale = dense(slm, MIXED)
    assert means == pytest.approx({"label": label.item(), "rationale": rationale.item()}, rel=1e-5)


def text(slm, ids):
    return slm.lm.tokenizer.decode(ids)


def test_the_label_task_asks_what_evaluation_asks_and_the_other_one_never_does():
    slm = learner()
    rows = rows_by_task(slm, MIXED, Balance(0.5))
    assert [(text(slm, row.ids[: row.num_context])) for row in rows["label"]] == [e.prompt for e in MIXED]
    assert [(text(slm, row.ids[row.num_context :])) for row in rows["label"]] == [e.completion for e in MIXED]
    asked = [text(slm, row.ids[: row.num_context]) for row in rows["rationale"]]
    assert asked == [f"explain: {e.prompt}" for e in MIXED[::2]]
    assert [text(slm, row.ids[row.num_context :]) for row in rows["rationale"]] == [
        f" {e.rationale.strip()}</s>" for e in MIXED[::2]
    ]


def test_a_long_one_loses_the_end_of_its_rationale_and_never_its_prefix():
    slm = learner()
    example = replace(MIXED[0], prompt="Q: " + 20 * "ab " + "?")
    whole = explanation(slm.lm, example, 500)
    question = len(f"explain: {example.prompt}")
    cut = explanation(slm.lm, example, question + 3)
    assert whole is not None
    assert cut is not None
    assert cut.ids == whole.ids[: question + 3]
    assert (cut.num_targets, cut.was_cut, whole.was_cut) == (3, True, False)
    assert text(slm, cut.ids).startswith("explain: Q: ab")
    assert explanation(slm.lm, example, question) is None
    assert explanation(slm.lm, replace(example, rationale=" \n"), 500) is None


def test_the_public_rate_counts_instead_of_the_models_own():
    found = []
    for lr in (None, 1e-3):
        slm = learner()
        tasks = TwoTasks(slm, Balance(0.5, lr), start(slm), ALL_STEPS)
        tasks.step(MIXED)
        after, before = tasks.finish()[0].arrays, start(slm).arrays
        found.append(max(np.abs(after[name] - before[name]).max() for name in before))
    # the first step of Adam is as long as its rate: a tenth of the rate, a tenth of the way
    assert found[1] == pytest.approx(0.1 * found[0], rel=1e-3)
