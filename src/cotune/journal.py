"""What has been done within a round, kept on disk, so that a run that was killed does not do it again.

A round is a function of the state before it, of the seed, and of what clients replied. So what came of its
steps, in their order, is all that must be kept: on resume the same steps get the same results without anybody
being asked, up to the first one that is not there. Each record names by digest what it was made from, the
records before it included: one that is torn, or was made from something else, is done again, and so is
everything after it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cotune.checkpoint import packed, unpacked, write_whole
from cotune.codec import decode, encode
from cotune.errors import WireError
from cotune.protocols import Gathered, State
from cotune.records import Adapter, Facts, Failure, Message, adapter_digest, adapter_header, adapter_of

ASK, GATHER = "ask", "gather"
DIGEST_BYTES = 32
LENGTH_BYTES = 8


@dataclass(slots=True)
class Ledger:
    """What crossed the wire and what went wrong since it was last taken.

    `clear_bytes` came up in replies that are read one by one, `gathered_bytes` in replies that are summed;
    `seconds` passed while the server waited for clients. `sums`: of each sum what is known besides its values
    (action, clients asked and summed, the reason if there is none, its plan and digest if it has one);
    `actions`: all that clients were asked for.
    """

    up_bytes: int = 0
    down_bytes: int = 0
    clear_bytes: int = 0
    gathered_bytes: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    sums: list[Facts] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)

    @property
    def traffic(self) -> dict[str, int]:
        """The byte counts by name."""
        names = ("up_bytes", "down_bytes", "clear_bytes", "gathered_bytes")
        return {name: getattr(self, name) for name in names}

    def __add__(self, other: Ledger) -> Ledger:
        """Both, one after the other."""
        traffic = {name: value + other.traffic[name] for name, value in self.traffic.items()}
        return Ledger(
            **traffic,
            seconds=self.seconds + other.seconds,
            failures=[*self.failures, *other.failures],
            sums=[*self.sums, *other.sums],
            actions=sorted({*self.actions, *other.actions}),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a round: its name, and a digest of what it is made from besides the steps before it."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of a step.

    Attributes:
        replies: of clients who were asked; or
        gathered: a mean and sums, never what a single client sent; or
        state: what the run has learned after a phase.
        facts: JSON values that belong to the state.
        ledger: what crossed meanwhile.
        heard: the replies that were read one by one in the steps inside this one, if it comes from a record.
    """

    replies: tuple[Message, ...] = ()
    gathered: Gathered | None = None
    state: State | None = None
    facts: Facts = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    heard: tuple[Message, ...] = ()


def exchange(
    verb: str,
    action: str,
    adapter: Adapter | None,
    cohort: Sequence[str],
    told: Mapping[str, Facts] | None = None,
) -> Step:
    """The step in which clients do an action: of the cohort, or those who are told something of their own."""
    clients = sorted(cohort if told is None else told)
    said = json.dumps(told and {client: dict(told[client]) for client in clients}, sort_keys=True)
    return Step(f"{verb} {action}", _digest(adapter_digest(adapter), json.dumps(clients), said))


def phase(name: str, state: State) -> Step:
    """The step that makes of a state the state after a phase."""
    return Step(name, _digest_of(state))


@dataclass(frozen=True, slots=True)
class _Record:
    """A step's record: the digest of what it was made from, the number of the step after it, its seconds."""

    name: str
    link: str
    end: int
    seconds: float
    kept: Kept


