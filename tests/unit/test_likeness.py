"""Likeness of two texts without a judge, against hand-counted values."""

from __future__ import annotations

import bz2
import random
import string
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotune import likeness
from cotune.likeness import PROXIES
from cotune.records import derived_rng

TEXTS = st.text(alphabet=st.sampled_from("ab. \n-#`1!é木"), max_size=60) | st.text(max_size=40)
LIST = "Pack these:\n\n- a map\n- a lamp\n- a rope\n"
PROSE = "You should pack a map. Take a lamp as well! A rope may help."


@pytest.mark.parametrize("name", PROXIES)
@given(a=TEXTS, b=TEXTS)
@settings(max_examples=60, deadline=None)
def test_every_measure_is_symmetric_within_its_range_and_one_for_equal_texts(name, a, b):
    measure = PROXIES[name]
    assert 0.0 <= measure(a, b) <= 1.0
    assert measure(a, b) == measure(b, a)
    assert measure(a, a) == 1.0


@pytest.mark.parametrize("name", PROXIES)
def test_blank_texts_are_alike_and_unlike_all_others(name):
    measure = PROXIES[name]
    assert (measure("", ""), measure(" \n", "\t")) == (1.0, 1.0)
    assert (measure("", "Yes."), measure("Yes.", " \n ")) == (0.0, 0.0)


def test_character_ngrams_by_hand():
    # abcde bcdef cdefg | bcdef cdefg defgh: two in common of three each
    assert likeness.char_ngrams("abcdefg", "bcdefgh") == pytest.approx(2 * 2 / 6)
    # aaaaa three times | aaaaa once: a multiset, not a set
    assert likeness.char_ngrams("aaaaaaa", "aaaaa") == pytest.approx(2 * 1 / 4)
    assert likeness.char_ngrams("abc  defg", "abc\ndefg") == 1.0  # blanks are folded
    assert likeness.char_ngrams("ABCDEF", "abcdef") == 0.0  # case is not
    assert (likeness.char_ngrams("yes", "yes"), likeness.char_ngrams("yes", "no")) == (1.0, 0.0)


def test_word_ngrams_by_hand():
    # the-cat cat-sat sat-. | the-cat cat-ran ran-.
    assert likeness.word_ngrams("The cat sat.", "the cat ran.") == pytest.approx(2 * 1 / 6)
    # to-be be-or or-not not-to to-be | to-be
    assert likeness.word_ngrams("to be or not to be", "to be") == pytest.approx(2 * 1 / 6)
    assert likeness.word_ngrams("cat the", "the cat") == 0.0  # order counts
    assert (likeness.word_ngrams("yes", "YES"), likeness.word_ngrams("yes", "yes it")) == (1.0, 0.0)


def test_a_chinese_character_is_a_word():
    assert likeness.words("我是猫, a Cat!") == ["我", "是", "猫", ",", "a", "cat", "!"]
    # 我是 是猫 | 我是 是狗
    assert likeness.word_ngrams("我是猫", "我是狗") == pytest.approx(1 / 2)


def test_composed_and_decomposed_letters_are_one():
    assert likeness.word_ngrams("caf\u00e9 au lait", "cafe\u0301 au lait") == 1.0
    assert likeness.compression("caf\u00e9", "cafe\u0301") == 1.0


def test_sentences_end_with_marks_and_lines():
    text = 'It rains. "Does it?" Yes!\n\n- Version 2.5 is out\n今天下雨。明天晴'
    assert likeness.sentences(text) == [
        "It rains.",
        '"Does it?',
        "Yes!",
        "- Version 2.5 is out",
        "今天下雨。",
        "明天晴",
    ]
    assert likeness.sentences(" \n ") == []


def test_structure_by_hand():
    # LIST: 2 paragraphs, 3 items, no heading, no fence, 4 sentences, 11 blank-separated parts / 4, marks : -
    # PROSE: 1, 0, 0, 0, 3, 14 / 3, marks . !
    by_hand = [1 / 2, 0 / 3, 3 / 4, (11 / 4) / (14 / 3), 0 / 4]
    assert likeness.structure(LIST, PROSE) == pytest.approx(sum(by_hand) / 5)


def test_structure_does_not_read_the_words():
    other = "Bring some:\n\n- a cup\n- a fork\n- a dish\n"
    assert likeness.structure(LIST, other) == 1.0
    assert likeness.word_ngrams(LIST, other) < 0.5


@pytest.mark.parametrize(
    "marked",
    [
        PROSE + "\n# Note\nA rope.",
        PROSE + "\n**Note**\nA rope.",
        PROSE + "\n```\nrope\n```",
        PROSE + "\n1. rope",
        PROSE + "\n\nA rope.",
        PROSE.replace("!", ";"),
    ],
)
def test_structure_sees_each_kind_of_layout(marked):
    assert likeness.structure(PROSE, marked) < 1.0


