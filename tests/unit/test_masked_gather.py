"""Masked sums over messages: the plain mean whoever leaves; servers that are killed; replies that lie."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotune.aggregators.secure_sum import Config
from cotune.errors import RunError
from cotune.guarding import Update
from cotune.masked_gather import Journal
from cotune.records import Message
from masking import STEPS, Group, check, named


def test_twelve_clients_give_the_plain_mean_in_whatever_order_they_answer(tmp_path):
    found = []
    for order in (0, 1):
        group = Group(tmp_path / str(order), named(12), order=order)
        found.append(group.gather())
        check(group, found[-1])
        assert not group.refused
    assert all(
        np.array_equal(array, found[1].summed.arrays[name]) for name, array in found[0].summed.arrays.items()
    )
    assert found[0].plan["neighbours"] == 11
    assert found[0].plan["attempt"] == 0


def test_at_16_bits(tmp_path):
    group = Group(tmp_path, named(5), Config(bits=16, clip=2.0))
    check(group, group.gather())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [3, 4])
def test_of_three_or_four_clients_one_may_leave_at_any_step(tmp_path, number, step):
    """The default plan for so few lets nobody leave; those that are left try again among themselves."""
    names = named(number)
    group = Group(tmp_path, names, gone={step: {names[1]}})
    outcome = group.gather()
    stays = set(names) - ({names[1]} if step in ("keys", "share", "mask") else set())
    check(group, outcome, stays)
    assert outcome.plan["attempt"] == (0 if stays == set(names) else 1)


@settings(max_examples=3, deadline=None)
@given(st.randoms(use_true_random=False))
def test_twelve_clients_of_which_up_to_four_leave_anywhere(tmp_path_factory, chance: random.Random):
    names = named(12)
    gone: dict[str, set[str]] = {step: set() for step in STEPS}
    for name in chance.sample(names, chance.randint(1, 4)):
        gone[chance.choice(STEPS)].add(name)
    group = Group(tmp_path_factory.mktemp("sum"), names, gone=gone, order=chance.randrange(99))
    outcome = group.gather()
    early = gone["keys"] | gone["share"] | gone["mask"]
    if outcome.summed is None:
        assert len(early) > 1  # two rounds of leaving, each more than the plan allows
        assert "expected at least" in outcome.reason
    else:
        assert outcome.summed.num_clients >= 12 - len(early)
        check(group, outcome, set(named(12)) - early)


@pytest.mark.parametrize(("step", "number"), [("keys", 2), ("mask", 2), ("consent", 2), ("open", 2)])
def test_when_too_many_leave_the_sum_stays_closed_and_says_why(tmp_path, step, number):
    names = named(4)
    group = Group(tmp_path, names, gone={step: set(names[:number])})
    outcome = group.gather()
    assert outcome.summed is None
    assert "expected at least 3" in outcome.reason
    group.gone, group.away, group.round = {}, set(), 2
    check(group, group.gather())


def test_each_step_asks_only_those_who_took_the_one_before(tmp_path):
    names = named(12)
    group = Group(tmp_path, names, gone={"share": {names[0]}, "consent": {names[1]}})
    group.gather()
    asked = {step: {client for taken, client in group.told if taken == step} for step in STEPS}
    assert asked["mask"] == asked["consent"] | {names[1]} == set(names[1:])
    assert asked["open"] == set(names[2:])


def test_only_contributions_count_as_gathered(tmp_path):
    group = Group(tmp_path, named(3))
    group.updates = {
        name: replace(update, arrays={"a": np.zeros(10_000, np.float32)})
        for name, update in group.updates.items()
    }
    group.gather()
    assert 3 * 40_000 < group.num_bytes[True] < 3 * 41_000  # 4 bytes a value: at most 4.1
    assert group.num_bytes[False] < 3 * 3_000


def test_numbers_without_arrays_and_counts_are_summed_too(tmp_path):
    group = Group(tmp_path, named(4))
    rng = np.random.default_rng(1)
    group.updates = {
        name: Update({"n": rng.integers(0, 10**6, 5)}, 1.0, {"x": float(rng.integers(0, 99))})
        for name in group.names
    }
    found = group.gather("select/0/share").summed
    expected = sum(update.arrays["n"] for update in group.updates.values())
    assert np.rint(found.arrays["n"] * found.num_clients).tolist() == expected.tolist()
    group.updates = {name: replace(update, arrays={}) for name, update in group.updates.items()}
    found = group.gather("teach/learn").summed
    assert found.sums["x"] == pytest.approx(sum(u.sums["x"] for u in group.updates.values()), abs=1e-5)


def test_a_client_that_is_not_ready_or_has_other_sums_is_named_and_left_out(tmp_path):
    group = Group(tmp_path, named(12))
    acks = group.keep()
    acks[0] = replace(acks[0], facts={"ready": False})
    acks[1] = replace(acks[1], facts={"ready": True, "sums": ["another"]})
    acks[2] = replace(acks[2], facts={"ready": True, "sums": "loss"})
    outcome = group.server().gather(group.wanted(), acks)
    check(group, outcome, set(named(12)[3:]))
    assert {client for client, _ in group.refused} == set(named(12)[:3])
    assert "most clients have ['clients', 'loss']" in dict(group.refused)[named(12)[1]]


def test_fewer_than_the_minimum_are_not_asked_for_keys(tmp_path):
    group = Group(tmp_path, named(4))
    outcome = replace(group.server(), minimum=5).gather(group.wanted(), group.keep())
    assert outcome.summed is None
    assert "4 clients are there; expected at least 5" in outcome.reason
    assert not group.told
    assert group.server().gather(group.wanted(), []).summed is None


def changed(reply: Message, names: tuple[str, ...]) -> list[Message]:
    """What a client that breaks the protocol might send."""
    other = next(name for name in names if name != reply.client)
    facts = dict(reply.facts)
    shortened = {name: array[:-1] for name, array in reply.arrays.items()}
    return [
        replace(reply, facts={}),
        replace(reply, facts={**facts, "client": other}),
        replace(reply, facts={**facts, "signature": "AAAA", "roster": "AAAA", "lists": "AAAA"}),
        replace(reply, arrays=shortened or {"a": np.zeros(3, np.float32)}),
        replace(reply, facts={name: [value] for name, value in facts.items()}),
    ]


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_sends_rubbish_is_named_and_the_others_go_on(tmp_path, step):
    names = named(4)
    for number in range(5):
        group = Group(tmp_path / str(number), names)
        plain = group.answer

        def answer(client: str, action: str, told: Any, plain=plain, number=number) -> Message:
            reply = plain(client, action, told)
            is_bad = (client, action) == (names[2], step)
            return changed(reply, names)[number] if is_bad else reply

        group.answer = answer
        outcome = group.gather()
        check(group, outcome, set(names) - ({names[2]} if step in ("keys", "share", "mask") else set()))
        assert {client for client, _ in group.refused} == {names[2]}


class Killed(Exception):
    """The server dies."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("answered", [0, 2, 4])
