from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotune import metrics

WORDS = st.lists(st.sampled_from(["red", "blue", "green", "7"]), min_size=1, max_size=8)


def longest_common_subsequence(left: list[str], right: list[str]) -> int:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(prediction=WORDS, reference=WORDS)
@settings(deadline=None)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(
    prediction: list[str], reference: list[str]
) -> None:
    common = longest_common_subsequence(prediction, reference)
    precision, recall = common / len(prediction), common / len(reference)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert metrics.rouge_l(" ".join(prediction), " ".join(reference)) == pytest.approx(expected)


def test_rouge_l_of_nothing_is_zero() -> None:
    assert metrics.rouge_l("", "a word") == 0.0


def test_rouge_l_ignores_case_and_punctuation() -> None:
    assert metrics.rouge_l("The cat, sat.", "the cat sat") == 1.0


def test_exact_match_ignores_case_and_blanks_only() -> None:
    assert metrics.exact_match("\n The  Hall\n", "the hall") == 1.0
    assert metrics.exact_match("the hall.", "the hall") == 0.0


def test_accuracy_picks_the_largest_sum_and_the_first_of_equals() -> None:
    assert metrics.choice_correct([-3.0, -1.0, -2.0], 1)
    assert not metrics.choice_correct([-3.0, -1.0, -2.0], 0)
    assert metrics.choice_correct([-1.0, -1.0], 0)
    assert not metrics.choice_correct([-1.0, -1.0], 1)


def test_normalised_accuracy_divides_by_the_characters_of_the_choice() -> None:
    # -4 / 2 = -2 per character against -6 / 6 = -1 per character: the long choice wins, unlike by sums.
    assert metrics.choice_correct([-4.0, -6.0], 0)
    assert metrics.choice_correct_norm([-4.0, -6.0], ("ab", "abcdef"), 1)


def test_mean_and_standard_error_by_hand() -> None:
    # Three right of four: deviations .25 .25 .25 -.75, variance .75 / 3 = .25, error .5 / 2 = .25.
    assert metrics.mean([1.0, 1.0, 1.0, 0.0]) == metrics.Mean(0.75, 0.25, 4)


def test_mean_of_one_and_of_none_say_what_is_unknown() -> None:
    one, none = metrics.mean([0.5]), metrics.mean([])
    assert (one.value, one.n, math.isnan(one.stderr)) == (0.5, 1, True)
    assert (math.isnan(none.value), none.n) == (True, 0)
