"""What the server half of every selector shares: when it is due, and which counts of a pick are believed."""

from __future__ import annotations

from collections.abc import Sequence

from cotune.protocols import Verbs
from cotune.records import Message, Round


def is_due(every: int, round: Round) -> bool:
    """Before round 1, and then every so many rounds; 0: never again."""
    return round.index == 1 if every == 0 else (round.index - 1) % every == 0


def counts(replies: Sequence[Message], verbs: Verbs) -> dict[str, int]:
    """How many examples each client says it has chosen; what cannot be is refused."""
    found = {}
    for reply in replies:
        problem = problem_of(reply)
        if problem:
            verbs.refuse(reply, problem)
        else:
            found[reply.client] = int(reply.facts["selected"])
    return found


def problem_of(reply: Message) -> str | None:
    """Why a client's counts cannot be; None where they can."""
    selected, total = (reply.facts.get(name) for name in ("selected", "total"))
    if type(selected) is int and type(total) is int and 0 <= selected <= total:
        return None
    return f"selected {selected!r:.40} of {total!r:.40}; expected whole numbers, 0 <= selected <= total"
