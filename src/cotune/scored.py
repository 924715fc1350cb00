"""A selector out of one score and some policies; every named preset is one recipe of these.

Origin: most published data selectors are one number for each example and one rule that makes rows of numbers.

A score that clients compute on their own reads the clients' present model, adapter included. One that is
summed over clients first (`template`) reads the bare model, so that all clients and rounds can be compared;
its sum travels to the clients in the place of the adapter. With it the clients add up which model they read
with, in a form that shows no more than whether all agree: features of different models cannot be summed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, runtime_checkable

from pydantic import model_validator

from cotune import mistakes, picking, plugins
from cotune.config import PluginSpec
from cotune.errors import DataError, RunError
from cotune.protocols import (
    Client,
    Given,
    Policy,
    Pool,
    Reader,
    Reply,
    Score,
    SelectorParts,
    Stage,
    State,
    Verbs,
)
from cotune.records import Adapter, Array, Round

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores


@dataclass(frozen=True, slots=True)
class Recipe:
    """A score, the policies that follow one another, how often, and which model is read.

    every: 0 once, 1 before each round, n before every n-th; a policy with times of its own (`Timed`) decides
    instead. model: `slm` is the clients' own model as it is trained; any other name is a frozen one.
    """

    score: str
    options: Mapping[str, Any] = field(default_factory=dict)
    policies: tuple[tuple[str, Mapping[str, Any]], ...] = (("everything", {}),)
    every: int = 0
    model: str = "slm"


MODEL = "model"
"""Under this name the readers' fingerprints are added up; see `fingerprint_digits`."""


@runtime_checkable
class Timed(Protocol):
    """A policy that knows when it must choose anew."""

    def due(self, round: int, num_rounds: int) -> bool:
        """Whether it does before this round."""


class NoReader:
    """Stands where a score said that it needs no model."""

    def __init__(self, score: str) -> None:
        self.score = score

    @property
    def fingerprint(self) -> str:
        """Of no weights."""
        return ""

    def mount(self, adapter: Adapter | None) -> None:
        """Nothing to mount on."""

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> NoReturn:
        """Refused."""
        self._refuse("log_probs")

    def features(
        self, texts: Sequence[str], dimensions: int | None, seed: int, *, together: bool = False
    ) -> NoReturn:
        """Refused."""
        self._refuse("features")

    def _refuse(self, what: str) -> NoReturn:
        raise RunError(
            f"score {self.score!r}: asked for {what}, which its NEEDS does not name. Add it there."
        )


