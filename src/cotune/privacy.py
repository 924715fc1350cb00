"""What noised sums have told about one client: epsilon over a run, a budget for it, and one plain sentence.

**Unit and relation.** One client's whole data. Two runs are neighbours if in one of them a client sends
zeros (and its noise) in place of its updates; who is asked and who replies is the same in both, and public.
With updates of norm at most `clip` and noise of deviation z * clip, a sum is a Gaussian mechanism of noise
multiplier z (dp-accounting: `REPLACE_SPECIAL`). To hide that a client's data were *exchanged* for others
takes twice the noise.

**Composition.** A client pays for the sums of the cohorts it was in, and for no others: cohorts do not
depend on data. Gaussian mechanisms of multipliers z_t compose to one of (sum z_t^-2)^-1/2, exactly; its
epsilon is that of Balle and Wang 2018, https://arxiv.org/abs/1805.06530, as dp-accounting computes it. No
Renyi bound is tighter, nor a privacy loss distribution, which rounds. The run's epsilon is that of the
client that has paid most. Families of clients pay apart, since each client is in one.

**Sampling.** That a cohort is drawn by lot helps only against those who cannot know who was in it. cotune
draws cohorts from the run's public seed and reports them, so nothing is gained, and `Budget` counts no gain.
With `secret_cohorts`, for a caller who draws cohorts in secret and publishes none, a sum to which the whole
cohort replied is also counted as sampled without replacement (Wang, Balle and Kasiviswanathan 2019,
https://arxiv.org/abs/1808.00087, with half the multiplier: their proof exchanges one client for another),
and the smaller epsilon holds. It is refused with distributed noise, which is there because of the server,
which draws the cohort.

**What is counted when.** A sum is counted once it is known, whether or not it was used. A gathering with too
few replies tells nothing where masks kept its sum closed, or where a trusted server threw it away: do not
record it. If a masked sum was opened, record it even if the round then failed. A round done again after a
crash gives the same sum with the same noise if the same clients reply: the digest is the same, and it is
counted once. If others reply, the digest differs and both sums are counted, each with its own noise. That
covers central noise, which follows from the mean. For distributed noise it is too little if *the server kept
both*: clients that are in both sums sent the same values, so that the difference shows those who are in one
with their own shares only. So the opened sum must be stored before it is used, and the server is trusted not
to ask again on purpose.

**Limits.** epsilon is of the noised sums alone, given all else that was sent: `not_covered` lists that. A
server that lies about how many replies are in a masked sum can have less noise in it, but not less than the
protocol's quorum of honest clients brings.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cotune.errors import ConfigError
from cotune.records import Facts

CROSSED: Mapping[str, str] = {
    "upload": "the examples that clients upload",
    "select/propose": "centres of groups of private examples (selection)",
    "select/share": "sums over private examples that selection scores by",
    "select/pick": "how many examples each client has and chooses",
    "teach/choose": "which public examples each client asks for, and with loss_gap its losses on all of them",
    "teach/exchange": "reasoning paths that clients write",
    "teach/learn": "sums of what lessons were worth to clients",
    "evaluate": "each client's scores on its held-out examples",
}
"""Actions of clients -> what their replies tell without noise."""
NOISED = "tune"
READS_PRIVATE = ("canary", "membership")
"""Audits that compare models on private examples and report numbers about them."""


@dataclass(frozen=True, slots=True)
class Release:
    """A sum that became known.

    noise_multiplier: standard deviation of the noise in it, divided by what one client can change; cohort:
    who was asked, nobody named meaning anybody; sampled_from: of how many clients the cohort is a secret
    draw; digest: of the noised mean, by which a repetition is told.
    """

    round: int
    noise_multiplier: float
    num_replies: int
    cohort: tuple[str, ...] = ()
    sampled_from: int | None = None
    digest: str = ""

    def as_facts(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "cohort": list(self.cohort)}

    @classmethod
    def of(cls, facts: Facts) -> Release:
        """From `as_facts`."""
        return cls(**{**facts, "cohort": tuple(facts["cohort"])})


def spent(releases: Iterable[Release], delta: float) -> float:
    """Epsilon of the client that has paid most; infinite if a sum had no noise, 0 for no sums.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    once = {(r.round, r.digest or number, r.cohort): r for number, r in enumerate(releases)}
    found = list(once.values())
    plain = _plain(found, delta)
    if plain == 0 or not any(release.sampled_from for release in found):
        return plain
    return min(plain, _sampled(found, delta))


