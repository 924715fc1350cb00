"""A masked sum from both sides: the plain sum or a clear failure, and who lies to a client learns nothing.

Every message goes through `pack`, the codec and `unpack`. Randomness comes from seeded functions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cotune import secure_client as client_half
from cotune import secure_server as server_half
from cotune.codec import decode, encode
from cotune.errors import WireError
from cotune.fixed_point import Encoded, Grid, Layout
from cotune.masks import masked
from cotune.neighbours import Plan, neighbours, plan, ring
from cotune.records import Message
from cotune.secure_messages import (
    Agreement,
    Consent,
    Delivery,
    Lists,
    Masked,
    Opened,
    PublicKeys,
    Roster,
    Sealed,
    Terms,
    pack,
    unpack,
)

STEPS = ("keys", "share", "mask", "consent", "open")


def travelled(message: Any) -> Any:
    """What the other side reads."""
    facts, arrays = pack(message)
    read = decode(encode(Message("c", 1, "sum", arrays, facts)))
    return unpack(type(message), read.facts, read.arrays)


def layout_for(clients: int, bits: int = 32, size: int = 12) -> Layout:
    return Layout(
        (("a", (size // 3, 3)), ("b", (size,))), ("loss", "clients"), Grid(bits, 1.0, clients), 10.0
    )


@dataclass
class Party:
    """All clients of one sum, their keys, and what they give."""

    terms: Terms
    seed: int = 0
    members: dict[str, client_half.Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identities = {
            name: Ed25519PrivateKey.from_private_bytes(random.Random(f"id {name}").randbytes(32))
            for name in self.terms.cohort
        }
        self.registry = {n: key.public_key().public_bytes_raw() for n, key in self.identities.items()}
        rng = np.random.default_rng(self.seed)
        shapes = self.terms.layout.shapes
        self.gifts = {
            name: (
                {what: rng.uniform(-1, 1, shape).astype(np.float32) for what, shape in shapes},
                float(rng.uniform(0.5, 10)),
                {"loss": float(rng.uniform(0, 9)), "clients": 1.0},
            )
            for name in self.terms.cohort
        }

    def randomness(self, name: str) -> Callable[[int], bytes]:
        return random.Random(f"{self.seed} {name}").randbytes

    def encoded(self, name: str) -> Encoded:
        return self.terms.layout.encode(*self.gifts[name])

    def step(self, name: str, function: Callable[..., Any], *given: Any) -> Any:
        """Take one step of a client; returns what it sends, after its travel."""
        self.members[name], sent = function(self.members[name], *given)
        return travelled(sent)

    def keys(self, gone: set[str]) -> list[PublicKeys]:
        sent = []
        for name in sorted(set(self.terms.cohort) - gone):
            self.members[name], keys = client_half.begin(
                self.terms, name, self.identities[name], self.randomness(name)
            )
            sent.append(travelled(keys))
        return sent

    def share(self, circle: server_half.Circle, gone: set[str]) -> list[Sealed]:
        return [
            self.step(n, client_half.share, travelled(circle.roster), self.registry, (), self.randomness(n))
            for n in sorted(circle.places)
            if n not in gone
        ]

    def mask(self, told: Mapping[str, Delivery], gone: set[str]) -> list[Masked]:
        names = [name for name in told if name not in gone]
        return [self.step(n, client_half.mask, travelled(told[n]), self.encoded(n)) for n in names]

    def consent(self, lists: Lists, gone: set[str]) -> list[Consent]:
        names = [name for name in lists.alive if name not in gone]
        return [self.step(n, client_half.consent, travelled(lists), self.identities[n]) for n in names]

    def open(self, lists: Lists, agreement: Agreement, gone: set[str]) -> list[Opened]:
        names = [name for name in lists.alive if name not in gone]
        return [self.step(n, client_half.open_masks, travelled(agreement), self.registry) for n in names]


@dataclass
class Sum:
    """A sum as far as it has come."""

    party: Party
    circle: server_half.Circle
    sealed: list[Sealed] = field(default_factory=list)
    told: dict[str, Delivery] = field(default_factory=dict)
    came: list[Masked] = field(default_factory=list)
    total: Any = None
    lists: Any = None
    agreement: Any = None
    opened: list[Opened] = field(default_factory=list)
    result: Any = None


def run(party: Party, gone: Mapping[str, set[str]] | None = None, until: str = "open") -> Sum:
    """Both halves up to a step; `gone` drops out at a step and stays away."""
    away: dict[str, set[str]] = {}
    for place, step in enumerate(STEPS):
        away[step] = set().union(*[(gone or {}).get(before, set()) for before in STEPS[: place + 1]])
    done = Sum(party, server_half.roster(party.terms, party.keys(away["keys"]), party.registry))
    if until == "keys":
        return done
    done.sealed = party.share(done.circle, away["share"])
    done.told = server_half.deliveries(done.circle, done.sealed)
    if until == "share":
        return done
    done.came = party.mask(done.told, away["mask"])
    done.total = server_half.add_up(done.circle, done.told, done.came)
    done.lists = server_half.lists(done.circle, done.told, done.total)
    if until == "mask":
        return done
    consents = party.consent(done.lists, away["consent"])
    done.agreement = server_half.agreement(done.circle, done.lists, consents, party.registry)
    if until == "consent":
        return done
    done.opened = party.open(done.lists, done.agreement, away["open"])
    done.result = server_half.open_sum(done.circle, done.lists, done.total, done.opened)
    return done


def party_of(n: int, dropout: float = 0.0, corruption: float = 0.0, **how: Any) -> Party:
    terms_plan = how.pop("plan", None) or plan(n, dropout, corruption)
    cohort = tuple(sorted(f"client {i}" for i in range(n)))
    layout = layout_for(n, how.pop("bits", 32), how.pop("size", 12))
    return Party(Terms("run", 3, cohort, terms_plan, layout), **how)


def sparse(n: int, k: int, threshold: int, dropped: int = 0, corrupt: int = 0) -> Plan:
    """A ring that is thinner than the limits on failure allow, for tests."""
    return Plan(n, corrupt, dropped, k, threshold, (n + corrupt) // 2 + 1, 1.0, 1.0)


def check_result(done: Sum) -> None:
    """The result is the plain weighted mean of those who are in it, within the stated error."""
    gifts = [done.party.gifts[name] for name in done.lists.alive]
    weights = [weight for _, weight, _ in gifts]
    layout, found = done.party.terms.layout, done.result
    assert found.num_clients == len(gifts)
    assert found.weight == pytest.approx(sum(weights), abs=layout.extras.error(len(gifts)))
    assert found.sums["clients"] == len(gifts)
    assert found.sums["loss"] == pytest.approx(sum(s["loss"] for *_, s in gifts), abs=1e-5)
    for name, array in found.arrays.items():
        expected = np.average([arrays[name] for arrays, *_ in gifts], axis=0, weights=weights)
        assert np.abs(array - expected).max() <= layout.error(found.weight, len(gifts)) + 2.0**-24


@settings(max_examples=12, deadline=None)
@given(st.integers(3, 9), st.sampled_from([16, 32]), st.randoms(use_true_random=False))
def test_the_sum_is_the_plain_one_whoever_drops_out_at_each_step(n, bits, chance: random.Random):
    most = (n - 1) // 2
    party = party_of(n, plan=plan(n, most / n, 0.0), bits=bits, seed=chance.randrange(1000))
    leaving = chance.sample(party.terms.cohort, chance.randint(0, party.terms.plan.dropped))
    gone: dict[str, set[str]] = {step: set() for step in STEPS}
    for name in leaving:
        gone[chance.choice(STEPS)].add(name)
    done = run(party, gone)
    assert set(done.lists.alive) == set(party.terms.cohort) - gone["keys"] - gone["share"] - gone["mask"]
    check_result(done)


@settings(max_examples=8, deadline=None)
@given(st.integers(9, 16), st.sampled_from([4, 6, 8]), st.randoms(use_true_random=False))
def test_on_a_thin_ring_it_is_the_plain_sum_or_a_clear_failure(n, k, chance: random.Random):
    """Drop-outs may stand so close together that a secret is lost: then the sum stays closed."""
    party = party_of(n, plan=sparse(n, k, k // 2 + 2, dropped=n // 3), seed=chance.randrange(1000))
    gone: dict[str, set[str]] = {step: set() for step in STEPS}
    for name in chance.sample(party.terms.cohort, n // 3):
        gone[chance.choice(STEPS)].add(name)
    if failure := failure_of(party, gone):
        assert "expected at least" in failure
    else:
        check_result(run(party, gone))


def failure_of(party: Party, gone: Mapping[str, set[str]]) -> str:
    """Why a sum failed; empty if it did not."""
    try:
        run(party, gone)
    except WireError as error:
        return str(error)
    return ""


def test_a_planned_ring():
    party = party_of(30, 0.1, 0.0)
    assert party.terms.plan.num_neighbours < 26
    names = party.terms.cohort
    check_result(run(party, {"share": {names[3]}, "mask": {names[7]}, "open": {names[20]}}))


@pytest.mark.parametrize("step", STEPS)
def test_one_more_drop_out_than_planned_is_a_failure_that_says_so(step):
    party = party_of(7, 0.29)  # 2 may go, so 5 must stay up to the masks, and a quorum of 4 afterwards
    names = set(party.terms.cohort[: 4 if step in ("consent", "open") else 3])
    with pytest.raises(WireError, match="expected at least"):
        run(party, {step: names})


def test_nothing_but_the_sum_depends_on_randomness():
    one, other = (run(party_of(5, 0.2, seed=0)), run(party_of(5, 0.2, seed=0)))
    assert (one.came[0].words == other.came[0].words).all()
    assert one.sealed == other.sealed


def test_operating_system_randomness_is_the_default():
    party = party_of(3)
    name = party.terms.cohort[0]
    first, second = (client_half.begin(party.terms, name, party.identities[name])[1] for _ in range(2))
    assert first.mask_key != second.mask_key


# what a client refuses


def changed_roster(done: Sum, **changes: Any) -> Roster:
    first, *rest = done.circle.roster.entries
    return Roster((replace(first, **changes), *rest))


def other(name: str) -> bytes:
    return random.Random(name).randbytes(32)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: changed_roster(d, mask_key=other("x")), "signature does not fit"),
        (lambda d: changed_roster(d, signature=bytes(64)), "signature does not fit"),
        (lambda d: changed_roster(d, round=2), "for round 2; this is round 3"),
        (lambda d: changed_roster(d, client="a"), "not in the cohort"),
        (lambda d: Roster(d.circle.roster.entries[:2]), "expected at least 4"),
        (lambda d: Roster(d.circle.roster.entries[:-1]), "without the keys"),
        (lambda d: Roster(d.circle.roster.entries[::-1]), "not sorted"),
        (lambda d: Roster(d.circle.roster.entries[:1] * 2 + d.circle.roster.entries[1:]), "twice"),
    ],
)
def test_a_client_refuses_a_roster(change, match):
    done = run(party_of(5, 0.2), until="keys")
    name = done.party.terms.cohort[-1]
    with pytest.raises(WireError, match=match):
        client_half.share(done.party.members[name], change(done), done.party.registry)


def test_a_client_refuses_keys_of_somebody_who_is_not_registered():
    done = run(party_of(3), until="keys")
    *_, name = names = done.party.terms.cohort
    registry = {one: done.party.registry[one] for one in names[1:]}
    with pytest.raises(WireError, match="not registered"):
        client_half.share(done.party.members[name], done.circle.roster, registry)


def test_keys_that_nobody_signed_are_refused_by_the_neighbours_of_who_they_are_said_to_be_of():
    """All others go on, with a roster that this client's neighbours never agree to."""
    party = party_of(9, plan=sparse(9, 4, 4))
    done = run(party, until="keys")
    # the ring follows from the roster, so the forged one has its own
    roster = changed_roster(done, mask_key=other("x"))
    victim = roster.entries[0].client
    order = ring([entry.client for entry in roster.entries], roster.digest(party.terms))
    near = neighbours(order, order.index(victim), 4)
    for name in set(order) - {victim}:
        if name in near:
            with pytest.raises(WireError, match=f"keys of '{victim}': the signature does not fit"):
                client_half.share(party.members[name], roster, party.registry)
        else:
            client_half.share(party.members[name], roster, party.registry)
    with pytest.raises(WireError, match="without the keys"):
        client_half.share(party.members[victim], roster, party.registry)


