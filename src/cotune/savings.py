"""What choosing examples cost and what it saved, round by round and over a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cotune.selection import Counts, Selection

Record = dict[str, Any]

CROSSES = {
    "propose": "mean features of groups of examples (of a group of one, that example's own), the groups' "
    "numbers, how many examples there are, and which model read them",
    "pick": "which groups won, or the sum that was shared, down; how many examples were chosen, up",
    "share": "tables of counts, and of which model read them, added up over clients",
}
"""What a selector's step sends, in words."""

LISTED = 1000
"""Clients that results.json lists; rounds.jsonl has them all."""


def round_record(
    found: Selection, cohort: Sequence[str], totals: Counts, tuning: tuple[float, float]
) -> Record:
    """What a round's line in rounds.jsonl says about selection.

    Args:
        found: what is in use.
        cohort: who was drawn for the round, whether or not it has anything to train on.
        totals: examples of each client.
        tuning: seconds of local tuning in this round, and the passes over the chosen examples in it.
    """
    chosen = sum(found.counts.get(client, 0) for client in cohort)
    seconds, passes = tuning
    whose = found.answers if found.is_new else found.counts
    of_all = sum(totals[client] for client in whose if client in totals)
    return {
        "renewed": found.is_new,
        "chosen": chosen,
        "total": sum(totals[client] for client in cohort),
        "sat_out": [client for client in cohort if not found.counts.get(client)],
        "seconds": found.seconds,
        "tune_seconds": seconds,
        "epoch_seconds": seconds / passes * of_all / chosen if chosen and seconds else None,
        "crossed": list(found.crossed),
        "waiting": [list(clients) for clients in found.waiting],
        **({"counts": dict(found.answers)} if found.is_new or found.answers else {}),
    }


def warning(record: Mapping[str, Any]) -> str:
    """A sentence with both numbers if choosing took longer than one epoch of the training it replaces."""
    seconds, epoch = record["seconds"], record["epoch_seconds"]
    if not epoch or seconds <= epoch:
        return ""
    return (
        f"choosing took {seconds:.1f} s, one epoch of training on all examples about {epoch:.1f} s: "
        "choose less often (selector.every), with a smaller model, or train on everything"
    )


def in_use(rounds: Sequence[Mapping[str, Any]]) -> Selection:
    """What was in use when a run stopped, and who had not answered by then."""
    lines = [record["selection"] for record in rounds if record.get("selection")]
    counts = {client: count for line in lines for client, count in line.get("counts", {}).items()}
    return Selection(counts, lines[-1].get("waiting", ()) if lines else ())


def summary(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], totals: Counts) -> Record:
    """The part `selection` of results.json.

    `chosen` and `total` count an example in every round in which it was or would have been trained on;
    `clients` is what each of the first `LISTED` has in use at the end, and `num_clients` how many there are;
    `cut` are the different examples that were longer than the model that read them reads, since the run was
    last started or resumed.
    """
    lines = [record["selection"] for record in rounds if record.get("selection")]
    found = in_use(rounds)
    counts = {client: 0 for clients in found.waiting for client in clients} | dict(found.counts)
    saved = [(line["total"] / line["chosen"] - 1) * line["tune_seconds"] for line in lines if line["chosen"]]
    crossed = _crossed(lines)
    warnings = dict.fromkeys(filter(None, map(warning, lines)))
    epochs = [line["epoch_seconds"] for line in lines if line["epoch_seconds"]]
    return {
        "selectors": list(names),
        "clients": {c: {"total": totals.get(c, 0), "chosen": counts[c]} for c in list(counts)[:LISTED]},
        "num_clients": len(counts),
        "total": sum(line["total"] for line in lines),
        "chosen": sum(line["chosen"] for line in lines),
        "sat_out": sum(len(line["sat_out"]) for line in lines),
        "seconds": sum(line["seconds"] for line in lines),
        "seconds_longest": max((line["seconds"] for line in lines), default=0.0),
        "seconds_tuning": sum(line["tune_seconds"] for line in lines),
        "epoch_seconds": sum(epochs) / len(epochs) if epochs else None,
        "saved_seconds": sum(saved) if saved else None,
        "ask_bytes": sum(part["bytes"] for part in crossed if part["verb"] == "ask"),
        "gather_bytes": sum(part["bytes"] for part in crossed if part["verb"] == "gather"),
        "crossed": crossed,
        "cut": max((line.get("cut", 0) for line in lines), default=0),
        "notes": list(warnings),
    }


def _crossed(lines: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Exchanges of all rounds added up by action and verb."""
    found: dict[tuple[str, str], Record] = {}
    for part in (part for line in lines for part in line["crossed"]):
        key = (part["action"], part["verb"])
        entry = {"action": key[0], "verb": key[1], "what": CROSSES.get(key[0], key[0]), "bytes": 0}
        found.setdefault(key, entry)["bytes"] += part["bytes"]
    return list(found.values())
