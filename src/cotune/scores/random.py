"""A number drawn at random for each example: the yardstick of every other score.

Origin: the random baseline of FedHDS, https://arxiv.org/abs/2410.10926 and of most papers on data selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cotune.plugins import PluginConfig
from cotune.protocols import Pool, Reader
from cotune.ranking import LocalScore

if TYPE_CHECKING:
    from cotune.ranking import Scores

NEEDS: frozenset[str] = frozenset()


class Config(PluginConfig):
    """No options."""


def drawn(pools: Sequence[Pool], _reader: Reader) -> list[Scores]:
    """Uniform in [0, 1)."""
    return [pool.rng.random(len(pool.examples)) for pool in pools]


def build(_config: Config) -> LocalScore:
    """The score."""
    return LocalScore(drawn)
