"""Every allocator that is found by listing the folder keeps the promises of its slot."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cotune import plugins
from cotune.codec import decode, encode
from cotune.records import Message
from pools import FakeView, Party, pool, same, trained

EACH = pytest.mark.parametrize("name", plugins.names("allocator"))
SIZES = pytest.mark.parametrize("size", [0, 1, 2, 5, 60])
PARTS = {"contexts", "own_data", "losses", "answers"}


def made(name):
    return plugins.load("allocator", name, {})


def view(size, allocator, round=1, seed=0):
    own = np.random.default_rng(9).standard_normal((7, 12)).astype(np.float32)
    return pool(size, seed=seed, round=round, own_data_=own, needs=allocator.needs)


def played(name, size, rounds=2, seed=0):
    """What an allocator has chosen, round by round, and what it remembers then."""
    allocator, memory, chosen = made(name), {}, []
    for round in range(1, rounds + 1):
        now = allocator.choose(view(size, allocator, round, seed), memory)
        chosen.append(now)
        if len(now.rows):
            records = Party(np.arange(size) % 2 == 0).train(now.rows, round)
            memory = allocator.learn(view(size, allocator, round, seed + 1), memory, records)
    return chosen, memory


@EACH
def test_the_docstring_says_where_the_method_comes_from(name):
    assert re.search(r"^(Paper|Origin): .*\S", plugins.module("allocator", name).__doc__, re.M)


@EACH
def test_it_says_what_it_needs_and_asks_for_nothing_else(name):
    allocator = made(name)
    assert isinstance(allocator.needs, frozenset)
    assert allocator.needs <= PARTS
    seen = view(20, allocator)
    allocator.choose(seen, {})
    assert seen.asked == allocator.needs


@EACH
@SIZES
def test_rows_are_valid_and_every_item_has_a_score_or_nan(name, size):
    chosen, _ = played(name, size)
    for now in chosen:
        assert now.rows.dtype == np.int64
        assert len(set(now.rows.tolist())) == len(now.rows)
        assert set(now.rows.tolist()) <= set(range(size))
        assert now.scores.dtype == np.float64
        assert now.scores.shape == (size,)


@EACH
def test_rows_come_best_first(name):
    for now in played(name, 60)[0]:
        found = now.scores[now.rows]
        assert np.isnan(found).all() or (np.diff(found) <= 0).all()


@EACH
@SIZES
def test_the_same_seed_makes_the_same_choices_and_memories(name, size):
    first, again = played(name, size), played(name, size)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first[0], again[0], strict=True))
    assert same(first[1], again[1])


@EACH
def test_memory_survives_the_codec_and_the_choice_after_it_is_the_same(name):
    allocator = made(name)
    _, memory = played(name, 30)
    kept = decode(encode(Message("", 0, "keep", memory))).arrays
    assert same(memory, kept)
    found = [allocator.choose(view(30, allocator, 3), one) for one in (memory, kept)]
    assert np.array_equal(found[0].rows, found[1].rows)
    assert np.array_equal(found[0].scores, found[1].scores, equal_nan=True)


@EACH
def test_nothing_it_is_given_changes(name):
    allocator = made(name)
    _, memory = played(name, 30)
    before = {key: array.copy() for key, array in memory.items()}
    now, records = view(30, allocator, 3), Party(np.arange(30) % 2 == 0).train(np.arange(12), 3)
    x, own, margins = now.contexts_.copy(), now.own_data_.copy(), records.margins.copy()
    allocator.choose(now, memory)
    allocator.learn(now, memory, records)
    assert same(before, memory)
    assert np.array_equal(x, now.contexts_)
    assert np.array_equal(own, now.own_data_)
    assert np.array_equal(margins, records.margins)


@EACH
def test_a_round_without_any_training_leaves_the_memory_as_it_was(name):
    allocator = made(name)
    _, memory = played(name, 30)
    assert same(memory, allocator.learn(view(30, allocator), memory, trained([], [])))
    assert not allocator.learn(view(30, allocator), {}, trained([], []))


@EACH
def test_the_server_which_has_no_private_data_can_use_it_too(name):
    allocator = made(name)
    now = FakeView(
        np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32), needs=allocator.needs
    )
    assert set(allocator.choose(now, {}).rows.tolist()) <= set(range(20))
