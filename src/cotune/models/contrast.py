"""Training on pairs of reasoning paths: the preferred one shall gain on the other, from a reference on.

Paper: LaDa, https://arxiv.org/abs/2602.18749, whose loss has the form of DPO (Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290). Clients are stacked as in `cotune.models.tune`.

Tokens, for training and for the reference alike: prompt and path are encoded together and split as
`CausalLM.encode_pair` does, and the path is closed with EOS. What is longer than `max_length` loses the end
of its path, EOS with it. A prompt that would leave less than a quarter of `max_length` to the path loses its
start; that depends on the prompt alone, so both paths of a pair stand after the same tokens, and the sum of a
path does not depend on the pair it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotune.config import TuneConfig
from cotune.models.causal_lm import CausalLM, Encoded
from cotune.models.head import token_log_probs
from cotune.models.lora import LoraStack
from cotune.models.score import score_rows
from cotune.models.tune import (
    Plan,
    RowOptimiser,
    StepTick,
    Tick,
    batch_order,
    stack_by_stack,
    stacked_batch,
    target_states,
)
from cotune.records import Adapter

PATH_SHARE = 4
"""At least 1 / PATH_SHARE of `max_length` is there for the path."""

Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Log-probabilities of whole paths in nats: of the preferred ones and of the others, [pairs] each."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two paths that may follow one prompt; each is the exact text that follows it."""

    prompt: str
    preferred: str
    other: str


@dataclass(frozen=True, slots=True)
class ContrastJob:
    """One client's work. `reference`: see `reference_sums`; `span`: as in `TuneJob`; `weights`: of each pair
    in the loss, [pairs], 1 on the mean; none: all alike."""

    pairs: Sequence[Pair]
    adapter: Adapter
    reference: Sums
    rng: np.random.Generator
    span: tuple[float, float] = (0.0, 1.0)
    weights: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class ContrastConfig:
    """What is minimised, per pair: loss(trained, reference, beta) + gamma * mean cross-entropy of preferred.

    Attributes:
        loss: (trained sums, reference sums, beta) -> [pairs], of kind preference; see `cotune.losses`.
        margin: (trained sums, reference sums) -> z, [pairs].
        tune: epochs, batch size (in pairs), learning rate and its schedule, decay, clipping, longest text.
        beta: how fast a margin counts as learned.
        gamma: keeps the model fluent; 0 is LaDa.
    """

    loss: Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor], float], Tensor]
    margin: Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor]
    tune: TuneConfig
    beta: float = 0.1
    gamma: float = 0.0


@dataclass(frozen=True, slots=True)
class PairRecord:
    """What one pair was when its turn came, before the step that it took part in.

    Attributes:
        row: which pair of the job.
        batch: number of its batch in the job, from 0.
        margin: z, in nats.
        loss: as the configuration's `loss` gives it.
        preferred_mean: log-probability of a token of the preferred path, in nats.
    """

    row: int
    batch: int
    margin: float
    loss: float
    preferred_mean: float


@dataclass(frozen=True, slots=True)
class Contrasted:
    """A finished job; records in the order of training; `cut` paths (or prompts) were over `max_length`."""

    adapter: Adapter
    records: tuple[PairRecord, ...]
    steps: int
    tokens: int
    cut: int

    @property
    def loss(self) -> float:
        """Mean loss of a pair, cross-entropy apart; 0 without pairs."""
        return float(np.mean([record.loss for record in self.records])) if self.records else 0.0


def informative(pairs: Sequence[Pair]) -> list[int]:
    """Rows of the pairs that say something: their paths differ in more than white space."""
    return [i for i, pair in enumerate(pairs) if pair.preferred.split() != pair.other.split()]


