"""The client's half of masked sums, as it answers messages: every step is on its disk before a reply leaves.

A client keeps what is to be summed (`update.msg`), how far the sum has come (`sum.msg`), its masked
contribution (`masked.msg`) and all keys it has seen (`keys.seen`) in its own folder, which only its user may
read. So a client that is started again goes on where it was, and these hold across restarts:

* A request that comes again, word for word, gets the reply that is on disk: it says nothing new. Any other
  request for a step that was taken is refused. Shares are the same for every set of signatures under the same
  lists, so there the lists are the request.
* A failed sum may be tried again under a higher attempt, with other keys, but not once this client has signed
  who is in it: of one round it signs one list, so that a server gets one sum.
* Terms are built from this client's own configuration; what the server says of them must be the same.

Secrets go once their shares were given, or when a newer sum begins. A folder that was put back to an older
state has forgotten what it signed: it must not be restored from a backup.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cotune import secure_client
from cotune.choices import client_folder
from cotune.codec import decode, encode
from cotune.errors import CotuneError, RunError, WireError
from cotune.fixed_point import Encoded
from cotune.guarding import Update, secret_rng
from cotune.masked_terms import SECURE, STEPS, Asked, Settings, Shapes, Sum, compare, described
from cotune.protocols import TUNE
from cotune.records import Facts, Message
from cotune.secure_client import Member, public_keys
from cotune.secure_messages import (
    Agreement,
    Delivery,
    Lists,
    PublicKeys,
    Registry,
    Roster,
    digest_of,
    pack,
    unpack,
)

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Progress:
    """The parts of a `Member` that are bytes and names."""

    awaits: str
    seal_secret: bytes
    mask_secret: bytes
    seed: bytes
    digest: bytes
    order: tuple[str, ...]
    holders: tuple[str, ...]
    held: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a client's disk says.

    history: by run and action, the last round and attempt, and whether lists were signed; wanted and member:
    the sum in progress; replies: by step, what was asked and the facts that were sent.
    """

    history: Mapping[str, tuple[int, int, bool]] = field(default_factory=dict)
    wanted: Sum | None = None
    member: Member | None = field(default=None, repr=False)
    replies: Mapping[str, tuple[str, Facts]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Members:
    """Answers the steps of masked sums for the clients of this process.

    folder: theirs; identity: the key a client is registered under; registry: who may take part; run: the
    fingerprint; minimum: a smaller cohort is refused; asked: who may be in a sum, by default all that are
    registered; is_flushed: wait until the disk has it, so that not even a power cut takes a step back.
    """

    folder: Path
    identity: Callable[[str], Ed25519PrivateKey]
    registry: Registry
    run: str
    settings: Settings
    minimum: int = 2
    asked: Asked | None = None
    is_flushed: bool = True

    def keep(self, message: Message, update: Update) -> dict[str, Any]:
        """Keep what `message` asked for, to be summed; what the server is told in its place.

        Doing a round again replaces what was kept. Whether an update had to be clipped is told in the clear.

        Raises:
            WireError: it cannot be summed.
        """
        fitted, is_clipped = self.settings.fitted(update, is_update=message.action == TUNE)
        sums = {name: float(value) for name, value in fitted.sums.items()}
        facts = {"run": self.run, "weight": float(fitted.weight), "sums": sums}
        kept = Message(message.client, message.round, message.action, fitted.arrays, facts)
        self._write(message.client, "update.msg", kept)
        return {"ready": True, "sums": sorted(sums), "clipped": is_clipped}

    def answer(self, message: Message) -> Message:
        """One step of a sum; the reply is on disk before it is returned.

        Raises:
            WireError: a step that must not be taken; nothing has changed.
            RunError: the disk is full.
        """
        step, told = message.action.removeprefix(SECURE), message.facts.get("told")
        if step not in STEPS or not isinstance(told, dict):
            raise WireError(f"{message.action!r} with {type(told).__name__}; expected a step of a masked sum")
        kept, request = self._read(message.client), _request(message.round, step, told)
        if step in kept.replies and kept.replies[step][0] == request:
            self._forget(message.client, step)
            return self._again(message, step, kept.replies[step][1])
        if step == "keys":
            changed, sent = self._begin(message, told, kept)
        else:
            changed, sent = self._go_on(message, step, told, kept)
        facts, arrays = pack(sent)
        if arrays:
            self._write(message.client, "masked.msg", replace(message, arrays=arrays, facts={}))
        changed = replace(changed, replies={**changed.replies, step: (request, facts)})
        self._write(
            message.client, "sum.msg", Message(message.client, message.round, "sum", {}, _facts(changed))
        )
        self._forget(message.client, step)
        return replace(message, facts=facts, arrays=arrays)

    def _forget(self, client: str, step: str) -> None:
        """Once the sum is open, the update is of no use; it may have been made again after a crash."""
        if step == "open":
            (self._folder(client) / "update.msg").unlink(missing_ok=True)

    def _again(self, message: Message, step: str, facts: Facts) -> Message:
        """The reply that was sent before."""
        if step != "mask":
            return replace(message, facts=facts, arrays={})
        return replace(message, facts=facts, arrays=self._load(message.client, "masked.msg").arrays)

    def _begin(self, message: Message, told: Facts, kept: _Kept) -> tuple[_Kept, PublicKeys]:
        """Agree to terms and make keys for them; a sum in progress is given up."""
        client, wanted = message.client, self._wanted(message)
        cohort, attempt = told.get("cohort"), told.get("attempt")
        if not (isinstance(cohort, list) and all(isinstance(name, str) for name in cohort)):
            raise WireError(f"a cohort that is no list of names: {cohort!r:.80}")
        if type(attempt) is not int or attempt < 0:
            raise WireError(f"attempt {attempt!r:.40}; expected 0, 1, ...")
        if len(cohort) < self.minimum:
            raise WireError(f"a cohort of {len(cohort)}; {client!r} expects at least {self.minimum}")
        if unknown := set(cohort) - self.registry.keys():
            raise WireError(f"{min(unknown)!r} is in the cohort, but is not registered")
        terms = wanted.terms(self.settings, cohort, attempt)
        compare(told, described(wanted, terms))
        _check_order(client, wanted, attempt, kept)
        member, keys = secure_client.begin(terms, client, self.identity(client))
        if kept.member is not None:
            self._remember(client, kept.member.roster)
        history = {**kept.history, wanted.name: (wanted.round, attempt, False)}
        return _Kept(history, wanted, member), keys

    def _wanted(self, message: Message) -> Sum:
        """The sum of what this client has kept."""
        client = message.client
        update = self._update(client, message.round)
        shapes = tuple((name, tuple(update.arrays[name].shape)) for name in sorted(update.arrays))
        return self._sum(client, (update.action, update.round), (shapes, tuple(sorted(update.facts["sums"]))))

    def _sum(self, client: str, which: tuple[str, int], what: tuple[Shapes, tuple[str, ...]]) -> Sum:
        asked = self.asked(*which, client) if self.asked else self.registry.keys()
        return Sum(self.run, *which, asked, *what)

    def _update(self, client: str, round: int) -> Message:
        found = self._load(client, "update.msg")
        if (found.round, found.facts["run"]) != (round, self.run):
            raise WireError(
                f"{client!r} has kept {found.action!r} of round {found.round} of run "
                f"{found.facts['run']!s:.12}; it was asked for round {round} of {self.run:.12}"
            )
        return found

    def _go_on(self, message: Message, step: str, told: Facts, kept: _Kept) -> tuple[_Kept, Any]:
        """Any step but the first."""
        client, member, wanted = message.client, kept.member, kept.wanted
        if member is None or wanted is None or wanted.round != message.round:
            raise WireError(
                f"{client!r} was asked to {step} in round {message.round}; it has begun no sum there"
            )
        sent: Any
        if step == "share":
            member, sent = secure_client.share(
                member, unpack(Roster, told), self.registry, self._seen(client)
            )
        elif step == "mask":
            given = self._encoded(client, member, wanted)
            member, sent = secure_client.mask(member, unpack(Delivery, told), given)
        elif step == "consent":
            member, sent = secure_client.consent(member, unpack(Lists, told), self.identity(client))
        else:
            member, sent = secure_client.open_masks(member, unpack(Agreement, told), self.registry)
        history = dict(kept.history)
        if step == "consent":
            history[wanted.name] = (wanted.round, member.terms.attempt, True)
        return replace(kept, member=member, history=history), sent

    def _encoded(self, client: str, member: Member, wanted: Sum) -> Encoded:
        """This client's contribution, as integers; rounded alike each time, by chance that only it knows."""
        update = self._update(client, wanted.round)
        if update.action != wanted.action:
            raise WireError(f"{client!r} has kept {update.action!r}; the sum is of {wanted.action!r}")
        secret = sha256(b"cotune rounding" + self.identity(client).private_bytes_raw()).digest()
        rng = secret_rng(secret, client, str(wanted.round), wanted.action)
        facts = update.facts
        try:
            return member.terms.layout.encode(update.arrays, facts["weight"], facts["sums"], rng)
        except CotuneError as error:
            raise WireError(f"{client!r} cannot mask its update: {error}") from error

    # on disk

    def _folder(self, client: str) -> Path:
        return client_folder(self.folder, client) / "sums"

    def _read(self, client: str) -> _Kept:
        if not (self._folder(client) / "sum.msg").is_file():
            return _Kept()
        facts = self._load(client, "sum.msg").facts
        history = {action: (last[0], last[1], last[2]) for action, last in facts["history"].items()}
        replies = {step: (one[0], one[1]) for step, one in facts["replies"].items()}
        shapes = tuple((name, tuple(shape)) for name, shape in facts["shapes"])
        wanted = self._sum(client, (facts["action"], facts["round"]), (shapes, tuple(facts["sums"])))
        try:
            terms = wanted.terms(self.settings, facts["cohort"], facts["attempt"])
        except WireError:
            return _Kept(history)
        if terms.digest.hex() != facts["terms"]:
            return _Kept(history)  # the configuration is another one now, so this sum cannot go on
        progress = unpack(_Progress, facts["progress"])
        member = Member(
            terms,
            unpack(PublicKeys, facts["keys"]),
            **{one.name: getattr(progress, one.name) for one in fields(_Progress)},
            roster=unpack(Roster, facts["roster"]),
            lists=unpack(Lists, facts["lists"]) if facts["lists"] else None,
        )
        return _Kept(history, wanted, member, replies)

    def _load(self, client: str, name: str) -> Message:
        path = self._folder(client) / name
        try:
            return decode(path.read_bytes())
        except FileNotFoundError as error:
            raise WireError(f"{client!r} has nothing to sum: {name} is not there") from error
        except WireError as error:
            raise WireError(
                f"{path}: cannot be read ({error}). {client!r} takes part in no more masked sums of this "
                "run; docs/security.md says what to do (a lost or damaged folder)."
            ) from error

    def _write(self, client: str, name: str, message: Message) -> None:
        self._replace(client, name, encode(message))

    def _replace(self, client: str, name: str, data: bytes) -> None:
        """A file that is whole or not there, and that nobody else may read."""
        folder = self._folder(client)
        part = folder / f"{name}.part"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                if self.is_flushed:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(folder / name)
        except OSError as error:
            raise RunError(
                f"{folder / name}: cannot be written ({error.strerror}), so that nothing was sent. Free "
                f"{len(data):,} bytes."
            ) from error

    def _seen(self, client: str) -> frozenset[bytes]:
        """All public keys of sums before this one."""
        path = self._folder(client) / "keys.seen"
        data = path.read_bytes() if path.is_file() else b""
        return frozenset(data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES))

    def _remember(self, client: str, roster: Roster) -> None:
        if roster.entries:
            known = self._seen(client) | public_keys(roster)
            self._replace(client, "keys.seen", b"".join(sorted(known)))


