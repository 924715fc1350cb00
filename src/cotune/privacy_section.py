"""What the report says about privacy: what masks and noise promise, and how rounds ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cotune.changes import mapping, number

Record = Mapping[str, Any]

NO_PROMISE = (
    "No noise was added to anything that clients sent: this run promises no differential privacy. Sums over "
    "few clients, and what is sent in the clear, can tell about single examples."
)


def privacy_values(results: Record, rounds: Sequence[Record]) -> dict[str, Any]:
    """The sentence on noise, the one on masks, bytes of a value, and the rounds that did not end full."""
    said = mapping(results.get("privacy")).get("statement")
    if not said and results.get("example_privacy"):
        said = "No noise hides a whole client."
    return {
        "statement": said if isinstance(said, str) else NO_PROMISE,
        "is_private": isinstance(said, str),
        "of_examples": [
            str(mapping(one).get("statement")) for one in mapping(results.get("example_privacy")).values()
        ],
        "masks": _masks(mapping(results.get("secure_sum")), rounds),
        "bytes": _bytes_a_value(results, rounds),
        "stop": next((reason for reason in map(_stop, rounds) if reason), ""),
        "rounds": [_ending(record) for record in rounds if record.get("status") in ("partial", "failed")],
    }


def _masks(secure: Record, rounds: Sequence[Record]) -> str:
    """How sums were masked, in words; empty if they were not."""
    if not secure:
        return ""
    plans = [mapping(plan) for record in rounds for plan in _list(record.get("masked"))]
    if not plans:
        return "Sums were to be masked; none was made in this run."
    fewest = min((number(plan.get("in_the_sum")) or 0 for plan in plans), default=0)
    over = f", over {fewest:.0f} clients or more in this run"
    neighbours, least, corrupt = (_count(secure, name) for name in ("num_neighbours", "fewest", "corrupt"))
    return (
        f"Masked: the server could open sums only{over}. Each client masks with {neighbours} others, and a "
        f"sum of fewer than {least} clients stays closed; up to {corrupt} of them may tell the server all "
        f"they know. Values are rounded to steps of {number(secure.get('step')) or 0:.2g}."
    )


def _count(secure: Record, name: str) -> str:
    value = number(secure.get(name))
    return "?" if value is None else f"{value:.0f}"


def _bytes_a_value(results: Record, rounds: Sequence[Record]) -> str:
    """Bytes that came up in sums for one value of one client's update; empty where it cannot be known."""
    values = number(results.get("update_values"))
    updates = sum(number(record.get("num_updates")) or 0 for record in rounds)
    sent = number(mapping(results.get("traffic")).get("gathered_bytes"))
    return f"{sent / (values * updates):.2f}" if values and updates and sent else ""


def _stop(record: Record) -> str:
    return str(mapping(record.get("privacy")).get("stop") or "")


def _ending(record: Record) -> tuple[str, str, str]:
    return str(record.get("round", "")), str(record.get("status", "")), str(record.get("reason", ""))


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