def test_a_client_refuses_keys_that_were_signed_for_other_terms():
    """Replay: the round and all names are the same, but it is another attempt, or run, or layout."""
    done = run(party_of(3), until="keys")
    name = done.party.terms.cohort[-1]
    for terms in (replace_terms(done, attempt=1), replace_terms(done, run="other")):
        again = Party(terms)
        again.keys(set())
        mine = again.members[name].keys
        replayed = Roster((*done.circle.roster.entries[:-1], mine))
        with pytest.raises(WireError, match="signature does not fit"):
            client_half.share(again.members[name], replayed, again.registry)


def replace_terms(done: Sum, **changes: Any) -> Terms:
    old = done.party.terms
    given = {one: getattr(old, one) for one in ("run", "round", "cohort", "plan", "layout", "attempt")}
    return Terms(**(given | changes))


def test_a_client_refuses_keys_that_were_used_before():
    done = run(party_of(3), until="keys")
    name = done.party.terms.cohort[0]
    seen = client_half.public_keys(done.circle.roster)
    one = {done.circle.roster.entries[2].mask_key}
    for earlier in (seen, one):
        with pytest.raises(WireError, match="used before"):
            client_half.share(done.party.members[name], done.circle.roster, done.party.registry, earlier)


def test_a_client_refuses_one_key_in_two_places():
    party = party_of(3)
    done = run(party, until="keys")
    thief, owner = party.terms.cohort[0], done.circle.roster.entries[1]
    copied = replace(done.circle.roster.entries[0], mask_key=owner.mask_key)
    copied = replace(copied, signature=party.identities[thief].sign(copied.statement(party.terms)))
    roster = Roster((copied, *done.circle.roster.entries[1:]))
    with pytest.raises(WireError, match="one key stands twice"):
        client_half.share(party.members[party.terms.cohort[2]], roster, party.registry)


