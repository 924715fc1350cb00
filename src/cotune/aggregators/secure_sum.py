"""Weighted mean of updates under masks, so that the server learns the sum and no part of it.

Paper: Bell et al. 2020, https://eprint.iacr.org/2020/704 (SecAgg+); `cotune.neighbours` says what differs.

In a run, `masked_member.py` and `masked_gather.py` sum with what is planned and laid out here. What a server
can and cannot learn stands in docs/security.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cotune.errors import ConfigError, WireError
from cotune.guarding import Update
from cotune.neighbours import Plan
from cotune.neighbours import plan as plan_for
from cotune.plugins import PluginConfig
from cotune.records import Array

if TYPE_CHECKING:
    from cotune.fixed_point import Encoded, Layout
    from cotune.secure_messages import Terms

MASKED = True
"""Replies are never added up in the clear."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each array, sorted by name."""


class Config(PluginConfig):
    """Options of masked sums; the same for the server and all clients."""

    bits: Literal[32, 16] = Field(32, description="of one value on the wire; at 16 it is rounded at random")
    clip: float = Field(
        32.0, gt=0, description="largest L2 norm of an update; used where no guard bounds its values"
    )
    largest_weight: float = Field(
        1.0, gt=0, le=float(1 << 30), description="largest weight of one client; those with more refuse"
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="share of the clients in a sum that may leave while it is made"
    )
    corruption: float = Field(
        0.33, ge=0, lt=1, description="share of the clients asked that may collude with the server"
    )


@dataclass(frozen=True, slots=True)
class SecureSum:
    """See the module. `bound`: largest size of a value where guards see to it; nothing is clipped then."""

    config: Config
    bound: float | None = None

    def bounded(self, bound: float | None) -> SecureSum:
        """The same for updates of which guards bound every value."""
        return replace(self, bound=bound)

    def plan(self, num_clients: int, num_asked: int) -> Plan:
        """How a cohort masks.

        Those that collude, and the quorum, are counted from all who were asked, not from those that are still
        there: a server may leave out whom it likes, and try again without some. As 2 quorum > asked + corrupt
        and an honest client signs one list a round, only one sum of a round is ever opened.

        Args:
            num_clients: ready to mask.
            num_asked: drawn for this round, as everybody knows from the configuration.

        Raises:
            ConfigError: too few are left.
        """
        dropout, corruption = self.config.dropout, self.config.corruption
        corrupt = math.floor(Fraction(str(corruption)) * num_asked)
        quorum = (num_asked + corrupt) // 2 + 1
        least = max(quorum, corrupt + 2)
        if num_clients < least:
            raise ConfigError(
                f"aggregator: {num_clients} of {num_asked} clients for a masked sum, of which {corrupt} may "
                f"collude with the server; expected at least {least}, so that two honest ones are in it and "
                "no second sum can be made of the same round. Ask more clients, or lower corruption."
            )
        dropped = math.floor(Fraction(str(dropout)) * num_clients)
        return _plan(num_clients, min(dropped, num_clients - least), corrupt, quorum)

    def layout(self, num_clients: int, shapes: Shapes, sums: Iterable[str], *, is_update: bool) -> Layout:
        """Where values stand in a sum: updates at `bits` within their bound; counts in 64 bits, exact."""
        from cotune.fixed_point import LARGEST_SUM, Grid, Layout

        names, largest = tuple(sorted(sums)), self.config.largest_weight
        if not is_update:
            return Layout(shapes, names, Grid(64, LARGEST_SUM, num_clients), largest)
        grid = Grid(self.config.bits, self.bound or self.config.clip, num_clients)
        return Layout(shapes, names, grid, largest, is_random=self.config.bits == 16)

    def fitted(self, update: Update, *, is_update: bool) -> tuple[Update, bool]:
        """What may be summed in place of an update, and whether it had to be clipped for it.

        Raises:
            WireError: a weight, a sum or a value that no sum has room for.
        """
        import numpy as np

        from cotune.fixed_point import LARGEST_SUM

        largest = self.config.largest_weight
        if not 0 < update.weight <= largest:
            raise WireError(
                f"a weight that is not above 0 and at most {largest:g}. Set aggregator.largest_weight to the "
                "largest weight of a client, the same for all, or weigh clients equally."
            )
        for name, value in update.sums.items():
            if not abs(value) <= LARGEST_SUM:  # NaN is not below anything
                raise WireError(f"{name} is larger than {LARGEST_SUM:g}, or no number")
        for name, array in update.arrays.items():
            if not np.isfinite(array).all():
                raise WireError(f"{name}: a value is not finite: training diverged; lower slm.tune.lr")
        arrays, is_clipped = self._clipped(update.arrays) if is_update else (dict(update.arrays), False)
        return replace(update, arrays=arrays), is_clipped

    def _clipped(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], bool]:
        """Arrays with an L2 norm of at most `clip`; as they are where a guard has bounded each value."""
        import numpy as np

        from cotune.fixed_point import SLACK

        if self.bound is not None:
            worst = max((float(np.abs(a).max(initial=0)) for a in arrays.values()), default=0.0)
            if worst > self.bound * (1 + SLACK):
                raise WireError(f"a value is larger than the {self.bound:g} that the guards promise")
            return dict(arrays), False
        norm = math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays.values()))
        if norm <= self.config.clip:
            return dict(arrays), False
        factor = self.config.clip / norm
        return {name: (a * factor).astype(a.dtype) for name, a in arrays.items()}, True

    def describe(self, num_asked: int) -> dict[str, Any]:
        """What is promised if everybody who is asked is there, for results.json and for people."""
        plan = self.plan(num_asked, num_asked)
        grid = self.layout(num_asked, (), (), is_update=True).grid
        counts = {name: getattr(plan, name) for name in Plan.__slots__ if name != "num_clients"}
        fewest, step = max(plan.quorum, plan.corrupt + 2), grid.step * self.config.largest_weight
        found = {"minimum": plan.minimum, "fewest": fewest, "bits": grid.bits, "bound": grid.bound}
        return {**counts, **found, "step": step}

    def fold(self, updates: Iterable[tuple[Mapping[str, Array], float]]) -> dict[str, Array]:
        """The mean, by the whole protocol among clients in memory; for comparison with a plain mean.

        Raises:
            ConfigError: less than two updates, whose sum would show them.
            WireError: a value that cannot be summed.
        """
        from cotune.secure_messages import Terms

        given = list(updates)
        largest = min(max(weight for _, weight in given), float(1 << 30))
        own = replace(self, config=self.config.model_copy(update={"largest_weight": largest}))
        fitted = [own.fitted(Update(arrays, weight), is_update=True)[0] for arrays, weight in given]
        names = tuple(f"{number:09d}" for number in range(len(given)))
        shapes = tuple((name, fitted[0].arrays[name].shape) for name in sorted(fitted[0].arrays))
        layout = own.layout(len(names), shapes, (), is_update=True)
        terms = Terms("fold", 1, names, own.plan(len(names), len(names)), layout)
        contributions = {
            name: layout.encode(one.arrays, one.weight, {}, _rounding(number))
            for number, (name, one) in enumerate(zip(names, fitted, strict=True))
        }
        found = _summed(terms, contributions)
        return {name: array.astype(given[0][0][name].dtype) for name, array in found.items()}


