"""Attacks on masked sums over the wire that the parties use; each learns nothing, and each works without the
defence it is stopped by, so that a defence that is lost is noticed.

A server is whatever answers here: it sees all replies, tells what it likes, and reads the disks of those who
collude with it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from cotune import secure_client as client_half
from cotune import secure_server as server_half
from cotune.aggregators.secure_sum import Config, build
from cotune.errors import ConfigError, WireError
from cotune.fixed_point import Encoded
from cotune.guarding import Update
from cotune.identity_keys import public_of, simulated_identity
from cotune.masked_terms import described
from cotune.masks import masked
from cotune.secure_client import Member
from cotune.secure_messages import (
    Agreement,
    Delivery,
    Lists,
    Masked,
    Opened,
    Registry,
    Roster,
    Sealed,
    pack,
    unpack,
)
from cotune.shamir import SHARE_BYTES, join
from masking import SEED, Group, named

SIZE = 20_000
NAMES = named(5)
VICTIM = NAMES[2]
ONE_MAY_LEAVE = Config(dropout=0.2)


def victims_group(tmp_path, **how) -> Group:
    """Everybody's update is known but the victim's; sums as large as needed to count bytes."""
    group = Group(tmp_path, NAMES, **how)
    rng = np.random.default_rng(3)
    group.updates = {
        name: Update({"a": rng.normal(0, 0.01, SIZE).astype(np.float32)}, 1.0, {"loss": 2.0})
        for name in NAMES
    }
    return group


def secret_of(group: Group) -> Encoded:
    """What the victim has to hide, as integers."""
    update = group.updates[VICTIM]
    layout = group.settings.layout(5, group.wanted().shapes, ("loss",), is_update=True)
    return layout.encode(update.arrays, update.weight, update.sums)


def looks_uniform(words: np.ndarray) -> bool:
    """Each of the four bytes of a value takes 256 values equally often."""
    columns = words.view(np.uint8).reshape(-1, 4).T
    return all(chisquare(np.bincount(column, minlength=256)).pvalue > 1e-5 for column in columns)


def colluding(group: Group, client: str) -> Member:
    """What stands on a colluding client's disk."""
    found = group.members(client)._read(client).member
    assert found is not None
    return found


def circle_of(group: Group) -> server_half.Circle:
    member = colluding(group, VICTIM)
    return server_half.roster(member.terms, member.roster.entries, group.registry)


def received(group: Group, client: str = VICTIM) -> Masked:
    reply = group.sent("mask", client)
    return unpack(Masked, reply.facts, reply.arrays)


def without_masks(group: Group, own_seed: bytes, peers: tuple[str, ...]) -> np.ndarray:
    """The victim's contribution without its own mask, and without those it shares with these peers."""
    came, circle = received(group), circle_of(group)
    public = circle.roster.by_client()[VICTIM].mask_key
    plus, minus = [], [own_seed]
    for peer in peers:
        key = client_half.mask_key(colluding(group, peer).mask_secret, public, circle.digest)
        (minus if peer > VICTIM else plus).append(key)
    return masked([came.words, came.extras], plus, minus)[0]


def until(group: Group, step: str) -> Group:
    """Everything before a step has happened."""
    group.lie = lambda now, client, told: None if now == step else told
    group.gather()
    group.lie = lambda now, client, told: told
    return group


# one masked update, and colluding neighbours


def test_a_masked_update_is_noise_to_whoever_has_no_key(tmp_path):
    group = until(victims_group(tmp_path), "consent")
    assert looks_uniform(received(group).words)
    assert not looks_uniform(secret_of(group).words)  # unmasked it would be seen


def test_the_server_and_all_neighbours_but_one_learn_nothing_of_a_masked_update(tmp_path):
    """They even know the victim's own seed, which is opened in an honest sum."""
    group = until(victims_group(tmp_path), "consent")
    *friends, honest = colluding(group, VICTIM).holders
    seed = colluding(group, VICTIM).seed
    assert looks_uniform(without_masks(group, seed, tuple(friends)))
    assert not np.array_equal(without_masks(group, seed, tuple(friends)), secret_of(group).words)
    # with the last honest one, nothing is hidden: it was this one key that was missing
    assert np.array_equal(without_masks(group, seed, (*friends, honest)), secret_of(group).words)