def test_a_client_refuses_shares_that_do_not_open_or_are_of_strangers():
    done = run(party_of(8, plan=sparse(8, 4, 3)), until="share")
    name = done.party.terms.cohort[0]
    member, told, given = done.party.members[name], done.told[name], done.party.encoded(name)
    sender, box = next(iter(told.boxes.items()))
    far = next(n for n in done.party.terms.cohort if n not in {*member.holders, name})
    second = next(n for n in told.boxes if n != sender)
    swapped = {**told.boxes, sender: told.boxes[second]}
    for boxes, match in (
        ({**told.boxes, sender: box[:-1] + bytes([box[-1] ^ 1])}, "do not open"),
        ({**told.boxes, sender: b""}, "do not open"),
        (swapped, "do not open"),
        ({**told.boxes, far: box}, "no neighbour"),
        ({sender: box}, "expected at least 2"),
    ):
        with pytest.raises(WireError, match=match):
            client_half.mask(member, Delivery(boxes, told.roster), given)
    with pytest.raises(WireError, match="expected roster"):
        client_half.mask(member, Delivery(told.boxes, bytes(32)), given)


def test_a_client_refuses_to_send_another_size_than_agreed():
    done = run(party_of(3), until="share")
    name = done.party.terms.cohort[0]
    words, extras = done.party.encoded(name)
    for gift in (
        Encoded(words[1:], extras),
        Encoded(words.astype(np.uint16), extras),
        Encoded(words, words),
    ):
        with pytest.raises(WireError, match="a contribution of"):
            client_half.mask(done.party.members[name], done.told[name], gift)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda all_, roster: Lists(all_, all_[4:5], roster), "both alive and dead"),
        (lambda all_, roster: Lists((*all_, all_[4]), (), roster), "listed twice"),
        (lambda all_, roster: Lists((*all_[:4], "a stranger"), (), roster), "not in the roster"),
        (lambda all_, roster: Lists(all_[1:], all_[:1], roster), "not listed alive"),
        (lambda all_, roster: Lists(all_[:4], (), roster), "not listed; expected"),
        (lambda all_, roster: Lists(all_[:3], all_[3:], roster), "3 clients are left; expected at least 4"),
        (lambda all_, roster: Lists(all_, (), bytes(32)), "expected roster"),
    ],
)
def test_a_client_refuses_lists(change, match):
    done = run(party_of(5, 0.2), until="mask")
    name = done.party.terms.cohort[0]
    wrong = change(done.party.terms.cohort, done.circle.digest)
    with pytest.raises(WireError, match=match):
        client_half.consent(done.party.members[name], wrong, done.party.identities[name])