def reference_sums(lm: CausalLM, pairs: Sequence[Pair], *, max_length: int, tokens: int) -> Sums:
    """Log-probabilities of all paths under the adapter that is mounted, over the very tokens of training.

    They never change while the reference does not, so they are computed once and kept. A path that stands in
    several pairs is read once.

    Args:
        lm: the model, with the reference adapter mounted.
        pairs: in any order; those with the same prompt side by side share its reading.
        max_length: as in the `TuneConfig` of the training.
        tokens: positions per forward pass, padding included.
    """
    rows = [row for two in encode_paths(lm, pairs, max_length) for row in two]
    once = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    sums = score_rows(lm, list(once), tokens=tokens).sums
    found = sums[[once[row] for row in rows]]
    return found[::2], found[1::2]


def encode_paths(lm: CausalLM, pairs: Sequence[Pair], max_length: int) -> list[tuple[Encoded, Encoded]]:
    """Tokens of the preferred and of the other path of each pair, after the same prompt; see the module."""
    texts = [(pair.prompt, path) for pair in pairs for path in (pair.preferred, pair.other)]
    rows = [_closed(lm, context, path, max_length) for context, path in lm.encode_pairs(texts)]
    return list(zip(rows[::2], rows[1::2], strict=True))


def contrast(
    lm: CausalLM,
    stack: LoraStack,
    jobs: Sequence[ContrastJob],
    config: ContrastConfig,
    limit: int = 8,
    tick: Tick = lambda *_: None,
) -> list[Contrasted]:
    """Train every job's adapter on its pairs.

    Args:
        lm: the frozen base.
        stack: its adapters.
        jobs: one per client; results come in the same order. A job without pairs keeps its adapter.
        config: the loss and how it is minimised.
        limit: clients in one forward and backward; changes speed and memory only.
        tick: called after every step.

    Returns:
        One `Contrasted` per job.

    Raises:
        ValueError: a job's reference does not belong to its pairs.
    """
    for number, job in enumerate(jobs):
        _check(number, job)
    works = [_work(lm, job, config.tune) for job in jobs if job.pairs]

    def train(group: list[int], step_done: StepTick) -> list[Contrasted]:
        return _contrast_stack(lm, stack, [works[i] for i in group], config, step_done)

    done = iter(stack_by_stack([work.plan for work in works], limit, tick, train))
    stack.load([])
    return [next(done) if job.pairs else Contrasted(job.adapter, (), 0, 0, 0) for job in jobs]


@dataclass(frozen=True, slots=True)
class _Work:
    """A job in batches of pairs: their rows in `job.pairs`, and their tokens.

    The texts of a batch are the first preferred path, the first other one, the second preferred one, ...
    """

    job: ContrastJob
    order: list[list[int]]
    plan: Plan

    def reference(self, step: int) -> Tensor:
        """Sums of a batch under the frozen model, [2, pairs]."""
        picked = [sums[self.order[step]] for sums in self.job.reference]
        return torch.from_numpy(np.stack(picked)).double()

    def share(self, step: int) -> Tensor:
        """What each pair of a batch counts in the client's mean, [pairs]."""
        rows = self.order[step]
        weights = np.ones(len(rows)) if self.job.weights is None else self.job.weights[rows]
        return torch.from_numpy(weights / len(rows))

    def done(self, adapter: Adapter, records: Sequence[PairRecord]) -> Contrasted:
        """What came of it."""
        cut = sum(row.was_cut for batch in self.plan.batches for row in batch)
        return Contrasted(adapter, tuple(records), len(self.order), self.plan.tokens, cut)


def _work(lm: CausalLM, job: ContrastJob, config: TuneConfig) -> _Work:
    """Shuffled batches of pairs of similar length: `epochs` passes, the last one possibly a fraction."""
    encoded = encode_paths(lm, job.pairs, config.max_length)
    wanted = max(1, round(config.epochs * len(encoded)))
    lengths = [max(len(row.ids) for row in two) for two in encoded]
    order = batch_order(lengths, wanted, config.batch_size, job.rng)
    return _Work(job, order, Plan(tuple(tuple(row for i in batch for row in encoded[i]) for batch in order)))


