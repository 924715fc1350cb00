"""One run from start to end: rounds, evaluation, checkpoints, and the files that tell about them.

A run is a loop over values: the state after round r is a function of the state before it, the round's number
and the seed. So a run that was killed goes on from its last checkpoint to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cotune import barren, checkpoint, gates, outcomes, report, results, savings
from cotune.allocation import Allocation, Traded
from cotune.checkpoint import Checkpoint
from cotune.cohorts import drawn
from cotune.data import Dataset
from cotune.errors import RunError
from cotune.federation import Federation
from cotune.host import Evaluator
from cotune.journal import Journal, Ledger
from cotune.observing import Observing
from cotune.protocols import SLM, TUNE, Selector, State, Strategy
from cotune.records import Event, Round, derived_rng
from cotune.selection import Selection, select, together
from cotune.spending import ExampleSpending, Spending, ended, is_spent, with_actions

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """Clients that hold the same model, and what serves them. `selectors` narrow each other's choice in their
    order, under the names the report gives them; `passes` over the chosen examples make one round."""

    name: str
    clients: tuple[str, ...]
    strategy: Strategy
    selectors: Mapping[str, Selector]
    passes: float = 1.0


@dataclass(frozen=True, slots=True)
class Session:
    """A run, ready to go. In a round the families take their turns, with the same LLM; `num_cut` counts the
    examples that selectors found longer than their model reads; `roles` are measured; `facts` go into
    results.json as they are at the end."""

    families: tuple[Family, ...]
    strategy_name: str
    federation: Federation
    dataset: Dataset
    evaluate_llm: Evaluator
    save_adapters: Callable[[Path, State], None]
    seed: int
    num_rounds: int
    cohort_fraction: float
    evaluate_every: int
    evaluate_clients: int
    fingerprint: str
    keep_checkpoints: int
    num_cut: Callable[[], int] = lambda: 0
    roles: frozenset[str] = frozenset()
    allocation: Allocation | None = None
    prepare: Callable[[State], State] = lambda state: state
    observing: Observing | None = None
    spending: Spending | None = None
    example_spending: Mapping[str, ExampleSpending] = field(default_factory=dict)
    facts: Callable[[], Mapping[str, Any]] = dict


def run(session: Session, out: Path) -> Record:
    """Do all rounds that are not done yet, and write results, adapters and report.

    Args:
        session: what `build.py` made.
        out: the run's folder; its `checkpoints/` decide where to start.

    Returns:
        What stands in `results.json`.
    """
    began, federation = time.monotonic(), session.federation
    note = partial(federation.progress, "checkpoint", 0, 1)
    federation.journal = Journal(out / "checkpoints", session.fingerprint, lambda text: note(note=text))
    resumed = checkpoint.latest(out / "checkpoints", session.fingerprint)
    if resumed is None:
        before, state = _cohort(session, 0), _initial(session)
        federation.begin(before, state)
        clock = _Clock(federation.journal.now)
        state, _ = _once(session, "prepare", state, lambda: (session.prepare(state), {}))
        resumed = _finish_round(session, out, before, state, clock)
    elif not any(record["round"] == resumed.round for record in report.read_rounds(out)):
        report.append_round(out, resumed.record)
    if session.observing:
        session.observing.overheard.texts = list(resumed.heard)
    state = resumed.state
    in_use = savings.in_use([r for r in report.read_rounds(out) if r["round"] <= resumed.round])
    for index in range(resumed.round + 1, session.num_rounds + 1):
        if gates.is_stopped(resumed.record) or is_spent(resumed.record):
            break
        clock, cohort = _Clock(federation.journal.now), _cohort(session, index)
        federation.begin(cohort, state)
        losses: Mapping[str, float] = {}
        if session.observing:
            session.observing.begin(state)
        now, chosen = _select(session, in_use, state, cohort, clock)
        in_use = chosen or in_use
        traded = _trade(session, state, now, clock)
        waited = federation.ledger.seconds
        with clock.phase("co-tune"):
            if now.cohort:
                do = partial(_co_tune, session, state, now)
                state, losses = _once(session, "co-tune", state, do)
        clock.move("co-tune", "tune", federation.ledger.seconds - waited)
        state, lesson_facts = _learn(session, traded, state, now, clock)
        _refuse_divergence(state, now)
        facts = {"losses": losses, **_selection_facts(session, chosen, cohort, clock), **lesson_facts}
        resumed = _finish_round(session, out, now, state, clock, facts)
        state = resumed.state
    found = results.summarise(session, out, time.monotonic() - began)
    session.save_adapters(out / "adapters", state)
    report.write_results(out, found)
    federation.journal.end()
    return found


def _once(
    session: Session, name: str, state: State, do: Callable[[], tuple[State, Mapping[str, Any]]]
) -> tuple[State, Mapping[str, Any]]:
    """A phase that is not done again when a run goes on after it."""

    def plain() -> tuple[State, Mapping[str, Any]]:
        found, facts = do()
        return found, report.plain(facts)

    return session.federation.once(name, state, plain)


def _initial(session: Session) -> State:
    """The state before round 1."""
    state = State()
    for family in session.families:
        state = state.after(family.name, family.strategy.init(session.seed))
    return state


def _turns(session: Session, now: Round) -> list[tuple[Family, Round]]:
    """Each family that takes part in a round, and the round as its own clients see it."""
    found = []
    for family in session.families:
        members = frozenset(family.clients)
        cohort = tuple(client for client in now.cohort if client in members)
        if cohort:
            found.append((family, replace(now, cohort=cohort)))
    return found


def _co_tune(session: Session, state: State, now: Round) -> tuple[State, dict[str, float]]:
    """The strategy's round for each family in turn; losses of a further family carry its name."""
    losses: dict[str, float] = {}
    for family, part in _turns(session, now):
        seen, found = family.strategy.server_round(state.of(family.name), part, session.federation)
        state = state.after(family.name, seen)
        losses |= {name if family.name == SLM else f"{name} {family.name}": x for name, x in found.items()}
    return state, losses