def test_a_client_refuses_lists_that_cut_it_off():
    """All of one's right-hand neighbours are called dead, which their number alone would allow."""
    done = run(party_of(12, plan=sparse(12, 6, 5, dropped=4)), until="mask")
    name = done.party.terms.cohort[0]
    dead = done.party.members[name].holders[3:]
    alive = tuple(n for n in done.party.terms.cohort if n not in dead)
    with pytest.raises(WireError, match="4 of the neighbourhood are left; expected at least 5"):
        client_half.consent(
            done.party.members[name], Lists(alive, dead, done.circle.digest), done.party.identities[name]
        )


def test_a_client_refuses_that_a_neighbour_whose_shares_did_not_come_is_listed():
    party = party_of(5, 0.2)
    missing, name = party.terms.cohort[:2]
    done = run(party, {"share": {missing}}, until="mask")
    lists = Lists(done.lists.alive, (missing,), done.circle.digest)
    with pytest.raises(WireError, match=f"'{missing}' is listed; expected"):
        client_half.consent(party.members[name], lists, party.identities[name])


def test_a_client_opens_only_what_a_quorum_has_signed():
    done = run(party_of(5, 0.2), until="consent")
    party, name = done.party, done.party.terms.cohort[0]
    good = dict(done.agreement.signatures)
    first = next(iter(good))
    lied = Lists(done.lists.alive[:4], done.lists.alive[4:], done.circle.digest)
    for signatures, digest, match in (
        (
            {n: good[n] for n in list(good)[:2]},
            done.lists.digest,
            "2 clients have signed the lists; expected",
        ),
        ({**good, first: bytes(64)}, done.lists.digest, "signature does not fit"),
        ({**good, first: party.identities[first].sign(lied.digest)}, done.lists.digest, "does not fit"),
        ({**good, "a stranger": bytes(64)}, done.lists.digest, "not listed alive"),
        (good, lied.digest, "expected lists"),
    ):
        with pytest.raises(WireError, match=match):
            client_half.open_masks(party.members[name], Agreement(signatures, digest), party.registry)