@dataclass(frozen=True, slots=True)
class _Pass:
    """A forward pass over one batch of each client: values of all pairs, client after client; on the CPU.

    total: what is minimised, a scalar; margins, losses, means: [pairs].
    """

    total: Tensor
    margins: Tensor
    losses: Tensor
    means: Tensor


def _contrast_stack(
    lm: CausalLM, stack: LoraStack, works: Sequence[_Work], config: ContrastConfig, tick: StepTick
) -> list[Contrasted]:
    """Works are ordered by falling number of steps, so the active ones are always the first."""
    stack.load([work.job.adapter for work in works])
    rows = RowOptimiser(stack, config.tune, [(len(work.order), work.job.span) for work in works])
    records: list[list[PairRecord]] = [[] for _ in works]
    for step in range(len(works[0].order)):
        active = [work for work in works if step < len(work.order)]
        stack.activate(len(active))
        batches = [work.plan.batches[step] for work in active]
        reference = torch.cat([work.reference(step) for work in active], dim=1)
        share = torch.cat([work.share(step) for work in active])
        now = _forward(lm, batches, (reference, share), config)
        rows.step(stack.gradients(now.total), len(active))
        for k, new in enumerate(_records(now, [work.order[step] for work in active], step)):
            records[k] += new
        tick(step + 1, sum(len(e.ids) for b in batches for e in b), float(now.losses.mean()))
    return [
        work.done(adapter, found) for work, adapter, found in zip(works, stack.export(), records, strict=True)
    ]


def _forward(
    lm: CausalLM, active: Sequence[Sequence[Encoded]], given: tuple[Tensor, Tensor], config: ContrastConfig
) -> _Pass:
    """Sum over clients of each client's mean pair loss, and what it is made of.

    `given`: sums under the frozen model, and each pair's share. Sums over a path are float64: their
    differences are small against them.
    """
    reference, share = given
    batch, rows = stacked_batch(lm, active)
    values = token_log_probs(lm.project, target_states(lm, batch), batch.target, lm.vocab_size)
    owner, size = batch.row.cpu(), len(active) * rows
    sums = torch.zeros(size, dtype=torch.float64).index_add(0, owner, values.cpu().double())
    first = torch.tensor([k * rows + i for k, client in enumerate(active) for i in range(0, len(client), 2)])
    both = torch.stack([first, first + 1])
    trained, counts = sums[both], torch.bincount(owner, minlength=size)[first]
    against = (reference[0], reference[1])
    losses = config.loss((trained[0], trained[1]), against, config.beta)
    margins = config.margin((trained[0], trained[1]), against)
    means = trained[0] / counts.clamp(min=1)
    total = share @ (losses - config.gamma * means)
    return _Pass(total, margins.detach(), losses.detach(), means.detach())


def _records(now: _Pass, orders: Sequence[Sequence[int]], step: int) -> list[list[PairRecord]]:
    """Of each client, the pairs in `orders`."""
    values = zip(now.margins.tolist(), now.losses.tolist(), now.means.tolist(), strict=True)
    return [[PairRecord(row, step, *next(values)) for row in order] for order in orders]


def _closed(lm: CausalLM, context: list[int], path: list[int], max_length: int) -> Encoded:
    """The module's rule for one prompt and one path."""
    eos = lm.tokenizer.eos_token_id
    path = path if eos is None else [*path, int(eos)]
    head = context[-(max_length - max(1, max_length // PATH_SHARE)) :]
    tail = path[: max_length - len(head)]
    was_cut = len(head) < len(context) or len(tail) < len(path)
    return Encoded((*head, *tail), len(head), was_cut)


def _check(number: int, job: ContrastJob) -> None:
    preferred, other = job.reference
    if not len(job.pairs) == len(preferred) == len(other):
        raise ValueError(
            f"contrast: job {number} has {len(job.pairs)} pairs, but its reference has {len(preferred)} sums "
            f"of preferred and {len(other)} of other paths. Take `reference_sums` of the same pairs."
        )
