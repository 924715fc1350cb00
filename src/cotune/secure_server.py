"""The server's half of a masked sum: it passes keys, shares and lists around, and opens the sum, no part.

    keys -> `roster` -> shares -> `deliveries` -> masked contributions -> `add_up` -> `lists` -> signatures
    -> `agreement` -> opened shares -> `open_sum`

Clients may stay away at every step. If too few are left the round fails with a `WireError`; a seed or key
that does not fit what its owner announced is refused, so a wrong sum is never returned. Each check of one
client's message stands alone (`check_...`), so that its sender can be named and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cotune.errors import WireError
from cotune.fixed_point import KINDS, Encoded, Summed
from cotune.masks import masked, public_of
from cotune.neighbours import neighbours, ring
from cotune.secure_client import hash_of, mask_key
from cotune.secure_messages import (
    Agreement,
    Consent,
    Delivery,
    Lists,
    Masked,
    Opened,
    PublicKeys,
    Registry,
    Roster,
    Sealed,
    Terms,
    check_keys,
    verify,
)
from cotune.shamir import join


@dataclass(frozen=True, slots=True)
class Circle:
    """A roster with what follows from it: its digest, and each client's neighbours and place on the ring."""

    terms: Terms
    roster: Roster
    digest: bytes
    neighbours: Mapping[str, tuple[str, ...]]
    places: Mapping[str, int]


class MaskedTotal(NamedTuple):
    """Masked contributions added up, and whose they are, sorted."""

    vectors: Encoded
    clients: tuple[str, ...]


def roster(terms: Terms, keys: Iterable[PublicKeys], registry: Registry) -> Circle:
    """Everybody's keys, once enough have come.

    Raises:
        WireError: keys that `check_keys` refuses, two of one client, or too few clients.
    """
    found: dict[str, PublicKeys] = {}
    for one in keys:
        check_keys(one, terms, registry)
        if one.client in found:
            raise WireError(f"second keys of {one.client!r}")
        found[one.client] = one
    _check_number(found, terms.plan.minimum, "sent keys", terms)
    made = Roster(tuple(found[client] for client in sorted(found)))
    digest = made.digest(terms)
    order = ring(found, digest)
    near = {name: neighbours(order, place, terms.plan.num_neighbours) for place, name in enumerate(order)}
    return Circle(terms, made, digest, near, {name: place for place, name in enumerate(order)})


def _check_number(who: Collection[str], least: int, did: str, terms: Terms) -> None:
    if len(who) < least:
        raise WireError(
            f"{len(who)} of {len(terms.cohort)} clients {did} in round {terms.round}; expected at least "
            f"{least}. The sum stays closed; nothing is lost but this round."
        )


def check_sealed(sealed: Sealed, circle: Circle) -> None:
    """Refuse shares of another sum, or that are not for exactly the sender's neighbours.

    Raises:
        WireError: says what came and what was expected.
    """
    _check_sender(sealed.client, circle.neighbours, "shares")
    _check_digest(sealed.client, sealed.roster, circle.digest)
    if sealed.boxes.keys() != set(circle.neighbours[sealed.client]):
        odd = min(sealed.boxes.keys() ^ set(circle.neighbours[sealed.client]))
        raise WireError(f"shares of {sealed.client!r} for other clients than its neighbours, such as {odd!r}")


def _check_sender(client: str, allowed: Collection[str], what: str) -> None:
    if client not in allowed:
        raise WireError(f"{what} of {client!r}, who was not asked for any")


def _check_digest(client: str, came: bytes, expected: bytes) -> None:
    if came != expected:
        raise WireError(
            f"{client!r} answers to {came.hex()[:16]}; expected {expected.hex()[:16]}: it is of another sum"
        )


def deliveries(circle: Circle, sealed: Iterable[Sealed]) -> dict[str, Delivery]:
    """What each client that sent shares is told: those of its neighbours.

    Raises:
        WireError: shares that `check_sealed` refuses, two of one client, or too few clients.
    """
    boxes: dict[str, Mapping[str, bytes]] = {}
    for one in sealed:
        check_sealed(one, circle)
        if one.client in boxes:
            raise WireError(f"second shares of {one.client!r}")
        boxes[one.client] = one.boxes
    _check_number(boxes, circle.terms.plan.minimum, "sent shares", circle.terms)
    return {
        client: Delivery(
            {n: boxes[n][client] for n in circle.neighbours[client] if n in boxes}, circle.digest
        )
        for client in sorted(boxes)
    }


def check_masked(came: Masked, circle: Circle, sharers: Collection[str]) -> None:
    """Refuse a contribution of another sum, of a stranger, or of another size or type.

    Raises:
        WireError: says what came and what was expected.
    """
    _check_sender(came.client, sharers, "a contribution")
    _check_digest(came.client, came.roster, circle.digest)
    layout = circle.terms.layout
    expected = {
        "words": (came.words, layout.num_words, layout.grid.bits),
        "extras": (came.extras, 1 + len(layout.sums), layout.extras.bits),
    }
    for name, (array, size, bits) in expected.items():
        if array.shape != (size,) or array.dtype != KINDS[bits]:
            raise WireError(
                f"{name} of {came.client!r}: {array.dtype}{array.shape}; expected {KINDS[bits]}({size},)"
            )