def test_one_honest_neighbour_says_no_more_than_the_sum_of_both(tmp_path):
    """After an honest sum, three colluding clients of five know the sum of the two others, not its parts."""
    group = victims_group(tmp_path)
    outcome = group.gather()
    friends = [name for name in NAMES if name != VICTIM][:3]
    total = 5 * outcome.summed.arrays["a"].astype(np.float64)
    left = total - sum(group.updates[name].arrays["a"].astype(np.float64) for name in friends)
    both = group.updates[VICTIM].arrays["a"] + group.updates[NAMES[-1]].arrays["a"]
    assert np.abs(left - both).max() < 1e-5
    assert np.abs(left - group.updates[VICTIM].arrays["a"]).max() > 0.01


@pytest.mark.parametrize("num_friends", [2, 3])
def test_fewer_colluding_clients_than_the_threshold_cannot_open_a_seed_before_the_lists_are_signed(
    tmp_path, num_friends
):
    """Five clients: shares of the victim's seed lie with all; 4 are needed, its own included."""
    group = until(victims_group(tmp_path), "consent")
    circle = circle_of(group)
    threshold = circle.terms.plan.threshold
    friends = [name for name in NAMES if name != VICTIM][:num_friends]

    def shares(names):
        held = [(circle.places[n] + 1, colluding(group, n).held[VICTIM][:SHARE_BYTES]) for n in names]
        return [point for point, _ in held], [share for _, share in held]

    try:
        guess = join(*shares(friends))
    except WireError:
        guess = b""
    assert len(friends) < threshold == 4
    assert guess != colluding(group, VICTIM).seed
    enough = [name for name in NAMES if name != VICTIM]
    assert join(*shares(enough)) == colluding(group, VICTIM).seed


# rosters that lie


def forged(group: Group, told: dict) -> tuple[Roster, dict[str, Member]]:
    """A roster in which everybody but the victim is played by the server, signed with keys of its own."""
    entries = {one.client: one for one in unpack(Roster, told).entries}
    terms = colluding(group, VICTIM).terms
    played = {}
    for name in NAMES:
        if name != VICTIM:
            played[name], entries[name] = client_half.begin(terms, name, simulated_identity(99, name))
    return Roster(tuple(entries[name] for name in NAMES)), played


def play(group: Group) -> np.ndarray:
    """Surround the victim with clients that the server plays, and unmask what it sends."""
    group.lie = lambda step, client, told: None if step == "share" else told
    group.gather()
    group.lie = lambda step, client, told: told
    keys = [group.sent("keys", name).facts for name in NAMES]
    roster, played = forged(group, {"entries": keys})
    registry: Registry = {n: public_of(simulated_identity(99, n)) for n in NAMES} | {
        VICTIM: public_of(simulated_identity(SEED, VICTIM))
    }
    sealed = {}
    for name in played:
        played[name], sealed[name] = client_half.share(played[name], roster, registry)
    sealed[VICTIM] = unpack(Sealed, group.answer(VICTIM, "share", pack(roster)[0]).facts)
    circle = server_half.roster(colluding(group, VICTIM).terms, roster.entries, registry)
    told = server_half.deliveries(circle, sealed.values())
    reply = group.answer(VICTIM, "mask", pack(told[VICTIM])[0])
    came = unpack(Masked, reply.facts, reply.arrays)
    layout = circle.terms.layout
    nothing = layout.encode({"a": np.zeros(SIZE, np.float32)}, 1.0, {"loss": 0.0})
    held = {name: client_half.mask(played[name], told[name], nothing)[0].held[VICTIM] for name in played}
    points = [circle.places[name] + 1 for name in held]
    seed = join(points, [shares[:SHARE_BYTES] for shares in held.values()])
    plus, minus = [], [seed]
    public = circle.roster.by_client()[VICTIM].mask_key
    for name in played:
        key = client_half.mask_key(played[name].mask_secret, public, circle.digest)
        (minus if name > VICTIM else plus).append(key)
    return masked([came.words, came.extras], plus, minus)[0]


def test_a_server_cannot_play_the_neighbours(tmp_path):
    with pytest.raises(WireError, match="signature does not fit; expected one by its registered key"):
        play(victims_group(tmp_path))


def test_but_it_can_if_the_registry_is_its_own(tmp_path):
    """Why a registry of keys must come by a way that the server does not control."""
    group = victims_group(tmp_path)
    registry = {n: public_of(simulated_identity(99, n)) for n in NAMES}
    registry[VICTIM] = public_of(simulated_identity(SEED, VICTIM))
    group.how = {VICTIM: {"registry": registry}}
    assert np.array_equal(play(group), secret_of(group).words)


