"""What both halves of a masked sum come to by themselves: its terms, from the configuration.

A client takes no terms from the server: it makes its own, and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from cotune.errors import CotuneError, WireError
from cotune.fixed_point import Layout
from cotune.guarding import Update
from cotune.neighbours import Plan
from cotune.protocols import TUNE
from cotune.records import Facts
from cotune.secure_messages import Terms

SECURE = "secure/"
"""`secure/keys` is the first step of a masked sum."""
STEPS = ("keys", "share", "mask", "consent", "open")
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each array, sorted by name."""
Asked = Callable[[str, int, str], Collection[str]]
"""(action, round, client) -> everybody who may be asked for it in this round with that client."""


class Settings(Protocol):
    """How sums are masked, as both sides know it from the configuration."""

    def plan(self, num_clients: int, num_asked: int) -> Plan:
        """Who masks with whom, and how many must agree."""

    def layout(self, num_clients: int, shapes: Shapes, sums: Collection[str], *, is_update: bool) -> Layout:
        """Where values stand in a sum."""

    def fitted(self, update: Update, *, is_update: bool) -> tuple[Update, bool]:
        """What may be summed in place of an update, and whether it was clipped for it."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What is to be summed, as each side knows it without the other.

    run: its fingerprint; action and round: what the clients have done; asked: all who may be in it; shapes:
    of the arrays; sums: names of numbers.
    """

    run: str
    action: str
    round: int
    asked: Collection[str] = field(repr=False)
    shapes: Shapes
    sums: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The same for all rounds."""
        return f"{self.run}/{self.action}"

    def terms(self, settings: Settings, cohort: Sequence[str], attempt: int) -> Terms:
        """The terms of a sum over `cohort`.

        Raises:
            WireError: somebody who was not to be asked, a name twice, or too few.
        """
        if strangers := set(cohort).difference(self.asked):
            raise WireError(f"{min(strangers)!r} is in the cohort, but was not to be asked in this round")
        try:
            plan = settings.plan(len(cohort), len(self.asked))
            layout = settings.layout(len(cohort), self.shapes, self.sums, is_update=self.action == TUNE)
        except CotuneError as error:
            raise WireError(str(error)) from error
        return Terms(self.name, self.round, tuple(cohort), plan, layout, attempt)


def described(wanted: Sum, terms: Terms) -> dict[str, Any]:
    """Terms as JSON, for a client to compare with its own."""
    layout = terms.layout
    return {
        "run": wanted.run,
        "action": wanted.action,
        "round": terms.round,
        "attempt": terms.attempt,
        "cohort": list(terms.cohort),
        "plan": asdict(terms.plan),
        "shapes": [[name, list(shape)] for name, shape in layout.shapes],
        "sums": list(layout.sums),
        "grid": asdict(layout.grid),
        "largest_weight": layout.largest_weight,
        "is_random": layout.is_random,
    }


def compare(told: Facts, own: Facts) -> None:
    """Refuse terms that are not those of one's own configuration."""
    for name in sorted(told.keys() | own.keys()):
        if name not in told or name not in own or told[name] != own[name]:
            raise WireError(
                f"terms with {name} {told.get(name)!r:.80}; expected {own.get(name)!r:.80}. The YAML of the "
                "server and of this client must be the same."
            )
