"""Differential privacy for clients: clip each update, and hide every client in Gaussian noise on the sum.

Papers: McMahan et al. 2018, https://arxiv.org/abs/1710.06963 (a client's whole update is clipped; noise on
the sum); Truex et al. 2019, https://arxiv.org/abs/1812.03224 (each client adds a share of the noise). What
it comes to is counted in `cotune.privacy`.

A client's update is scaled so that all its values together have an L2 norm of at most `clip`, and weighs 1
in the mean: with the weight of its examples, a large client would change the sum by more than `clip`. So one
client changes the sum by at most `clip`, and noise of deviation `noise_multiplier * clip` is wanted in it.

* `where: central`: the server adds it to the mean. Whoever runs the server sees sums without noise.
* `where: distributed`: each client adds a share, so that a masked sum already has the noise when it opens.
  With n asked, `dropout` of whom may stay away and `corruption` of whom may tell the server their shares, m
  = n - floor(dropout n) - floor(corruption n) honest shares are sure to come, and each has deviation
  `noise_multiplier * clip / sqrt(m)`. If r come, the sum has noise_multiplier * sqrt((r - corrupt) / m),
  more or less than wanted, and that is what the ledger counts.

**Bound.** What leaves is at most `clip` in size, with a share of noise `clip + 9.5 deviations`: the noise
has no value beyond (see `cotune.noise`, also for floating point), so that no clamping is needed.

**Fixed point.** A masked sum rounds every client's values to a grid before it adds them. With distributed
noise the grid must be finer than half a share's deviation; then sums of rounded values are as private as
rounded sums, but for about exp(-2 pi^2 4) = 5e-35 a value. With central noise, rounding lengthens an update;
how much is counted. `cotune.privacy` has both rules: `check_grid` and `widened`. A guard after this one must
not lengthen an update, nor drop values that carry shares of noise: `quantize` keeps to that in the clear,
and does not go with noise under masked sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from cotune.errors import ConfigError, DataError
from cotune.guarding import GuardParts, Sender, Total, Update
from cotune.plugins import PluginConfig
from cotune.privacy import Budget, noise_for, spent
from cotune.records import Array

SHRINK = 1 - 2.0**-23
"""What is clipped is made so much smaller, for rounding to float32 can lengthen it by a share of 2^-24."""
COUNTS = frozenset({"clients"})
"""Numbers that are the same whatever a client's data are."""


class Config(PluginConfig):
    """Options of clipping and noise."""

    clip: float = Field(1.0, gt=0, description="largest L2 norm of one client's whole update")
    noise_multiplier: float = Field(
        1.0, ge=0, description="standard deviation of the noise in a sum of updates, divided by `clip`"
    )
    where: Literal["central", "distributed"] = Field(
        "central", description="who adds noise: the server, or each client its share (needs secure_sum)"
    )
    max_epsilon: float | None = Field(
        None, gt=0, description="the run stops before a round that could exceed it; by default it does not"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="delta at which epsilon is stated")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="distributed: share of the cohort that may stay away with the noise still in the sum",
    )
    corruption: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="distributed: share of the cohort that may tell its noise, which then does not count",
    )
    losses: bool = Field(
        False, description="also send losses and counts of tokens; epsilon does not cover them"
    )