def _select(
    session: Session, in_use: Selection, state: State, cohort: Round, clock: _Clock
) -> tuple[Round, Selection | None]:
    """The round without the clients that have nothing to train on, and what is in use in it."""
    if not session.families[0].selectors:
        return cohort, None
    found = []
    with clock.phase("select"):
        for family in session.families:
            part = replace(cohort, cohort=tuple(c for c in cohort.cohort if c in family.clients))
            how, seen = tuple(family.selectors.values()), state.of(family.name)
            found.append(select(how, in_use, seen, part, session.federation, family.clients))
    chosen = together(in_use, found)
    return replace(cohort, cohort=chosen.playing(cohort.cohort)), chosen


def _trade(session: Session, state: State, now: Round, clock: _Clock) -> Traded | None:
    """Who is taught by which public examples in this round, and the paths of both sides."""
    if session.allocation is None or not now.cohort:
        return None
    with clock.phase("teach"):
        families = [(state.of(family.name), part) for family, part in _turns(session, now)]
        return session.allocation.trade(families, session.federation)


def _learn(
    session: Session, traded: Traded | None, state: State, now: Round, clock: _Clock
) -> tuple[State, Record]:
    """What the LLM learned from its clients' paths; and the filters, on both sides."""
    if session.allocation is None or traded is None:
        return state, {}
    with clock.phase("teach"):
        do = partial(session.allocation.learn, traded, state, now, session.federation)
        state, record = _once(session, "learn", state, do)
    if said := barren.warning(record):
        session.federation.progress("teach", 1, 1, note=f"round {now.index}: {said}")
    return state, {"teaching": record}


def _selection_facts(session: Session, found: Selection | None, cohort: Round, clock: _Clock) -> Record:
    if found is None:
        return {}
    totals = {client: session.dataset.num_train(client) for client in session.federation.clients()}
    is_here = (
        SLM not in session.families[0].strategy.trains
    )  # then the server trains, on what clients gave it
    training = clock.seconds["tune"] + (clock.seconds["co-tune"] if is_here else 0.0)
    by_client = {client: family.passes for family in session.families for client in family.clients}
    passes = float(np.mean([by_client[client] for client in cohort.cohort]))
    tuning = (training, passes)
    record = savings.round_record(found, cohort.cohort, totals, tuning) | {"cut": session.num_cut()}
    if savings.warning(record):
        session.federation.progress("select", 1, 1, note=savings.warning(record))
    return {"selection": record}


def _refuse_divergence(state: State, now: Round) -> None:
    """What the server learned must be finite; a client's update has been checked when it came."""
    for role, adapter in state.adapters().items():
        if not all(np.isfinite(array).all() for array in adapter.arrays.values()):
            raise RunError(
                f"round {now.index}: the {role} adapter is not finite: training on the server diverged. The "
                f"checkpoint of round {now.index - 1} is whole, but going on from it would end here again: "
                "lower llm.tune.lr (or strategy.public_lr) and start anew with another --out."
            )


