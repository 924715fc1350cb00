"""The client's half of a masked sum: five steps, each a function from a state and a message to both.

    step       comes                         goes
    begin      the terms                     PublicKeys  fresh, signed
    share      Roster: everybody's keys      Sealed      shares of its seed and mask key, for its neighbours
    mask       Delivery: neighbours' shares  Masked      its contribution under its masks
    consent    Lists: alive and dead         Consent     a signature under these lists, and no others
    open_masks Agreement: a quorum signed    Opened      shares of seeds of the living, of keys of the dead

Paper: Bell et al. 2020, https://eprint.iacr.org/2020/704 (SecAgg+), after Bonawitz et al. 2017,
https://eprint.iacr.org/2017/281, whose consistency check is `consent`. Here the whole cohort agrees, not each
neighbourhood; `neighbours.py` says why.

A step is taken once: what it returns is the only state that goes on, and a client that lost its state begins
anew, with other keys. Training comes before all this. Whatever must not be accepted is a `WireError`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cotune.errors import WireError
from cotune.fixed_point import KINDS, Encoded
from cotune.masks import masked, pair_key, public_of
from cotune.neighbours import neighbours, ring
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
    sign,
    verify,
)
from cotune.shamir import SHARE_BYTES, Randomness, split

STEPS = ("share", "mask", "consent", "open_masks", "nothing more")
NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Member:
    """One client in one sum: its secrets, and what it has agreed to so far.

    awaits: the step that comes next; order: all clients on the ring; holders: its neighbours; held: what it
    holds of each neighbour that sent shares, and of itself: a share of the seed, then of the mask key.
    """

    terms: Terms
    keys: PublicKeys
    awaits: str
    seal_secret: bytes = field(repr=False)
    mask_secret: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    roster: Roster = field(default=Roster(()), repr=False)
    digest: bytes = b""
    order: tuple[str, ...] = field(default=(), repr=False)
    holders: tuple[str, ...] = ()
    held: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    lists: Lists | None = field(default=None, repr=False)

    @property
    def client(self) -> str:
        """Its name."""
        return self.keys.client

    def after(self, step: str) -> str:
        """What comes after a step, if it is this step's turn.

        Raises:
            WireError: it is another step's turn; each is taken once.
        """
        if step != self.awaits:
            raise WireError(
                f"{self.client!r} was asked to {step} in round {self.terms.round}; it awaits: {self.awaits}. "
                "Each step is taken once."
            )
        return STEPS[STEPS.index(step) + 1]


def begin(
    terms: Terms, client: str, identity: Ed25519PrivateKey, randomness: Randomness = os.urandom
) -> tuple[Member, PublicKeys]:
    """Fresh keys for one sum, signed. The caller sees to it that no sum of the same terms was begun before.

    Raises:
        WireError: the client is not in the cohort.
    """
    if client not in terms.cohort:
        raise WireError(f"{client!r} was asked for keys, but the cohort does not name it")
    seal_secret, mask_secret, seed = (randomness(32) for _ in range(3))
    publics = (public_of(seal_secret), public_of(mask_secret), hash_of(seed))
    unsigned = PublicKeys(client, terms.round, *publics, signature=b"")
    keys = replace(unsigned, signature=sign(identity, unsigned.statement(terms)))
    return Member(terms, keys, "share", seal_secret, mask_secret, seed), keys


def hash_of(seed: bytes) -> bytes:
    """What a client says of its seed beforehand, so that a wrong share is noticed."""
    return hashlib.sha256(b"cotune seed" + seed).digest()


def share(
    member: Member,
    roster: Roster,
    registry: Registry,
    earlier: Collection[bytes] = (),
    randomness: Randomness = os.urandom,
) -> tuple[Member, Sealed]:
    """Check the keys of one's neighbours, and cut one's own secrets into shares for them.

    The signatures of others are checked by their neighbours, of the same roster: `consent` signs for it.

    Args:
        member: as `begin` left it.
        roster: everybody's keys.
        registry: who may take part, from one's own configuration.
        earlier: all public keys (see `public_keys`) of sums that this client has seen.
        randomness: for shares and nonces.

    Raises:
        WireError: keys that are missing, unsigned, reused, of another round or of somebody who was not asked.
    """
    after = member.after("share")
    _check_roster(member, roster, earlier)
    terms, plan = member.terms, member.terms.plan
    digest = roster.digest(terms)
    order = ring((entry.client for entry in roster.entries), digest)
    me = order.index(member.client)
    holders = neighbours(order, me, plan.num_neighbours)
    keys = roster.by_client()
    for holder in holders:
        check_keys(keys[holder], terms, registry)
    points = [order.index(holder) + 1 for holder in (*holders, member.client)]
    *given, own = split([member.seed, member.mask_secret], plan.threshold, points, randomness)
    boxes = {}
    for holder, shares in zip(holders, given, strict=True):
        nonce = randomness(NONCE_BYTES)
        cipher = _cipher(member.seal_secret, keys[holder].seal_key, digest, (member.client, holder))
        boxes[holder] = nonce + cipher.encrypt(nonce, b"".join(shares), digest)
    held = {member.client: b"".join(own)}
    changed = replace(
        member, awaits=after, roster=roster, digest=digest, order=order, holders=holders, held=held
    )
    return changed, Sealed(member.client, boxes, digest)


def public_keys(roster: Roster) -> set[bytes]:
    """All keys of one sum; a client keeps them, so that none is used in another."""
    return {key for one in roster.entries for key in (one.seal_key, one.mask_key, one.seed_hash)}


def _check_roster(member: Member, roster: Roster, earlier: Collection[bytes]) -> None:
    terms, names = member.terms, [entry.client for entry in roster.entries]
    if names != sorted(set(names)):
        raise WireError("a roster that is not sorted or names a client twice")
    if len(names) < terms.plan.minimum:
        raise WireError(f"a roster of {len(names)} clients; expected at least {terms.plan.minimum}")
    if roster.by_client().get(member.client) != member.keys:
        raise WireError(f"a roster without the keys that {member.client!r} has sent")
    if strangers := set(names) - set(terms.cohort):
        raise WireError(f"keys of {min(strangers)!r}, who is not in the cohort")
    used = public_keys(roster)
    if len(used) != 3 * len(names):
        raise WireError("a roster in which one key stands twice; expected fresh keys of every client")
    if again := used.intersection(earlier):
        owner = next(e.client for e in roster.entries if again & {e.seal_key, e.mask_key, e.seed_hash})
        raise WireError(f"keys of {owner!r} that were used before; expected fresh ones for every sum")


def _cipher(secret: bytes, public: bytes, digest: bytes, way: tuple[str, str]) -> ChaCha20Poly1305:
    """The cipher of boxes from one client to another."""
    return ChaCha20Poly1305(pair_key(secret, public, digest, _purpose("seal", *way)))


def _purpose(*words: str) -> bytes:
    """Words with their lengths, so that no two lists of words give the same bytes."""
    return b"cotune " + b"".join(len(w.encode()).to_bytes(4, "big") + w.encode() for w in words)


def mask(member: Member, delivery: Delivery, given: Encoded) -> tuple[Member, Masked]:
    """Put one's contribution under one's own mask and those shared with each neighbour that sent shares.

    Args:
        member: as `share` left it.
        delivery: boxes of neighbours.
        given: what `Layout.encode` made.

    Raises:
        WireError: another roster, boxes of strangers or that do not open, too few of them, or a contribution
            of another size than agreed.
    """
    after = member.after("mask")
    _check_digest("a delivery", delivery.roster, member.digest, "roster")
    _check_contribution(member.terms, given)
    strangers = delivery.boxes.keys() - set(member.holders)
    if strangers:
        raise WireError(f"shares of {min(strangers)!r}, who is no neighbour of {member.client!r}")
    if len(delivery.boxes) + 1 < member.terms.plan.threshold:
        raise WireError(
            f"shares of {len(delivery.boxes)} neighbours came to {member.client!r}; "
            f"expected at least {member.terms.plan.threshold - 1}"
        )
    keys = member.roster.by_client()
    held = dict(member.held)
    for sender, box in delivery.boxes.items():
        cipher = _cipher(member.seal_secret, keys[sender].seal_key, member.digest, (sender, member.client))
        held[sender] = _opened(cipher, box, sender, member)
    plus, minus = [member.seed], list[bytes]()
    for peer in sorted(delivery.boxes):
        key = mask_key(member.mask_secret, keys[peer].mask_key, member.digest)
        (plus if member.client < peer else minus).append(key)
    words, extras = masked(given, plus, minus)
    return replace(member, awaits=after, held=held), Masked(member.client, words, extras, member.digest)


def mask_key(secret: bytes, public: bytes, roster: bytes) -> bytes:
    """The key of two clients' mask: the one whose name comes first adds it, the other takes it away."""
    return pair_key(secret, public, roster, _purpose("mask"))