@dataclass(frozen=True, slots=True)
class ClipNoise:
    """See the module. `shares`: noise shares that are sure to come and be honest; `budget`: of the run."""

    config: Config
    shares: int
    budget: Budget

    @property
    def clip(self) -> float:
        """Largest L2 norm of an update before noise."""
        return self.config.clip

    @property
    def sends_losses(self) -> bool:
        """Whether numbers that depend on data leave beside the update."""
        return self.config.losses

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise that one client adds to each of its values."""
        if self.config.where == "central":
            return 0.0
        return self.config.noise_multiplier * self.config.clip / math.sqrt(self.shares)

    @property
    def bound(self) -> float:
        """Largest size of one value that leaves a client."""
        from cotune.noise import REACH  # here, so that reading `Config` starts fast

        return self.config.clip + REACH * self.deviation

    def outgoing(self, update: Update, sender: Sender) -> tuple[Update, Mapping[str, Array]]:
        """The clipped update with its share of noise, of weight 1; losses only if they were asked for.

        Raises:
            DataError: a value is not finite.
        """
        from cotune.noise import noised

        purpose = ("clip_noise", sender.client, str(sender.round.seed), str(sender.round.index))
        arrays = noised(clipped(update.arrays, self.config.clip), self.deviation, sender.secret, purpose)
        kept = {name: value for name, value in update.sums.items() if self.config.losses or name in COUNTS}
        return Update(arrays, 1.0, kept), {}

    def incoming(self, mean: Mapping[str, Array], total: Total) -> dict[str, Array]:
        """The mean; central noise is added to it, as much as the sum needs divided by the replies."""
        if self.config.where == "distributed":
            return dict(mean)
        from cotune.noise import noised

        deviation = self.config.noise_multiplier * self.config.clip / total.num_replies
        purpose = ("clip_noise", "server", str(total.round.seed), str(total.round.index))
        return noised(mean, deviation, total.secret, purpose)


def clipped(arrays: Mapping[str, Array], clip: float) -> dict[str, Array]:
    """Arrays whose values all together have an L2 norm of at most `clip`; shorter ones as they are.

    Raises:
        DataError: a value is not finite.
    """
    import numpy as np

    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    norm = math.sqrt(sum(float(np.vdot(array, array)) for array in wide.values()))
    if not math.isfinite(norm):
        raise DataError("an update has a value that is not finite: training diverged; lower slm.tune.lr")
    if norm <= clip:
        return dict(arrays)
    factor = clip / norm * SHRINK
    return {name: (array * factor).astype(np.float32) for name, array in wide.items()}


def build(config: Config, parts: GuardParts) -> ClipNoise:
    """The guard.

    Raises:
        ConfigError: nobody could keep such a promise, or the cipher is not installed.
    """
    try:
        import cotune.noise  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"clip_noise takes noise from a cipher of `cryptography`, which cannot be imported ({error}). "
            "Install it: pip install 'cotune[secure]'"
        ) from error
    is_central = config.where == "central"
    if not is_central and not parts.is_masked:
        raise ConfigError(
            "clip_noise.where: distributed without masked sums; the server would read every update under a "
            "share of the noise only. Set aggregator: secure_sum, or where: central."
        )
    away, corrupt = (
        math.floor(Fraction(str(share)) * parts.cohort) for share in (config.dropout, config.corruption)
    )
    shares = parts.cohort - away - corrupt
    if not is_central and shares < 1:
        raise ConfigError(
            f"clip_noise: of {parts.cohort} clients {away} may stay away and {corrupt} tell their "
            "noise; expected one at least that does neither. Lower dropout or corruption, or enlarge the "
            "cohort."
        )
    if config.delta * parts.num_clients >= 1:
        raise ConfigError(
            f"clip_noise.delta: {config.delta:g} with {parts.num_clients:,} clients; expected less than "
            f"1 / {parts.num_clients:,}, or publishing a random client's data would be allowed."
        )
    options: dict[str, Any] = {} if is_central else {"shares": shares, "corrupt": corrupt, "away": away}
    budget = Budget(
        config.noise_multiplier, config.delta, config.max_epsilon, minimum=max(1, parts.minimum), **options
    )
    _check_affordable(budget, parts)
    return ClipNoise(config, shares, budget)


def _check_affordable(budget: Budget, parts: GuardParts) -> None:
    """Refuse a budget that not even one round fits into."""
    if budget.max_epsilon is None:
        return
    first = budget.release(1, (), min(budget.minimum, parts.cohort))
    cost = spent([first], budget.delta)
    if cost <= budget.max_epsilon:
        return
    loss = budget.noise_multiplier / first.noise_multiplier if first.noise_multiplier > 0 else 1.0
    one, every = (
        math.ceil(1000 * loss * noise_for(budget.max_epsilon, budget.delta, num_sums)) / 1000
        for num_sums in (1, parts.num_rounds)
    )
    raise ConfigError(
        f"clip_noise.max_epsilon: {budget.max_epsilon:g}; one round with noise_multiplier "
        f"{budget.noise_multiplier:g} can cost {cost:.3g} at delta {budget.delta:g}. "
        f"noise_multiplier {one:g} affords one round, {every:g} a client that takes part in all "
        f"{parts.num_rounds}."
    )
