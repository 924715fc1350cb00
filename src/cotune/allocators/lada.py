"""Items that the party will learn from, as two small networks predict it from what training showed so far.

Paper: LaDa, https://arxiv.org/abs/2602.18749, its model-learnability-aware filter. Before anything was
learned, items near the centres of clusters are taken, most from clusters that are like the party's own data.
Points are first moved to the mean of the pool, ours: features of a language model share a large part, and
without it everything is like everything.

A chosen item whose pair taught nothing, for its path was wrong under the guard or both were the same, leaves
no record: the filter learns what teaches, not whose paths are right, and may choose such an item again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cotune.errors import RunError
from cotune.plugins import PluginConfig
from cotune.pool import Allocated, PoolView, Trained
from cotune.ranking import high_first
from cotune.rewards import PARTS, Parts, Rule, minmax, parts, rewards

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cotune.ranking import Rows, Scores
    from cotune.records import Array

    Points = npt.NDArray[np.float32]


class Config(PluginConfig):
    """Options of LaDa's filter."""

    alpha_reward: float = Field(
        1.0, ge=0, le=1, description="share of an item's own part in its reward; the rest is its batch's"
    )
    lambda_explore: float = Field(0.1, ge=0, description="weight of the network that learns what is missed")
    beta: float | None = Field(
        None,
        gt=0,
        description="of the preference loss, where a batch is judged on its items; null: teach.beta",
    )
    epochs: int = Field(10, gt=0, description="passes over all records, after each round")
    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="on scores that reach from 0 to 1, above it items teach: 0.5 as published; null: where "
        "the scores part best",
    )
    least: float = Field(0.1, gt=0, le=1, description="smallest share of the pool that teaches")
    most: float = Field(0.6, gt=0, le=1, description="largest share of the pool that teaches")
    first: float = Field(0.3, gt=0, le=1, description="share of the pool before anything was learned")
    loss_sign: Literal["exp_neg", "exp_pos"] = Field(
        "exp_neg", description="the batch's reward reads exp(-loss), or literally exp(+loss)"
    )
    reward_from: Literal["probe", "batches"] = Field(
        "probe", description="a batch is judged on the probe, where there is one, or on its own items"
    )
    scaled: Literal["all", "batch"] = Field(
        "all", description="an item's own part is scaled over all records, or within its batch as published"
    )
    clusters: int | None = Field(None, gt=0, description="of the start; null: items / 50, at least 8")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.least > self.most:
            raise ValueError(f"least is {self.least:g} and most {self.most:g}; least must not be above most.")
        if self.loss_sign == "exp_pos" and self.reward_from == "probe":
            raise ValueError("loss_sign exp_pos is made of batches; set reward_from to batches.")
        if self.alpha_reward == 1 and self.reward_from == "batches":
            raise ValueError("reward_from: batches count nothing while alpha_reward is 1; set it below 1.")
        return self


