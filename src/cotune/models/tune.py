"""The one training loop: many jobs, each with its own examples, adapter and schedule, on one frozen base.

Jobs are trained in stacks: one forward and backward for all clients of a stack, while loss, clipping,
optimiser state, step count and learning rate stay per client. A stack gives the adapters that separate runs
give, up to floating-point rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cotune.config import TuneConfig
from cotune.models.causal_lm import Batch, CausalLM, Encoded
from cotune.models.head import chunked
from cotune.models.lora import LoraStack
from cotune.records import Adapter, Example

PADDING_LIMIT = 1.25
"""A client joins a stack only while padded tokens stay under this multiple of real ones."""

Tick = Callable[[int, int, int, float], None]
"""(steps done, steps in all, tokens since the last call, mean loss of the step)."""

StepTick = Callable[[int, int, float], None]
"""The same inside one stack: (steps done, tokens since the last call, mean loss of the step)."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Privacy:
    """How a job's examples are hidden (see `cotune.models.dp_sgd`).

    clip: largest norm of an example's gradient; noise_multiplier: standard deviation of the noise in clips;
    rng: draws batches and noise. It comes from a secret of the client's: others know the run's seed.
    """

    clip: float
    noise_multiplier: float
    rng: np.random.Generator


@dataclass(frozen=True, slots=True)
class TuneJob:
    """One client's work. `span`: its start and end in the learning-rate schedule, as shares of the run."""

    examples: Sequence[Example]
    adapter: Adapter
    rng: np.random.Generator
    span: tuple[float, float] = (0.0, 1.0)
    private: Privacy | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished job: mean cross-entropy of a completion token; `cut` examples were over `max_length`."""

    adapter: Adapter
    loss: float
    steps: int
    tokens: int
    cut: int
    is_private: bool = False

    @property
    def sums(self) -> dict[str, float]:
        """Numbers that may be added up over clients; of a private job, none that tells of its examples."""
        if self.is_private:
            return {"steps": float(self.steps)}
        return {"loss": self.loss, "clients": 1.0, "tokens": float(self.tokens), "cut": float(self.cut)}


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches of one job, in order."""

    batches: tuple[tuple[Encoded, ...], ...]

    @property
    def length(self) -> float:
        """Mean padded length of a batch."""
        return float(np.mean([max(len(e.ids) for e in batch) for batch in self.batches]))

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(len(e.ids) for batch in self.batches for e in batch)


def tune(
    lm: CausalLM,
    stack: LoraStack,
    jobs: Sequence[TuneJob],
    config: TuneConfig,
    limit: int = 8,
    tick: Tick = lambda *_: None,
) -> list[Tuned]:
    """Train every job's adapter on its examples.

    Args:
        lm: the frozen base.
        stack: its adapters.
        jobs: one per client; results come in the same order.
        config: epochs, batch size, learning rate and its schedule, decay, clipping, longest example.
        limit: clients in one forward and backward; changes speed and memory only.
        tick: called after every step.

    Returns:
        One `Tuned` per job.
    """
    if any(job.private for job in jobs):
        raise ValueError("a private job is for cotune.models.dp_sgd.tune_privately")
    plans = [plan_batches(lm, job.examples, config, job.rng) for job in jobs]

    def train(group: list[int], step_done: StepTick) -> list[Tuned]:
        return _tune_stack(lm, stack, [jobs[j] for j in group], [plans[j] for j in group], config, step_done)

    done = stack_by_stack(plans, limit, tick, train)
    stack.load([])
    return done


def stack_by_stack(
    plans: Sequence[Plan],
    limit: int,
    tick: Tick,
    train: Callable[[list[int], StepTick], list[Result]],
    groups: Sequence[list[int]] | None = None,
) -> list[Result]:
    """What `train` makes of each stack, in the order of the plans; it counts steps from 1 in each stack.

    `groups`: which plans share a stack; by default those of `stacks`.
    """
    groups = stacks(plans, limit) if groups is None else groups
    sizes = [max(len(plans[j].batches) for j in group) for group in groups]
    done: dict[int, Result] = {}
    for number, group in enumerate(groups):

        def shifted(step: int, tokens: int, loss: float, start: int = sum(sizes[:number])) -> None:
            tick(start + step, sum(sizes), tokens, loss)

        done |= zip(group, train(group, shifted), strict=True)
    return [done[j] for j in range(len(plans))]


def plan_batches(
    lm: CausalLM, examples: Sequence[Example], config: TuneConfig, rng: np.random.Generator
) -> Plan:
    """Shuffled batches of similar length: `epochs` passes, the last one possibly a fraction."""
    if not examples:
        raise ValueError("a job without examples cannot be planned")
    encoded = lm.encode(examples, config.max_length)
    wanted = max(1, round(config.epochs * len(encoded)))
    order = batch_order([len(e.ids) for e in encoded], wanted, config.batch_size, rng)
    return Plan(tuple(tuple(encoded[i] for i in batch) for batch in order))


def batch_order(lengths: Sequence[int], wanted: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    """`wanted` row numbers in batches: pass after pass over all rows, each shuffled anew.

    The rows of a batch come from the same stretch of the shuffled order and have similar lengths.
    """
    window = size * 8
    batches: list[list[int]] = []
    while wanted > 0:
        order = rng.permutation(len(lengths))[:wanted].tolist()
        wanted -= len(order)
        one_pass: list[list[int]] = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda row: lengths[row])
            one_pass += [part[i : i + size] for i in range(0, len(part), size)]
        batches += [one_pass[i] for i in rng.permutation(len(one_pass))]
    return batches


