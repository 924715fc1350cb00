"""What private tuning costs: epsilon of DP-SGD on one client's examples, and the settings it follows from.

Paper: Abadi et al. 2016, https://arxiv.org/abs/1607.00133. The unit is one example of one client, added or
removed. Each step meets each example with probability q, by itself and in secret (Poisson sampling), so that
a step counts less than one on all examples; shuffled batches would not allow that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from cotune.errors import ConfigError
from cotune.plugins import PluginConfig

ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512, 1024)
"""Orders of the Renyi divergence: whole numbers, for which there is a closed form."""
GRID = 1e-3
"""Step of the privacy losses that the tighter accountant tells apart; it rounds to the safe side."""
TIGHT = 30.0
"""Above this bound on epsilon nothing is protected, and the tighter accountant takes gigabytes: not asked."""


class PrivateConfig(PluginConfig):
    """How one example's influence on a client's tuning is bounded and hidden (DP-SGD)."""

    clip: float = Field(gt=0, description="largest norm of one example's gradient, over all LoRA arrays")
    noise_multiplier: float = Field(
        ge=0, description="standard deviation of the noise on a step's sum, in units of `clip`; 0: none"
    )
    delta: float = Field(gt=0, lt=1, description="of (epsilon, delta); far below 1 / a client's examples")


@dataclass(frozen=True, slots=True)
class Sampling:
    """So many `steps`, each of which meets every example with probability `q`."""

    q: float
    steps: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The steps of one client in one round, or in several of the same size."""

    noise_multiplier: float
    q: float
    steps: int


def sampling(num_examples: int, batch_size: int, epochs: float) -> Sampling:
    """The steps that `epochs` passes over a client's examples take: `batch_size` examples each on average.

    Args:
        num_examples: taken as known to everybody, as epsilon with sampling always takes it.
        batch_size: at least as many as there are examples: every step meets all of them.
        epochs: passes; may be a fraction, but there is one step at least.
    """
    size = min(batch_size, num_examples)
    return Sampling(size / num_examples, math.ceil(max(1, round(epochs * num_examples)) / size))


def epsilon(noise_multiplier: float, q: float, steps: int, delta: float) -> float:
    """Upper bound on epsilon of so many steps of the sampled Gaussian mechanism; infinite without noise.

    Args:
        noise_multiplier: standard deviation of the noise over the clipping bound.
        q: probability that an example is in a step.
        steps: 0 spends nothing.
        delta: in (0, 1).
    """
    return total_epsilon([Spent(noise_multiplier, q, steps)], delta)


def total_epsilon(spent: Sequence[Spent], delta: float) -> float:
    """Upper bound on epsilon of everything one client has spent, together, for one delta.

    Renyi divergences (Mironov et al. 2019, https://arxiv.org/abs/1908.10530) give a bound for any event;
    where that is small enough to mean something, privacy loss distributions (Koskela et al. 2020,
    https://arxiv.org/abs/1906.03049) give a tighter one. Takes up to a second.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for one in spent:
        _check(one, delta)
        counts[one.noise_multiplier, one.q] += one.steps
    done = {key: steps for key, steps in counts.items() if steps}
    if not done:
        return 0.0
    if any(noise == 0 for noise, _ in done):
        return math.inf
    dp, pld, rdp = _accounting()
    event = dp.ComposedDpEvent([_event(dp, *key, steps) for key, steps in done.items()])
    loose = float(rdp.RdpAccountant(ORDERS).compose(event).get_epsilon(delta))
    if loose > TIGHT:
        return loose
    tight = pld.PLDAccountant(value_discretization_interval=GRID).compose(event).get_epsilon(delta)
    return min(loose, float(tight))


def _event(dp: Any, noise_multiplier: float, q: float, steps: int) -> Any:
    step = dp.GaussianDpEvent(noise_multiplier)
    return dp.SelfComposedDpEvent(step if q == 1 else dp.PoissonSampledDpEvent(q, step), steps)


def _accounting() -> tuple[Any, Any, Any]:
    """dp-accounting and two of its accountants; imported here, for it takes seconds."""
    try:
        import dp_accounting  # type: ignore[import-untyped]
        from dp_accounting import pld, rdp
    except ImportError as error:
        raise ConfigError(
            f"tune.private: epsilon was asked for, but dp-accounting cannot be imported ({error}). Install "
            "it: pip install 'dp-accounting>=0.6'"
        ) from error
    return dp_accounting, pld, rdp


def _check(spent: Spent, delta: float) -> None:
    """A wrong number here would become a wrong claim."""
    is_fine = 0 < spent.q <= 1 and spent.noise_multiplier >= 0 and spent.steps >= 0 and 0 < delta < 1
    if not is_fine:
        raise ValueError(f"expected q in (0, 1], noise and steps >= 0, delta in (0, 1); got {spent}, {delta}")