class Scored:
    """See the module."""

    def __init__(self, recipe: Recipe, parts: SelectorParts) -> None:
        self.recipe, self.parts = recipe, parts
        self.needs: frozenset[str] = plugins.module("score", recipe.score).NEEDS
        self.score: Score = plugins.load("score", recipe.score, recipe.options)
        self.policies: list[Policy] = [plugins.load("policy", name, opts) for name, opts in recipe.policies]
        self.timed = [policy for policy in self.policies if isinstance(policy, Timed)]
        self.asks_all = bool(self.timed) or recipe.every != 1
        self._template = self.score.template()

    def is_due(self, round: Round) -> bool:
        """By the policies' own times, else by `every`."""
        if self.timed:
            return any(policy.due(round.index, round.num_rounds) for policy in self.timed)
        return picking.is_due(self.recipe.every, round)

    def server_select(self, state: State, round: Round, verbs: Verbs) -> dict[str, int]:
        """Sum what the score shares, if anything; then every client picks."""
        sent = state.slm if self._reads and self.recipe.model == "slm" else None
        if self._template:
            arrays = {**self._template, MODEL: 0 * fingerprint_digits("")}
            empty = Adapter(arrays, f"score:{self.recipe.score}", 1, 1.0)
            gathered = verbs.gather("share", empty, round)
            if gathered.adapter is None:
                return {}
            total = summed(gathered.adapter.arrays, gathered.num_replies)
            refuse_other_models(total.pop(MODEL), self.recipe)
            sent = gathered.adapter.with_arrays(total)
        return picking.counts(verbs.ask("pick", sent, round), verbs)

    def client_step(self, action: str, given: Sequence[Given], clients: Sequence[Client]) -> list[Reply]:
        """`share`: arrays to be summed. `pick`: the rows to train on."""
        self._check_completions(clients)
        pools = [Pool(client.examples, client.rng("score"), self.parts.progress) for client in clients]
        adapter = given[0].adapter if given else None
        if action == "share":
            reader = self._reader(None)
            arrays, model = self.score.share(pools, reader), fingerprint_digits(reader.fingerprint)
            return [
                Reply(got.adapter and got.adapter.with_arrays({**mine, MODEL: model}))
                for got, mine in zip(given, arrays, strict=True)
            ]
        if action != "pick":
            raise RunError(
                f"selector of score {self.recipe.score!r}: asked for {action!r}; it knows share and pick."
            )
        shared = adapter.arrays if adapter and self._template else {}
        reader = self._reader(None if self._template else adapter)
        scores = self.score.score(pools, reader, shared)
        return [self._pick(client, mine) for client, mine in zip(clients, scores, strict=True)]

    @property
    def _reads(self) -> bool:
        return bool(self.needs & {"log_probs", "features"})

    def _reader(self, adapter: Adapter | None) -> Reader:
        if not self._reads:
            return NoReader(self.recipe.score)
        reader = self.parts.reader(self.recipe.model)
        reader.mount(adapter)
        return reader

    def _pick(self, client: Client, scores: Scores) -> Reply:
        stage = Stage(client.round.index, client.round.num_rounds, client.rng("policy"), client.used)
        rows = chain(self.policies, scores, stage)
        facts = {"selected": len(rows), "total": len(client.examples)}
        return Reply(facts=facts, memo={"scores": scores}, chosen=rows.tolist())

    def _check_completions(self, clients: Sequence[Client]) -> None:
        if "completion" not in self.needs:
            return
        empty = [e.id for client in clients for e in client.examples if not e.completion.strip()]
        if not empty:
            return
        works = [n for n in plugins.names("score") if "completion" not in plugins.module("score", n).NEEDS]
        named = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
        raise DataError(
            f"score {self.recipe.score!r}: {len(empty)} examples have no answer ({named}), which it reads. "
            f"Fill them in, leave them out, or use a score that needs none: {', '.join(works)}."
        )


def chain(policies: Sequence[Policy], scores: Scores, stage: Stage) -> Rows:
    """Rows of `scores` [n]: each policy chooses among those that the one before it chose."""
    import numpy as np

    def further(rows: Rows, policy: Policy) -> Rows:
        used = {index: np.flatnonzero(np.isin(rows, chosen)) for index, chosen in stage.used.items()}
        return rows[policy.choose(scores[rows], replace(stage, used=used))]

    return reduce(further, policies, np.arange(len(scores), dtype=np.int64))


def summed(means: Mapping[str, Array], num_replies: int) -> dict[str, Array]:
    """Sums of whole numbers, from their means over so many replies."""
    import numpy as np

    return {name: np.rint(mean * num_replies) for name, mean in means.items()}


def fingerprint_digits(fingerprint: str) -> Array:
    """The first eight hexadecimal digits of a model's hash, each as a row of one 1 and fifteen 0, [8, 16]."""
    import numpy as np

    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
    return np.eye(16)[[int(digit, 16) for digit in digest]]


def refuse_other_models(digits: Array, recipe: Recipe) -> None:
    """Accept a sum of `fingerprint_digits` over clients if all of them are the same, [8, 16].

    Raises:
        RunError: clients read with different models.
    """
    total, most = int(digits[0].sum()), int(digits.max(axis=1).min())
    if most == total:
        return
    raise RunError(
        f"selector of score {recipe.score!r}: of {total} clients at least {total - most} read with another "
        "model than the others; expected one model, for features of different models cannot be summed. "
        "Give every client the same slm.model, or name one frozen model for all: selector.model."
    )


class ScoreSpec(PluginSpec):
    """A score's name and options, checked and filled in."""

    slot: ClassVar[str] = "score"

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, data: Any) -> Any:
        data = {"name": data} if isinstance(data, str) else data
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            return data
        name, options = data["name"], {key: value for key, value in data.items() if key != "name"}
        return {"name": name, **filled(cls.slot, name, options)}


class PolicySpec(ScoreSpec):
    """A policy's name and options, checked and filled in."""

    slot: ClassVar[str] = "policy"


def filled(slot: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a plug-in, defaults included.

    Raises:
        ValueError: there is no such plug-in or option, or a value is wrong; says which.
    """
    problems = mistakes.of_plugin(slot, {**options, "name": name}, name)
    if problems:
        raise ValueError("; ".join(problems))
    return plugins.config_class(slot, name).model_validate(options).model_dump(mode="json")
