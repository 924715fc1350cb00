"""Clients tune one shared SLM adapter; the server averages it. There is no LLM.

Paper: McMahan et al. 2017, https://arxiv.org/abs/1602.05629, on LoRA adapters: FedCoLLM's baseline "FedAvg".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Client, Parts, Reply, State, Verbs
from cotune.records import Adapter, Round

if TYPE_CHECKING:
    from cotune.models.learner import Learner


TRAINS = frozenset({"slm"})
UPDATES = True
"""Its clients send back what they made of an adapter, which guards may watch over."""
TEACHABLE = True
"""Clients tune the adapter that they are sent, so they can be taught before it."""


class Config(PluginConfig):
    """Options of FedAvg."""

    weights: Literal["equal", "examples"] = Field("equal", description="how much a client counts in the mean")


class FedAvg:
    """A and B of the adapter are averaged separately, as all published LoRA versions do."""

    trains = TRAINS

    def __init__(self, config: Config, slm: Learner) -> None:
        self.config, self.slm = config, slm

    def init(self, seed: int) -> State:
        """One fresh adapter, the same for everybody."""
        return State(slm=self.slm.fresh(seed))

    def server_round(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """The mean of the clients' adapters is the new one; without replies the old one stays."""
        gathered = verbs.gather("tune", state.slm, round)
        return state.replace(slm=gathered.adapter or state.slm), gathered.losses

    def client_step(
        self, action: str, given: Sequence[Adapter | None], clients: Sequence[Client]
    ) -> list[Reply]:
        """Tune the shared adapter on the client's own examples."""
        done = self.slm.tune_clients(clients, [adapter for adapter in given if adapter])
        return [
            Reply(tuned.adapter, weight_of(client, self.config.weights), tuned.sums)
            for tuned, client in zip(done, clients, strict=True)
        ]


def weight_of(client: Client, weights: str) -> float:
    """1, or the number of the client's examples."""
    return float(client.num_examples) if weights == "examples" else 1.0


def build(config: Config, parts: Parts) -> FedAvg:
    """The strategy."""
    return FedAvg(config, parts.learners["slm"])
