"""A frozen model together with its adapters and the way they are tuned: what a strategy works with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cotune.config import TuneConfig
from cotune.example_privacy import PrivateConfig
from cotune.guarding import secret_rng
from cotune.models.causal_lm import CausalLM
from cotune.models.dp_sgd import tune_privately
from cotune.models.lora import LoraStack
from cotune.models.tune import Privacy, Tick, Tuned, TuneJob, batch_order, tune
from cotune.protocols import Client
from cotune.records import Adapter, Example, adapter_digest, derived_rng


@dataclass(frozen=True, slots=True)
class Hiding:
    """How clients tune so that none of their examples shows; `secret_of` gives a client's 32 secret bytes."""

    settings: PrivateConfig
    secret_of: Callable[[str], bytes]

    def of(self, client: Client, start: Adapter, config: TuneConfig) -> Privacy:
        """One client's privacy in a round: the same when the round is done again.

        Batches and noise depend on everything that the training depends on. Else whoever lets a client do a
        round twice, from two adapters for one, would see one noise twice, and could take it away.
        """
        given = (self.settings, config, client.round.span, start.rank, start.alpha, tuple(client.examples))
        told = hashlib.sha256(repr(given).encode("utf-8", "surrogatepass")).hexdigest()
        words = (client.id, str(client.round.index), "tune", adapter_digest(start), told)
        rng = secret_rng(self.secret_of(client.id), *words)
        return Privacy(self.settings.clip, self.settings.noise_multiplier, rng)


@dataclass(frozen=True, slots=True)
class Learner:
    """One role's model. `limit` is the number of clients trained in one forward and backward; `hiding` makes
    their tuning private."""

    role: str
    name: str
    lm: CausalLM
    stack: LoraStack
    config: TuneConfig
    limit: int = 8
    tick: Tick = lambda *_: None
    hiding: Hiding | None = None

    def fresh(self, seed: int) -> Adapter:
        """The adapter before training: A random, B zero, the same for everybody with this seed."""
        return self.stack.fresh(derived_rng(seed, "adapter", self.role))

    def tune_clients(self, clients: Sequence[Client], starts: Sequence[Adapter]) -> list[Tuned]:
        """One round of local tuning for each client, on its own examples (FedCoLLM algorithm, step 2)."""
        jobs = [
            TuneJob(c.examples, start, c.rng("tune"), c.round.span, self._privacy(c, start))
            for c, start in zip(clients, starts, strict=True)
        ]
        return self.tune(jobs)

    def _privacy(self, client: Client, start: Adapter) -> Privacy | None:
        return self.hiding.of(client, start, self.config) if self.hiding else None

    def batches(
        self, examples: Sequence[Example], epochs: float, rng: np.random.Generator
    ) -> list[list[Example]]:
        """Shuffled batches of examples of similar length in this model's tokens, `epochs` passes."""
        lengths = [len(row.ids) for row in self.lm.encode(examples, self.config.max_length)]
        wanted = int(epochs * len(examples) + 0.5)
        order = batch_order(lengths, wanted, self.config.batch_size, rng)
        return [[examples[i] for i in batch] for batch in order]

    def prepared(self, jobs: Sequence[TuneJob], epochs: float) -> list[Tuned]:
        """As `tune`, with so many passes; for public examples, for nothing is hidden here."""
        config = self.config.model_copy(update={"epochs": epochs})
        return tune(self.lm, self.stack, jobs, config, self.limit, self.tick)

    def tune(self, jobs: Sequence[TuneJob]) -> list[Tuned]:
        """Train the adapters of several jobs (see `cotune.models.tune`), in private if that is asked for.

        Raises:
            ConfigError: it is, and a job does not say how.
        """
        train = tune_privately if self.hiding else tune
        return train(self.lm, self.stack, jobs, self.config, self.limit, self.tick)
