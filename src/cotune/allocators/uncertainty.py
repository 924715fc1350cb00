"""The items over which the party's own model wavers: along its reasoning, and from one try to the next.

Paper: ELAD, https://arxiv.org/abs/2402.13098, for the idea. Its formula could not be read; the one here is
ours: the mean entropy of the answer after each step, plus the entropy of the final answers, both in nats.
In a run paths are written and not read step by step, so the first term is 0 there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.pool import Allocated, Attempts, PoolView, Trained
from cotune.ranking import count_of, high_first

if TYPE_CHECKING:
    from cotune.ranking import Scores
    from cotune.records import Array


class Config(PluginConfig):
    """Options of uncertainty."""

    keep: float = Field(0.3, gt=0, le=1, description="share of the pool")
    count: int = Field(5, gt=1, description="how often the model tries each item")


class Uncertainty:
    """See the module."""

    needs = frozenset({"answers"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def choose(self, view: PoolView, memory: Mapping[str, Array]) -> Allocated:
        """The most uncertain rows; a few tries leave many equal ones, whose order is drawn."""
        scores = uncertainties(view.answers(self.config.count), view.num_items)
        shuffled = view.rng.permutation(view.num_items)
        rows = shuffled[high_first(scores[shuffled])]
        return Allocated(rows[: count_of(self.config.keep, view.num_items)], scores)

    def learn(self, view: PoolView, memory: Mapping[str, Array], trained: Trained) -> Mapping[str, Array]:
        """Nothing."""
        return memory


def uncertainties(attempts: Attempts, num_items: int) -> Scores:
    """u1 + u2, [items]; u1 is 0 where no steps were read, and so is u2 for one and the same answer."""
    import numpy as np

    between = [entropy_of(answers) for answers in attempts.answers]
    along = [step_entropy(steps) for steps in attempts.steps] or [0.0] * num_items
    return np.array(between, np.float64) + np.array(along, np.float64)


def entropy_of(answers: Sequence[str | None]) -> float:
    """Entropy of the answers of one item; one that could not be read is an answer like the others."""
    import numpy as np

    return step_entropy(np.array([list(Counter(answers).values())]) / max(len(answers), 1))


def step_entropy(steps: Array) -> float:
    """Mean entropy of the rows of [prefixes, choices]; 0 for no rows."""
    import numpy as np

    if not steps.size:
        return 0.0
    logs = np.log(steps, out=np.zeros(steps.shape), where=steps != 0)
    return abs(float(-(steps * logs).sum(axis=1).mean()))  # abs: no -0.0


def build(config: Config) -> Uncertainty:
    """The allocator."""
    return Uncertainty(config)
