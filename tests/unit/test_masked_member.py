"""A client of masked sums: what it refuses, also after it was started again, and what is on its disk."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest

from cotune import masked_member
from cotune.aggregators.secure_sum import Config
from cotune.codec import decode, encode
from cotune.errors import RunError, WireError
from cotune.guarding import Update
from cotune.identity_keys import simulated_identity
from cotune.masked_terms import STEPS, described
from cotune.records import Message
from cotune.secure_client import public_keys
from cotune.secure_messages import Roster, unpack
from masking import SEED, Group, check, named

NAMES = named(4)
ME = NAMES[0]


def folder(group: Group, client: str = ME):
    return group.folder / "clients" / client / "sums"


def stopped(tmp_path, before: str, **how) -> Group:
    """A sum in which everybody has taken all steps before this one."""
    group = Group(tmp_path, NAMES, **how)
    group.lie = lambda step, client, told: None if step == before else told
    group.gather()
    group.lie = lambda step, client, told: told
    return group


def terms(group: Group, **changes):
    """What a server tells in the first step."""
    wanted = replace(group.wanted(), sums=("clients", "loss"))
    own = described(wanted, wanted.terms(group.settings, list(NAMES), 0))
    return {**own, **changes}


# terms


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"run": "another"}, "terms with run 'another'; expected 'run'. The YAML of the server and of"),
        ({"round": 2}, "terms with round 2; expected 1"),
        ({"action": "teach/learn"}, "terms with action"),
        ({"sums": ["loss"]}, "terms with sums"),
        ({"shapes": [["a", [4, 3]]]}, "terms with shapes"),
        ({"grid": {"bits": 32, "bound": 1e-9, "num_clients": 4}}, "terms with grid"),
        ({"largest_weight": 2.0}, "terms with largest_weight"),
        ({"more": 1}, "terms with more 1; expected None"),
        ({"plan": {"num_clients": 4}}, "terms with plan"),
        ({"cohort": [*NAMES[:3], "stranger"]}, "'stranger' is in the cohort, but is not registered"),
        ({"cohort": [*NAMES[:3], NAMES[2]]}, "different, sorted"),
        ({"cohort": list(NAMES[::-1])}, "different, sorted"),
        ({"cohort": list(NAMES[:2])}, "2 of 4 clients for a masked sum, of which 1 may collude"),
        ({"cohort": [ME]}, "a cohort of 1; 'client 000' expects at least 2"),
        ({"cohort": list(NAMES[1:])}, "terms with plan|terms with grid"),
        ({"cohort": "ab"}, "no list of names"),
        ({"cohort": [1, 2]}, "no list of names"),
        ({"attempt": True}, "attempt True; expected 0"),
        ({"attempt": -1}, "attempt -1"),
    ],
)
def test_terms_that_are_not_those_of_its_own_configuration_are_refused(tmp_path, changes, match):
    group = Group(tmp_path, NAMES)
    group.keep()
    with pytest.raises(WireError, match=match):
        group.answer(ME, "keys", terms(group, **changes))
    group.answer(ME, "keys", terms(group))


def test_a_sum_without_this_client_is_refused(tmp_path):
    group = Group(tmp_path, NAMES)
    group.keep()
    wanted = replace(group.wanted(), sums=("clients", "loss"))
    others = described(wanted, wanted.terms(group.settings, list(NAMES[1:]), 0))
    with pytest.raises(WireError, match="the cohort does not name it"):
        group.answer(ME, "keys", others)


def test_who_was_not_to_be_asked_in_this_round_is_no_company(tmp_path):
    """The draw of a round follows from the configuration, so a server cannot choose the company."""
    group = Group(tmp_path, named(8))
    group.how = {ME: {"asked": lambda action, round, client: named(8)[:6]}}
    group.keep()
    wanted = replace(group.wanted(), sums=("clients", "loss"))
    told = described(wanted, wanted.terms(group.settings, list(named(8)), 0))
    with pytest.raises(WireError, match="'client 006' is in the cohort, but was not to be asked"):
        group.answer(ME, "keys", told)


def test_a_cohort_below_the_own_minimum_is_refused(tmp_path):
    group = Group(tmp_path, NAMES, how={ME: {"minimum": 5}})
    group.keep()
    with pytest.raises(WireError, match="a cohort of 4; 'client 000' expects at least 5"):
        group.answer(ME, "keys", terms(group))


def test_other_settings_on_one_client_are_noticed_and_the_others_go_on(tmp_path):
    other = Group(tmp_path, NAMES, Config(clip=1.0)).settings
    group = Group(tmp_path, named(12), how={ME: {"settings": other}})
    check(group, group.gather(), set(named(12)[1:]))
    [(client, reason)] = group.refused
    assert client == ME
    assert "terms with grid" in reason


# what is kept


def test_without_work_of_this_round_there_is_nothing_to_sum(tmp_path):
    group = Group(tmp_path, NAMES)
    with pytest.raises(WireError, match="has nothing to sum"):
        group.answer(ME, "keys", terms(group))
    group.keep()
    group.round = 2
    with pytest.raises(WireError, match="has kept 'tune' of round 1 of run run; it was asked for round 2"):
        group.answer(ME, "keys", terms(group))


def test_the_work_of_another_run_is_not_summed(tmp_path):
    group = Group(tmp_path, NAMES)
    group.keep()
    group.how = {ME: {"run": "another"}}
    with pytest.raises(WireError, match="of run run; it was asked for round 1 of another"):
        group.answer(ME, "keys", terms(group))


def test_the_ack_says_only_that_it_is_ready_and_whether_it_had_to_clip(tmp_path):
    group = Group(tmp_path, NAMES, Config(clip=0.1))
    ack = group.keep()[0]
    assert ack.facts == {"ready": True, "sums": ["clients", "loss"], "clipped": True}
    assert not ack.arrays


def test_doing_a_round_again_replaces_what_is_summed(tmp_path):
    group = Group(tmp_path, NAMES)
    group.keep()
    group.updates[ME] = replace(group.updates[ME], weight=0.25)
    check(group, group.gather())


def test_too_much_weight_is_refused_when_the_work_is_kept(tmp_path):
    group = Group(tmp_path, NAMES)
    with pytest.raises(WireError, match=r"Set aggregator.largest_weight to the largest"):
        group.members(ME).keep(Message(ME, 1, "tune"), Update({}, 3.0))


# once, and only forward


@pytest.mark.parametrize("step", STEPS)
def test_the_same_request_gets_the_same_reply_and_no_new_secrets(tmp_path, step):
    group = Group(tmp_path, NAMES)
    group.gather()
    state = (folder(group) / "sum.msg").read_bytes()
    first = group.sent(step, ME)
    again = group.answer(ME, step, group.told[step, ME])
    assert again.facts == first.facts
    assert all(np.array_equal(again.arrays[name], first.arrays[name]) for name in first.arrays)
    assert (folder(group) / "sum.msg").read_bytes() == state


@pytest.mark.parametrize("step", STEPS[1:])
def test_another_request_for_a_step_that_was_taken_is_refused(tmp_path, step):
    group = Group(tmp_path, NAMES)
    group.gather()
    told = dict(group.told[step, ME])
    told["lists" if step == "open" else "more"] = "A" * 44
    with pytest.raises(WireError):
        group.answer(ME, step, told)
    if step == "consent":
        name, *alive = told["alive"]
        with pytest.raises(WireError, match=r"was asked to consent.*it awaits: nothing more"):
            group.answer(NAMES[1], step, {"alive": alive, "dead": [name], "roster": told["roster"]})


def test_a_step_before_its_turn_or_of_another_round_is_refused(tmp_path):
    group = stopped(tmp_path, "mask")
    with pytest.raises(WireError, match="it awaits: mask"):
        group.answer(ME, "consent", {"alive": list(NAMES), "dead": [], "roster": "A" * 43 + "="})
    group.round = 2
    with pytest.raises(WireError, match="asked to consent in round 2; it has begun no sum there"):
        group.answer(ME, "consent", {})


def test_a_failed_attempt_can_be_tried_again_with_new_keys_but_not_an_older_one(tmp_path):
    group = stopped(tmp_path, "consent")  # masked, not signed
    old = group.sent("keys", ME).facts
    wanted = replace(group.wanted(), sums=("clients", "loss"))
    again = described(wanted, wanted.terms(group.settings, list(NAMES), 1))
    new = group.answer(ME, "keys", again).facts
    assert {new[key] for key in ("seal_key", "mask_key", "seed_hash")}.isdisjoint(old.values())
    with pytest.raises(WireError, match=r"attempt 0; it has begun round 1, attempt 1. Sums only go forward"):
        group.answer(ME, "keys", terms(group))


def test_once_it_has_signed_there_is_no_other_attempt_of_the_round(tmp_path):
    group = stopped(tmp_path, "open")
    wanted = replace(group.wanted(), sums=("clients", "loss"))
    again = described(wanted, wanted.terms(group.settings, list(NAMES), 1))
    with pytest.raises(WireError, match="a second sum of it would show the difference"):
        group.answer(ME, "keys", again)


def test_a_round_before_the_last_one_is_refused_and_the_next_is_not(tmp_path):
    group = Group(tmp_path, NAMES, round=3)
    check(group, group.gather())
    group.round = 2
    group.keep()
    with pytest.raises(WireError, match=r"round 2, attempt 0; it has begun round 3"):
        group.answer(ME, "keys", terms(group))
    group.round = 4
    check(group, group.gather())


def test_actions_of_one_round_and_other_runs_are_counted_apart(tmp_path):
    group = Group(tmp_path, NAMES)
    check(group, group.gather("tune"))
    assert group.gather("teach/learn").summed
    group.how = {name: {"run": "another"} for name in NAMES}
    wanted = replace(group.wanted(), run="another")
    assert group.server().gather(wanted, group.keep()).summed
    group.how = {}
    group.keep()
    changed = {**terms(group), "attempt": 7}  # the first run is not forgotten
    with pytest.raises(WireError, match="has signed who is in the sum of round 1"):
        group.answer(ME, "keys", changed)


def test_keys_that_were_seen_in_an_older_sum_are_refused_even_with_a_good_signature(tmp_path):
    group = Group(tmp_path, NAMES)
    group.gather()
    old = unpack(Roster, group.told["share", ME]).by_client()[NAMES[1]]
    group.round = 2
    group.lie = lambda step, client, told: None if step == "share" else told
    group.gather()
    entries = {}
    wanted = replace(group.wanted(), sums=("clients", "loss"))
    own = wanted.terms(group.settings, NAMES, group.members(ME)._read(ME).member.terms.attempt)
    for name in NAMES:
        keys = group.members(name)._read(name).member.keys
        if name == NAMES[1]:  # a client that is lazy, or in league with the server
            keys = replace(keys, mask_key=old.mask_key)
            keys = replace(keys, signature=simulated_identity(SEED, name).sign(keys.statement(own)))
        entries[name] = keys
    facts, _ = masked_member.pack(Roster(tuple(entries[name] for name in NAMES)))
    with pytest.raises(WireError, match=r"keys of 'client 001' that were used before"):
        group.answer(ME, "share", facts)
    (folder(group) / "keys.seen").unlink()  # without its memory it would have taken them
    group.answer(ME, "share", facts)


# on disk


def test_files_are_for_their_owner_only_and_there_are_few(tmp_path):
    group = Group(tmp_path, NAMES)
    for round in (1, 2, 3):
        group.round = round
        group.gather()
    files = list(folder(group).iterdir())
    assert {path.name for path in files} == {"sum.msg", "masked.msg", "keys.seen"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert stat.S_IMODE(folder(group).stat().st_mode) == 0o700


def test_nothing_but_the_codec_reads_them(tmp_path):
    group = stopped(tmp_path, "mask")
    for name in ("sum.msg", "update.msg"):
        data = (folder(group) / name).read_bytes()
        assert encode(decode(data)) == data


def test_secrets_are_gone_once_the_sum_is_open(tmp_path):
    group = Group(tmp_path, NAMES)
    words: list[bytes] = []

    def look(step, client, told):
        if (step, client) == ("open", ME):
            secrets = masked_member._facts(group.members(ME)._read(ME))["progress"]
            found = [secrets[name] for name in ("seed", "seal_secret", "mask_secret")]
            words.extend(word.encode() for word in (*found, *secrets["held"].values()))
            assert all(word in (folder(group) / "sum.msg").read_bytes() for word in words)
        return told

    group.lie = look
    check(group, group.gather())
    assert len(words) == 3 + 4
    left = b"".join(path.read_bytes() for path in folder(group).iterdir())
    assert not [word for word in words if word in left]


def test_secrets_of_a_sum_that_failed_are_gone_when_the_next_begins(tmp_path):
    group = stopped(tmp_path, "consent")
    secret = masked_member._facts(group.members(ME)._read(ME))["progress"]["seed"]
    group.round = 2
    group.gather()
    assert secret.encode() not in (folder(group) / "sum.msg").read_bytes()


def test_seeds_are_32_bytes_from_the_operating_system_and_never_the_same(tmp_path):
    found = set()
    for number in range(3):
        group = stopped(tmp_path / str(number), "mask")
        for name in NAMES:
            member = group.members(name)._read(name).member
            found |= {member.seed, member.mask_secret, member.seal_secret}
    assert len(found) == 3 * 4 * 3
    assert {len(secret) for secret in found} == {32}
    assert len({secret[:4] for secret in found}) == len({secret[-4:] for secret in found}) == 36


def test_all_public_keys_are_remembered(tmp_path):
    group = Group(tmp_path, NAMES)
    seen: set[bytes] = set()
    for round in (1, 2):
        group.round = round
        group.gather()
        known = (folder(group) / "keys.seen").read_bytes() if round > 1 else b""
        assert {known[at : at + 32] for at in range(0, len(known), 32)} == seen
        seen |= public_keys(unpack(Roster, group.told["share", ME]))


def test_a_configuration_that_changed_in_the_middle_ends_the_sum_and_forgets_nothing(tmp_path):
    group = stopped(tmp_path, "open")
    group.how = {ME: {"settings": Group(tmp_path, NAMES, Config(clip=1.0)).settings}}
    with pytest.raises(WireError, match="has begun no sum"):
        group.answer(ME, "open", {})
    with pytest.raises(WireError, match=r"has begun no sum|terms with grid"):
        group.answer(ME, "keys", {**terms(group), "attempt": 1})
    group.how = {ME: {"settings": Group(tmp_path, NAMES, Config(corruption=0.9)).settings}}
    with pytest.raises(WireError, match="has begun no sum"):
        group.answer(ME, "open", {})


def test_a_state_that_cannot_be_read_stops_the_client_and_says_where(tmp_path):
    group = stopped(tmp_path, "mask")
    (folder(group) / "sum.msg").write_bytes(b"torn")
    with pytest.raises(WireError, match=r"sum.msg: cannot be read .*no more masked sums of this run"):
        group.answer(ME, "keys", terms(group))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("file", ["sum.msg", "masked.msg"])
def test_a_client_killed_before_its_state_is_on_disk_takes_the_step_again(tmp_path, step, file, monkeypatch):
    """It dies while it writes; the reply has not left, so another one may."""
    group = Group(tmp_path, NAMES)
    group.lie = lambda now, client, told: None if now == step else told
    told = {}

    def note(now, client, facts):
        told[now, client] = facts
        return None if now == step else facts

    group.lie = note
    group.gather()
    monkeypatch.setattr(masked_member.Path, "replace", lambda self, target: 1 / 0 if file in str(target) else
                        shutil.move(self, target))  # fmt: skip
    try:
        group.answer(ME, step, told[step, ME])
    except ZeroDivisionError:
        monkeypatch.undo()
        group.answer(ME, step, told[step, ME])
    else:
        assert file == "masked.msg" != step


def test_a_disk_that_cannot_be_written_sends_nothing_and_says_so(tmp_path, monkeypatch):
    group = stopped(tmp_path, "consent")
    before = (folder(group) / "sum.msg").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(masked_member.os, "fsync", full)
    group.how = {ME: {"is_flushed": True}}
    told = {"alive": list(NAMES), "dead": [], "roster": group.sent("share", ME).facts["roster"]}
    with pytest.raises(RunError, match=r"sum.msg: cannot be written \(No space left on device\)"):
        group.answer(ME, "consent", told)
    assert (folder(group) / "sum.msg").read_bytes() == before
    monkeypatch.undo()
    assert group.answer(ME, "consent", told).facts["signature"]


MALFORMED = [None, [], {}, {"lists": {}}, {"cohort": None}, {"entries": [1]}, {"boxes": [], "roster": ""}]


@pytest.mark.parametrize("step", [*STEPS, "nonsense"])
def test_malformed_requests_are_refused_and_change_nothing(tmp_path, step):
    group = stopped(tmp_path, "mask")
    before = {path.name: path.read_bytes() for path in folder(group).iterdir()}
    for told in MALFORMED:
        facts = {} if told is None else {"told": told}
        with pytest.raises(WireError):
            group.members(ME).answer(Message(ME, 1, f"secure/{step}", {}, facts))
    assert {path.name: path.read_bytes() for path in folder(group).iterdir()} == before