def test_a_client_takes_each_step_once_and_in_turn():
    done = run(party_of(3))
    party, name = done.party, done.party.terms.cohort[0]
    member, identity = party.members[name], party.identities[name]
    steps: list[Callable[[client_half.Member], Any]] = [
        lambda m: client_half.share(m, done.circle.roster, party.registry),
        lambda m: client_half.mask(m, done.told[name], party.encoded(name)),
        lambda m: client_half.consent(m, done.lists, identity),
        lambda m: client_half.open_masks(m, done.agreement, party.registry),
    ]
    for step in steps:
        with pytest.raises(WireError, match="awaits: nothing more"):
            step(member)
    fresh, _ = client_half.begin(party.terms, name, identity)
    for step in steps[1:]:
        with pytest.raises(WireError, match="awaits: share"):
            step(fresh)


def test_a_client_signs_one_list_only():
    done = run(party_of(5, 0.2), until="consent")
    name = done.party.terms.cohort[0]
    second = Lists(done.lists.alive[:4], done.lists.alive[4:], done.circle.digest)
    with pytest.raises(WireError, match="was asked to consent"):
        client_half.consent(done.party.members[name], second, done.party.identities[name])


def test_a_client_that_has_opened_forgets_its_secrets_and_shows_none():
    done = run(party_of(3), until="share")
    member = next(iter(done.party.members.values()))
    assert member.seed.hex() not in repr(member)
    assert repr(member.seed) not in repr(member)
    after = next(iter(run(party_of(3)).party.members.values()))
    assert (after.seed, after.mask_secret, after.held) == (b"", b"", {})


def test_somebody_outside_the_cohort_does_not_begin():
    party = party_of(3)
    with pytest.raises(WireError, match="does not name it"):
        client_half.begin(party.terms, "a stranger", party.identities[party.terms.cohort[0]])


# what the server refuses


def test_the_server_refuses_replayed_and_repeated_messages():
    old, done = run(party_of(3, seed=1)), run(party_of(3, seed=2))
    with pytest.raises(WireError, match="second keys"):
        server_half.roster(done.party.terms, [*done.circle.roster.entries] * 2, done.party.registry)
    with pytest.raises(WireError, match="second shares"):
        server_half.deliveries(done.circle, done.sealed * 2)
    with pytest.raises(WireError, match="second contribution"):
        server_half.add_up(done.circle, done.told, done.came * 2)
    with pytest.raises(WireError, match="opened twice"):
        server_half.open_sum(done.circle, done.lists, done.total, done.opened * 2)
    for replayed in (
        lambda: server_half.deliveries(done.circle, old.sealed),
        lambda: server_half.add_up(done.circle, done.told, old.came),
        lambda: server_half.open_sum(done.circle, done.lists, done.total, old.opened),
    ):
        with pytest.raises(WireError, match="of another sum"):
            replayed()


