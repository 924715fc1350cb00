"""Clients tune SLM adapters, the server averages them, then LLM and SLM teach each other on the public set.

Paper: Fan et al. 2024 (FedCoLLM), https://arxiv.org/abs/2411.11707, equations (4) to (6) and its algorithm.
The authors' code cannot run; where it departs from the paper (sequential update, unshifted mask, summed
divergence, clients that never receive the co-tuned adapter) the paper is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from cotune import plugins
from cotune.plugins import PluginConfig
from cotune.protocols import Client, Parts, Reply, State, Verbs
from cotune.records import Adapter, Round

if TYPE_CHECKING:
    from cotune.models.learner import Learner
    from cotune.models.mutual import Divergence


TRAINS = frozenset({"slm", "llm"})
UPDATES = True
"""Its clients send back what they made of an adapter, which guards may watch over."""
TEACHABLE = True
"""Clients tune the adapter that they are sent, so they can be taught before it."""
DISTILS = True
"""Its models teach each other, which a gate may lower."""


class Config(PluginConfig):
    """Options of FedCoLLM."""

    distill_weight: float = Field(1.0, ge=0, description="lambda of equation (6); 0: labels only")
    temperature: float = Field(1.0, gt=0, description="softens both sides of the divergence")
    loss: str = Field("forward_kl", description="divergence of a position, one of losses/")
    top_k: int | None = Field(
        None, gt=0, description="send k logits and the rest of the mass; all by default"
    )
    public_epochs: float = Field(
        1.0, ge=0, description="R of the paper, in passes over the public set; 0: FedAvg"
    )
    public_lr: float | None = Field(
        None, gt=0, description="the SLM's lr on the public set; slm.tune.lr by default"
    )
    weights: Literal["equal", "examples"] = Field("equal", description="how much a client counts in the mean")

    @field_validator("loss")
    @classmethod
    def _has_a_value_at_each_position(cls, name: str) -> str:
        plugins.require_kind("loss", name, "divergence", "strategy.loss")
        return name


class FedCoLLM:
    """Server: `server_round`. Client: `client_step`. The SLM adapter is the only bridge."""

    trains = TRAINS

    def __init__(self, config: Config, parts: Parts, divergence: Divergence) -> None:
        self.config, self.public = config, parts.public
        self.slm, self._llm = parts.learners["slm"], parts.learners.get("llm")
        self.divergence = divergence

    @property
    def llm(self) -> Learner:
        """The LLM, which only the server has."""
        assert self._llm is not None
        return self._llm

    def init(self, seed: int) -> State:
        """Fresh adapters theta (SLM) and omega (LLM)."""
        return State(slm=self.slm.fresh(seed), llm=self.llm.fresh(seed))

    def server_round(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """Steps 1 to 5 of the algorithm; without replies nothing changes."""
        gathered = verbs.gather("tune", state.slm, round)
        if gathered.adapter is None:
            return state, {}
        state, losses = self.co_tune(state.replace(slm=gathered.adapter), round, verbs)
        return state, {**gathered.losses, **losses}

    def client_step(
        self, action: str, given: Sequence[Adapter | None], clients: Sequence[Client]
    ) -> list[Reply]:
        """Step 2: the task loss l_TA on the client's own examples."""
        done = self.slm.tune_clients(clients, [adapter for adapter in given if adapter])
        equal = self.config.weights == "equal"
        return [
            Reply(tuned.adapter, 1.0 if equal else float(client.num_examples), tuned.sums)
            for tuned, client in zip(done, clients, strict=True)
        ]

    def co_tune(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """Step 4: both adapters step on the same public batch, each with the peer as it was before it."""
        from cotune.models.mutual import Mutual

        assert state.slm is not None
        assert state.llm is not None
        batches = self.llm.batches(self.public, self.config.public_epochs, round.rng("public"))
        if not batches:
            return state, {}
        how = replace(self.divergence, weight=self.divergence.weight * state.distil)
        mutual = Mutual(self.llm, self.slm, how, (state.llm, state.slm), (len(batches), round.span))
        for step, batch in enumerate(batches):
            losses = mutual.step(batch)
            tokens = losses.pop("tokens")
            verbs.progress("co-tune", step + 1, len(batches), tokens=tokens, **_named(losses))
        llm, slm, means = mutual.finish()
        return state.replace(llm=llm, slm=slm), means


def _named(losses: Mapping[str, float]) -> dict[str, float]:
    return {f"loss_{name}": value for name, value in losses.items()}


def _try(loss: Callable[..., object], top_k: int | None) -> None:
    """Let a divergence that cannot use such a signal say so before anything is trained."""
    import torch

    from cotune.models.head import signal

    logits = torch.zeros(1, 3)
    loss(logits, signal(logits, 1.0, top_k and min(top_k, 2)), 1.0)


def build(config: Config, parts: Parts) -> FedCoLLM:
    """The strategy, with the divergence that the configuration names."""
    from cotune.models.causal_lm import check_vocabularies, same_vocabulary
    from cotune.models.mutual import Divergence

    llm, slm = parts.learners.get("llm"), parts.learners["slm"]
    weight, temperature, top_k = config.distill_weight, config.temperature, config.top_k
    if llm and weight > 0 and parts.num_families > 1 and not same_vocabulary(llm.lm, slm.lm):
        parts.note(f"{slm.name} has another vocabulary than the LLM: they co-tune on labels, without logits")
        weight = 0.0
    if llm and weight > 0:
        check_vocabularies(llm.lm, slm.lm)
    loss = plugins.module("loss", config.loss).loss
    _try(loss, top_k)
    return FedCoLLM(config, parts, Divergence(loss, weight, temperature, top_k, config.public_lr))
