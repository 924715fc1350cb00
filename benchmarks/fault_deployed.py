"""Cells of the fault matrix in which every party has processes of its own, as `faults.py` runs them.

Four deployments: two do everything that a round can hold, one sums under masks, and one has a short
deadline and a wire between a client and the server that can be cut. Where somebody is to be killed in a
phase, the server is halted first, `status.json` is read, and the blow falls only if it is that phase.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fault_cells import EVERYTHING, PLAIN, Fault
from fault_parties import (
    ANSWERS,
    DOWN,
    LINK,
    NODE,
    SERVE,
    SERVER,
    STARTER,
    UP,
    Seen,
    Stuck,
    Trial,
    Wire,
)

from cotune import report, waiting
from cotune.host import Hosts
from cotune.records import Failure, Message
from cotune.transports.inprocess import InProcess

CLIENT = "client-1"
RUNTIME = {"device": "cpu", "threads": 1, "stack": 1, "deadline_seconds": 240.0}
"""One thread and one client at a time, so that sums have the same order wherever they are done."""
SHORT = 30.0
"""Seconds until a client is late where it is to be; a busy machine needs that much for a step."""
FULL: Mapping[str, Any] = {
    **{name: EVERYTHING[name] for name in ("selector", "allocator", "teach")},
    "strategy": {"name": "fedcollm", "public_epochs": 12},
    "audits": [{"name": "canary", "facts": 3, "every": 1}],
    "runtime": RUNTIME,
}
"""All phases, long enough to be hit."""
MASKED: Mapping[str, Any] = {
    "strategy": "fedavg",
    "aggregator": {"name": "secure_sum", "dropout": 0.34},
    "evaluate__every": 0,
    "runtime": RUNTIME,
}
SLOW: Mapping[str, Any] = {
    "strategy": PLAIN["strategy"],
    "evaluate__every": 0,
    "runtime": {**RUNTIME, "deadline_seconds": SHORT},
}
MASKS = ("keys", "share", "mask", "consent", "open")
ORDER = (
    "pick",
    "choose",
    "exchange",
    "tune",
    "gather",
    "co-tune",
    "learn",
    "evaluate",
    "audit",
    "checkpoint",
)
ASKING = frozenset({"propose", "pick", "choose", "exchange", "tune", "learn", "evaluate", *MASKS})
"""Phases in which clients have been asked for something."""
NAMES = {
    "pick": "select",
    "choose": "allocate",
    "tune": "local",
    **{step: f"masked sum, {step}" for step in MASKS},
}
"""Of phases, where design and status have different words."""
WHOM: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "server": ((SERVE,), ()),
    "client": ((), (STARTER, NODE, ANSWERS)),
    "both": ((SERVE,), (STARTER, NODE, ANSWERS)),
    "the server's machine": ((STARTER, LINK, SERVE), ()),
    "both machines": ((STARTER, LINK, SERVE), (STARTER, NODE, ANSWERS)),
    "SuperLink": ((LINK,), ()),
    "SuperNode": ((), (NODE,)),
    "starter of the client": ((), (STARTER,)),
    "starter of the server": ((STARTER,), ()),
}
"""What is killed of the server and of one client."""
EQUAL = "equal to the run that nothing stopped"
LOST = "message lost"


@dataclass(frozen=True)
class Kill:
    """Who is killed, in which phase."""

    who: str
    phase: str

    @property
    def name(self) -> str:
        """Of its cell."""
        return f"deployed, kill {self.who}: {NAMES.get(self.phase, self.phase)}"

    @property
    def of_server(self) -> tuple[str, ...]:
        """Its processes of the server that are killed."""
        return WHOM[self.who][0]

    @property
    def of_client(self) -> tuple[str, ...]:
        """Its processes of one client that are killed."""
        return WHOM[self.who][1]


@dataclass
class Struck:
    """A blow that has fallen: when and on whom, how many processes, and how it went on."""

    kill: Kill
    seen: Seen
    client: str
    num_killed: int
    place: int
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def strike(trial: Trial, kills: Sequence[Kill], most: int) -> list[Struck]:
    """Each kill as soon as its phase comes, one in a phase of a round and at most so many in a round."""
    waiting_kills, struck = list(kills), list[Struck]()
    while not trial.is_over():
        seen = trial.look()
        kill = _next(waiting_kills, struck, seen, trial.trace, most) if seen else None
        if seen and kill and (found := _hit(trial, kill, seen)):
            waiting_kills.remove(kill)
            struck.append(found)
            say(f"{kill.name}: round {seen.round}, on again after {found.seconds:.0f} s {found.problems}")
        time.sleep(0.002)
    return struck


def say(text: str) -> None:
    """A line for whoever waits."""
    print(f"    {time.strftime('%H:%M:%S')} {text}", flush=True)


def _next(
    kills: Sequence[Kill], struck: Sequence[Struck], seen: Seen, trace: Sequence[Seen], most: int
) -> Kill | None:
    places = [(one.seen.round, one.kill.phase) for one in struck]
    is_full = sum(round == seen.round for round, _ in places) >= most
    if not seen.round or is_full or (seen.round, seen.phase) in places or not _is_there(seen, trace):
        return None
    return next((kill for kill in kills if kill.phase == seen.phase), None)


def _is_there(seen: Seen, trace: Sequence[Seen]) -> bool:
    """Whether a phase of the server's or of its clients has just begun, under the name that is meant."""
    if seen.phase in ASKING:
        return seen.asked > 0 and seen.answered == 0 and bool(seen.awaited)
    if seen.phase == "gather":
        return 0 < seen.answered < seen.asked and ("learn" not in _phases(trace, seen.round))
    return True