def test_the_server_refuses_what_does_not_fit():
    done = run(party_of(8, plan=sparse(8, 4, 3)))
    circle, came, opened, sealed = done.circle, done.came[0], done.opened[0], done.sealed[0]
    short = dict(list(sealed.boxes.items())[1:])
    for check, wrong, match in (
        (
            lambda m: server_half.check_masked(m, circle, done.told),
            replace(came, words=came.words[1:]),
            "words of",
        ),
        (
            lambda m: server_half.check_masked(m, circle, done.told),
            replace(came, client="x"),
            "who was not asked",
        ),
        (
            lambda m: server_half.check_masked(m, circle, done.told),
            replace(came, extras=came.words),
            "extras of",
        ),
        (lambda m: server_half.check_sealed(m, circle), replace(sealed, boxes=short), "other clients than"),
        (
            lambda m: server_half.check_opened(m, circle, done.lists),
            replace(opened, keys=opened.seeds),
            "keys of",
        ),
        (lambda m: server_half.check_opened(m, circle, done.lists), replace(opened, seeds={}), "seeds of"),
    ):
        with pytest.raises(WireError, match=match):
            check(wrong)


def test_a_wrong_share_is_a_failure_and_never_a_wrong_sum():
    party = party_of(5, 0.2)
    done = run(party, {"mask": {party.terms.cohort[4]}})
    first = done.opened[0]
    for what in ("seeds", "keys"):
        owner, share = next(iter(getattr(first, what).items()))
        for wrong in (bytes(36), share[:4] + bytes([share[4] ^ 1]) + share[5:]):
            lied = replace(first, **{what: {**getattr(first, what), owner: wrong}})
            with pytest.raises(WireError, match="one is wrong"):
                server_half.open_sum(done.circle, done.lists, done.total, [lied, *done.opened[1:]])


def test_consent_under_other_lists_is_refused():
    done = run(party_of(5, 0.2), until="mask")
    name = done.party.terms.cohort[0]
    lied = Lists(done.lists.alive[:4], done.lists.alive[4:], done.circle.digest)
    consent = Consent(name, done.party.identities[name].sign(lied.digest))
    with pytest.raises(WireError, match="does not fit"):
        server_half.check_consent(consent, done.lists, done.party.registry)


def test_terms_that_cannot_be_are_refused():
    terms = party_of(3).terms
    with pytest.raises(WireError, match="different, sorted"):
        Terms("run", 1, ("b", "a", "c"), terms.plan, terms.layout)
    with pytest.raises(WireError, match="room for 2 clients"):
        Terms("run", 1, terms.cohort, terms.plan, layout_for(2))


def test_any_other_term_gives_another_digest():
    terms = party_of(4).terms
    layout = Layout(terms.layout.shapes, terms.layout.sums, Grid(32, 2.0, 4), 10.0)
    given = {"run": "run", "round": 3, "cohort": terms.cohort, "plan": terms.plan, "layout": terms.layout}
    others = [{"run": "x"}, {"round": 4}, {"attempt": 1}, {"layout": layout}, {"plan": plan(4, 0.25, 0)}]
    assert len({terms.digest, *(Terms(**(given | one)).digest for one in others)}) == 6


# attacks that must learn nothing


def test_a_masked_update_looks_uniform():
    """All zeros, and all at the bound: 256 values of each byte of 60,000 words."""
    for value in (0.0, 1.0):
        party = party_of(3, size=60_000)
        party.gifts = {n: ({k: np.full_like(a, value) for k, a in g[0].items()}, *g[1:])
                       for n, g in party.gifts.items()}  # fmt: skip
        done = run(party, until="mask")
        for column in done.came[0].words.view(np.uint8).reshape(-1, 4).T:
            assert chisquare(np.bincount(column, minlength=256)).pvalue > 1e-5


def without(words: np.ndarray, extras: np.ndarray, keys: list[tuple[bytes, bool]]) -> np.ndarray:
    """Masked words after taking away those masks whose keys are known."""
    plus = [key for key, added in keys if not added]
    return masked([words, extras], plus, [key for key, added in keys if added])[0]


