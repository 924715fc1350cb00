"""What a run's scores come to: before, after and gain, per task and per client; for page and terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_A_METRIC = frozenset({"n", "stderr", "seconds", "accuracy_norm"})
METRIC_NAMES = {
    "accuracy": "accuracy",
    "rouge_l": "Rouge-L",
    "exact_match": "exact match",
    "path_accuracy": "accuracy of paths",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One score before and after training. `gain` is None where either is missing."""

    name: str
    before: float | None
    after: float | None
    num_examples: int | None = None
    stderr: float | None = None
    clients: int | None = None
    stated_gain: float | None = None

    @property
    def gain(self) -> float | None:
        """The gain that the run states, otherwise after minus before."""
        if self.stated_gain is not None:
            return self.stated_gain
        return self.after - self.before if self.before is not None and self.after is not None else None

    @property
    def is_clear(self) -> bool:
        """The gain is more than twice its standard error away from zero."""
        return self.gain is not None and self.stderr is not None and abs(self.gain) > 2 * self.stderr


def number(value: object) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, otherwise an empty one: any part of a run's records may be missing."""
    return value if isinstance(value, Mapping) else {}


def metric_key(score: Mapping[str, Any]) -> str | None:
    """The metric that stands for a score: accuracy where there is one, else the task's own."""
    if "accuracy" in score:
        return "accuracy"
    return next(
        (key for key, value in score.items() if key not in NOT_A_METRIC and number(value) is not None), None
    )


def score_of(score: object) -> float | None:
    """The value of that metric."""
    key = metric_key(mapping(score))
    return number(mapping(score).get(key)) if key else None


def metric_name(results: Mapping[str, Any]) -> str:
    """What the scores of a run are called; `score` where tasks differ."""
    metrics = mapping(results.get("metrics"))
    pairs = [pair for model in ("llm", "slm") for pair in mapping(metrics.get(model)).values()]
    keys = {
        metric_key(mapping(mapping(pair).get(when))) for pair in pairs for when in ("before", "after")
    } - {None}
    only = keys.pop() if len(keys) == 1 else None
    return METRIC_NAMES.get(only, only.replace("_", " ")) if only else "accuracy" if not keys else "score"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there, or None."""
    present = [v for v in values if v is not None]
    return statistics.fmean(present) if present else None


def mean_score(by_task: object) -> float | None:
    """Mean over tasks of the scores of one model in one round."""
    return mean(score_of(score) for score in mapping(by_task).values())


def task_changes(by_task: object) -> list[Change]:
    """One change a task, from `{task: {"before": score, "after": score}}`."""
    return [_change(task, mapping(pair)) for task, pair in mapping(by_task).items()]


def client_changes(results: Mapping[str, Any]) -> list[Change]:
    """One change a client (mean over its tasks), in the order of the results."""
    clients = mapping(mapping(results.get("metrics")).get("clients"))
    return [_mean_change(client, task_changes(by_task)) for client, by_task in clients.items()]


def headline(results: Mapping[str, Any], model: str) -> Change | None:
    """Before and after of `llm` (mean over tasks) or `slm` (mean over clients); None if never measured.

    The gain and its standard error are those that the run states. A gain the run does not state is worked out
    here, with the standard error over its parts (clients, or tasks).
    """
    changes = client_changes(results) if model == "slm" else []
    clients = len(changes) or None
    changes = changes or task_changes(mapping(results.get("metrics")).get(model))
    whole = _mean_change(model, changes)
    if whole.before is None and whole.after is None:
        return None
    stated = mapping(mapping(results.get("gain")).get(model))
    gain = number(stated.get("mean"))
    stderr = number(stated.get("stderr")) if stated else standard_error([c.gain for c in changes])
    counted = stated.get("clients")
    clients = counted if isinstance(counted, int) else clients
    return Change(model, whole.before, whole.after, whole.num_examples, stderr, clients, gain)


def family_changes(results: Mapping[str, Any]) -> list[Change]:
    """One change a model family, with how many clients hold its model; none where all hold the same."""
    found = []
    for family, numbers in mapping(results.get("families")).items():
        own, stated = mapping(numbers), mapping(mapping(numbers).get("gain"))
        whole, clients = _mean_change(family, task_changes(own.get("metrics"))), own.get("clients")
        found.append(
            Change(
                family,
                whole.before,
                whole.after,
                whole.num_examples,
                number(stated.get("stderr")),
                clients if isinstance(clients, int) else None,
                number(stated.get("mean")),
            )
        )
    return found


def standard_error(values: Sequence[float | None]) -> float | None:
    """Standard error of the mean (sample standard deviation / sqrt n); None below two values."""
    present = [v for v in values if v is not None]
    return statistics.stdev(present) / math.sqrt(len(present)) if len(present) > 1 else None


def _change(name: str, pair: Mapping[str, Any]) -> Change:
    before, after = pair.get("before"), pair.get("after")
    count = mapping(after).get("n", mapping(before).get("n"))
    return Change(name, score_of(before), score_of(after), count if isinstance(count, int) else None)


def _mean_change(name: str, changes: Sequence[Change]) -> Change:
    counts = [c.num_examples for c in changes if c.num_examples is not None]
    return Change(
        name, mean(c.before for c in changes), mean(c.after for c in changes), sum(counts) if counts else None
    )
