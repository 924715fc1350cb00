"""Cherry's rule, read by a small frozen model instead of the one that is trained.

Paper: Li et al. 2024 (Superfiltering), https://arxiv.org/abs/2402.00530: ratio of perplexities under GPT-2.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of Superfiltering."""

    keep: float = Field(0.05, gt=0, le=1, description="share of the examples whose IFD is at most 1")
    model: str = Field("gpt2", description="the small frozen model that reads; slm: the clients' own")


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    policies: tuple[tuple[str, dict[str, Any]], ...] = (("cut_at_one", {}), ("top_k", {"keep": config.keep}))
    return Scored(Recipe("ifd", {"ratio": "perplexity"}, policies, model=config.model), parts)
