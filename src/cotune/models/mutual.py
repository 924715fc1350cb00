"""Two models teach each other on the same batch: cross-entropy on labels plus a divergence from the peer.

Paper: FedCoLLM, equation (6), https://arxiv.org/abs/2411.11707. Both sides step at once, each with the peer
as a constant; losses are means over answer tokens; only answer positions meet the output head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cotune.models.causal_lm import Batch, Encoded
from cotune.models.head import chunked, signal
from cotune.models.learner import Learner
from cotune.models.tune import RowOptimiser, target_states
from cotune.records import Adapter, Example, Signal


@dataclass(frozen=True, slots=True)
class Divergence:
    """How a side is pulled towards its peer.

    Attributes:
        loss: (student logits [positions, vocabulary], teacher signal, temperature) -> [positions].
        weight: lambda of equation (6).
        temperature: softens both sides.
        top_k: how much of the peer is seen; None: all of it.
        slm_lr: learning rate of the SLM here; None: as in its local tuning.
    """

    loss: Callable[[Tensor, Signal, float], Tensor]
    weight: float
    temperature: float
    top_k: int | None
    slm_lr: float | None


class Mutual:
    """A run of mutual steps; starts from two adapters and ends with two."""

    def __init__(
        self,
        llm: Learner,
        slm: Learner,
        divergence: Divergence,
        start: tuple[Adapter, Adapter],
        work: tuple[int, tuple[float, float]],
    ) -> None:
        self.llm, self.slm, self.divergence = llm, slm, divergence
        llm.stack.load([start[0]])
        slm.stack.load([start[1]])
        slm_config = slm.config.model_copy(update={"lr": divergence.slm_lr or slm.config.lr})
        self.llm_rows = RowOptimiser(llm.stack, llm.config, [work])
        self.slm_rows = RowOptimiser(slm.stack, slm_config, [work])
        self.sums, self.targets = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)

    def step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One simultaneous update; returns the step's mean losses and its tokens."""
        encoded = self.llm.lm.encode(examples, self.llm.config.max_length)
        batches = self._batches(encoded, examples)
        hiddens = (target_states(self.llm.lm, batches[0]), target_states(self.slm.lm, batches[1]))
        if self.divergence.weight > 0:
            loss, sums = mutual_loss(self.llm, self.slm, hiddens, batches[0].target, self.divergence)
        else:
            loss, sums = label_loss((self.llm, self.slm), hiddens, batches)
        for_llm, for_slm = self.llm.stack.leaves, self.slm.stack.leaves
        grads = torch.autograd.grad(loss, [*for_llm, *for_slm])
        self.llm_rows.step(self.llm.stack.flatten(grads[: len(for_llm)]), 1)
        self.slm_rows.step(self.slm.stack.flatten(grads[len(for_llm) :]), 1)
        targets = torch.tensor([len(batch.target) for batch in batches] * 2)
        self.sums += sums
        self.targets += targets
        return {**self._named(sums / targets.clamp(min=1)), "tokens": sum(len(e.ids) for e in encoded)}

    def finish(self) -> tuple[Adapter, Adapter, dict[str, float]]:
        """The LLM's adapter, the SLM's, and mean losses over all steps."""
        [llm], [slm] = self.llm.stack.export(), self.slm.stack.export()
        self.llm.stack.load([])
        self.slm.stack.load([])
        return llm, slm, self._named(self.sums / self.targets.clamp(min=1))

    def _named(self, means: Tensor) -> dict[str, float]:
        """Means by name; where nothing is distilled there is no distance to tell."""
        found = named(means)
        return found if self.divergence.weight > 0 else {n: found[n] for n in ("llm", "slm_public")}

    def _batches(self, encoded: Sequence[Encoded], examples: Sequence[Example]) -> tuple[Batch, Batch]:
        """The same batch on both devices; on labels alone, each model reads the text in its own tokens."""
        batch = self.llm.lm.batch(encoded)
        if self.divergence.weight > 0:
            return batch, _on(batch, self.slm.lm.device)
        own = self.slm.lm.encode(examples, self.slm.config.max_length)
        return batch, self.slm.lm.batch(own)


def mutual_loss(
    llm: Learner, slm: Learner, hiddens: tuple[Tensor, Tensor], target: Tensor, how: Divergence
) -> tuple[Tensor, Tensor]:
    """Equation (6): L^f + L^g, means over target positions.

    Args:
        llm: the model f.
        slm: the model g.
        hiddens: their hidden states at the positions that predict `target`, [targets, width] each.
        target: next tokens, [targets].
        how: the divergence and its weight.

    Returns:
        The scalar loss, differentiable in both hidden tensors; and four detached sums over positions:
        cross-entropy of f and g, divergence of f and g.
    """
    sums = torch.zeros(4, dtype=torch.float64)

    def part_loss(part: slice, hidden: tuple[Tensor, ...]) -> Tensor:
        f, g = llm.lm.project(hidden[0]), slm.lm.project(hidden[1]).to(hidden[0].device)
        ce_f = nn.functional.cross_entropy(f, target[part], reduction="sum")
        ce_g = nn.functional.cross_entropy(g, target[part], reduction="sum")
        kl_f = how.loss(f, signal(g, how.temperature, how.top_k), how.temperature).sum()
        kl_g = how.loss(g, signal(f, how.temperature, how.top_k), how.temperature).sum()
        sums.add_(torch.stack([ce_f, ce_g, kl_f, kl_g]).detach().cpu())
        return (ce_f + ce_g + how.weight * (kl_f + kl_g)) / len(target)

    return chunked(part_loss, hiddens, llm.lm.vocab_size), sums


def label_loss(
    learners: tuple[Learner, Learner], hiddens: tuple[Tensor, Tensor], batches: tuple[Batch, Batch]
) -> tuple[Tensor, Tensor]:
    """Equation (6) with lambda 0: two cross-entropies, on texts that each model reads in its own tokens."""
    losses = [
        _cross_entropy(learner, hidden, batch.target)
        for learner, hidden, batch in zip(learners, hiddens, batches, strict=True)
    ]
    sums = [float(loss.detach()) * len(batch.target) for loss, batch in zip(losses, batches, strict=True)]
    return losses[0] + losses[1].to(losses[0].device), torch.tensor([*sums, 0.0, 0.0], dtype=torch.float64)


def _cross_entropy(learner: Learner, hidden: Tensor, target: Tensor) -> Tensor:
    def part_loss(part: slice, states: tuple[Tensor, ...]) -> Tensor:
        logits = learner.lm.project(states[0])
        return nn.functional.cross_entropy(logits, target[part], reduction="sum") / len(target)

    return chunked(part_loss, (hidden,), learner.lm.vocab_size)


def named(means: Tensor) -> dict[str, float]:
    """The four means under the names they have in reports."""
    return dict(zip(("llm", "slm_public", "distill_llm", "distill_slm"), means.tolist(), strict=True))


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device) for tensor in (batch.ids, batch.row, batch.position, batch.target)))
