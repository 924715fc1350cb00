"""A frozen model together with its adapters and the way they are tuned: what a strategy works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cotune.config import TuneConfig
from cotune.models.causal_lm import CausalLM
from cotune.models.lora import LoraStack
from cotune.models.tune import Tick, Tuned, TuneJob, batch_order, tune
from cotune.protocols import Client
from cotune.records import Adapter, Example, derived_rng


@dataclass(frozen=True, slots=True)
class Learner:
    """One role's model. `limit` is the number of clients trained in one forward and backward."""

    role: str
    name: str
    lm: CausalLM
    stack: LoraStack
    config: TuneConfig
    limit: int = 8
    tick: Tick = lambda *_: None

    def fresh(self, seed: int) -> Adapter:
        """The adapter before training: A random, B zero, the same for everybody with this seed."""
        return self.stack.fresh(derived_rng(seed, "adapter", self.role))

    def tune_clients(self, clients: Sequence[Client], starts: Sequence[Adapter]) -> list[Tuned]:
        """One round of local tuning for each client, on its own examples (FedCoLLM algorithm, step 2)."""
        jobs = [
            TuneJob(c.examples, start, c.rng("tune"), c.round.span)
            for c, start in zip(clients, starts, strict=True)
        ]
        return self.tune(jobs)

    def batches(
        self, examples: Sequence[Example], epochs: float, rng: np.random.Generator
    ) -> list[list[Example]]:
        """Shuffled batches of examples of similar length in this model's tokens, `epochs` passes."""
        lengths = [len(self.lm.encode(example, self.config.max_length).ids) for example in examples]
        wanted = int(epochs * len(examples) + 0.5)
        order = batch_order(lengths, wanted, self.config.batch_size, rng)
        return [[examples[i] for i in batch] for batch in order]

    def prepared(self, jobs: Sequence[TuneJob], epochs: float) -> list[Tuned]:
        """As `tune`, with so many passes."""
        config = self.config.model_copy(update={"epochs": epochs})
        return tune(self.lm, self.stack, jobs, config, self.limit, self.tick)

    def tune(self, jobs: Sequence[TuneJob]) -> list[Tuned]:
        """Train the adapters of several jobs (see `cotune.models.tune`)."""
        return tune(self.lm, self.stack, jobs, self.config, self.limit, self.tick)