def would_spend(releases: Iterable[Release], coming: Release, delta: float) -> float:
    """Epsilon once another sum is known."""
    return spent([*releases, coming], delta)


def noise_for(epsilon: float, delta: float, num_sums: int) -> float:
    """The noise multiplier with which a client in so many sums pays epsilon."""
    found: float = _gaussian_mechanism().get_sigma_gaussian(epsilon, delta)
    return found * math.sqrt(num_sums)


def _plain(releases: Sequence[Release], delta: float) -> float:
    """By the Gaussian mechanism that the sums of the most charged client compose to."""
    everybody, paid = 0.0, Counter[str]()
    for release in releases:
        cost = release.noise_multiplier**-2 if release.noise_multiplier > 0 else math.inf
        if not release.cohort:
            everybody += cost
        paid.update(dict.fromkeys(release.cohort, cost))
    most = everybody + max(paid.values(), default=0.0)
    if most in (0.0, math.inf):
        return most
    return float(_gaussian_mechanism().get_epsilon_gaussian(most**-0.5, delta))


def _sampled(releases: Sequence[Release], delta: float) -> float:
    """By Renyi divergences, as if every client were in every draw."""
    import dp_accounting as dp  # type: ignore[import-untyped]
    from dp_accounting import rdp

    same = Counter((r.noise_multiplier, len(r.cohort), r.sampled_from) for r in releases)
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    for (multiplier, size, population), count in same.items():
        event = dp.GaussianDpEvent(multiplier)
        if population:
            half = dp.GaussianDpEvent(multiplier / 2)
            event = dp.SampledWithoutReplacementDpEvent(population, size, half)
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def _gaussian_mechanism() -> Any:
    try:
        from dp_accounting import gaussian_mechanism
    except ImportError as error:
        raise ConfigError(
            f"an epsilon was asked for, but dp-accounting cannot be imported ({error}). Install it: "
            "pip install 'dp-accounting>=0.6'"
        ) from error
    return gaussian_mechanism


def check_grid(step: float, deviation: float) -> None:
    """Accept a masked sum's grid if it is fine enough for the shares of noise that are rounded to it.

    Raises:
        ConfigError: a step is more than half a share's standard deviation.
    """
    if 2 * step > deviation:
        raise ConfigError(
            f"a masked sum has steps of {step:.3g}, and a client's share of noise has a deviation of "
            f"{deviation:.3g}; expected steps of at most half of it, or rounding shows what noise should "
            "hide. Use more bits, a smaller cohort or a larger noise_multiplier."
        )


def widened(step: float, num_values: int, clip: float, *, is_random: bool = False) -> float:
    """How many clips long an update can be once its values are rounded to steps, for `Budget.widening`.

    Rounded to nearest, each value moves by half a step at most; at random, by one.
    """
    return 1 + step * (1.0 if is_random else 0.5) * math.sqrt(num_values) / clip


@dataclass(frozen=True, slots=True)
class Besides:
    """What a run sends and reports besides noised sums.

    actions: all that clients were asked for; losses: also beside their updates; example_counts: each client's
    number of examples is reported; audits: by name.
    """

    actions: Collection[str] = ()
    losses: bool = False
    example_counts: bool = False
    audits: Collection[str] = ()