def _request(round: int, step: str, told: Facts) -> str:
    """What makes a request the same as another."""
    try:
        return digest_of("request", round, step, told.get("lists") if step == "open" else told).hex()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"{step!r} with facts that are no plain JSON: {error}") from error


def _check_order(client: str, wanted: Sum, attempt: int, kept: _Kept) -> None:
    """Refuse to go back, and to begin again what was signed."""
    round, last, is_signed = kept.history.get(wanted.name, (0, -1, False))
    if (wanted.round, attempt) <= (round, last):
        raise WireError(
            f"{client!r} was asked for keys of {wanted.action!r}, round {wanted.round}, attempt {attempt}; "
            f"it has begun round {round}, attempt {last}. Sums only go forward."
        )
    if wanted.round == round and is_signed:
        raise WireError(
            f"{client!r} has signed who is in the sum of round {round}; a second sum of it would show the "
            "difference between the two"
        )


def _facts(kept: _Kept) -> dict[str, Any]:
    """What `_read` reads."""
    member, wanted = kept.member, kept.wanted
    assert member is not None
    assert wanted is not None
    progress = _Progress(**{one.name: getattr(member, one.name) for one in fields(_Progress)})
    return {
        "history": {action: list(last) for action, last in kept.history.items()},
        "replies": {step: list(one) for step, one in kept.replies.items()},
        "action": wanted.action,
        "round": wanted.round,
        "shapes": [[name, list(shape)] for name, shape in wanted.shapes],
        "sums": list(wanted.sums),
        "cohort": list(member.terms.cohort),
        "attempt": member.terms.attempt,
        "terms": member.terms.digest.hex(),
        "keys": pack(member.keys)[0],
        "progress": pack(progress)[0],
        "roster": pack(member.roster)[0],
        "lists": pack(member.lists)[0] if member.lists else None,
    }
