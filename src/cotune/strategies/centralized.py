"""The upper line: clients give up their private examples, the LLM is tuned on them and the public set.

Paper: FedCoLLM (https://arxiv.org/abs/2411.11707), baseline "Centralized". The private text crosses in the
clear, and the report says so: this strategy exists to compare with, not to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cotune.plugins import PluginConfig
from cotune.protocols import Client, Parts, Reply, State, Verbs
from cotune.records import Adapter, Example, Round, readable

if TYPE_CHECKING:
    from cotune.models.learner import Learner


TRAINS = frozenset({"llm"})
ACTIONS = frozenset({"upload"})
"""What clients are asked for, where it is not to tune."""


class Config(PluginConfig):
    """No options."""


class Centralized:
    """One model, all data."""

    trains = TRAINS

    def __init__(self, llm: Learner, public: Sequence[Example]) -> None:
        self.llm, self.public = llm, public

    def init(self, seed: int) -> State:
        """A fresh LLM adapter."""
        return State(llm=self.llm.fresh(seed))

    def server_round(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """One round of the same tuning that clients do, on everybody's examples, if there are any."""
        replies = verbs.ask("upload", None, round)
        examples: list[Example] = []
        for reply in replies:
            try:
                examples += map(_example, reply.facts["examples"])
            except (KeyError, TypeError, ValueError):
                verbs.refuse(reply, "examples: expected rows with the fields of an example")
        examples += self.public
        if not examples:
            return state, {}
        server = Client("server", examples, round)
        if state.llm is None:
            raise ValueError("a state of another strategy was given to centralized")
        [tuned] = self.llm.tune_clients([server], [state.llm])
        return state.replace(llm=tuned.adapter), {"llm": tuned.loss}

    def client_step(
        self, action: str, given: Sequence[Adapter | None], clients: Sequence[Client]
    ) -> list[Reply]:
        """Hand over the examples."""
        return [Reply(facts={"examples": [asdict(e) for e in client.examples]}) for client in clients]


def _example(row: Mapping[str, Any]) -> Example:
    """An example out of JSON values, each of the type it must have."""
    texts = {name: row[name] for name in ("id", "prompt", "completion", "rationale", "domain")}
    choices, answer = row["choices"], row["answer_idx"]
    fits = all(isinstance(text, str) for text in [*texts.values(), *choices])
    if not fits or not (answer is None or isinstance(answer, int)) or len(row) != len(texts) + 2:
        raise TypeError("a field of an example has another type")
    texts = {name: readable(text) for name, text in texts.items()}
    return Example(**texts, choices=tuple(map(readable, choices)), answer_idx=answer)


def build(_config: Config, parts: Parts) -> Centralized:
    """The strategy."""
    return Centralized(parts.learners["llm"], parts.public)
