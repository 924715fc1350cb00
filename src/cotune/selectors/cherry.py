"""The examples in which the prompt helps least, as long as it helps at all.

Paper: Li et al. 2023 (Cherry), https://arxiv.org/abs/2308.12032, by its first code: ratio of losses, the lone
answer after "### Response:", nothing above 1, the highest 5 percent of the rest; without the warm-up,
which the authors dropped later.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored


class Config(PluginConfig):
    """Options of Cherry."""

    keep: float = Field(0.05, gt=0, le=1, description="share of the examples whose IFD is at most 1")
    ratio: Literal["loss", "perplexity"] = Field(
        "loss", description="what is divided: the first code, or the later one"
    )
    alone: str = Field(
        "### Response:", description="text before the answer when it is read alone; empty: start token"
    )
    every: int = Field(0, ge=0, description="rounds between two readings; 0: only once")
    model: str = Field(
        "slm", description="which model reads: slm as it is trained, or the name of a frozen one"
    )


def build(config: Config, parts: SelectorParts) -> Scored:
    """The selector."""
    options = {"ratio": config.ratio, "alone": config.alone}
    policies: tuple[tuple[str, dict[str, Any]], ...] = (("cut_at_one", {}), ("top_k", {"keep": config.keep}))
    return Scored(Recipe("ifd", options, policies, config.every, config.model), parts)
