"""What each item was worth to the model that learned from it, out of what training recorded. Pure.

Paper: LaDa, https://arxiv.org/abs/2602.18749. One part of a reward is the item's own (a high margin, a path
that is still unlikely), one its batch's: how much the probability of preferring the peer's path has risen.
The second counts nothing by default: all items of a batch share it, which pays an item for its company
(docs/log.md, 2026-11-22).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from cotune.errors import RunError
from cotune.pool import Trained

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

LARGEST_LOSS = 600.0
"""A loss above it counts as this: exp of it is still a number, and so is a sum of many."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How rewards are made.

    alpha: share of the item's own part. beta: of the preference loss. loss_sign: the batch's part reads
    exp(-loss), the preference probability, or literally exp(+loss), which rises when the model gets worse.
    source: whether a batch is judged on its own items, or on the probe, where it was measured; that is before
    and after a round, so a round is one batch then. scaled: the item's own part, over all records, which
    are all measured against one frozen reference, or within its batch as printed: the best of a batch of bad
    items then counts as much as the best of good ones.
    """

    alpha: float = 1.0
    beta: float = 0.1
    loss_sign: Literal["exp_neg", "exp_pos"] = "exp_neg"
    source: Literal["probe", "batches"] = "probe"
    scaled: Literal["all", "batch"] = "all"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the rewards of some records are made of, each [t]; log_probs are those of the peer's paths.

    appeals: an item's own part, 0 to 1, scaled within its batch. gains: its batch's part, -1 to 1.
    """

    margins: Floats
    log_probs: Floats
    appeals: Floats
    gains: Floats

    def after(self, earlier: Parts) -> Parts:
        """Both, the earlier ones first."""
        import numpy as np

        return Parts(*(np.concatenate([getattr(earlier, name), getattr(self, name)]) for name in PARTS))


PARTS = tuple(field.name for field in fields(Parts))


def parts(trained: Trained, rule: Rule, last: float | None) -> tuple[Parts, float]:
    """What training recorded as parts of rewards, [t] with t above 0, and the level of the last batch.

    Args:
        trained: what training recorded.
        rule: how.
        last: the level that the round before ended with; None: there was none.

    Raises:
        RunError: a margin, a log-probability or a probe value is not finite, or the probe has not two.
    """
    import numpy as np

    check(trained)
    levels = batch_levels(trained, rule)
    if rule.source == "probe" and len(trained.probe):
        trained = replace(trained, batches=np.zeros(len(trained.rows), np.int64))
        gains = progress(trained.probe[1:], float(trained.probe[0]))[trained.batches]
    else:
        gains = progress(levels, last)[ordinals(trained.batches)]
    found = np.asarray(trained.margins, np.float64), np.asarray(trained.log_probs, np.float64)
    return Parts(*found, appeal(trained), gains), float(levels[-1])


def rewards(known: Parts, rule: Rule) -> Floats:
    """One reward for each record, [t]: alpha * sigmoid(own part) + (1 - alpha) * sigmoid(its batch's)."""
    own = known.appeals if rule.scaled == "batch" else attraction(known.margins, known.log_probs)
    return rule.alpha * sigmoid(own) + (1 - rule.alpha) * sigmoid(known.gains)


def preference(margins: Floats, beta: float) -> Floats:
    """p = sigmoid(beta z) = exp(-loss), [t]: how surely the peer's path is preferred."""
    return sigmoid(beta * margins)


def batch_levels(trained: Trained, rule: Rule) -> Floats:
    """Mean of exp(-loss), or of exp(+loss), over the items of each batch, [batches]."""
    import numpy as np

    values = preference(trained.margins, rule.beta)
    if rule.loss_sign == "exp_pos":
        values = np.exp(np.minimum(np.logaddexp(0, -rule.beta * trained.margins), LARGEST_LOSS))
    number = ordinals(trained.batches)
    return np.bincount(number, values) / np.bincount(number)


def progress(levels: Floats, before: float | None) -> Floats:
    """(level - level before) / the larger of the two, [batches], from -1 to 1; 0 where there was none."""
    import numpy as np

    earlier = np.concatenate([levels[:1] if before is None else [before], levels[:-1]])
    larger = np.maximum(levels, earlier)
    found: Floats = np.divide(levels - earlier, larger, out=np.zeros(len(levels)), where=larger > 0)
    return found


def appeal(trained: Trained) -> Floats:
    """s from 0 to 1, [t]: within its batch, how high the margin and how unlikely the peer's path."""
    import numpy as np

    found = np.empty(len(trained.rows))
    for batch in np.unique(trained.batches):
        inside = trained.batches == batch
        found[inside] = attraction(trained.margins[inside], trained.log_probs[inside])
    return found


def attraction(margins: Floats, log_probs: Floats) -> Floats:
    """s from 0 to 1, [t]: how high the margin and how unlikely the peer's path, among these records."""
    return 0.5 * minmax(margins) + 0.5 * (1 - minmax(log_probs))


def minmax(values: Floats) -> Floats:
    """Moved and scaled to reach from 0 to 1; values that are all alike become 0.5."""
    import numpy as np

    if not len(values):
        return values
    low, high = values.min() / 2, values.max() / 2  # halves, so that no difference overflows
    if low == high:
        return np.full(len(values), 0.5)
    found: Floats = (values / 2 - low) / (high - low)
    return found


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), exact to the last digits however small."""
    import numpy as np

    found: Floats = np.exp(-np.logaddexp(0, -values))
    return found


def ordinals(batches: Ints) -> Ints:
    """0, 1, ... for the batches that have items, [t]: a batch may have had none that could be compared."""
    import numpy as np

    found: Ints = np.unique(batches, return_inverse=True)[1]
    return found


def check(trained: Trained) -> None:
    """Refuse records that no reward can be made of.

    Raises:
        RunError: says which.
    """
    import numpy as np

    for name, values in (("margin", trained.margins), ("log-probability", trained.log_probs)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise RunError(
                f"allocator: the {name} of pool row {trained.rows[wrong[0]]} (and of {len(wrong) - 1} more "
                f"records) is {values[wrong[0]]}; expected a number. The model has diverged: lower its "
                "tune.lr."
            )
    if len(trained.probe) not in (0, 2) or not np.isfinite(trained.probe).all():
        raise RunError(
            f"allocator: the probe is {trained.probe.tolist()}; expected a number before the round and one "
            "after it, or none at all."
        )
