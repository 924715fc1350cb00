"""One model learns two tasks from the same questions: the label and, behind a prefix, the rationale.

Paper: Distilling Step-by-Step (Hsieh et al. 2023), https://arxiv.org/abs/2305.02301. The loss is
weight * CE(label) + (1 - weight) * CE(rationale), each the mean over its own target tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cotune.models.causal_lm import CausalLM, Encoded
from cotune.models.learner import Learner
from cotune.models.tune import RowOptimiser, stack_loss
from cotune.records import DELIMITER, Adapter, Example

EXPLAIN = "explain: "
"""Stands before a question whose rationale is asked for."""

TASKS = ("label", "rationale")


@dataclass(frozen=True, slots=True)
class Balance:
    """How much each task counts, and how fast both are learned.

    weight: of the label, 0 to 1; the rationale has the rest. A task without weight is not even read. lr: None
    for that of the model's own tuning.
    """

    weight: float
    lr: float | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each task that has one."""
        both = zip(TASKS, (self.weight, 1 - self.weight), strict=True)
        return {task: share for task, share in both if share > 0}


class TwoTasks:
    """A run of two-task steps; starts from an adapter and ends with one."""

    def __init__(
        self, slm: Learner, balance: Balance, start: Adapter, work: tuple[int, tuple[float, float]]
    ) -> None:
        self.slm, self.balance = slm, balance
        slm.stack.load([start])
        config = slm.config.model_copy(update={"lr": balance.lr or slm.config.lr})
        self.rows = RowOptimiser(slm.stack, config, [work])
        self.sums, self.targets = dict.fromkeys(TASKS, 0.0), dict.fromkeys(TASKS, 0)

    def step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One update; returns the mean loss of each task that the batch has, and the step's tokens.

        The tasks are read one after the other, so that the graph of one is in memory at a time.

        Raises:
            ValueError: the batch has neither task; see `with_a_task`.
        """
        tasks = rows_by_task(self.slm, examples, self.balance)
        if not tasks:
            raise ValueError("no example of the batch has a task; give those of `with_a_task`")
        grads, losses = [], {}
        for task, rows in tasks.items():
            loss, [total], [count] = stack_loss(self.slm.lm, [rows])
            grads.append(self.balance.shares[task] * self.slm.stack.gradients(loss))
            losses[task] = float(total) / max(1, int(count))
            self.sums[task] += float(total)
            self.targets[task] += int(count)
        self.rows.step(sum(grads[1:], grads[0]), 1)
        return {**losses, "tokens": sum(len(row.ids) for rows in tasks.values() for row in rows)}

    def finish(self) -> tuple[Adapter, dict[str, float]]:
        """The adapter, and the mean loss of a target token of each task that had any."""
        [adapter] = self.slm.stack.export()
        self.slm.stack.load([])
        return adapter, {task: self.sums[task] / count for task, count in self.targets.items() if count}


def with_a_task(slm: Learner, examples: Sequence[Example], balance: Balance) -> list[Example]:
    """Those that carry loss: all where labels count, else those with a rationale that can be read."""
    if balance.weight > 0:
        return list(examples)
    return [example for example in examples if explanation(slm.lm, example, slm.config.max_length)]


def rows_by_task(slm: Learner, examples: Sequence[Example], balance: Balance) -> dict[str, list[Encoded]]:
    """Token rows of each task that counts and has any, in the order of the examples."""
    lm, length = slm.lm, slm.config.max_length
    found: dict[str, list[Encoded]] = {}
    if "label" in balance.shares:
        found["label"] = lm.encode(examples, length)
    if "rationale" in balance.shares:
        explained = (explanation(lm, example, length) for example in examples)
        found["rationale"] = [row for row in explained if row is not None]
    return {task: rows for task, rows in found.items() if rows}


def explanation(lm: CausalLM, example: Example, max_length: int) -> Encoded | None:
    """Tokens of the question behind its prefix, and of the rationale that answers it, closed with EOS.

    What is longer than `max_length` loses the end of its rationale, for without its prefix the question would
    be that of the label. None: there is no rationale, or the question leaves no room for one.
    """
    rationale = example.rationale.strip()
    if not rationale:
        return None
    context, target = lm.encode_pair(EXPLAIN + example.prompt, DELIMITER + rationale)
    if lm.tokenizer.eos_token_id is not None:
        target = [*target, int(lm.tokenizer.eos_token_id)]
    kept = target[: max(0, max_length - len(context))]
    return Encoded((*context, *kept), len(context), len(kept) < len(target)) if kept else None
