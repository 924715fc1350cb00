"""What is done to a run: faults, and the cells of the matrix that `faults.py` runs."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cotune import allocation, checkpoint, observing, report, session, waiting
from cotune.federation import Federation
from cotune.fleet import Fleet
from cotune.host import Hosts
from cotune.records import Failure, Message
from cotune.transports.inprocess import InProcess

ROUNDS, WHEN, WHO = 3, 2, "client-2"
ASKED = "asked.txt"
DAY = 86_400.0
TEACH = {"guard": False, "path_tokens": 6, "probe": 2, "beta": 1.0, "slm_lr": 1e-2, "llm_lr": 1e-2}
EVERYTHING: Mapping[str, Any] = {
    "rounds": ROUNDS,
    "selector": {"name": "fedhds", "dimensions": 4},
    "allocator": "lada",
    "teach": TEACH,
    "audits": [
        {"name": "canary", "facts": 3, "every": 2},
        {"name": "likeness", "limit": 2, "max_new_tokens": 4, "every": 2},
    ],
    "gates": {"similarity": 1e-6, "min_gain": 1.0, "on_canary": "off"},
}
PLAIN: Mapping[str, Any] = {"rounds": 2, "strategy": "fedavg"}
HOW_IT_FAILED = frozenset({"failures", "traffic", "status", "reason"})


Fault = Callable[[], None]
"""Installed in the process of a cell before its run starts."""


@dataclass(frozen=True)
class Cell:
    """One fault.

    Attributes:
        name: phase or place, and what is done to it.
        expected: in words, how it must end.
        fault: makes it happen.
        codes: exit codes of the process that is hit; then it is resumed if the last of them is not 0.
        options: of the run.
        like: the run that it must equal.
        check: what else is looked at in the run's folder; a complaint, or nothing.
            again: a fault of the process that resumes first, and how that one must end.
        is_early: it happens before round 2, so that the run is started for it; else a copy of a run that was
            killed at the start of round 2 goes on.
        finished: actions that clients must not be asked for again once the process was killed.
        ignored: what else may differ from the run that it must equal.
    """

    name: str
    expected: str
    fault: Fault
    codes: tuple[int, ...] = (-signal.SIGKILL,)
    options: Mapping[str, Any] = field(default_factory=lambda: EVERYTHING)
    like: str = "whole"
    check: Callable[[Path], str] = lambda _: ""
    again: Fault | None = None
    again_code: int = -signal.SIGKILL
    is_early: bool = False
    finished: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()


# --- where and what ---

NOW = {"round": -1}


WRITES = (("a record", "/round-"), ("the checkpoint", "000002.ckpt.part"), ("a line", report.ROUNDS))
"""What is written in a round, and what is in the name of its file."""


def kill() -> None:
    """End this process as a loss of power does, as far as it knows."""
    os.kill(os.getpid(), signal.SIGKILL)


def follow() -> None:
    """Know which round it is, and note what clients are asked for in the round of the fault."""
    begin, handle = Federation.begin, Hosts.handle
    asked = Path(os.environ["RUN"]) / ASKED
    if asked.parent.is_dir():
        with asked.open("a") as file:
            file.write("start\n")

    def noted(self: Federation, round: Any, state: Any) -> None:
        NOW["round"] = round.index
        begin(self, round, state)

    def handled(self: Hosts, messages: Sequence[Message]) -> list[Message]:
        if NOW["round"] == WHEN and asked.is_file():
            with asked.open("a") as file:
                file.write(f"{messages[0].action}\n")
        return handle(self, messages)

    Federation.begin, Hosts.handle = noted, handled


def at(owner: Any, name: str, when: str, act: Fault = kill, *, given: str = "", round: int = WHEN) -> None:
    """Do something before or after the first call of a function in a round, `given` among its arguments."""
    real, seen = getattr(owner, name), []

    def wrapped(*args: Any, **named: Any) -> Any:
        is_it = NOW["round"] == round and (not given or given in _words(args))
        seen.extend([1] if is_it else [])
        is_now = is_it and len(seen) == 1
        if is_now and when == "before":
            act()
        found = real(*args, **named)
        if is_now and when == "after":
            act()
        return found

    setattr(owner, name, wrapped)


def _words(args: Sequence[Any]) -> list[str]:
    """Texts among arguments, and the actions of messages."""
    found = [str(arg) for arg in args if isinstance(arg, str | Path)]
    lists = [arg for arg in args if isinstance(arg, list | tuple)]
    return found + [one.action for some in lists for one in some if isinstance(one, Message)]


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def full(part_of_name: str) -> None:
    """No room on the disk from round 2 on for files with such a name, once."""
    real, is_over = os.fsync, []

    def fsync(number: int) -> None:
        path = _path(number)
        if NOW["round"] == WHEN and part_of_name in path and not is_over:
            is_over.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    os.fsync = fsync


def full_for_clients() -> None:
    """No room for what a client keeps."""
    real = os.fsync

    def fsync(number: int) -> None:
        if NOW["round"] == WHEN and "/clients/" in _path(number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    os.fsync = fsync


def small_files() -> None:
    """The system itself refuses to let any file grow beyond this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def killed_in_write(part_of_name: str) -> None:
    """Killed when the bytes are written and the file does not have its name yet."""
    real = os.fsync

    def fsync(number: int) -> None:
        if NOW["round"] == WHEN and part_of_name in _path(number):
            kill()
        real(number)

    os.fsync = fsync


