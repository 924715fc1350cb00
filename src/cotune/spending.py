"""What a run's record says of sums and privacy: how each round ended, what it has spent, and one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cotune.endings import outcome
from cotune.example_privacy import PrivateConfig, Spent, sampling, total_epsilon
from cotune.journal import Ledger
from cotune.privacy import Besides, Budget
from cotune.protocols import TUNE
from cotune.records import Round

Record = Mapping[str, Any]
OF_A_SUM = "secure/"
"""Steps of masked sums tell nothing about examples."""


@dataclass(frozen=True, slots=True)
class Spending:
    """The budget of a run and what else it sends. losses: also beside noised updates; audits: by name;
    simulated: secrets follow from the seed."""

    budget: Budget
    losses: bool = False
    audits: tuple[str, ...] = ()
    simulated: bool = True

    def record(self, before: Sequence[Record], now: Round, ledger: Ledger, coming: Round | None) -> Record:
        """What stands under `privacy` in a round's line; `stop` says why no other round may begin.

        `coming`: the round that would be next; None after the last one.
        """
        found = [
            self.budget.release(now.index, one["asked"], one["summed"], one["digest"])
            for one in ledger.sums
            if "digest" in one
        ]
        told: dict[str, Any] = dict(self.budget.record(before, found))
        if coming is not None:
            reason = self.budget.allows([*before, {"privacy": told}], coming.index, coming.cohort)
            told |= {"stop": reason} if reason else {}
        return {"privacy": told}

    def summary(self, records: Sequence[Record]) -> Record:
        """For results.json: epsilon, delta, and the sentence of the report."""
        last = records[-1]["privacy"]
        actions = {action for record in records for action in record["privacy"]["actions"]}
        besides = Besides(actions, self.losses, example_counts=True, audits=self.audits)
        said = self.budget.statement(records, besides, is_simulated=self.simulated)
        return {"epsilon": last["epsilon"], "delta": last["delta"], "statement": said}


@dataclass(frozen=True, slots=True)
class ExampleSpending:
    """What private tuning of a model family costs. settings: of it; batch_size and epochs: of a round."""

    settings: PrivateConfig
    batch_size: int
    epochs: float

    def summary(self, records: Sequence[Record], sizes: Mapping[str, int]) -> Record:
        """Epsilon for one example of the client that has paid most; `sizes`: examples of each client, of
        which selectors may have left fewer."""
        left, rounds = dict(sizes), dict[str, Counter[int]]()
        for record in records:
            left |= (record.get("selection") or {}).get("counts", {})
            for client in record["cohort"] if record["round"] else ():
                rounds.setdefault(client, Counter())[left[client]] += 1
        worst = max(map(self._epsilon, {tuple(sorted(of.items())) for of in rounds.values()}), default=0.0)
        noise, delta = self.settings.noise_multiplier, self.settings.delta
        if not math.isfinite(worst):
            said = "One example of one client is not protected: its gradients had no noise."
        else:
            said = (
                f"One example of one client, added or removed: epsilon {math.ceil(100 * worst) / 100:.2f} at "
                f"delta {delta:g}, by DP-SGD in the client's own tuning (noise of {noise:g} clipping norms a "
                "step, batches drawn in secret); assumed: the number of a client's examples is no secret, "
                "nobody else has the client's secret; not covered: scores on held-out examples, audits of "
                "private examples, and rounding of the noise in float32."
            )
        finite = worst if math.isfinite(worst) else None
        return {"epsilon": finite, "delta": delta, "statement": said}

    def _epsilon(self, rounds: Sequence[tuple[int, int]]) -> float:
        """Of one client's rounds: (examples, rounds with so many)."""
        once = [(sampling(size, self.batch_size, self.epochs), times) for size, times in rounds if size]
        noise = self.settings.noise_multiplier
        return total_epsilon(
            [Spent(noise, one.q, one.steps * times) for one, times in once], self.settings.delta
        )


def with_actions(record: Record, ledger: Ledger) -> Record:
    """The line's `privacy` with all that clients were asked for in the round; nothing if it has none."""
    if "privacy" not in record:
        return {}
    actions = [action for action in ledger.actions if not action.startswith(OF_A_SUM)]
    return {"privacy": {**record["privacy"], "actions": actions}}


def ended(now: Round, ledger: Ledger, minimum: int) -> Record:
    """How a round ended: full, partial or failed, and why."""
    sums = [one for one in ledger.sums if one["action"] == TUNE]
    failed = {failure.client for failure in ledger.failures}
    asked = len(now.cohort)
    usable = sum(one["summed"] for one in sums) if sums else len(set(now.cohort) - failed)
    status, reason = outcome(asked, usable, minimum, ledger.failures)
    closed = [one["reason"] for one in sums if one.get("reason")]
    plans = [one["plan"] for one in sums if one.get("plan")]
    return {
        "status": status,
        "reason": "; ".join([reason, *closed]),
        "num_updates": sum(one["summed"] for one in sums),
        **({"masked": plans} if plans else {}),
    }


def is_spent(record: Record) -> bool:
    """Whether privacy has ended the run after the round of this line."""
    return bool((record.get("privacy") or {}).get("stop"))
