"""Settings of teaching by reasoning paths: how they are written, who learns from them, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from cotune.endpoint_settings import EndpointSettings
from cotune.plugins import PluginConfig


def _pattern(text: str) -> str:
    from cotune.scrub import compiled  # here, so that the command line starts fast

    try:
        compiled(text)
    except ValueError as error:
        raise PydanticCustomError("pattern", "The pattern {why}", {"why": str(error)}) from error
    return text


class TeachConfig(PluginConfig):
    """How models teach each other by reasoning paths, where an `allocator` says by which items (LaDa)."""

    beta: float = Field(0.1, gt=0, description="how fast a margin counts as learned; LaDa's is not known")
    gamma: float = Field(0.0, ge=0, description="weight of the preferred path's own cross-entropy")
    guard: bool = Field(True, description="only paths that end on the right answer teach; off: as printed")
    probe: int = Field(0, ge=0, description="items, a tenth at most, that only measure; for LaDa's rewards")
    path_tokens: int = Field(256, gt=0, description="longest path")
    temperature: float = Field(0.0, ge=0, description="of the paths; 0: the likeliest token each time")
    epochs: float = Field(
        1.0, ge=0, description="passes over a round's lessons; 0: paths are traded, nobody learns from them"
    )
    batch_size: int | None = Field(None, gt=0, description="pairs of paths; the model's own by default")
    slm_lr: float | None = Field(None, gt=0, description="of the lessons; slm.tune.lr by default")
    llm_lr: float | None = Field(None, gt=0, description="of the lessons; llm.tune.lr by default")
    prepare: float = Field(
        0.0, ge=0, description="passes over the public rationales before round 1, by both models"
    )
    slm_prepare: float | None = Field(
        None,
        ge=0,
        description="the SLMs' own, as prepare by default; 0: only the LLM has read the rationales",
    )
    private_paths: bool = Field(
        True, description="clients tune on the rationales of their examples too; false: never use them"
    )
    scrub: list[Annotated[str, AfterValidator(_pattern)]] = Field(
        [], description="regular expressions; what they match never leaves a client"
    )
    max_chars: int = Field(2000, ge=64, description="longest path that is sent, in characters")
    teacher: EndpointSettings | None = Field(
        None, description="a chat endpoint that writes paths in place of the LLM, which then learns nothing"
    )