def _phases(trace: Sequence[Seen], round: int) -> list[str]:
    return [seen.phase for seen in trace if seen.round == round]


def _hit(trial: Trial, kill: Kill, seen: Seen) -> Struck | None:
    """Kill, see that it is told, start again, wait until the run goes on; None: the phase was over."""
    client = seen.awaited[-1] if seen.awaited else CLIENT
    now = _halted(trial, kill, seen, client)
    if now is None:
        return None
    began, place = time.monotonic(), len(trial.trace)
    killed = trial.signal(signal.SIGKILL, SERVER, *kill.of_server) if kill.of_server else 0
    killed += trial.signal(signal.SIGKILL, client, *kill.of_client) if kill.of_client else 0
    found = Struck(kill, now, client, killed, place)
    for party in (SERVER, client):
        trial.signal(signal.SIGCONT, party)
    if kill.of_server:
        _start_server_again(trial, found)
    if STARTER in kill.of_client:
        time.sleep(2.0)
        trial.start(client)
    if kill.of_server and kill.who != "starter of the server":
        trial.submit()
    trial.until(lambda: _goes_on(trial, found), f"{kill.name}: it does not go on")
    found.seconds = time.monotonic() - began
    return found


def _halted(trial: Trial, kill: Kill, seen: Seen, client: str) -> Seen | None:
    """Halt the server in this phase; where a client is to be killed, when it holds the message."""
    is_asking = kill.phase in ASKING
    if is_asking and kill.of_client:
        before = trial.held(client)
        trial.signal(signal.SIGSTOP, client, ANSWERS)
        with contextlib.suppress(Stuck):
            trial.until(lambda: trial.held(client) > before, LOST, 6.0)
    elif is_asking:
        time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(seen.pid, signal.SIGSTOP)
    while _state(seen.pid) not in ("T", ""):
        time.sleep(0.001)
    now = trial.look()
    is_still = now and (now.round, now.phase, now.pid) == (seen.round, seen.phase, seen.pid)
    if now and is_still and (not is_asking or client in now.awaited):
        return now
    os.kill(seen.pid, signal.SIGCONT)
    trial.signal(signal.SIGCONT, client)
    return None


