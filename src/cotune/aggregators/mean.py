"""Weighted mean of adapters, array by array, added up in float64.

Paper: McMahan et al. 2017, https://arxiv.org/abs/1602.05629 (FedAvg); FedCoLLM algorithm, step 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cotune.plugins import PluginConfig
from cotune.records import Array


class Config(PluginConfig):
    """No options."""


class Mean:
    """sum_k w_k theta_k / sum_k w_k. The server process sees single updates while it adds them."""

    def fold(self, updates: Iterable[tuple[Mapping[str, Array], float]]) -> dict[str, Array]:
        """Mean of arrays by name, in each array's own type."""
        import numpy as np  # here, so that reading `Config` starts fast

        total: dict[str, Array] = {}
        kinds: dict[str, Any] = {}
        weights = 0.0
        for arrays, weight in updates:
            weights += weight
            for name, array in arrays.items():
                kinds[name] = array.dtype
                part = np.multiply(array, weight, dtype=np.float64)
                total[name] = total[name] + part if name in total else part
        return {name: (array / weights).astype(kinds[name]) for name, array in total.items()}


def build(_config: Config) -> Mean:
    """The aggregator."""
    return Mean()