def test_all_neighbours_but_one_and_the_server_recover_nothing():
    """The victim's own seed is known (it is alive), and all pairwise masks but that with one honest peer."""
    party = party_of(12, plan=sparse(12, 4, 4, corrupt=3), size=60_000)
    victim = party.terms.cohort[0]
    party.gifts[victim] = (
        {k: np.zeros_like(a) for k, a in party.gifts[victim][0].items()},
        10.0,
        party.gifts[victim][2],
    )
    done = run(party, until="mask")
    came = next(one for one in done.came if one.client == victim)
    public = done.circle.roster.by_client()[victim].mask_key
    *colluding, honest = party.members[victim].holders
    known = [(party.members[victim].seed, True)]
    for peer in colluding:
        key = client_half.mask_key(party.members[peer].mask_secret, public, done.circle.digest)
        known.append((key, victim < peer))
    left = without(came.words, came.extras, known)
    for column in left.view(np.uint8).reshape(-1, 4).T:
        assert chisquare(np.bincount(column, minlength=256)).pvalue > 1e-5
    # the same with the last key gives the update itself, so that nothing but this key was missing
    last = client_half.mask_key(party.members[honest].mask_secret, public, done.circle.digest)
    bare = without(came.words, came.extras, [*known, (last, victim < honest)])
    assert not bare.any()


def test_a_server_that_tells_two_stories_gets_no_quorum_for_the_second():
    """Half are told the victim lives, half that it is dead: by 2 quorum > n + c, one story stays closed."""
    party = party_of(9, 0.22, 0.12)  # one colludes and signs both
    done = run(party, until="mask")
    alive = party.terms.cohort
    victim, liar = alive[0], alive[8]
    stories = (Lists(alive, (), done.circle.digest), Lists(alive[1:], (victim,), done.circle.digest))
    told = {name: stories[0] if place < 4 else stories[1] for place, name in enumerate(alive[:8])}
    signed: dict[bytes, dict[str, bytes]] = {story.digest: {} for story in stories}
    for name, story in told.items():
        consent = party.step(name, client_half.consent, story, party.identities[name])
        signed[story.digest][name] = consent.signature
    for story in stories:
        signed[story.digest][liar] = party.identities[liar].sign(story.digest)
    for name, story in told.items():
        with pytest.raises(WireError, match="clients have signed the lists; expected at least 6"):
            client_half.open_masks(
                party.members[name], Agreement(signed[story.digest], story.digest), party.registry
            )


def test_opened_shares_never_hold_both_secrets_of_one_client():
    party = party_of(9, 0.34)
    done = run(party, {"mask": {*party.terms.cohort[:2]}, "open": {party.terms.cohort[5]}})
    for one in done.opened:
        assert not one.seeds.keys() & one.keys.keys()
        assert set(one.seeds) == set(done.lists.alive)


# what the wire may bring


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: {**f, "mask_key": "AAAA"}, "has 3 bytes; expected 32"),
        (lambda f: {**f, "mask_key": "?"}, "not of type bytes"),
        (lambda f: {**f, "mask_key": 3}, "not of type bytes"),
        (lambda f: {**f, "round": True}, "not of type int"),
        (lambda f: {**f, "more": 1}, "other fields"),
        (lambda f: {k: v for k, v in f.items() if k != "client"}, "other fields"),
        (lambda f: [f], "no object"),
    ],
)
def test_a_malformed_message_is_refused(change, match):
    keys = run(party_of(3), until="keys").circle.roster.entries[0]
    with pytest.raises(WireError, match=match):
        unpack(PublicKeys, change(pack(keys)[0]))


@pytest.mark.parametrize("entries", [[1], {}, [{}], [["client"]]])
def test_a_malformed_roster_is_refused(entries):
    with pytest.raises(WireError, match=r"PublicKeys|Roster\.entries"):
        unpack(Roster, {"entries": entries})


def test_masked_vectors_must_be_vectors():
    facts, arrays = pack(run(party_of(3), until="mask").came[0])
    with pytest.raises(WireError, match=r"Masked\.words"):
        unpack(Masked, facts, {**arrays, "words": arrays["words"].reshape(-1, 2)})
    with pytest.raises(WireError, match=r"Masked\.words"):
        unpack(Masked, {**facts, "words": [1, 2]}, {"extras": arrays["extras"]})