def _state(pid: int) -> str:
    """One letter; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _start_server_again(trial: Trial, found: Struck) -> None:
    words = found.kill.of_server
    if SERVE in words:
        try:
            trial.until(lambda: waiting.status(trial.run)["state"] == "stopped", "not told as stopped", 5.0)
        except Stuck as error:
            found.problems.append(str(error))
    if LINK in words and STARTER not in words:  # its starter cannot go on without it, and ends the others
        trial.until(lambda: not trial.processes(SERVER), "the server's processes do not end", 60.0)
    if words != (SERVE,):
        trial.start(SERVER)


def _goes_on(trial: Trial, found: Struck) -> bool:
    """Whether somebody was asked or heard, or something was done, that had not been before."""
    now = trial.status()
    if trial.outcome().get("state") == "done":
        return True
    if now is None or now.key == found.seen.key or not now.asked:
        return False
    is_new = now.pid != found.seen.pid or SERVE not in found.kill.of_server
    return is_new and (not found.kill.of_client or found.client not in now.awaited)


# --- what came of it ---

Row = dict[str, Any]


@dataclass(frozen=True)
class Oracle:
    """What a deployed run is compared with: an embedded one; `alike` tells the first difference of two runs,
    `line` what counts of a line of rounds.jsonl."""

    whole: Path
    alike: Callable[[Path, Path, frozenset[str], Collection[str]], str]
    line: Callable[[Any], Any]

    def rounds(self) -> dict[int, Any]:
        """Its lines by round."""
        return {line["round"]: line for line in report.read_rounds(self.whole)}


MASKED_FILES = frozenset({"sums"})
"""Folders of files that are masked, and so differ each time."""
RESENT = frozenset({"traffic", "attempt"})
"""What is sent again counts again; a masked sum that is begun again has another number."""


def judged(trial: Trial, struck: Sequence[Struck], kills: Sequence[Kill], oracle: Oracle) -> Iterator[Row]:
    """A row for each kill: was it told, did it go on, is the round what it is without the kill?"""
    wanted, came = oracle.rounds(), {line["round"]: line for line in trial.rounds()}
    done = {one.kill: one for one in struck}
    for kill in kills:
        one = done.get(kill)
        if one is None:
            yield row(kill.name, "did not happen: the phase was never hit", EQUAL, False, 0.0)
            continue
        line = came.get(one.seen.round, {})
        problems = [*one.problems, *_asked_again(trial, one)]
        problems += [f"{f['client']} {f['kind']}: {f['reason']}" for f in line.get("failures", ())]
        problems += [] if line.get("status") == "full" else [f"round {line.get('status')}"]
        if not problems and oracle.line(line) != oracle.line(wanted[one.seen.round]):
            problems = ["its line in rounds.jsonl differs"]
        happened = f"round {one.seen.round}, {_killed(one)}; " + (
            "; ".join(problems) or f"round full, {EQUAL}"
        )
        expected = "told as stopped, nothing asked again, same round" if kill.of_server else "same round"
        yield row(kill.name, happened, expected, not problems, one.seconds)


def _killed(one: Struck) -> str:
    return (
        f"{one.num_killed} process{'es' if one.num_killed > 1 else ''} killed, on again by itself"
        if not (one.kill.of_server or STARTER in one.kill.of_client)
        else f"{one.num_killed} process{'es' if one.num_killed > 1 else ''} killed and started again"
    )


def _asked_again(trial: Trial, one: Struck) -> list[str]:
    """Earlier phases in which clients were asked again; a masked sum asks from its start."""
    if SERVE not in one.kill.of_server or one.kill.phase in MASKS or one.kill.phase not in ORDER:
        return []
    known = "tune" if one.kill.phase == "gather" else one.kill.phase  # a sum that is not whole is not kept
    before = ("propose", *ORDER[: ORDER.index(known)])
    since = [s for s in trial.trace[one.place :] if s.round == one.seen.round and s.pid != one.seen.pid]
    again = {s.phase for s in since if s.phase in ASKING and s.phase in before and s.answered < s.asked}
    return [f"asked again: {', '.join(sorted(again))}"] if again else []


def row(name: str, happened: str, expected: str, is_fine: bool, seconds: float) -> Row:
    """A row of the table."""
    return {
        "cell": name,
        "happened": happened,
        "expected": expected,
        "ok": is_fine,
        "seconds": round(seconds, 1),
    }


def ended(trial: Trial, name: str, oracle: Oracle, ignored: frozenset[str], began: float) -> Row:
    """The row that tells of the end of a run in which all this has happened."""
    problem = oracle.alike(oracle.whole, trial.run, ignored, ("adapters",)) or _other_files(trial, oracle)
    left = trial.stop()
    problem = problem or (f"{len(left)} processes were left" if left else "")
    like = (
        EQUAL if ignored == RESENT else "equal to the embedded run in which it sent nothing in these rounds"
    )
    happened = problem or f"{len(trial.rounds()) - 1} rounds; all lines, results.json, adapters {like}"
    return row(
        name, happened, "same end, byte for byte; no process left", not problem, time.monotonic() - began
    )


def _other_files(trial: Trial, oracle: Oracle) -> str:
    """The first file of a client, outside of masked sums, that is not what it is in an embedded run."""
    for client in trial.clients:
        ours, theirs = oracle.whole / "clients" / client, trial.home(client) / "state" / "clients" / client
        for path in sorted(ours.rglob("*")):
            other = theirs / path.relative_to(ours)
            is_own = path.suffix in (".msg", ".rows", ".memo") and not MASKED_FILES & {*path.parts}
            if (
                path.is_file()
                and is_own
                and not (other.is_file() and other.read_bytes() == path.read_bytes())
            ):
                return f"{client}: other {path.relative_to(ours)}"
    return ""


# --- cut off, slow, away ---


@dataclass(frozen=True)
class Absence:
    """A client that cannot be reached, or does not answer, for some seconds."""

    name: str
    seconds: float
    away: Callable[[Trial, Wire], contextlib.AbstractContextManager[None]]
    expected: str = "partial, the client named as late; later rounds full"

    @property
    def may_be_full(self) -> bool:
        """Whether nobody has to notice."""
        return self.seconds < SHORT


def _cut(*ways: str) -> Callable[[Trial, Wire], contextlib.AbstractContextManager[None]]:
    return lambda _, wire: wire.without(*ways)


@contextlib.contextmanager
def _still(trial: Trial, _: Wire, words: Sequence[str]) -> Iterator[None]:
    trial.signal(signal.SIGSTOP, CLIENT, *words)
    yield
    trial.signal(signal.SIGCONT, CLIENT, *words)


@contextlib.contextmanager
def _gone(trial: Trial, _: Wire) -> Iterator[None]:
    trial.signal(signal.SIGKILL, CLIENT, STARTER, NODE, ANSWERS)
    yield
    trial.start(CLIENT)


@contextlib.contextmanager
def _killed_at_work(trial: Trial, _: Wire) -> Iterator[None]:
    """It holds a message that is not answered yet; its starter starts it again."""
    held = trial.held(CLIENT)
    with contextlib.suppress(Stuck):
        trial.until(lambda: trial.held(CLIENT) > held, LOST, 6.0)
    time.sleep(0.3)
    trial.signal(signal.SIGKILL, CLIENT, ANSWERS)
    yield


CUT = "network cut for {:.0f} s, {}"
ABSENCES = (
    *(
        Absence(CUT.format(seconds, name), seconds, _cut(*ways), expected)
        for seconds, name, ways, expected in (
            (45.0, "client to server", (UP,), Absence.expected),
            (45.0, "server to client", (DOWN,), Absence.expected),
            (45.0, "both ways", (UP, DOWN), Absence.expected),
            (8.0, "both ways", (UP, DOWN), "waits, or partial as above; later rounds full"),
        )
    ),
    Absence("slow client: it works 45 s where 30 s are allowed", 45.0, partial(_still, words=(ANSWERS,))),
    Absence("client's machine killed, back after 45 s", 45.0, _gone),
    Absence(
        "client's machine asleep for 75 s, longer than a SuperLink waits",
        75.0,
        partial(_still, words=(STARTER, NODE, ANSWERS)),
    ),
    Absence(
        "client's answering process killed at work",
        0.0,
        _killed_at_work,
        "asked again, or partial with the client named; later rounds full",
    ),
)


def absent(trial: Trial, wire: Wire) -> list[Row]:
    """Each absence in a round of its own; a row for each."""
    return [_absent(trial, wire, absence) for absence in ABSENCES]


def _absent(trial: Trial, wire: Wire, absence: Absence) -> Row:
    name = f"deployed, {absence.name}"
    try:
        trial.until(lambda: trial.is_over() or _is_asked(trial), "nobody is asked")
        if trial.is_over():
            return row(name, "did not happen: the run was over", absence.expected, False, 0.0)
        first = trial.trace[-1].round
        with absence.away(trial, wire):
            end = time.monotonic() + absence.seconds
            while time.monotonic() < end:
                trial.look()
                time.sleep(0.05)
        healed, began = trial.trace[-1].round, time.monotonic()
        is_full = partial(_is_full_after, trial, healed)
        trial.until(lambda: is_full() or trial.is_over(), "no full round after it")
        if not is_full():
            raise Stuck("no round was full after it")
    except Stuck as error:
        return row(name, str(error), absence.expected, False, 0.0)
    seconds = time.monotonic() - began
    lines = [line for line in trial.rounds() if line["round"] >= first]
    hurt = [line for line in lines if line["failures"] or line["status"] != "full"]
    told = sorted({f"{f['client']} {f['kind']}: {f['reason']}" for line in hurt for f in line["failures"]})
    happened = (
        f"{len(hurt)} of {len(lines)} rounds partial ({'; '.join(told)})" if hurt else "all rounds full"
    )
    may_be_full = absence.may_be_full
    is_fine = (bool(hurt) or may_be_full) and all(_is_as_documented(line) for line in hurt)
    say(f"{name}: {happened}, full again after {seconds:.0f} s")
    return row(name, f"{happened}; full again {seconds:.0f} s after it", absence.expected, is_fine, seconds)


def _is_as_documented(line: Mapping[str, Any]) -> bool:
    failures = [(f["client"], f["kind"]) for f in line["failures"]]
    return line["status"] == "partial" and failures in ([(CLIENT, "late")], [(CLIENT, "crashed")])


def _is_asked(trial: Trial) -> bool:
    """Whether the client is asked in a round after a full one."""
    seen, lines = trial.look(), trial.rounds()
    is_full = bool(lines) and lines[-1].get("status", "full") == "full" and len(lines) > 1
    is_new = seen is not None and seen.phase == "tune" and CLIENT in seen.awaited
    return bool(is_full and is_new and seen and seen.round > lines[-1]["round"])


def _is_full_after(trial: Trial, round: int) -> bool:
    lines = [line for line in trial.rounds() if line["round"] > round]
    return bool(lines) and lines[-1]["status"] == "full"


def one_by_one() -> None:
    """Ask embedded clients one at a time, as deployed ones are; else rounding may differ in the last bit."""
    handle = Hosts.handle

    def handled(self: Hosts, messages: Sequence[Message]) -> list[Message]:
        return [reply for message in messages for reply in handle(self, [message])]

    Hosts.handle = handled


def silent_in(rounds: Mapping[int, Collection[str]]) -> Fault:
    """Embedded clients that do not answer what they are asked first in some rounds."""

    def install() -> None:
        one_by_one()
        send = InProcess.send

        def changed(self: InProcess, messages: Sequence[Message]) -> Iterator[Any]:
            for reply, down, up in send(self, messages):
                first = "tune" if messages[0].round else "evaluate"
                is_first = isinstance(reply, Message) and reply.action == first
                if is_first and reply.client in rounds.get(reply.round, ()):
                    yield Failure(reply.client, reply.round, "late", "by order"), down, 0
                else:
                    yield reply, down, up

        InProcess.send = changed

    return install


# --- the three deployments ---

KILLS: Mapping[str, Sequence[Kill]] = {
    "full": (
        *(Kill("server", phase) for phase in ("pick", "choose", "exchange", "tune", "gather", "co-tune")),
        *(Kill("server", phase) for phase in ("learn", "evaluate", "audit", "checkpoint")),
        Kill("the server's machine", "tune"),
        Kill("SuperLink", "learn"),
    ),
    "full, again": (
        *(Kill("client", phase) for phase in ("pick", "exchange", "tune", "learn", "evaluate")),
        *(Kill("both", phase) for phase in ("choose", "gather", "co-tune", "evaluate")),
        Kill("both machines", "exchange"),
    ),
    "masked": (
        *(Kill("server", step) for step in MASKS),
        *(Kill("client", step) for step in ("share", "mask", "open")),
        Kill("both", "consent"),
    ),
}
"""By deployment. A client is killed in phases in which it has something to do."""
MOST = 3
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "full": {**FULL, "rounds": 6},
    "full, again": {**FULL, "rounds": 6},
    "masked": {**MASKED, "rounds": 6},
    "slow": {**SLOW, "rounds": 30},
}
"""Of each deployment; each is compared with an embedded run of the same options."""


def killed(trial: Trial, kills: Sequence[Kill], name: str, oracle: Oracle) -> list[Row]:
    """Start a deployment, do all its kills, and judge them."""
    began, struck, stuck = time.monotonic(), list[Struck](), ""
    try:
        trial.start_all()
        trial.begun = time.monotonic()
        trial.until(lambda: bool(trial.outcome()), "no run")
        struck = strike(trial, kills, MOST)
    except Stuck as error:
        stuck = str(error)
        say(stuck)
    rows = list(judged(trial, struck, kills, oracle))
    if stuck:
        trial.stop()
        return [*rows, row(f"deployed, {name}: the end", stuck, "same end", False, 0.0)]
    return [*rows, ended(trial, f"deployed, {name}: the end", oracle, RESENT, began)]


def cut_off(trial: Trial, wire: Wire) -> list[Row]:
    """Start the deployment with the short deadline, and let its client be absent in all ways."""
    trial.start_all()
    trial.until(lambda: bool(trial.outcome()), "no run")
    rows = absent(trial, wire)
    with contextlib.suppress(Stuck):
        trial.until(trial.is_over, "no end")
    return rows


def hurt(trial: Trial) -> dict[int, set[str]]:
    """Who failed, by round: on a busy machine others than the one to whom it is done, too."""
    return {line["round"]: {one["client"] for one in line["failures"]} for line in trial.rounds()}
