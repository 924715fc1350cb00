"""Who is asked in a round: drawn from the run's seed, so that who knows the configuration knows it too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cotune.records import derived_rng

SELECTING = "select/"
LEARNING = "teach/learn"
"""What lessons were worth is added up over all families at once."""


def drawn(seed: int, index: int, clients: Sequence[str], fraction: float) -> tuple[str, ...]:
    """The cohort of a round, sorted: a share of the clients, one at least; before round 1 everybody."""
    everybody = tuple(sorted(clients))
    size = max(1, round(fraction * len(everybody)))
    if index == 0 or size >= len(everybody):
        return everybody
    picked = derived_rng(seed, "cohort", str(index)).choice(len(everybody), size, replace=False)
    return tuple(everybody[i] for i in sorted(picked))


@dataclass(frozen=True, slots=True)
class Asked:
    """Who may be in a sum with a client; families: names of those that hold the same model, by family."""

    seed: int
    fraction: float
    families: Mapping[str, Sequence[str]]

    def __call__(self, action: str, index: int, client: str) -> Collection[str]:
        """Of its family, the cohort of the round; everybody of it where examples are chosen."""
        family = next((found for found in self.families.values() if client in found), ())
        if action.startswith(SELECTING):
            return tuple(sorted(family))
        everybody = [name for found in self.families.values() for name in found]
        cohort = set(drawn(self.seed, index, everybody, self.fraction))
        return tuple(sorted(cohort.intersection(everybody if action == LEARNING else family)))