def _opened(cipher: ChaCha20Poly1305, box: bytes, sender: str, member: Member) -> bytes:
    try:
        plain = cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], member.digest)
    except (InvalidTag, ValueError) as error:
        raise WireError(
            f"the shares of {sender!r} for {member.client!r} do not open; expected a box sealed for this sum"
        ) from error
    if len(plain) != 2 * SHARE_BYTES:
        raise WireError(f"{len(plain)} bytes of shares from {sender!r}; expected {2 * SHARE_BYTES}")
    return plain


def _check_contribution(terms: Terms, given: Encoded) -> None:
    layout = terms.layout
    expected = ((layout.num_words, layout.grid.bits), (1 + len(layout.sums), layout.extras.bits))
    for array, (size, bits) in zip(given, expected, strict=True):
        if array.shape != (size,) or array.dtype != KINDS[bits]:
            raise WireError(f"a contribution of {array.dtype}{array.shape}; expected {KINDS[bits]}({size},)")


def _check_digest(what: str, came: bytes, expected: bytes, of: str) -> None:
    if came != expected:
        raise WireError(
            f"{what} of {of} {came.hex()[:16]}; expected {of} {expected.hex()[:16]}, which was agreed to"
        )


def consent(member: Member, lists: Lists, identity: Ed25519PrivateKey) -> tuple[Member, Consent]:
    """Sign who is in the sum, once.

    Raises:
        WireError: another roster; somebody in both lists, or twice, or in one although no shares of it came,
            or in neither although they did; this client not among the living; too few of the living.
    """
    after = member.after("consent")
    _check_digest("lists", lists.roster, member.digest, "roster")
    _check_lists(member, lists)
    signature = sign(identity, lists.digest)
    return replace(member, awaits=after, lists=lists), Consent(member.client, signature)