class _Clock:
    """Seconds by phase; `now` also counts what was done before the run was stopped."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.began = now, now()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count some of one phase's time as another's."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds


def _cohort(session: Session, index: int) -> Round:
    cohort = drawn(session.seed, index, session.federation.clients(), session.cohort_fraction)
    return Round(index, session.num_rounds, session.seed, cohort)


def _finish_round(
    session: Session,
    out: Path,
    now: Round,
    state: State,
    clock: _Clock,
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Evaluate if it is due, then make the round last: checkpoint first, its line in rounds.jsonl second."""
    ledger = session.federation.take_ledger()
    record: Record = {"round": now.index, "cohort": list(now.cohort) if now.index else []}
    record |= _spent(session, out, now, ledger)
    if _is_measured(session, now.index) or is_spent(record):
        with clock.phase("evaluate"):
            do = partial(_measure, session, state, now)
            record |= _once(session, "evaluate", state, lambda: (state, do()))[1]
    if session.observing:
        with clock.phase("audit"):
            record |= session.observing.observe(state, now.index, session.num_rounds)
        state, decisions = session.observing.follow([*_before(out, now.index), record], state)
        if decisions:
            record |= {"gates": [decision.as_facts() for decision in decisions], "distil": state.distil}
    whole = ledger + session.federation.take_ledger()
    record |= with_actions(record, whole)
    facts = facts or {}
    losses = facts.get("losses", {})
    record |= {
        **facts,
        "losses": dict(losses),
        "traffic": whole.traffic,
        "failures": [asdict(failure) for failure in whole.failures],
        **(ended(now, ledger, session.federation.minimum) if now.index else {}),
        **_idle(session, now, ledger),
        "phases": clock.seconds,
        "seconds": clock.now() - clock.began,
    }
    heard = session.observing.unread() if session.observing else []
    done = Checkpoint(now.index, state, report.plain(record), heard)
    with clock.phase("checkpoint"):
        checkpoint.save(out / "checkpoints", done, session.fingerprint, session.keep_checkpoints)
        report.append_round(out, done.record)
    session.federation.listener(Event(now.index, session.num_rounds, "checkpoint", 1, 1))
    return done


def _is_measured(session: Session, index: int) -> bool:
    """Before, after, every so many rounds, and when gates ask what a round's likeness has brought."""
    every, watch = session.evaluate_every, session.observing
    if index in (0, session.num_rounds) or (every and index % every == 0):
        return True
    return bool(watch and watch.config and watch.due(index, session.num_rounds))


def _before(out: Path, index: int) -> list[Record]:
    """The lines of the rounds before this one."""
    return [record for record in report.read_rounds(out) if record["round"] < index]


def _spent(session: Session, out: Path, now: Round, ledger: Ledger) -> Mapping[str, Any]:
    """What the round has told about clients in spite of noise, where there is a budget for it."""
    if session.spending is None:
        return {}
    coming = _cohort(session, now.index + 1) if now.index < session.num_rounds else None
    return session.spending.record(_before(out, now.index), now, ledger, coming)


def _idle(session: Session, now: Round, ledger: Ledger) -> Record:
    """Families that learned nothing in a round: nobody was drawn, or there was no usable reply."""
    if len(session.families) == 1 or now.index == 0:
        return {}
    busy = {
        client for one in ledger.sums if one["action"] == TUNE and one["summed"] for client in one["asked"]
    }
    idle = [family.name for family in session.families if not busy.intersection(family.clients)]
    return {"idle_families": idle} if idle else {}


def _measure(session: Session, state: State, now: Round) -> Record:
    """Held-out numbers of the LLM (on the server) and of the SLMs (on the clients)."""
    metrics: Record = {}
    right: Record = {}
    if "llm" in session.roles:
        found = session.evaluate_llm(state.llm, session.dataset.test)
        metrics["llm"], right["llm"] = outcomes.without_answers(found), outcomes.answers(found)
        right["shown"] = {task: numbers["shown"] for task, numbers in found.items()}
    if SLM in session.roles:
        by_client = dict(sorted(_by_client(session, state, now)))
        metrics["clients"] = {client: outcomes.without_answers(m) for client, m in by_client.items()}
        metrics["slm"] = outcomes.over_clients(metrics["clients"], is_shared=session.dataset.own_test is None)
        right["clients"] = {client: outcomes.answers(m) for client, m in by_client.items()}
    return {"metrics": metrics, "right": right}


def _by_client(session: Session, state: State, now: Round) -> Iterator[tuple[str, Record]]:
    """Numbers of the measured clients, each with the adapter of its family."""
    measured = _measured_clients(session)
    for family in session.families:
        told: dict[str, Record] = {client: {} for client in measured if client in family.clients}
        for reply in session.federation.ask("evaluate", state.of(family.name).slm, now, told) if told else []:
            problem = outcomes.problem(reply.facts.get("metrics"))
            if problem:
                session.federation.refuse(reply, problem)
            else:
                yield reply.client, reply.facts["metrics"]


def _measured_clients(session: Session) -> frozenset[str]:
    """Those that are measured in this run; of each family its share, and one at least."""
    everybody, found = len(session.federation.clients()), set[str]()
    for family in session.families:
        clients = sorted(family.clients)
        share = max(1, round(session.evaluate_clients * len(clients) / everybody))
        count = min(len(clients), share)
        picked = derived_rng(session.seed, "measured").choice(len(clients), count, replace=False)
        found |= {clients[i] for i in picked}
    return frozenset(found)