def test_different_rosters_for_different_clients_do_not_meet(tmp_path):
    """All keys are real, but some clients are left out for some: shares sealed under one do not open."""
    names = named(12)
    group = Group(tmp_path, names)
    split = set(names[:6])

    def lie(step, client, told):
        if step != "share":
            return told
        left_out = names[-1] if client in split else names[0]
        return {"entries": [one for one in told["entries"] if one["client"] != left_out]}

    group.lie = lie
    outcome = group.gather()
    assert outcome.summed is None
    assert any("it is of another sum" in reason for _, reason in group.refused)
    # the server now hands each half the shares of all, with the digest that this half knows
    group.lie = lambda step, client, told: told
    sealed = [unpack(Sealed, group.sent("share", name).facts) for name in names[1:-1]]
    me = next(one for one in sealed if one.client == names[1])
    boxes = {one.client: one.boxes[me.client] for one in sealed if me.client in one.boxes}
    with pytest.raises(WireError, match="do not open; expected a box sealed for this sum"):
        group.answer(me.client, "mask", pack(Delivery(boxes, me.roster))[0])


# lists that lie


def stories(group: Group) -> tuple[Lists, Lists]:
    """All are alive; or all but the victim."""
    roster = colluding(group, VICTIM).digest
    rest = tuple(name for name in NAMES if name != VICTIM)
    return Lists(NAMES, (), roster), Lists(rest, (VICTIM,), roster)


def signed(group: Group, lists: Lists) -> list[Opened]:
    """What clients open under lists, once they have signed them."""
    signatures = {n: group.answer(n, "consent", pack(lists)[0]).facts["signature"] for n in lists.alive}
    agreement = {**pack(Agreement({}, lists.digest))[0], "signatures": signatures}
    return [unpack(Opened, group.answer(n, "open", agreement).facts) for n in lists.alive]


def both_secrets(group: Group, *, disks_are_put_back: bool) -> tuple[bytes, bytes]:
    """The victim's seed, of clients told that it lives, and its mask key, of clients told that it died."""
    alive, dead = stories(group)
    clients, before = group.folder / "clients", group.folder / "before"
    shutil.copytree(clients, before)
    seeds = {one.client: one.seeds[VICTIM] for one in signed(group, alive)}
    if disks_are_put_back:
        shutil.rmtree(clients)
        shutil.copytree(before, clients)
    keys = {one.client: one.keys[VICTIM] for one in signed(group, dead)}
    places = {name: place + 1 for place, name in enumerate(colluding(group, VICTIM).order)}
    seed, key = (join([places[name] for name in found], list(found.values())) for found in (seeds, keys))
    return seed, key


def test_a_client_signs_one_story_and_opens_once(tmp_path):
    group = until(victims_group(tmp_path, config=ONE_MAY_LEAVE), "consent")
    with pytest.raises(WireError, match=r"was asked to consent in round 1; it awaits: nothing more"):
        both_secrets(group, disks_are_put_back=False)
    _, dead = stories(group)
    for name in dead.alive:
        with pytest.raises(WireError, match=r"awaits: nothing more"):
            group.answer(name, "open", pack(Agreement({}, dead.digest))[0])


def test_but_it_would_tell_both_if_its_disk_were_put_back(tmp_path):
    """Why a client's folder must never be restored from a backup: then the update is there to read."""
    group = until(victims_group(tmp_path, config=ONE_MAY_LEAVE), "consent")
    seed, mask_secret = both_secrets(group, disks_are_put_back=True)
    came, circle = received(group), circle_of(group)
    plus, minus = [], [seed]
    for peer in colluding(group, VICTIM).holders:
        public = circle.roster.by_client()[peer].mask_key
        key = client_half.mask_key(mask_secret, public, circle.digest)
        (minus if peer > VICTIM else plus).append(key)
    assert np.array_equal(masked([came.words, came.extras], plus, minus)[0], secret_of(group).words)


def test_a_client_said_to_be_both_alive_and_dead_is_nobodys_to_open(tmp_path):
    group = until(victims_group(tmp_path), "consent")
    roster = colluding(group, VICTIM).digest
    for name in NAMES:
        with pytest.raises(WireError, match=f"'{VICTIM}' is listed both alive and dead"):
            group.answer(name, "consent", pack(Lists(NAMES, (VICTIM,), roster))[0])