class Lada:
    """See the module.

    Memory: of all records `rows`, `rewards` and what they are made of, `last` (what the batch before the next
    one came to), and both networks. Contexts are not kept: they come from the bare model, so the view gives
    the same ones again.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        reads_probe = config.alpha_reward < 1 and config.reward_from == "probe"
        self.needs = frozenset({"contexts", "own_data"} | ({"probe"} if reads_probe else set()))
        how = config.loss_sign, config.reward_from, config.scaled
        self.rule = Rule(config.alpha_reward, config.beta or 0.1, *how)

    def choose(self, view: PoolView, memory: Mapping[str, Array]) -> Allocated:
        """By score, from 0 to 1, once something was learned; by clusters until then, without scores."""
        import numpy as np

        if not view.num_items:
            return Allocated(np.zeros(0, np.int64), np.zeros(0))
        if "rows" not in memory:
            return Allocated(self._start(view), np.full(view.num_items, np.nan))
        from cotune.models import bandit

        scores = minmax(bandit.score(memory, inputs(view), self.config.lambda_explore))
        return Allocated(kept(scores, self.config.threshold, self.config.least, self.config.most), scores)

    def learn(self, view: PoolView, memory: Mapping[str, Array], trained: Trained) -> Mapping[str, Array]:
        """Rewards for what was trained on; then both networks go on, over all records there are."""
        import numpy as np

        if not len(trained.rows):
            return memory
        from cotune.models import bandit

        last = float(memory["last"][0]) if "last" in memory else None
        new, last = parts(trained, self.rule, last)
        rows = np.concatenate([memory.get("rows", np.zeros(0, np.int64)), trained.rows])
        known = new.after(Parts(*(memory.get(name, np.zeros(0)) for name in PARTS)))
        earned = rewards(known, self.rule)
        nets = bandit.learn(memory, inputs(view)[rows], earned, self.config.epochs, view.rng)
        made_of = {name: getattr(known, name) for name in PARTS}
        return {"rows": rows, "rewards": earned, **made_of, "last": np.array([last]), **nets}

    def _start(self, view: PoolView) -> Rows:
        number = self.config.clusters or max(8, view.num_items // 50)
        budget = math.ceil(self.config.first * view.num_items - 1e-9)
        return clustered(finite(view.contexts()), finite(view.own_data()), budget, number, view.rng)


def kept(scores: Scores, threshold: float | None, least: float, most: float) -> Rows:
    """Rows of [n] whose score is above the threshold, best first; never fewer or more than the two shares.

    Rounded so that both hold, and at least one row. Without a threshold, the scores are cut where they part
    best (see `parting`).

    Raises:
        RunError: a score is not a number.
    """
    import numpy as np

    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise RunError(
            f"allocator lada: the score of pool row {wrong[0]} is {scores[wrong[0]]}; expected a number. Its "
            "networks have diverged: lower allocator.epochs."
        )
    floor = max(1, math.ceil(least * len(scores) - 1e-9))
    ceiling = max(floor, math.floor(most * len(scores) + 1e-9))
    cut = parting(scores) if threshold is None else threshold
    count = min(max(int((scores > cut).sum()), floor), ceiling)
    return high_first(scores)[:count]


def parting(scores: Scores) -> float:
    """The score above which one group lies and below or at which the other: the two differ most.

    Paper: Otsu 1979 (A threshold selection method from gray-level histograms), on the scores themselves: the
    cut with the largest variance between both groups. A fixed 0.5 on scores from 0 to 1 hangs on the one
    worst item; items of which little is known lie near the mean reward, often above it.
    """
    import numpy as np

    ordered = np.sort(scores)
    below = np.arange(1, len(ordered))
    if not len(below) or ordered[0] == ordered[-1]:
        return float(ordered[0]) if len(ordered) else 0.0
    sums = np.cumsum(ordered)
    low, high = sums[:-1] / below, (sums[-1] - sums[:-1]) / (len(ordered) - below)
    between = below * (len(ordered) - below) * np.square(high - low)
    return float(ordered[np.argmax(between)])


def inputs(view: PoolView) -> Points:
    """Contexts as the networks see them, [n, d]: their mean at 0, their values about 1 in size."""
    import numpy as np

    x = finite(view.contexts())
    x = x - x.mean(axis=0)
    size = float(np.sqrt(np.square(x, dtype=np.float64).mean()))
    found: Points = (x / size if size else x).astype(np.float32)
    return found


def clustered(points: Points, own: Points, budget: int, number: int, rng: np.random.Generator) -> Rows:
    """Rows near the centres of clusters: the nearest of every cluster first, then the next ones.

    Args:
        points: [n, d], the pool.
        own: [m, d], the party's own data; none: all clusters count alike.
        budget: rows wanted, at most n.
        number: clusters wanted; there are never more than points that differ.
        rng: where the clusters begin.
    """
    import numpy as np

    middle = points.mean(axis=0)
    x = unit(points - middle)
    labels, centres = k_means(x, min(number, len(x)), int(rng.integers(2**31)))
    likeness = np.zeros(len(centres))
    if len(own):
        likeness = unit(centres) @ unit(unit(own - middle).mean(axis=0, keepdims=True))[0]
    sizes = np.bincount(labels)
    taken = per_cluster(likeness, sizes, budget)
    away = np.square(x - centres[labels]).sum(axis=1)
    order = np.lexsort((away, labels))
    place = np.arange(len(x)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of a row within its cluster
    inside = place < taken[labels[order]]
    rows, place = order[inside], place[inside]
    best: Rows = rows[np.lexsort((-likeness[labels[rows]], place))].astype(np.int64)
    return best


def per_cluster(likeness: Scores, sizes: Rows, budget: int) -> Rows:
    """How many of `budget` items each cluster gives, [clusters]: together all, and none more than it has.

    Each gives one, the likest first; the others go one by one, as seats in an election (Sainte-Lague), in
    proportion to the likeness, where below 0 is 0. Clusters without any share what the others cannot give.
    """
    import numpy as np

    weights = np.maximum(likeness, 1e-9)
    taken = np.zeros(len(sizes), np.int64)
    taken[np.argsort(-weights, kind="stable")[:budget]] = 1
    for _ in range(min(budget, int(sizes.sum())) - int(taken.sum())):
        taken[np.argmax(np.where(taken < sizes, weights / (2 * taken + 1), -1))] += 1
    return taken


def k_means(x: Points, number: int, seed: int) -> tuple[Rows, Points]:
    """Labels [n] and centres [clusters, d]; points that are all alike are one cluster."""
    import numpy as np
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters
        found = KMeans(number, n_init=4, random_state=seed).fit(x)
    used, labels = np.unique(found.labels_, return_inverse=True)
    return labels.astype(np.int64), found.cluster_centers_[used]


def unit(points: Points) -> Points:
    """Rows of length 1; a row of zeros stays."""
    import numpy as np

    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    found: Points = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
    return found


def finite(points: Array) -> Array:
    """The points [n, d], unless a value is not finite (DataError)."""
    from cotune.groups import check_finite

    check_finite(points)
    return points


def build(config: Config) -> Lada:
    """The allocator."""
    return Lada(config)
