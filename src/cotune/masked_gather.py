"""The server's half of masked sums, over messages: acks -> keys -> shares -> masks -> consent -> opened sum.

The clients have done their work before; what they send first says only that they are ready. Each step asks
those who took the one before. If too many leave before anybody has signed who is in the sum, it is tried once
more with those who are left. After that there is no second try: clients sign one list a round.

What must outlive the server is written down before it is used: the number of an attempt, the masked total
with its lists, and the result. A server that is started again in the same round goes on from there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from cotune import secure_server
from cotune.checkpoint import write_whole
from cotune.codec import decode, encode
from cotune.errors import DataError, WireError
from cotune.fixed_point import Encoded, Summed
from cotune.masked_terms import SECURE, Settings, Sum, described
from cotune.records import Array, Facts, Message
from cotune.secure_messages import (
    Consent,
    Lists,
    Masked,
    Opened,
    PublicKeys,
    Registry,
    Roster,
    Sealed,
    check_keys,
    pack,
    unpack,
)
from cotune.secure_server import Circle, MaskedTotal

ATTEMPTS = 2
T = TypeVar("T", PublicKeys, Sealed, Masked, Consent, Opened)


class Carrier(Protocol):
    """How the steps of a sum reach clients."""

    def exchange(self, action: str, told: Mapping[str, Facts], *, gathered: bool) -> Iterator[Message]:
        """Ask the keys of `told`, telling each of them its own; usable replies as they come, in any order.

        A reply is usable if it is the first of a client that was asked, to this action in this round, and no
        refusal; failures have been written down. `gathered`: replies are masked, and are counted as such.
        """

    def refuse(self, reply: Message, reason: str) -> None:
        """Record that a reply which had come does not count."""


class Outcome(NamedTuple):
    """The sum, or why there is none; and the facts of its plan: how many masked, with how many neighbours."""

    summed: Summed | None
    reason: str = ""
    plan: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Closed:
    """Masked contributions added up, and who is in them: all that is needed to open the sum."""

    circle: Circle
    lists: Lists
    total: MaskedTotal


class _Lost(Exception):
    """An attempt in which too many left; `left`: who had answered last."""

    def __init__(self, reason: str, left: Iterable[str]) -> None:
        super().__init__(reason)
        self.left = sorted(left)


@dataclass(frozen=True, slots=True)
class Journal:
    """What a server that is started again must know of its sums, a file each; those of old rounds go.

    keep: rounds; at least as many as there are checkpoints to go on from.
    """

    folder: Path
    keep: int = 3

    def read(self, wanted: Sum) -> Message | None:
        """What was written last of a sum."""
        path = self._path(wanted)
        try:
            return decode(path.read_bytes()) if path.is_file() else None
        except WireError:
            return None  # clients know what they have signed, so at worst this round fails

    def write(self, wanted: Sum, facts: Facts, arrays: Mapping[str, Array] | None = None) -> None:
        """Replace what is known of a sum.

        Raises:
            RunError: it could not be written.
        """
        data = encode(Message("server", wanted.round, wanted.action, arrays or {}, facts))
        write_whole(self._path(wanted), data, self.folder.parent)
        for old in self.folder.glob("*.sum"):
            if int(old.name[:6]) <= wanted.round - self.keep:
                old.unlink()

    def _path(self, wanted: Sum) -> Path:
        """The same action of another family has others who are asked."""
        words = "\x1f".join((wanted.name, *sorted(wanted.asked)))
        return self.folder / f"{wanted.round:06d}-{hashlib.sha256(words.encode()).hexdigest()[:16]}.sum"


@dataclass(frozen=True, slots=True)
class MaskedSums:
    """Sums of what clients keep.

    carrier: reaches them; settings and registry: of this run; journal: outlives the process; minimum: a sum
    over fewer clients is not begun.
    """

    carrier: Carrier
    settings: Settings
    registry: Registry
    journal: Journal
    minimum: int = 2

    def gather(self, wanted: Sum, acks: Iterable[Message]) -> Outcome:
        """The sum of what those hold who say in `acks` that they are ready; or none, and why.

        Args:
            wanted: what is summed; names of sums come from the clients.
            acks: usable replies to the action whose work is summed.
        """
        known = self.journal.read(wanted)
        if known and known.facts["state"] in ("done", "failed"):
            return _finished(known)
        present, sums = self._ready(acks)
        attempt, reason = 0, ""
        if known and known.facts["state"] == "masked":
            wanted = replace(wanted, sums=tuple(known.facts["sums"]))
            return self._open(wanted, self._restored(wanted, known))
        if known:
            attempt = known.facts["attempt"] + 1
        wanted = replace(wanted, sums=sums)
        for number in range(attempt, attempt + ATTEMPTS):
            if len(present) < self.minimum:
                reason = f"{len(present)} clients are there; expected at least {self.minimum}. {reason}"
                break
            try:
                closed = self._mask(wanted, present, number)
            except WireError as error:  # no terms for so few
                reason = f"{error} {reason}"
                break
            except _Lost as lost:
                present, reason = lost.left, str(lost)
                continue
            return self._open(wanted, closed)
        return Outcome(None, reason.strip())

    def _ready(self, acks: Iterable[Message]) -> tuple[list[str], tuple[str, ...]]:
        """Who is ready, and the names of sums that most of them have."""
        found: dict[str, tuple[str, ...]] = {}
        kept: dict[str, Message] = {}
        for ack in acks:
            names = ack.facts.get("sums", [])
            is_named = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if ack.facts.get("ready") is True and is_named and ack.client in self.registry:
                found[ack.client], kept[ack.client] = tuple(sorted(names)), ack
            else:
                self.carrier.refuse(ack, "no word that it is ready for a masked sum, or not registered")
        most = Counter(found.values()).most_common(1)[0][0] if found else ()
        for client, names in found.items():
            if names != most:
                self.carrier.refuse(
                    kept[client], f"sums {list(names)!r:.200}; most clients have {list(most)!r:.200}"
                )
        return sorted(client for client, names in found.items() if names == most), most

    def _mask(self, wanted: Sum, present: Sequence[str], attempt: int) -> Closed:
        """All steps up to the point from which there is no second try."""
        terms = wanted.terms(self.settings, present, attempt)
        self.journal.write(wanted, {"state": "begun", "attempt": attempt})
        left: set[str] = set()
        try:
            told: dict[str, Facts] = dict.fromkeys(terms.cohort, described(wanted, terms))
            keys = self._step("keys", told, PublicKeys, lambda one: check_keys(one, terms, self.registry))
            circle = secure_server.roster(terms, _noting(keys, left), self.registry)
            told = dict.fromkeys(circle.places, pack(circle.roster)[0])
            left.clear()
            sealed = self._step("share", told, Sealed, lambda one: secure_server.check_sealed(one, circle))
            deliveries = secure_server.deliveries(circle, _noting(sealed, left))
            told = {client: pack(delivery)[0] for client, delivery in deliveries.items()}
            left.clear()
            masked = self._step(
                "mask", told, Masked, lambda one: secure_server.check_masked(one, circle, deliveries)
            )
            total = secure_server.add_up(circle, deliveries, _noting(masked, left))
            lists = secure_server.lists(circle, deliveries, total)
        except WireError as error:
            raise _Lost(str(error), left) from error
        facts = {
            "state": "masked",
            "attempt": attempt,
            "cohort": list(terms.cohort),
            "sums": list(wanted.sums),
            "roster": pack(circle.roster)[0],
            "lists": pack(lists)[0],
        }
        self.journal.write(wanted, facts, total.vectors._asdict())
        return Closed(circle, lists, total)

    def _restored(self, wanted: Sum, known: Message) -> Closed:
        """A masked total as it was written down."""
        facts = known.facts
        terms = wanted.terms(self.settings, facts["cohort"], facts["attempt"])
        circle = secure_server.roster(terms, unpack(Roster, facts["roster"]).entries, self.registry)
        lists = unpack(Lists, facts["lists"])
        return Closed(circle, lists, MaskedTotal(Encoded(**known.arrays), lists.alive))

    def _open(self, wanted: Sum, closed: Closed) -> Outcome:
        """Consent, and the shares that open the sum."""
        circle, lists, total = closed.circle, closed.lists, closed.total
        plan = {"attempt": circle.terms.attempt, **_plan_facts(closed)}
        try:
            told: dict[str, Facts] = dict.fromkeys(lists.alive, pack(lists)[0])
            signed = self._step(
                "consent",
                told,
                Consent,
                lambda one: secure_server.check_consent(one, lists, self.registry),
            )
            consents = list(signed)
            agreed = secure_server.agreement(circle, lists, consents, self.registry)
            told = dict.fromkeys((one.client for one in consents), pack(agreed)[0])
            came = self._step(
                "open", told, Opened, lambda one: secure_server.check_opened(one, circle, lists)
            )
            summed = secure_server.open_sum(circle, lists, total, list(came))
        except (WireError, DataError) as error:
            self.journal.write(wanted, {"state": "failed", "reason": str(error), "plan": plan})
            return Outcome(None, str(error), plan)
        numbers = {"sums": summed.sums, "weight": summed.weight, "num_clients": summed.num_clients}
        self.journal.write(wanted, {"state": "done", "plan": plan, **numbers}, summed.arrays)
        return Outcome(summed, "", plan)

    def _step(
        self, step: str, told: Mapping[str, Facts], kind: type[T], check: Callable[[T], None]
    ) -> Iterator[T]:
        """One step: what comes and fits, one at a time; who sends anything else is named."""
        for reply in self.carrier.exchange(SECURE + step, told, gathered=kind is Masked):
            try:
                found = unpack(kind, reply.facts, reply.arrays)
                if found.client != reply.client:
                    raise WireError(f"{reply.client!r} speaks for {found.client!r}")
                check(found)
            except WireError as error:
                self.carrier.refuse(reply, str(error))
                continue
            yield found


def _noting(coming: Iterator[T], left: set[str]) -> Iterator[T]:
    """The same, writing down whose they are."""
    for one in coming:
        left.add(one.client)
        yield one


def _plan_facts(closed: Closed) -> dict[str, Any]:
    plan = closed.circle.terms.plan
    return {
        "asked_to_mask": plan.num_clients,
        "in_the_sum": len(closed.lists.alive),
        "neighbours": plan.num_neighbours,
        "threshold": plan.threshold,
        "quorum": plan.quorum,
        "corrupt": plan.corrupt,
        "privacy_failure": plan.privacy_failure,
    }


def _finished(known: Message) -> Outcome:
    facts = known.facts
    if facts["state"] == "failed":
        return Outcome(None, facts["reason"], facts["plan"])
    summed = Summed(dict(known.arrays), dict(facts["sums"]), facts["weight"], facts["num_clients"])
    return Outcome(summed, "", facts["plan"])