def not_covered(besides: Besides) -> list[str]:
    """What epsilon says nothing about, in words."""
    seen = {re.sub(r"/\d+/", "/", action) for action in besides.actions} - {NOISED}
    found = [words for action, words in CROSSED.items() if action in seen]
    found += [f"replies to {action!r}" for action in sorted(seen - CROSSED.keys())]
    if besides.losses:
        found.append("training losses and counts of tokens")
    if besides.example_counts and "select/pick" not in seen:
        found.append("how many examples each client has")
    read = [name for name in READS_PRIVATE if name in besides.audits]
    if read:
        found.append(f"what the audit of {' and '.join(read)} reports on private examples")
    return [*found, "who is asked, who replies and who fails"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend.

    noise_multiplier: wanted in a sum; max_epsilon: None sets no limit; shares: honest shares of noise that
    are sure to come, None for central noise; corrupt: so many tell others their share; away: so many may
    stay away; minimum: fewest replies with which a sum becomes known; widening: the longest update, in clips
    (see `widened`), of central noise; secret_cohorts: of how many clients cohorts are drawn where nobody
    learns who is in them.

    Raises:
        ConfigError: secret cohorts with distributed noise.
    """

    noise_multiplier: float
    delta: float = 1e-5
    max_epsilon: float | None = None
    shares: int | None = None
    corrupt: int = 0
    away: int = 0
    minimum: int = 1
    widening: float = 1.0
    secret_cohorts: int | None = None

    def __post_init__(self) -> None:
        if self.secret_cohorts is not None and self.shares is not None:
            raise ConfigError(
                "secret cohorts with distributed noise: it is there to hide clients from the server, which "
                "draws the cohorts. Count no gain from sampling, or use where: central."
            )

    def present(self, num_replies: int) -> float:
        """The noise multiplier of a sum of so many replies; 0: none that counts."""
        if self.shares is None:
            return self.noise_multiplier / self.widening
        honest = max(0, num_replies - self.corrupt)
        return self.noise_multiplier * math.sqrt(honest / self.shares)

    def release(self, round: int, cohort: Sequence[str], num_replies: int, digest: str = "") -> Release:
        """A sum that has become known, with the noise that it really has."""
        is_whole = bool(cohort) and num_replies == len(cohort)
        population = self.secret_cohorts if is_whole else None
        return Release(round, self.present(num_replies), num_replies, tuple(cohort), population, digest)

    def allows(self, records: Iterable[Facts], round: int, cohort: Sequence[str]) -> str | None:
        """None if a round keeps within the limit even with the fewest replies; else why it must not begin.

        Args:
            records: of the rounds so far, with what `record` gave under `privacy`.
            round: the number of the one to come.
            cohort: who will be asked; nobody named means anybody.
        """
        if self.max_epsilon is None:
            return None
        before = releases_of(records)
        fewest = min(self.minimum, len(cohort)) if cohort else self.minimum
        worst = Release(round, self.present(fewest), fewest, tuple(cohort))
        after = would_spend(before, worst, self.delta)
        if after <= self.max_epsilon:
            return None
        return (
            f"round {round} could bring epsilon from {spent(before, self.delta):.3g} to {after:.3g} at delta "
            f"{self.delta:g}, above max_epsilon {self.max_epsilon:g}"
        )

    def record(self, records: Iterable[Facts], releases: Sequence[Release]) -> dict[str, Any]:
        """What stands under `privacy` in a round's record: its sums, and the epsilon of all so far.

        An infinite epsilon is None. `records`: of the rounds before.
        """
        epsilon = spent([*releases_of(records), *releases], self.delta)
        return {
            "releases": [release.as_facts() for release in releases],
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self.delta,
        }

    def statement(self, records: Iterable[Facts], besides: Besides, *, is_simulated: bool = False) -> str:
        """One sentence: the unit, epsilon, delta, what is assumed, and what is not covered."""
        releases = releases_of(records)
        epsilon = spent(releases, self.delta)
        if not math.isfinite(epsilon):
            return (
                "One client's whole data are not protected by differential privacy: a sum had no noise in it."
            )
        parts = [
            f"One client's whole data: epsilon {_up(epsilon)} at delta {self.delta:g} over {len(releases)} "
            "noised sums, where neighbouring runs differ in one client that sends zeros",
            self._noise(releases),
            f"assumed: {', '.join(self._assumed(is_simulated))}",
            f"not covered: {', '.join(not_covered(besides))}",
        ]
        return "; ".join(parts) + "."

    def _noise(self, releases: Sequence[Release]) -> str:
        least = min((release.noise_multiplier for release in releases), default=self.noise_multiplier)
        who = "the server to their mean" if self.shares is None else "the clients in equal shares"
        return f"noise of at least {least:.3g} clipping norms in each sum is added by {who}"

    def _assumed(self, is_simulated: bool) -> list[str]:
        if self.shares is None:
            found = ["the server is trusted with what it sees before it adds noise, and keeps its secret"]
        else:
            found = [
                "the server follows the protocol and asks for a round again only after a crash",
                f"{self.corrupt or 'none'} of a round's clients may tell others what noise they added",
                f"{self.away or 'none'} may stay away without loss (if more did, the noise left is counted)",
            ]
        if self.secret_cohorts is None:
            found.append("no gain from sampling, as cohorts are public")
        if is_simulated:
            found.append(
                "this run is a simulation, whose secrets follow from its seed: a real one gives this"
            )
        return found


def releases_of(records: Iterable[Facts]) -> list[Release]:
    """All sums that rounds' records name, in order."""
    return [
        Release.of(facts) for record in records for facts in (record.get("privacy") or {}).get("releases", ())
    ]


def _up(epsilon: float) -> str:
    """Two decimals, never less than it is."""
    return f"{math.ceil(epsilon * 100) / 100:.2f}"
