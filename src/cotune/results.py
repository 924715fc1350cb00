"""What stands in results.json: a run's rounds, summed up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotune import gates, memory, outcomes, report, savings
from cotune.protocols import SLM
from cotune.spending import is_spent

if TYPE_CHECKING:
    from cotune.session import Session

Record = dict[str, Any]


def summarise(session: Session, out: Path, seconds: float) -> Record:
    """results.json from the lines of rounds.jsonl; `seconds` is the longer of this process and all rounds."""
    rounds = report.read_rounds(out)
    totals = {name: sum(r["traffic"][name] for r in rounds) for name in rounds[0]["traffic"]}
    measured = [record for record in rounds if record.get("metrics")]
    first, last = measured[0], measured[-1]
    clients = session.dataset.clients
    return {
        "fingerprint": session.fingerprint,
        "strategy": session.strategy_name,
        "seed": session.seed,
        "rounds": rounds[-1]["round"],
        "status": _status(rounds[-1], session),
        "metrics": outcomes.before_after(first["metrics"], last["metrics"]),
        "gain": outcomes.gains(first["right"], last["right"], is_shared=session.dataset.own_test is None),
        "traffic": totals,
        "seconds": max(seconds, sum(r["seconds"] for r in rounds)),
        "failures": sum(len(r["failures"]) for r in rounds),
        "peak_memory_bytes": memory.peak(),
        "examples": _shown(session, first["right"], last["right"]),
        "data": {
            "clients": {c: {"train": session.dataset.num_train(c)} for c in clients[:1000]},
            "num_clients": len(clients),
            "public": len(session.dataset.public),
            "test": sum(len(t) for t in session.dataset.test.values()),
            "dropped": sum(session.dataset.dropped.values()),
        },
        **({"selection": _choice(session, rounds)} if session.families[0].selectors else {}),
        **({"families": _by_family(session, first, last)} if len(session.families) > 1 else {}),
        **({"privacy": session.spending.summary(rounds)} if session.spending else {}),
        **({"example_privacy": _of_examples(session, rounds)} if session.example_spending else {}),
        **session.facts(),
    }


def _of_examples(session: Session, rounds: list[Record]) -> Record:
    """What private tuning promises for one example, by family."""
    found = {}
    for family in session.families:
        if family.name in session.example_spending:
            sizes = {client: session.dataset.num_train(client) for client in family.clients}
            own = [{**r, "cohort": [c for c in r["cohort"] if c in sizes]} for r in rounds]
            found[family.name] = dict(session.example_spending[family.name].summary(own, sizes))
    return found


def _status(last: Record, session: Session) -> str:
    if last["round"] == session.num_rounds:
        return "done"
    return "stopped" if gates.is_stopped(last) or is_spent(last) else "running"


def _by_family(session: Session, first: Record, last: Record) -> Record:
    """Of each family its clients, its numbers before and after, and its gain."""
    is_shared, found = session.dataset.own_test is None, {}
    for family in session.families:
        own = [
            {
                name: {
                    client: numbers
                    for client, numbers in line[name]["clients"].items()
                    if client in family.clients
                }
                for name in ("metrics", "right")
            }
            for line in (first, last)
        ]
        means = [{SLM: outcomes.over_clients(one["metrics"], is_shared)} for one in own]
        before, after = ({"clients": one["right"]} for one in own)
        gain = outcomes.gains(before, after, is_shared)
        numbers = outcomes.before_after(*means).get(SLM, {})
        found[family.name] = {"clients": len(family.clients), "metrics": numbers, "gain": gain.get(SLM)}
    return found


def _choice(session: Session, rounds: list[Record]) -> Record:
    totals = {client: session.dataset.num_train(client) for client in session.dataset.clients}
    return savings.summary(rounds, list(session.families[0].selectors), totals)


def _shown(session: Session, first: Record, last: Record) -> list[Record]:
    """A few of the server's own held-out questions with the LLM's answers before and after."""
    rows = []
    for task, before in first.get("shown", {}).items():
        after = last["shown"].get(task, [])
        for example, old, new in zip(session.dataset.test[task], before, after, strict=False):
            right = example.answer_idx if example.choices else example.completion.strip()
            head = {
                "client": "server",
                "task": task,
                "prompt": example.prompt,
                "choices": list(example.choices),
            }
            rows.append({**head, "right": right, "before": old, "after": new})
    return rows