class Journal:
    """The steps of one round at a time, numbered from 0; a step may hold others, which come after it."""

    def __init__(
        self, folder: Path | None = None, fingerprint: str = "", note: Callable[[str], None] = lambda _: None
    ) -> None:
        """An empty journal.

        Args:
            folder: the run's `checkpoints`; None: nothing is kept, everything is done.
            fingerprint: of the experiment.
            note: told when something is taken from a record, or one cannot be used.
        """
        self.folder, self.fingerprint, self.note = folder, fingerprint, note
        self._round, self._next, self._chain = 0, 0, ""
        self._skipped_seconds, self._is_told = 0.0, False

    def now(self) -> float:
        """Seconds that only grow, in which a step that was not done again has taken as long as it took."""
        return time.monotonic() + self._skipped_seconds

    def begin(self, round: int, state: State) -> None:
        """A round begins from this state, which a checkpoint holds: records of earlier rounds can go."""
        self._round, self._next, self._is_told = round, 0, False
        self._chain = _digest(self.fingerprint, str(round), _digest_of(state))
        self._remove_before(round)

    def end(self) -> None:
        """The run is over: its results are written."""
        self._remove_before(self._round + 1)

    def once(self, step: Step, do: Callable[[], Kept]) -> Kept:
        """What came of a step: from its record, else by doing it, and then it is recorded.

        Raises:
            RunError: it could not be recorded; the records before it are intact.
        """
        if self.folder is None:
            return do()
        number, self._next = self._next, self._next + 1
        link = _digest(self._chain, step.name, step.digest)
        found = self._recall(number, link)
        if found is not None:
            return found
        self._chain, began = link, self.now()
        kept = do()
        record = _Record(step.name, link, self._next, self.now() - began, kept)
        data = _encoded(record, self._round)
        write_whole(self._path(number), data, self.folder.parent)
        self._chain = _hash(data)
        return kept

    def _recall(self, number: int, link: str) -> Kept | None:
        """What the record of a step says; one that cannot be used goes, with all after it."""
        if not self._path(number).is_file():
            return None
        try:
            data = self._path(number).read_bytes()
            record = _decoded(data)
            if record.link != link:
                raise WireError("made from something else")
            heard = tuple(self._heard(number + 1, record.end))
        except (WireError, OSError, KeyError, TypeError, ValueError) as error:
            self.note(f"{self._path(number)}: {error}. It is done again, and all after it")
            self._drop(number)
            return None
        self._next, self._chain = record.end, _hash(data)
        self._skipped_seconds += record.seconds
        if not self._is_told:
            self.note(f"round {self._round} goes on after what was recorded of it")
        self._is_told = True
        return replace(record.kept, heard=heard)

    def _heard(self, start: int, end: int) -> Iterator[Message]:
        """Replies that were read one by one in some steps."""
        for number in range(start, end):
            record = _decoded(self._path(number).read_bytes())
            yield from record.kept.replies if record.name.startswith(f"{ASK} ") else ()

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"round-{self._round:06d}" / f"{number:04d}.msg"

    def _drop(self, first: int) -> None:
        for path in self._path(0).parent.glob("*.msg"):
            if path.name >= f"{first:04d}.msg":
                path.unlink(missing_ok=True)

    def _remove_before(self, round: int) -> None:
        for path in self.folder.glob("round-*") if self.folder else ():
            if path.name < f"round-{round:06d}":
                shutil.rmtree(path, ignore_errors=True)


def _encoded(record: _Record, round: int) -> bytes:
    """A digest of the rest, then a head and each value as a message of its own, with its length."""
    kept, gathered = record.kept, record.kept.gathered
    head = {"link": record.link, "end": record.end, "seconds": record.seconds}
    head |= {"facts": dict(kept.facts), "ledger": asdict(kept.ledger)}
    head |= {"gathered": gathered is not None, "state": kept.state is not None}
    messages = [Message("server", round, record.name, {}, head), *kept.replies]
    if gathered is not None:
        sent = gathered.adapter
        facts = {"sums": dict(gathered.sums), "num_replies": gathered.num_replies}
        facts |= {"adapter": adapter_header(sent)} if sent else {}
        messages.append(Message("server", round, "gathered", sent.arrays if sent else {}, facts))
    if kept.state is not None:
        arrays, facts = packed(kept.state)
        messages.append(Message("server", round, "state", arrays, facts))
    parts = [encode(message) for message in messages]
    body = b"".join(len(part).to_bytes(LENGTH_BYTES, "little") + part for part in parts)
    return hashlib.sha256(body).digest() + body


def _decoded(data: bytes) -> _Record:
    body = data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:DIGEST_BYTES]:
        raise WireError("torn")
    head, *rest = _messages(body)
    facts = head.facts
    last = rest.pop() if facts["gathered"] or facts["state"] else None
    gathered = state = None
    if last is not None and facts["gathered"]:
        gathered = Gathered(adapter_of(last), last.facts["sums"], last.facts["num_replies"])
    elif last is not None:
        state = unpacked(last)
    crossed = dict(facts["ledger"])
    failures = [Failure(**failure) for failure in crossed.pop("failures")]
    kept = Kept(tuple(rest), gathered, state, facts["facts"], Ledger(**crossed, failures=failures))
    return _Record(head.action, facts["link"], facts["end"], facts["seconds"], kept)


def _messages(body: bytes) -> Iterator[Message]:
    start = 0
    while start < len(body):
        begin = start + LENGTH_BYTES
        end = begin + int.from_bytes(body[start:begin], "little")
        yield decode(body[begin:end])
        start = end


def _digest_of(state: State) -> str:
    adapters = [f"{role} {adapter_digest(adapter)}" for role, adapter in sorted(state.adapters().items())]
    return _digest(*adapters, repr(state.distil))


def _digest(*words: str) -> str:
    return _hash(json.dumps(words).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
