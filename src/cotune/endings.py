"""How a round ended, in words: full, partial or failed; and what went wrong with whom."""

from __future__ import annotations

from collections.abc import Sequence

from cotune.records import Failure

KINDS = ("late", "crashed", "rejected", "out-of-memory")
NAMED = 20
"""Clients that are named; the others are counted."""


def outcome(asked: int, usable: int, minimum: int, failures: Sequence[Failure] = ()) -> tuple[str, str]:
    """How a round ended, and why in words: full, partial, or failed if it changed nothing.

    Args:
        asked: clients that were asked to train.
        usable: replies of theirs that count.
        minimum: replies without which a round changes nothing.
        failures: what went wrong in the round.
    """
    if not asked:
        return "failed", "nobody was asked: no client of the cohort had anything to train on"
    said = f"{usable} of {asked} replies count"
    by_kind = {kind: sorted({f.client for f in failures if f.kind == kind}) for kind in KINDS}
    why = [f"{kind}: {names(clients)}" for kind, clients in by_kind.items() if clients]
    reason = "; ".join([said, *why])
    if usable < minimum:
        return "failed", f"{reason}; at least {minimum} are needed"
    if usable < asked:
        return "partial", reason
    return "full", reason


def kind_of(error: BaseException) -> str:
    """The word for a client whose step ended with an error: out-of-memory, or crashed."""
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "out-of-memory" if is_memory or "out of memory" in str(error).lower() else "crashed"


def names(clients: Sequence[str], count: int | None = None) -> str:
    """A list of clients that does not become too long; `count`: how many they are, if not all are listed."""
    more = (len(clients) if count is None else count) - len(clients[:NAMED])
    return ", ".join(clients[:NAMED]) + (f" and {more} more" if more > 0 else "")