def test_a_victim_alone_is_not_a_sum(tmp_path):
    """All others are called dead: neither the victim nor the others agree."""
    group = until(victims_group(tmp_path), "consent")
    roster = colluding(group, VICTIM).digest
    others = tuple(name for name in NAMES if name != VICTIM)
    with pytest.raises(WireError, match="1 clients are left; expected at least 5"):
        group.answer(VICTIM, "consent", pack(Lists((VICTIM,), others, roster))[0])
    for name in others:
        with pytest.raises(WireError, match="not listed alive, but it is"):
            group.answer(name, "consent", pack(Lists((VICTIM,), others, roster))[0])


def test_a_second_attempt_without_the_victim_gives_no_difference(tmp_path):
    """Sum with, sum without: the difference would be the victim's update. Nobody signs the second."""
    group = victims_group(tmp_path)
    group.gather()
    wanted = replace(group.wanted(), sums=("loss",))
    others = [name for name in NAMES if name != VICTIM]
    again = described(wanted, wanted.terms(group.settings, others, 1))
    group.keep()
    for name in others:
        with pytest.raises(WireError, match="would show the difference between the two"):
            group.answer(name, "keys", again)


def test_two_rounds_that_differ_by_one_client_do_show_it_if_nothing_else_changes(tmp_path):
    """A limit, not a defence: masks hide what is in a sum, not what a sum says. Noise does."""
    group = victims_group(tmp_path)
    first = group.gather().summed
    group.round = 2
    acks = [ack for ack in group.keep() if ack.client != VICTIM]
    second = group.server().gather(group.wanted(), acks).summed
    difference = 5 * first.arrays["a"].astype(np.float64) - 4 * second.arrays["a"].astype(np.float64)
    assert np.abs(difference - group.updates[VICTIM].arrays["a"]).max() < 1e-5


# replays


def test_keys_of_an_earlier_round_are_refused(tmp_path):
    group = victims_group(tmp_path)
    group.gather()
    old = {name: group.sent("keys", name).facts for name in NAMES}
    group.round = 2

    def lie(step, client, told):
        if step != "share":
            return told
        entries = [one if one["client"] == VICTIM else old[one["client"]] for one in told["entries"]]
        return {"entries": entries}

    group.lie = lie
    assert group.gather().summed is None
    assert any("used before" in reason or "for round 1" in reason for _, reason in group.refused)


@pytest.mark.parametrize("step", ["share", "mask", "consent", "open"])
def test_an_earlier_request_gets_nothing_in_a_new_round(tmp_path, step):
    group = victims_group(tmp_path)
    group.gather()
    old = dict(group.told)
    group.round = 2
    until(group, step)
    with pytest.raises(WireError):
        group.answer(VICTIM, step, old[step, VICTIM])


@pytest.mark.parametrize("step", ["keys", "share", "mask", "consent", "open"])
def test_an_earlier_reply_counts_for_nothing_in_a_new_round(tmp_path, step):
    """Somebody on the network plays back what the victim has sent; the others go on without it."""
    group = victims_group(tmp_path)
    group.gather()
    old = group.sent(step, VICTIM)
    group.round = 2
    plain = group.answer

    def answer(client, now, told):
        reply = plain(client, now, told)
        return replace(old, round=2) if (client, now) == (VICTIM, step) else reply

    group.answer = answer
    outcome = group.gather()
    assert {client for client, _ in group.refused} == {VICTIM}
    assert outcome.summed.num_clients == (4 if step in ("keys", "share", "mask") else 5)


# what docs/security.md says

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_test_that_security_md_names_is_there():
    there = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert not [name for name in sorted(named) if f"def {name}(" not in there]


@pytest.mark.parametrize("asked", [3, 4, 12, 100])
def test_what_security_md_states_is_planned(asked):
    """The row of the table for so many clients, and the honest shares of noise that are sure."""
    secure = build(Config())
    plan = secure.plan(asked, asked)
    with pytest.raises(ConfigError):
        secure.plan(max(plan.quorum, plan.corrupt + 2) - 1, asked)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {asked} |"))
    found = [re.match(r"\d+", cell.strip())[0] for cell in row.split("|")[1:6]]
    least = max(plan.quorum, plan.corrupt + 2)
    assert list(map(int, found)) == [asked, plan.corrupt, plan.quorum, least, plan.num_neighbours]
    assert plan.privacy_failure <= (2.0**-40 if "2^-40" in row else 0.0)
    assert f"{plan.quorum - plan.corrupt}" in re.search(r"in the table: ([\d, ]+)", PAGE)[1].split(", ")
