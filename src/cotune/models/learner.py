"""A frozen model together with its adapters and the way they are tuned: what a strategy works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cotune.config import TuneConfig
from cotune.models.causal_lm import CausalLM
from cotune.models.lora import LoraStack
from cotune.models.tune import Tick, TuneJob, Tuned, tune
from cotune.records import Adapter, derived_rng


@dataclass(frozen=True, slots=True)
class Learner:
    """One role's model. `limit` is the number of clients trained in one forward and backward."""

    role: str
    name: str
    lm: CausalLM
    stack: LoraStack
    config: TuneConfig
    limit: int = 8
    tick: Callable[[str], Tick] | None = None

    def fresh(self, seed: int) -> Adapter:
        """The adapter before training: A random, B zero, the same for everybody with this seed."""
        return self.stack.fresh(derived_rng(seed, "adapter", self.role))

    def tune(self, jobs: Sequence[TuneJob]) -> list[Tuned]:
        """Train the adapters of several clients (see `cotune.models.tune`)."""
        watch = self.tick("tune") if self.tick else lambda *_: None
        return tune(self.lm, self.stack, jobs, self.config, self.limit, watch)

    def with_config(self, **changes: object) -> TuneConfig:
        """How this model is tuned, with other values."""
        return self.config.model_copy(update=changes)
