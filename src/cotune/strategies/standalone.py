"""Every client tunes its own SLM on its own examples; nothing is shared.

Paper: FedCoLLM (https://arxiv.org/abs/2411.11707), baseline "Standalone".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cotune.plugins import PluginConfig
from cotune.protocols import Client, Parts, Reply, State, Verbs
from cotune.records import Adapter, Round

if TYPE_CHECKING:
    from cotune.models.learner import Learner


TRAINS = frozenset({"slm"})
SHARES = False
"""Clients keep what they learn, so that the server has no model that could be audited."""


class Config(PluginConfig):
    """No options."""


class Standalone:
    """Clients keep their adapters; the server learns the mean loss and nothing else."""

    trains = TRAINS

    def __init__(self, slm: Learner) -> None:
        self.slm = slm

    def init(self, seed: int) -> State:
        """The server holds no adapter."""
        return State()

    def server_round(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """Everybody tunes."""
        return state, verbs.gather("tune", None, round).losses

    def client_step(
        self, action: str, given: Sequence[Adapter | None], clients: Sequence[Client]
    ) -> list[Reply]:
        """Go on from the adapter that was kept, or from a fresh one."""
        fresh = self.slm.fresh(clients[0].round.seed)
        done = self.slm.tune_clients(clients, [client.kept or fresh for client in clients])
        return [Reply(keep=tuned.adapter, sums=tuned.sums) for tuned in done]


def build(_config: Config, parts: Parts) -> Standalone:
    """The strategy."""
    return Standalone(parts.learners["slm"])