def stacks(plans: Sequence[Plan], limit: int) -> list[list[int]]:
    """Which jobs share a forward pass: similar lengths together, most steps first inside a stack."""
    groups: list[list[int]] = []
    for j in sorted(range(len(plans)), key=lambda j: (plans[j].length, j)):
        fits = (
            groups
            and len(groups[-1]) < limit
            and _waste([plans[i] for i in [*groups[-1], j]]) <= PADDING_LIMIT
        )
        if fits:
            groups[-1].append(j)
        else:
            groups.append([j])
    return [sorted(group, key=lambda j: (-len(plans[j].batches), j)) for group in groups]


def _waste(plans: Sequence[Plan]) -> float:
    """Padded over real tokens if these plans ran as one stack."""
    padded = 0
    for step in range(max(len(plan.batches) for plan in plans)):
        active = [plan.batches[step] for plan in plans if step < len(plan.batches)]
        rows, length = _frame(active)
        padded += len(active) * rows * length
    own = sum(len(b) * max(len(e.ids) for e in b) for plan in plans for b in plan.batches)
    return padded / own


def _frame(batches: Sequence[Sequence[Encoded]]) -> tuple[int, int]:
    return max(len(b) for b in batches), max(len(e.ids) for b in batches for e in b)


def _tune_stack(
    lm: CausalLM,
    stack: LoraStack,
    jobs: Sequence[TuneJob],
    plans: Sequence[Plan],
    config: TuneConfig,
    tick: StepTick,
) -> list[Tuned]:
    """Jobs are ordered by falling number of steps, so the active ones are always the first."""
    stack.load([job.adapter for job in jobs])
    rows = RowOptimiser(
        stack, config, [(len(p.batches), job.span) for p, job in zip(plans, jobs, strict=True)]
    )
    loss_sum, targets = np.zeros(len(jobs)), np.zeros(len(jobs))
    for step in range(len(plans[0].batches)):
        active = [plan.batches[step] for plan in plans if step < len(plan.batches)]
        stack.activate(len(active))
        loss, per_client, counts = stack_loss(lm, active)
        rows.step(stack.gradients(loss), len(active))
        sums = per_client.detach().cpu().numpy()
        loss_sum[: len(active)] += sums
        targets[: len(active)] += counts
        tick(step + 1, sum(len(e.ids) for b in active for e in b), float(sums.sum() / max(1, counts.sum())))
    means = loss_sum / np.maximum(targets, 1)
    return [
        Tuned(
            adapter,
            float(mean),
            len(plan.batches),
            plan.tokens,
            sum(e.was_cut for b in plan.batches for e in b),
        )
        for adapter, mean, plan in zip(stack.export(), means, plans, strict=True)
    ]


def stack_loss(lm: CausalLM, active: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor, np.ndarray]:
    """Sum over clients of each client's mean token loss; also its token losses summed, and token counts."""
    batch, rows = stacked_batch(lm, active)
    client = batch.row // rows
    counts = torch.bincount(client, minlength=len(active))
    weight = (1.0 / counts.clamp(min=1))[client]
    per_client = torch.zeros(len(active), device=lm.device)

    def part_loss(part: slice, hidden: tuple[Tensor, ...]) -> Tensor:
        losses = nn.functional.cross_entropy(lm.project(hidden[0]), batch.target[part], reduction="none")
        per_client.index_add_(0, client[part], losses.detach().to(per_client.dtype))
        return (losses * weight[part]).sum()

    loss = chunked(part_loss, (target_states(lm, batch),), lm.vocab_size)
    return loss, per_client, counts.cpu().numpy()


def stacked_batch(lm: CausalLM, active: Sequence[Sequence[Encoded]]) -> tuple[Batch, int]:
    """All clients' rows, client after client, and the rows of each: short ones get rows without targets."""
    rows, length = _frame(active)
    filler = Encoded((lm.start_id,), 1)
    return lm.batch([e for b in active for e in [*b, *[filler] * (rows - len(b))]], length), rows


def target_states(lm: CausalLM, batch: Batch) -> Tensor:
    """Hidden states that predict the batch's targets, [targets, width]."""
    return lm.hidden(batch.ids)[batch.row, batch.position]


class RowOptimiser:
    """AdamW for each row of a stack: its own state, clipping, step count and learning rate."""

    def __init__(
        self, stack: LoraStack, config: TuneConfig, work: Sequence[tuple[int, tuple[float, float]]]
    ) -> None:
        self.config, self.work, self.taken = config, work, 0
        self.rows = [nn.Parameter(row, requires_grad=True) for row in stack.values.detach()]
        self.optimisers = [
            torch.optim.AdamW(
                [row],
                lr=config.lr,
                betas=(0.9, 0.95),
                weight_decay=config.weight_decay,
                fused=row.is_floating_point(),
            )
            for row in self.rows
        ]

    def step(self, grads: Tensor, active: int) -> None:
        """Clip and apply gradients [K, parameters] to the first `active` rows."""
        for k in range(active):
            row, optimiser = self.rows[k], self.optimisers[k]
            row.grad = grads[k]
            nn.utils.clip_grad_norm_(row, self.config.clip)
            steps, span = self.work[k]
            share = lr_factor(self.config, (self.taken + 0.5) / max(steps, 1), span)
            optimiser.param_groups[0]["lr"] = self.config.lr * share
            optimiser.step()
        self.taken += 1


def lr_factor(config: TuneConfig, done: float, span: tuple[float, float] = (0.0, 1.0)) -> float:
    """Share of the peak learning rate when `done` in [0, 1] of a job is over.

    The schedule runs over the whole run, of which the job covers `span`. The warm-up is the job's own: its
    optimiser starts without memory, and its first steps would be as long as the largest.
    """
    start, end = span
    place = start + (end - start) * done
    warm = min(1.0, done / config.warmup) if config.warmup else 1.0
    if config.schedule == "linear":
        return warm * (1 - place)
    if config.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * place))
    return warm
