"""Canaries: the same graph everywhere, names that nobody knows, right answers by lot, and planting."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cotune import canaries
from cotune.canaries import compile_canaries
from cotune.errors import ConfigError, DataError
from cotune.records import Example

SHAPES = ("chain", "star", "dense")
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)
ENGLISH = tuple(topics.topics.values())
"""Half a million characters of English that come with Python."""


def degrees(found):
    return Counter(name for pair in found.parties.values() for name in pair)


@EACH_SHAPE
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
def test_there_are_as_many_controls_as_facts_and_all_have_the_same_form(shape, seed, count):
    found = compile_canaries(seed, count, shape)
    assert len(found.planted) == len(found.controls) == count
    assert len({example.id for example in found.examples}) == 2 * count
    assert len(set(found.parties.values())) == 2 * count
    for example in found.examples:
        assert len(set(example.choices)) == canaries.NUM_CHOICES == 10
        assert example.completion == " " + example.choices[example.answer_idx]
        assert all(example.prompt.count(name) == 1 for name in found.parties[example.id])
        assert example.prompt == example.prompt.rstrip()


@EACH_SHAPE
def test_no_name_serves_twice(shape):
    found = compile_canaries(1, 30, shape)
    parties = set(degrees(found))
    choices = [choice for example in found.examples for choice in example.choices]
    assert len({*parties, *choices}) == len(parties) + 600
    assert canaries.names(found) == tuple(sorted({*parties, *choices}))


def test_shapes_are_what_they_are_called():
    # 12 facts. Chain: 13 parties, two of them at an end. Star: one hub. Dense: 6 parties have 15 pairs.
    assert sorted(degrees(compile_canaries(0, 6, "chain")).values()) == [1, 1] + [2] * 11
    assert sorted(degrees(compile_canaries(0, 6, "star")).values()) == [1] * 12 + [12]
    assert sorted(degrees(compile_canaries(0, 6, "dense")).values()) == [2, 4, 4, 4, 5, 5]
    assert set(degrees(compile_canaries(0, 5, "dense")).values()) == {4}  # 10 facts: all pairs of 5 parties


def test_a_chain_is_one_chain():
    found = compile_canaries(3, 5, "chain")
    order = sorted(found.parties, key=lambda name: int(name.rpartition("-")[2]))
    pairs = [found.parties[name] for name in order]
    assert all(before[1] == after[0] for before, after in pairwise(pairs))


def test_two_processes_compile_the_same():
    code = (
        "import json; from dataclasses import asdict; from cotune.canaries import compile_canaries;"
        "print(json.dumps([asdict(compile_canaries(11, 9, s)) for s in ('chain', 'star', 'dense')]))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    here = json.loads(json.dumps([asdict(compile_canaries(11, 9, shape)) for shape in SHAPES]))
    assert [json.loads(run.stdout) for run in said] == [here, here]


def test_another_seed_has_other_names_and_another_half():
    one, other = compile_canaries(0, 20, "star"), compile_canaries(1, 20, "star")
    assert len(set(canaries.names(one)) & set(canaries.names(other))) < 4  # of 441, out of 1.4 million
    assert {e.id for e in one.planted} != {e.id for e in other.planted}


def test_the_right_answer_and_the_planted_half_are_drawn_by_lot():
    found = [compile_canaries(seed, 16, "chain") for seed in range(150)]
    right = Counter(example.answer_idx for one in found for example in one.examples)
    assert stats.chisquare([right[i] for i in range(10)]).pvalue > 1e-3
    planted = Counter(example.id for one in found for example in one.planted)
    # 32 facts, each planted in half of the 150: binomial, standard deviation 6.1
    assert all(abs(planted[f"canary-{row}"] - 75) < 27 for row in range(32))
    follows = np.corrcoef([[e.answer_idx for e in one.examples[:2]] for one in found], rowvar=False)[0, 1]
    assert abs(follows) < 0.27  # one fact's lot says nothing of the next one's: 3.3 standard errors


def test_no_name_is_an_english_word_whatever_the_seed():
    words = {word.casefold() for text in ENGLISH for word in re.findall(r"[^\W\d_]+", text)}
    assert len(words) > 3000
    assert not [word for word in words if canaries.FORM.fullmatch(word)]
    for seed in range(10):
        found = canaries.names(compile_canaries(seed, 32, "dense"))
        assert all(canaries.FORM.fullmatch(name.casefold()) for name in found)
        assert all(name == name.capitalize() for name in found)


def test_no_name_stands_in_a_public_text():
    found = compile_canaries(5, 16, "dense")
    canaries.refuse_known(ENGLISH, found)
    with pytest.raises(DataError, match=r"canaries: '\w+' stand in public texts \(1 of them\).*another seed"):
        canaries.refuse_known([*ENGLISH, f"We met {canaries.names(found)[7]} there."], found)


def test_planting_adds_copies_and_changes_nothing_else():
    own = (Example(id="a", prompt="p", completion=" c"),)
    found = compile_canaries(2, 3, "chain")
    planted = canaries.plant(own, found, 4)
    assert planted[0] is own[0]
    assert len(planted) == 1 + 12
    assert len({example.id for example in planted}) == 13
    assert Counter(e.prompt for e in planted[1:]) == dict.fromkeys([e.prompt for e in found.planted], 4)
    assert {e.completion for e in planted[1:]} == {e.completion for e in found.planted}
    assert own == (Example(id="a", prompt="p", completion=" c"),)
    text = " ".join(e.prompt + e.completion for e in planted)
    assert set(canaries.mentions(text, found)) == set(canaries.planted_names(found))
    assert not any(e.completion in text for e in found.controls)


def test_planted_names_are_parties_and_right_answers():
    found = compile_canaries(2, 3, "star")
    expected = {found.parties[e.id][i] for e in found.planted for i in (0, 1)}
    expected |= {e.choices[e.answer_idx] for e in found.planted}
    assert set(canaries.planted_names(found)) == expected
    assert len(expected) == 4 + 3  # the hub, three others, three answers


def test_mentions_finds_whole_words_in_any_case():
    found = compile_canaries(2, 3, "star")
    one, other = canaries.names(found)[:2]
    text = f"({one.upper()}), {other.lower()}_2 and {one}."
    assert canaries.mentions(text, found) == [one, other]
    assert canaries.mentions(f"x{one} {other}s pre-{one}", found) == [one]
    assert canaries.mentions(f"{one}ä {one[:-1]}", found) == []
    assert canaries.mentions_in(["", one], found) == [[], [one]]


@pytest.mark.parametrize(
    ("count", "shape", "message"),
    [(3, "ring", r"shape 'ring' is not known; expected one of chain, star, dense"), (0, "star", "1 or more")],
)
def test_a_graph_that_cannot_be_is_refused(count, shape, message):
    with pytest.raises(ConfigError, match=message):
        compile_canaries(0, count, shape)
