"""The examples that a model calls worth learning from.

Paper: Sachdeva et al. 2024 (Ask-LLM), https://arxiv.org/abs/2402.09668, with a question of our own.
"""

from __future__ import annotations

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of Ask-LLM."""

    keep: float = Field(0.1, gt=0, le=1, description="share of each client's examples, surest first")
    task: str = Field("following instructions", min_length=1, description="what the examples shall teach")
    every: int = Field(0, ge=0, description="rounds between two readings; 0: only once")
    model: str = Field(
        "slm", description="which model is asked: slm as it is trained, or the name of a frozen one"
    )


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    policies = (("top_k", {"keep": config.keep}),)
    return Scored(Recipe("ask_llm", {"task": config.task}, policies, config.every, config.model), parts)
