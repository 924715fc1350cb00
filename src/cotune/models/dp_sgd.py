"""Private tuning: each example's gradient is cut to a bound, and noise hides which examples there were.

Paper: Abadi et al. 2016 (DP-SGD), https://arxiv.org/abs/1607.00133, algorithm 1, on the LoRA arrays alone.
An example counts as a client of its own while gradients are taken: each row of a batch meets a copy of its
client's adapter, so that one backward pass gives each example's gradient, and nothing has to be padded with
rows that carry no loss. What an example loses is its mean cross-entropy, so no example's gradient depends on
another one.

Batches are Poisson samples: each example is in each step with probability batch_size / examples, by itself.
They are drawn, like the noise, from a generator that only the client has: the server knows the run's seed,
and a sample it could foretell would hide nothing. Batches differ in size and may be empty; then the step is
noise only. What comes after the noise (Adam, the clipping of a step, decay) reads no example.

Not hidden: that the noise is drawn with floating-point numbers (Mironov 2012), and `Tuned.loss`, `tokens` and
`cut`, which stay where they are: `Tuned.sums` of a private job has none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cotune import example_privacy
from cotune.config import TuneConfig
from cotune.errors import ConfigError
from cotune.models.causal_lm import CausalLM, Encoded
from cotune.models.lora import LoraStack, stacked_product
from cotune.models.tune import (
    PADDING_LIMIT,
    Plan,
    Privacy,
    RowOptimiser,
    StepTick,
    Tick,
    Tuned,
    TuneJob,
    stack_by_stack,
    stack_loss,
)

VALUES_PER_PART = 1 << 25
"""Values of example gradients alive at a time: 32 Mi are 128 MiB in float32, and as much for the copies."""


def tune_privately(
    lm: CausalLM,
    stack: LoraStack,
    jobs: Sequence[TuneJob],
    config: TuneConfig,
    limit: int = 8,
    tick: Tick = lambda *_: None,
) -> list[Tuned]:
    """As `cotune.models.tune.tune`, with DP-SGD; every job says how in `private`, and its `rng` is not used.

    `epochs` passes take as many steps as without privacy, on average with `batch_size` examples each.

    Raises:
        ConfigError: a job does not say how, or has an example twice (which then would count twice).
    """
    works = [_work(lm, job, config) for job in jobs]
    plans = [work.plan for work in works]

    def train(group: list[int], step_done: StepTick) -> list[Tuned]:
        return _tune_stack(lm, stack, [works[j] for j in group], config, step_done)

    order = sorted(range(len(works)), key=lambda j: (-len(plans[j].batches), j))
    groups = [order[start : start + limit] for start in range(0, len(order), limit)]
    done = stack_by_stack(plans, limit, tick, train, groups)
    stack.load([])
    return done


@dataclass(frozen=True, slots=True)
class _Work:
    """A job with its batches; `size` is how many examples a batch has on average."""

    job: TuneJob
    privacy: Privacy
    plan: Plan
    size: float


def _work(lm: CausalLM, job: TuneJob, config: TuneConfig) -> _Work:
    if job.private is None:
        raise ConfigError(
            "tune.private: examples would be tuned on without privacy here (by an allocator's lessons, for "
            "one). Set slm.tune.private to null, or leave the allocator out."
        )
    ids = {example.id for example in job.examples}
    if len(ids) < len(job.examples):
        raise ConfigError(
            f"tune.private: {len(job.examples)} rows to train on, but only {len(ids)} different examples; "
            "one that comes twice counts twice, and epsilon would be wrong. Expected each once: set "
            "teach.private_paths=false, or give every row an id of its own."
        )
    plan = poisson_plan(lm, job, config)
    return _Work(job, job.private, plan, min(config.batch_size, len(job.examples)))


def poisson_plan(lm: CausalLM, job: TuneJob, config: TuneConfig) -> Plan:
    """The batches of a private job, in order; each holds each example with the same probability."""
    if not job.examples or job.private is None:
        raise ValueError("a job without examples, or without privacy, cannot be planned")
    encoded = lm.encode(job.examples, config.max_length)
    how = example_privacy.sampling(len(encoded), config.batch_size, config.epochs)
    chosen = job.private.rng.random((how.steps, len(encoded))) < how.q
    return Plan(tuple(tuple(encoded[i] for i in np.flatnonzero(row)) for row in chosen))


def _tune_stack(
    lm: CausalLM, stack: LoraStack, works: Sequence[_Work], config: TuneConfig, tick: StepTick
) -> list[Tuned]:
    """Works are ordered by falling number of steps, so the active ones are always the first."""
    stack.load([work.job.adapter for work in works])
    rows = RowOptimiser(stack, config, [(len(work.plan.batches), work.job.span) for work in works])
    losses, targets = np.zeros(len(works)), np.zeros(len(works))
    for step in range(len(works[0].plan.batches)):
        active = [work for work in works if step < len(work.plan.batches)]
        batches = [work.plan.batches[step] for work in active]
        found = clipped_sums(lm, stack, batches, [work.privacy.clip for work in active])
        noisy = [
            noised(total, work.privacy) / work.size for total, work in zip(found.sums, active, strict=True)
        ]
        rows.step(torch.stack(noisy), len(active))
        losses[: len(active)] += found.losses
        targets[: len(active)] += found.targets
        tokens = sum(len(e.ids) for batch in batches for e in batch)
        tick(step + 1, tokens, float(found.losses.sum() / max(1, found.targets.sum())))
    means = losses / np.maximum(targets, 1)
    return [
        Tuned(
            adapter,
            float(mean),
            len(work.plan.batches),
            work.plan.tokens,
            sum(e.was_cut for batch in work.plan.batches for e in batch),
            is_private=True,
        )
        for adapter, mean, work in zip(stack.export(), means, works, strict=True)
    ]


def noised(total: Tensor, privacy: Privacy) -> Tensor:
    """A client's sum of clipped gradients, [parameters], with its noise."""
    if not privacy.noise_multiplier:
        return total
    noise = privacy.rng.standard_normal(total.numel()) * (privacy.noise_multiplier * privacy.clip)
    return total + torch.from_numpy(noise).to(total)