def _check_lists(member: Member, lists: Lists) -> None:
    plan, alive, dead = member.terms.plan, set(lists.alive), set(lists.dead)
    if alive & dead:
        raise WireError(f"{min(alive & dead)!r} is listed both alive and dead; expected one or the other")
    if len(alive) != len(lists.alive) or len(dead) != len(lists.dead):
        raise WireError("a client is listed twice")
    if unknown := (alive | dead) - set(member.order):
        raise WireError(f"{min(unknown)!r} is listed, but is not in the roster")
    if member.client not in alive:
        raise WireError(f"{member.client!r} is not listed alive, but it is")
    heard = (set(member.held) - {member.client}) ^ ((alive | dead) & set(member.holders))
    if heard:
        raise WireError(
            f"{min(heard)!r} is {'listed' if min(heard) in alive | dead else 'not listed'}; expected the "
            "neighbours whose shares were delivered, and no others"
        )
    if len(alive) < plan.minimum:
        raise WireError(f"{len(alive)} clients are left; expected at least {plan.minimum}")
    near = len(alive & set(member.held))
    if near < plan.threshold:
        raise WireError(f"{near} of the neighbourhood are left; expected at least {plan.threshold}")


def open_masks(member: Member, agreement: Agreement, registry: Registry) -> tuple[Member, Opened]:
    """Give away the shares that open the sum, once, and only under lists that a quorum of the cohort signed.

    Raises:
        WireError: other lists than this client has signed, a bad signature, or too few; a second time.
    """
    after = member.after("open_masks")
    assert member.lists is not None
    lists, quorum = member.lists, member.terms.plan.quorum
    _check_digest("signatures", agreement.lists, lists.digest, "lists")
    if strangers := agreement.signatures.keys() - set(lists.alive):
        raise WireError(f"a signature of {min(strangers)!r}, who is not listed alive")
    if len(agreement.signatures) < quorum:
        raise WireError(
            f"{len(agreement.signatures)} clients have signed the lists; expected at least {quorum}"
        )
    for client, signature in agreement.signatures.items():
        verify(registry, client, signature, lists.digest, "lists")
    alive = set(lists.alive)
    seeds = {owner: shares[:SHARE_BYTES] for owner, shares in member.held.items() if owner in alive}
    keys = {owner: shares[SHARE_BYTES:] for owner, shares in member.held.items() if owner not in alive}
    done = replace(member, awaits=after, seal_secret=b"", mask_secret=b"", seed=b"", held={})
    return done, Opened(member.client, seeds, keys, lists.digest)