def _rounding(number: int) -> Any:
    """Rounds the update of a client in memory, the same way each time."""
    import numpy as np

    return np.random.default_rng(number)


def _summed(terms: Terms, given: Mapping[str, Encoded]) -> dict[str, Array]:
    """The mean of contributions by client, through both halves of the protocol."""
    from cotune import secure_client as client_half
    from cotune import secure_server as server_half
    from cotune.identity_keys import simulated_identity

    identities = {name: simulated_identity(0, name) for name in terms.cohort}
    registry = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    begun = {name: client_half.begin(terms, name, key) for name, key in identities.items()}
    circle = server_half.roster(terms, (keys for _, keys in begun.values()), registry)
    shared = {n: client_half.share(member, circle.roster, registry) for n, (member, _) in begun.items()}
    told = server_half.deliveries(circle, (sealed for _, sealed in shared.values()))
    masked = {n: client_half.mask(member, told[n], given[n]) for n, (member, _) in shared.items()}
    total = server_half.add_up(circle, told, (sent for _, sent in masked.values()))
    lists = server_half.lists(circle, told, total)
    signed = {n: client_half.consent(member, lists, identities[n]) for n, (member, _) in masked.items()}
    agreed = server_half.agreement(circle, lists, (sent for _, sent in signed.values()), registry)
    opened = [client_half.open_masks(member, agreed, registry)[1] for member, _ in signed.values()]
    return server_half.open_sum(circle, lists, total, opened).arrays


@cache
def _plan(num_clients: int, dropped: int, corrupt: int, quorum: int) -> Plan:
    """A plan for counts in place of shares; half a client more, so that rounding gives them back."""
    dropout, corruption = ((count + 0.5) / num_clients for count in (dropped, corrupt))
    return replace(plan_for(num_clients, dropout, corruption), quorum=quorum)


def build(config: Config) -> SecureSum:
    """The aggregator.

    Raises:
        ConfigError: the package for masks is not installed.
    """
    if find_spec("cryptography") is None:
        raise ConfigError(
            "aggregator: secure_sum needs the package cryptography. Install it: pip install 'cotune[secure]'"
        )
    return SecureSum(config)