@dataclass(frozen=True, slots=True)
class Clipped:
    """Of each client: its clipped gradients' sum, [K, parameters]; token losses, summed; target tokens."""

    sums: Tensor
    losses: np.ndarray
    targets: np.ndarray


def clipped_sums(
    lm: CausalLM, stack: LoraStack, active: Sequence[Sequence[Encoded]], clips: Sequence[float]
) -> Clipped:
    """Gradients of the first clients' examples, each cut to its client's bound and added up, without noise.

    Args:
        lm: the frozen base.
        stack: has at least as many adapters mounted as there are batches.
        active: one batch a client, of any size.
        clips: the largest norm of an example's gradient over all arrays of its client. A gradient that is
            not finite counts as zero, for no bound would hold it.
    """
    count = len(active)
    sums = [
        torch.zeros(count, leaf[0].numel(), dtype=leaf.dtype, device=leaf.device) for leaf in stack.leaves
    ]
    losses, targets = np.zeros(count), np.zeros(count)
    for owners, rows in parts(active, max(1, VALUES_PER_PART // stack.num_parameters)):
        owner = torch.tensor(owners, device=lm.device)
        with one_each(lm, stack, owner) as copies:
            loss, row_losses, row_targets = stack_loss(lm, [[row] for row in rows])
            grads = [grad.flatten(1) for grad in torch.autograd.grad(loss, copies)]
        share = _shares(grads, owner, torch.tensor(clips, dtype=grads[0].dtype, device=lm.device))
        for total, grad in zip(sums, grads, strict=True):
            total.addmm_(share, grad)
        np.add.at(losses, owners, row_losses.cpu().numpy())
        np.add.at(targets, owners, row_targets)
    return Clipped(torch.cat(sums, dim=1), losses, targets)


def _shares(grads: Sequence[Tensor], owner: Tensor, clips: Tensor) -> Tensor:
    """How much of each row's gradient goes into each client's sum, [K, rows]; a row not finite becomes 0."""
    norms = torch.stack([torch.linalg.vector_norm(grad, dim=1) for grad in grads]).norm(dim=0)
    is_finite = norms.isfinite()
    if not is_finite.all():
        for grad in grads:
            grad[~is_finite] = 0
    factors = torch.where(is_finite, (clips[owner] / norms).clamp(max=1), 0)
    share = torch.zeros(len(clips), len(owner), dtype=factors.dtype, device=factors.device)
    share[owner, torch.arange(len(owner), device=owner.device)] = factors
    return share


def parts(active: Sequence[Sequence[Encoded]], limit: int) -> Iterator[tuple[list[int], list[Encoded]]]:
    """All clients' rows with their clients' numbers, short ones first, at most `limit` at a time.

    A part also ends where padding would pass `PADDING_LIMIT` times the real tokens.
    """
    every = [(len(row.ids), k, row) for k, batch in enumerate(active) for row in batch]
    part: list[tuple[int, int, Encoded]] = []
    for one in sorted(every, key=lambda one: one[0]):
        tokens = one[0] + sum(length for length, _, _ in part)
        if part and (len(part) == limit or one[0] * (len(part) + 1) > PADDING_LIMIT * tokens):
            yield [k for _, k, _ in part], [row for _, _, row in part]
            part = []
        part.append(one)
    if part:
        yield [k for _, k, _ in part], [row for _, _, row in part]


@contextmanager
def one_each(lm: CausalLM, stack: LoraStack, owner: Tensor) -> Iterator[list[Tensor]]:
    """Inside, row r of a batch meets its own copy of adapter owner[r]; yields the copies, one [rows, ...]
    for each of the stack's leaves. Afterwards all mounted adapters take part as before."""
    copies = [leaf.detach()[owner].requires_grad_() for leaf in stack.leaves]
    how = (len(owner), stack.alpha / stack.rank)

    def hook(pair: tuple[Tensor, Tensor]) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return stacked_product(inputs[0], out, pair, how)

        return add

    stack.activate(0)
    pairs = zip(copies[::2], copies[1::2], strict=True)
    handles = [
        lm.model.get_submodule(site.path).register_forward_hook(hook(pair))
        for site, pair in zip(stack.sites, pairs, strict=True)
    ]
    try:
        yield copies
    finally:
        for handle in handles:
            handle.remove()
        stack.activate(len(stack.values))