def test_a_server_killed_at_any_point_goes_on_to_the_same_sum(tmp_path, step, answered):
    """Killed when so many clients have answered a step; all clients train again, as a resumed round does."""
    plain = Group(tmp_path / "plain", named(4))
    expected = plain.gather()
    group = Group(tmp_path / "killed", named(4))
    left = answered

    def kill(now: str, client: str, told: Any) -> Any:
        nonlocal left
        if now == step:
            left -= 1
            if left < 0 or (answered == 4 and left == 0):
                raise Killed
        return told

    group.lie = kill
    with pytest.raises(Killed):
        group.gather()
    group.lie = lambda now, client, told: told
    outcome = group.gather()
    check(group, outcome)
    for name, array in expected.summed.arrays.items():
        assert np.array_equal(outcome.summed.arrays[name], array)
    assert not group.refused


def test_a_sum_that_was_opened_is_not_asked_for_again(tmp_path):
    """Killed after the sum, before the round's checkpoint."""
    group = Group(tmp_path, named(4))
    first = group.gather()
    group.told.clear()
    again = group.gather()
    assert not group.told
    assert again.plan == first.plan
    assert again.summed.sums == first.summed.sums
    assert all(np.array_equal(array, first.summed.arrays[n]) for n, array in again.summed.arrays.items())


def test_a_sum_that_failed_after_consent_fails_again(tmp_path):
    group = Group(tmp_path, named(4), gone={"open": set(named(4)[:2])})
    first = group.gather()
    group.away, group.gone = set(), {}
    assert group.gather() == first
    assert first.summed is None


@pytest.mark.parametrize("has_left", [False, True])
def test_a_server_without_its_journal_gets_the_same_sum_or_none(tmp_path, has_left):
    group = Group(tmp_path, named(4))
    first = group.gather()
    for path in (tmp_path / "server").iterdir():
        path.unlink()
    acks = group.keep()[1 if has_left else 0 :]
    outcome = group.server().gather(group.wanted(), acks)
    if has_left:
        assert outcome.summed is None
        assert all("Sums only go forward" in reason for _, reason in group.refused)
        assert len(group.refused) == 3
    else:
        assert all(np.array_equal(a, first.summed.arrays[name]) for name, a in outcome.summed.arrays.items())


def test_the_journal_keeps_few_rounds_and_families_apart(tmp_path):
    group = Group(tmp_path, named(4))
    journal = Journal(tmp_path / "j", keep=2)
    for round in (1, 2, 3):
        journal.write(replace(group.wanted(), round=round), {"state": "begun", "attempt": round})
    assert len(list((tmp_path / "j").iterdir())) == 2
    assert journal.read(replace(group.wanted(), round=3)).facts["attempt"] == 3
    assert journal.read(replace(group.wanted(), round=3, asked=named(3))) is None
    assert journal.read(replace(group.wanted("teach/learn"), round=3)) is None


def test_a_journal_that_cannot_be_read_or_written(tmp_path):
    group = Group(tmp_path, named(4))
    journal = Journal(tmp_path / "j")
    journal.write(group.wanted(), {"state": "begun", "attempt": 0})
    next((tmp_path / "j").iterdir()).write_bytes(b"torn")
    assert journal.read(group.wanted()) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Journal(tmp_path / "file").write(group.wanted(), {})