def torn(pattern: str) -> Fault:
    """Killed at the end of round 2's audit; then the newest file of a kind is found torn."""

    def tear() -> None:
        path = max(Path(os.environ["RUN"]).glob(pattern))
        path.write_bytes(path.read_bytes()[:-20])
        kill()

    return partial(at, observing.Observing, "observe", "after", tear)


def clock(offset: float) -> None:
    """The time of day jumps in the middle of round 2."""
    real, since = time.time, []

    def now() -> float:
        return real() + (offset if since else 0.0)

    time.time = now
    at(Hosts, "handle", "after", lambda: since.append(1), given="tune")


def set_clock(offset: float) -> None:
    """The time of day is another one from the start."""
    real = time.time
    time.time = lambda: real() + offset


def replies(change: Callable[[Message, int, int], Iterator[Any]]) -> None:
    """What a client's reply to `tune` of round 1 becomes on its way."""
    send = InProcess.send

    def changed(self: InProcess, messages: Sequence[Message]) -> Iterator[Any]:
        for reply, down, up in send(self, messages):
            is_it = isinstance(reply, Message) and (reply.client, reply.round, reply.action) == (
                WHO,
                1,
                "tune",
            )
            yield from change(reply, down, up) if is_it else [(reply, down, up)]

    InProcess.send = changed


def fails(kind: str) -> Fault:
    """The client sends nothing."""
    return partial(replies, lambda m, d, u: iter([(Failure(m.client, m.round, kind, "by order"), d, 0)]))


def instead(make: Callable[[Message], Message]) -> Fault:
    """The client sends something else."""
    return partial(replies, lambda m, d, u: iter([(make(m), d, u)]))


def besides(make: Callable[[Message], Message]) -> Fault:
    """Something comes after the client's reply."""
    return partial(replies, lambda m, d, u: iter([(m, d, u), (make(m), d, u)]))


def arrays(change: Callable[[Any], Any]) -> Callable[[Message], Message]:
    """The same reply with the first of its arrays changed."""

    def make(reply: Message) -> Message:
        name = next(iter(reply.arrays))
        return replace(reply, arrays={**reply.arrays, name: change(reply.arrays[name])})

    return make


def facts(**changes: Any) -> Callable[[Message], Message]:
    """The same reply with other facts."""
    return lambda reply: replace(reply, facts={**reply.facts, **changes})


def named(kind: str, who: str = WHO, round: int = 1) -> Callable[[Path], str]:
    """Whether the round is partial, and names the client with the right word and nobody else."""

    def look(folder: Path) -> str:
        [line] = [line for line in report.read_rounds(folder) if line["round"] == round]
        told = [(f["client"], f["kind"]) for f in line["failures"]]
        status = line["status"]
        is_whole = who != WHO or kind == "rejected twice"
        if told != [(who, kind.split()[0])]:
            return f"told of {told}"
        return "" if is_whole or status == "partial" else f"the round is called {status}"

    return look


def failed(folder: Path) -> str:
    """Whether round 1 failed, changed nothing, and the run went on."""
    lines = report.read_rounds(folder)
    told = lines[1]["status"], lines[1]["losses"], len(lines)
    return "" if told == ("failed", {}, 3) else f"round 1: {told}"


def shows_no_negative_time(folder: Path) -> str:
    """What `cotune status` says once the clock was set back."""
    said = waiting.describe(waiting.status(folder))
    return said if " -" in said else ""