def add_up(circle: Circle, sharers: Collection[str], coming: Iterable[Masked]) -> MaskedTotal:
    """Add contributions as they come, one in memory at a time.

    Raises:
        WireError: one that `check_masked` refuses, or two of one client.
    """
    layout = circle.terms.layout
    words = np.zeros(layout.num_words, KINDS[layout.grid.bits])
    extras = np.zeros(1 + len(layout.sums), KINDS[layout.extras.bits])
    seen: set[str] = set()
    for one in coming:
        check_masked(one, circle, sharers)
        if one.client in seen:
            raise WireError(f"second contribution of {one.client!r}")
        seen.add(one.client)
        words += one.words
        extras += one.extras
    return MaskedTotal(Encoded(words, extras), tuple(sorted(seen)))


def lists(circle: Circle, sharers: Collection[str], total: MaskedTotal) -> Lists:
    """Who is in the sum and who dropped out after sending shares.

    Raises:
        WireError: too few are left.
    """
    alive = total.clients
    _check_number(alive, circle.terms.plan.minimum, "sent a contribution", circle.terms)
    return Lists(alive, tuple(sorted(set(sharers) - set(alive))), circle.digest)


def check_consent(consent: Consent, lists: Lists, registry: Registry) -> None:
    """Refuse a signature that does not fit.

    Raises:
        WireError: of somebody who is not alive, or under other lists.
    """
    _check_sender(consent.client, lists.alive, "a signature")
    verify(registry, consent.client, consent.signature, lists.digest, "lists")


def agreement(circle: Circle, lists: Lists, consents: Iterable[Consent], registry: Registry) -> Agreement:
    """The signatures under the lists; as many as the quorum asks for, since each client checks every one.

    Raises:
        WireError: a signature that `check_consent` refuses, or too few.
    """
    found: dict[str, bytes] = {}
    for one in consents:
        check_consent(one, lists, registry)
        found[one.client] = one.signature
    quorum = circle.terms.plan.quorum
    _check_number(found, quorum, "signed the lists", circle.terms)
    return Agreement({client: found[client] for client in sorted(found)[:quorum]}, lists.digest)


def check_opened(opened: Opened, circle: Circle, lists: Lists) -> None:
    """Refuse shares of other sums or of other clients' secrets than the sender may open.

    Raises:
        WireError: says what came and what was expected.
    """
    _check_sender(opened.client, lists.alive, "opened shares")
    _check_digest(opened.client, opened.lists, lists.digest)
    near = {*circle.neighbours[opened.client], opened.client}
    for what, came, whose in (("seeds", opened.seeds, lists.alive), ("keys", opened.keys, lists.dead)):
        if came.keys() != near & set(whose):
            odd = min(came.keys() ^ (near & set(whose)))
            raise WireError(f"{opened.client!r} opens {what} of others than agreed, such as {odd!r}")


def open_sum(circle: Circle, lists: Lists, total: MaskedTotal, opened: Sequence[Opened]) -> Summed:
    """Take all masks away from the total.

    Raises:
        WireError: shares that `check_opened` refuses, too few of them for some client, or wrong ones.
    """
    for one in opened:
        check_opened(one, circle, lists)
    if len({one.client for one in opened}) != len(opened):
        raise WireError("shares opened twice by one client")
    alive = total.clients
    keys = circle.roster.by_client()
    plus: list[bytes] = []
    minus: list[bytes] = []
    shares = _by_owner(opened)
    for client in alive:
        seed = _joined(circle, "seed", client, shares)
        if hash_of(seed) != keys[client].seed_hash:
            raise _wrong("seed", client)
        minus.append(seed)
    for client in lists.dead:
        left = sorted(set(circle.neighbours[client]) & set(alive))
        if not left:
            continue  # nobody who is in the sum has a mask with it
        secret = _joined(circle, "mask key", client, shares)
        if public_of(secret) != keys[client].mask_key:
            raise _wrong("mask key", client)
        for peer in left:
            # the living one added this mask if its name comes first, so it is taken away
            key = mask_key(secret, keys[peer].mask_key, circle.digest)
            (minus if peer < client else plus).append(key)
    words, extras = masked(total.vectors, plus, minus)
    return circle.terms.layout.decode(Encoded(words, extras), len(alive))


Shares = Mapping[tuple[str, str], Mapping[str, bytes]]
"""(`seed` or `mask key`, whose) -> (by whom -> share)."""


def _by_owner(opened: Iterable[Opened]) -> Shares:
    found: dict[tuple[str, str], dict[str, bytes]] = {}
    for one in opened:
        for what, given in (("seed", one.seeds), ("mask key", one.keys)):
            for owner, share in given.items():
                found.setdefault((what, owner), {})[one.client] = share
    return found


def _joined(circle: Circle, what: str, owner: str, shares: Shares) -> bytes:
    """A secret of one client, from as many shares of it as are needed."""
    given, threshold = shares.get((what, owner), {}), circle.terms.plan.threshold
    if len(given) < threshold:
        raise WireError(
            f"{len(given)} shares of the {what} of {owner!r} came; expected at least {threshold}. "
            "The sum stays closed; nothing is lost but this round."
        )
    holders = sorted(given)[:threshold]
    return join([circle.places[holder] + 1 for holder in holders], [given[holder] for holder in holders])


def _wrong(what: str, client: str) -> WireError:
    return WireError(
        f"the shares of the {what} of {client!r} give another one than it announced: one is wrong"
    )