def test_compression_finds_what_is_said_again():
    draw = random.Random(1)
    first, second = ("".join(draw.choices(string.ascii_lowercase, k=3000)) for _ in range(2))
    assert likeness.compression(first, second) < 0.05  # letters have frequencies in common
    # half of it is the first text: the same as the share of bytes, for letters without any pattern
    assert likeness.compression(first, first[:1500] + second[:1500]) == pytest.approx(0.5, abs=0.02)
    assert likeness.compression(first, second + first) == pytest.approx(0.5, abs=0.02)


def test_compression_agrees_with_another_compressors_distance():
    """Ranks of pairs against 1 - NCD by bz2, which sorts blocks and has no window."""
    draw = random.Random(2)
    pool = ["".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(400)]
    base = " ".join(draw.choices(pool, k=600))
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    others = [
        base[: round(share * len(base))]
        + "".join(draw.choices(string.ascii_lowercase, k=round((1 - share) * len(base))))
        for share in shares
    ]

    def packed(text: str) -> int:
        return len(bz2.compress(text.encode()))

    theirs = [
        1 - (packed(base + o) - min(packed(base), packed(o))) / max(packed(base), packed(o)) for o in others
    ]
    ours = [likeness.compression(base, other) for other in others]
    assert np.argsort(ours).tolist() == np.argsort(theirs).tolist() == [0, 1, 2, 3, 4]


def test_compression_sees_further_back_than_zlib():
    text = "".join(random.Random(3).choices(string.ascii_letters, k=80_000))
    assert likeness.compression(text, text[1:]) > 0.99


def test_short_different_texts_share_no_frame():
    assert likeness.compression("a", "b") == 0.0
    assert likeness.compression("yes", "no") < 0.5


def test_embedding_is_a_cosine_that_does_not_go_below_zero():
    a, b = np.array([1.0, 0.0], np.float32), np.array([0.6, 0.8], np.float32)
    assert likeness.embedding(a, b) == pytest.approx(0.6)
    assert likeness.embedding(a, -b) == 0.0
    assert likeness.embedding(b, b) == pytest.approx(1.0)


def test_embedding_f_by_hand():
    a = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    b = np.array([[0.6, 0.8]], np.float32)
    # precision: (0.6 + 0.8) / 2 = 0.7; recall: 0.8
    assert likeness.embedding_f(a, b) == pytest.approx(2 * 0.7 * 0.8 / 1.5)
    assert likeness.embedding_f(b, a) == pytest.approx(likeness.embedding_f(a, b))
    assert likeness.embedding_f(a, a[::-1]) == 1.0  # order does not count
    assert likeness.embedding_f(a[:1], -a[:1]) == 0.0
    nothing = a[:0]
    assert (likeness.embedding_f(nothing, a), likeness.embedding_f(nothing, nothing)) == (0.0, 1.0)


def test_calibration_is_linear_and_not_clipped():
    raw, lower, upper = np.array([0.2, 0.6, 1.0, 0.1]), np.array([0.2]), np.array([1.0])
    assert likeness.calibrated(raw, lower, upper) == pytest.approx([0.0, 0.5, 1.0, -0.125])
    assert np.isnan(likeness.calibrated(raw, upper, upper)).all()
    assert np.isnan(likeness.calibrated(raw, upper - 0.005, upper)).all()  # nothing but noise fits between


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_strangers_are_other_prompts_of_the_same_set(sizes, seed):
    found = likeness.strangers(sizes, derived_rng(seed, "strangers"))
    sets = np.repeat(np.arange(len(sizes)), sizes)
    assert len(found) == sum(sizes)
    for row, other in enumerate(found):
        if sizes[sets[row]] > 1:
            assert other != row
            assert sets[other] == sets[row]
        else:
            assert other == (row + 1) % sum(sizes)
    if min(sizes) > 1:
        assert sorted(found) == list(range(sum(sizes)))


LONG = 100_000


def long_texts() -> list[tuple[str, str]]:
    draw = random.Random(4)
    stock = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(4000)]
    ends = ["", "", ".", "\n", "\n\n- ", "!", "**"]
    one, two = (
        " ".join(draw.choice(stock) + draw.choice(ends) for _ in range(15_000))[:LONG] for _ in range(2)
    )
    return [
        (one, two),
        ("(" * LONG, one),
        (" \n" * (LONG // 2), "**" * (LONG // 2)),
        ("- " * (LONG // 2), "." * LONG),
    ]


@pytest.mark.parametrize("name", PROXIES)
def test_very_long_answers_take_well_under_a_second(name):
    pairs = long_texts()
    for a, b in pairs:
        start = time.process_time()
        assert 0.0 <= PROXIES[name](a, b) <= 1.0
        assert time.process_time() - start < 1.5  # 0.1 to 0.3 s on one idle core


def test_halves_of_surrogates_do_no_harm():
    for measure in PROXIES.values():
        assert measure("a \ud800 b", "a \ud800 b") == 1.0
        assert measure("a \ud800 b", "c d e f g") < 1.0