# --- the cells ---

SAME, RESUMED = "goes on, same end", "resumed to the same end"
NO_ROOM = "exit 3, says what to free and how to resume; then the same end"
NAMED = "round partial, client named, the others' mean; exit 0"


def killings() -> Iterator[Cell]:
    """Killed at the phases of a round and between them."""
    order = (
        "select/0/propose",
        "select/0/pick",
        "teach/choose",
        "teach/exchange",
        "tune",
        "teach/learn",
        "evaluate",
    )
    places: list[tuple[str, Any, str, str, str, int]] = [
        ("select, at its start", session, "_select", "before", "", 0),
        ("select, clients have proposed", Hosts, "handle", "after", "select/0/propose", 0),
        ("select, clients have picked", Hosts, "handle", "after", "select/0/pick", 1),
        ("select, at its end", session, "_select", "after", "", 2),
        ("allocate, at its start", Federation, "ask", "before", "teach/choose", 2),
        ("allocate, clients have chosen", Hosts, "handle", "after", "teach/choose", 2),
        ("allocate, at its end", Federation, "ask", "after", "teach/choose", 3),
        ("exchange, at its start", Federation, "ask", "before", "teach/exchange", 3),
        ("exchange, clients have written", Hosts, "handle", "after", "teach/exchange", 3),
        ("exchange, at its end", Federation, "ask", "after", "teach/exchange", 4),
        ("local, at its start", Hosts, "handle", "before", "tune", 4),
        ("local, clients have tuned", Hosts, "handle", "after", "tune", 4),
        ("gather, at its start", Federation, "gather", "before", "tune", 4),
        ("gather, at its end", Federation, "gather", "after", "tune", 5),
        ("co-tune, at its start", session, "_co_tune", "before", "", 4),
        ("co-tune, at its end", session, "_co_tune", "after", "", 5),
        ("co-tune, once it is recorded", Federation, "once", "after", "co-tune", 5),
        ("learn, at its start", allocation.Allocation, "learn", "before", "", 5),
        ("learn, clients have learned", Hosts, "handle", "after", "teach/learn", 5),
        ("learn, at its end", allocation.Allocation, "learn", "after", "", 6),
        ("learn, once it is recorded", Federation, "once", "after", "learn", 6),
        ("evaluate, at its start", session, "_measure", "before", "", 6),
        ("evaluate, clients have scored", Hosts, "handle", "after", "evaluate", 6),
        ("evaluate, at its end", session, "_measure", "after", "", 7),
        ("audit, at its start", observing.Observing, "observe", "before", "", 7),
        ("audit, at its end", observing.Observing, "observe", "after", "", 7),
        ("checkpoint, at its start", checkpoint, "save", "before", "", 7),
        ("checkpoint, before its line", checkpoint, "save", "after", "", 7),
        ("checkpoint, at its end", report, "append_round", "after", "", 7),
    ]
    for name, owner, function, when, given, finished in places:
        fault = partial(at, owner, function, when, given=given)
        yield Cell(f"kill: {name}", RESUMED, fault, finished=order[:finished])
    for name, part in WRITES:
        yield Cell(f"kill: in the middle of writing {name}", RESUMED, partial(killed_in_write, part))
    yield Cell(
        "kill: before the first round, models measured",
        RESUMED,
        partial(at, session, "_measure", "after", round=0),
        is_early=True,
    )
    for name, owner, function in (
        ("before adapters are written", Fleet, "save"),
        ("before results are written", report, "write_results"),
        ("before the report is made", report, "render"),
    ):
        yield Cell(f"kill: {name}", RESUMED, partial(at, owner, function, "before", round=ROUNDS))
    yield Cell(
        "kill: in allocate, and on resume in co-tune",
        RESUMED,
        partial(at, Federation, "ask", "after", given="teach/choose"),
        again=partial(at, session, "_co_tune", "after"),
        finished=order[:3],
    )


