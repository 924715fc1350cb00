"""Settings that all audits share: how often one observes in a run, who judges, and what follows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from cotune.endpoint_settings import EndpointSettings
from cotune.plugins import PluginConfig

NAME, ENDPOINT = "a name", "an endpoint"


def _kind(model: Any) -> str:
    return NAME if isinstance(model, str) else ENDPOINT


Helper = Annotated[
    Annotated[str, Tag(NAME)] | Annotated[EndpointSettings, Tag(ENDPOINT)], Discriminator(_kind)
]
"""A model that is asked and is not under audit. Told apart first, so that a mistake is named once."""


class AuditConfig(PluginConfig):
    """Options that every audit has."""

    every: int = Field(1, gt=0, description="rounds between two observations in a run; also before and after")


class AuditingConfig(PluginConfig):
    """What all audits of a run share."""

    judge: Helper | None = Field(
        None, description="who compares answers: a model's name, or an endpoint; without one there is no RSE"
    )
    force_judge: bool = Field(False, description="let a model under test judge")
    mutator: Helper | None = Field(None, description="who rewrites the templates of ICE")
    unrelated: str | None = Field(None, description="a model that has nothing to do with these: lower anchor")
    prompts: list[str] = Field([], description="files or hub ids, a set each; our own small sets by default")


class GatesConfig(PluginConfig):
    """What is done when an audit says that teaching went too far; defaults as in the reference design.

    `lower` halves what models are taught of each other, `stop` ends the run with what it has.
    """

    similarity: float = Field(
        0.1, gt=0, description="growth since the start, as a share of the scale: 0.1 is 0.4 points of RSE"
    )
    min_gain: float = Field(
        0.01, ge=0, description="growth is forgiven where the task gained this since the last audit"
    )
    identity: float = Field(0.02, gt=0, description="growth of the strict share of ICE since the start")
    factor: float = Field(0.5, ge=0, lt=1, description="`lower` multiplies the weight of distillation by it")
    on_similarity: Literal["lower", "stop", "off"] = "lower"
    on_identity: Literal["lower", "stop", "off"] = "lower"
    on_canary: Literal["lower", "stop", "off"] = "stop"