def endings() -> Iterator[Cell]:
    """Other ways to stop: asked to, torn files, no room, another time of day, two at once."""
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")):
        stop = partial(at, Hosts, "handle", "before", lambda n=number: os.kill(os.getpid(), n), given="tune")
        yield Cell(f"stop: {name} while clients tune", f"exit 130, {RESUMED}", stop, (130,))
    for name, pattern in (
        ("record", "checkpoints/round-*/*.msg"),
        ("checkpoint", "checkpoints/*.ckpt"),
        ("line of rounds.jsonl", "rounds.jsonl"),
    ):
        yield Cell(f"torn: the newest {name}", RESUMED, torn(pattern))
    for name, part in WRITES:
        yield Cell(f"disk full: at {name}", NO_ROOM, partial(full, part), (3,), check=says_how)
    yield Cell("disk full: at a client's file", NO_ROOM, full_for_clients, (3,))
    yield Cell("disk full: no file above 4 KiB", NO_ROOM, small_files, (3,), is_early=True)
    for name, part in (("results", report.RESULTS), ("the report", report.PAGE)):
        yield Cell(f"disk full: at {name}", NO_ROOM, partial(full_at_the_end, part), (3,), check=says_how)
    yield Cell("clock: a day forward in round 2", SAME, partial(clock, DAY), (0,))
    yield Cell("clock: a day back in round 2", SAME, partial(clock, -DAY), (0,), check=shows_no_negative_time)
    yield Cell(
        "clock: killed, then a day back",
        RESUMED,
        partial(at, Federation, "gather", "after", given="tune"),
        again=partial(set_clock, -DAY),
        again_code=0,
    )


def full_at_the_end(part_of_name: str) -> None:
    """No room when the run is over."""
    NOW["round"] = -1
    real, is_over = os.fsync, []

    def fsync(number: int) -> None:
        if part_of_name in _path(number) and not is_over:
            is_over.append(1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    os.fsync = fsync


def says_how(folder: Path) -> str:
    """Whether the message of the process that was hit names the cause and the command."""
    said = (folder.parent / f"{folder.name}.log").read_text()
    is_fine = "No space left on device" in said and f"cotune resume {folder}" in said
    return "" if is_fine and "Traceback" not in said else f"it said: {said[-300:]}"


def strangers() -> Iterator[Cell]:
    """A client that fails or sends rubbish in round 1; the end is that of a run in which it sent nothing."""
    silent = partial(Cell, options=PLAIN, codes=(0,), like="silent", is_early=True, ignored=HOW_IT_FAILED)
    for kind in ("late", "crashed", "out-of-memory"):
        yield silent(f"client: {kind}", NAMED, fails(kind), check=named(kind))
    rubbish: list[tuple[str, Callable[[Message], Message]]] = [
        ("another shape", arrays(lambda a: a[:, :-1])),
        ("another type", arrays(lambda a: a.astype(np.float64))),
        ("not finite", arrays(lambda a: np.full_like(a, np.nan))),
        ("infinite", arrays(lambda a: np.full_like(a, np.inf))),
        ("an array missing", lambda m: replace(m, arrays=dict(list(m.arrays.items())[1:]))),
        ("an array too many", lambda m: replace(m, arrays={**m.arrays, "more": np.ones(3, np.float32)})),
        ("64 MiB more", lambda m: replace(m, arrays={**m.arrays, "more": np.ones(1 << 24, np.float32)})),
        ("another base", lambda m: facts(adapter={**m.facts["adapter"], "base": "another"})(m)),
        ("a huge weight", facts(weight=1e300)),
        ("a negative weight", facts(weight=-1.0)),
        ("a huge sum", facts(sums={"loss": 1e300, "clients": 1.0})),
        ("no sums", facts(sums=None)),
        ("another round", lambda m: replace(m, round=2)),
        ("a replayed reply of round 0", lambda m: replace(m, round=0)),
        ("another action", lambda m: replace(m, action="evaluate")),
    ]
    for name, make in rubbish:
        yield silent(f"client sends: {name}", NAMED, instead(make), check=named("rejected"))
    more: list[tuple[str, Callable[[Message], Message], str]] = [
        ("its reply twice", lambda m: m, WHO),
        ("a reply of somebody unknown", lambda m: replace(m, client="mallory"), "mallory"),
    ]
    for name, make, who in more:
        kind = "rejected twice" if who == WHO else "rejected"
        yield Cell(
            f"client sends: {name}",
            "the first counts, the other is named; exit 0",
            besides(make),
            (0,),
            PLAIN,
            "plain",
            named(kind, who),
            is_early=True,
            ignored=HOW_IT_FAILED,
        )
    yield Cell(
        "quorum: one of three is late, three are needed",
        "round failed, nothing changed, the run goes on; exit 0",
        fails("late"),
        (0,),
        {**PLAIN, "cohort__minimum": 3},
        "",
        failed,
        is_early=True,
    )
