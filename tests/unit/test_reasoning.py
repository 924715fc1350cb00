"""Reasoning paths as text: templates, what they end on, and nonsense that must not be taken for an answer."""

from __future__ import annotations

import dataclasses
import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import reasoning
from cotune.errors import DataError
from cotune.reasoning import MARKER, answer_of, is_right, on_path, parse, path_prompt, reasons, written
from cotune.records import Example

SNOW = Example(
    id="snow",
    prompt="Question: What is snow?\nAnswer:",
    completion=" frozen water",
    choices=("sand", "frozen water", "a dog"),
    answer_idx=1,
)


def free(answer: str) -> Example:
    return Example(id="free", prompt="Question: How many?\nAnswer:", completion=f" {answer}")


PENS = free("1250")
TEXTS = st.text(max_size=60)
PIECES = st.lists(
    st.sampled_from(
        [
            MARKER,
            "final answer :",
            "**Final Answer**:",
            "_",
            "**",
            "B",
            "(",
            ")",
            "\n",
            " ",
            "4",
            "1,250",
            "=",
            ".",
            "$",
            "-",
            "x",
        ]
    )
    | st.text(max_size=5),
    max_size=12,
).map("".join)


def test_the_template_has_question_letters_instruction_and_marker() -> None:
    assert path_prompt(SNOW) == (
        "Question: What is snow?\nA. sand\nB. frozen water\nC. a dog\n"
        'Think step by step. Then end with a line "Final answer:" and the right choice.\nReasoning:'
    )
    assert path_prompt(PENS) == (
        "Question: How many?\n"
        'Think step by step. Then end with a line "Final answer:" and the answer alone.\nReasoning:'
    )


def test_a_prompt_that_already_asks_for_a_path_is_left_as_it_is() -> None:
    for example in (SNOW, PENS):
        asked = on_path(example, "So.")
        assert path_prompt(asked) == asked.prompt == path_prompt(example)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (" It falls.\nIt is cold.\nFinal answer: B", "It falls.\nIt is cold."),
        ("So. final  ANSWER : B. And so. Final answer: C", "So."),
        ("It falls", "It falls"),
        (" Final answer: B", ""),
        ("\n", ""),
    ],
)
def test_the_reasons_of_a_path_end_before_its_first_marker(path, expected) -> None:
    assert reasons(path) == expected


def test_a_written_path_is_the_text_that_follows_the_prompt() -> None:
    assert written(" It falls.\n", SNOW) == " It falls.\nFinal answer: frozen water"
    assert written("", SNOW) == " Final answer: frozen water"
    assert written("500 + 750 = 1,250", free("$1,250")) == " 500 + 750 = 1,250\nFinal answer: $1,250"


def test_an_example_on_its_path_is_free_text_so_that_its_end_is_learned() -> None:
    taught = on_path(SNOW, "It falls.")
    assert (taught.choices, taught.answer_idx, taught.rationale) == ((), None, "It falls.")
    assert taught.completion == written("It falls.", SNOW)
    assert is_right(taught.completion, taught)
    assert not is_right("Final answer: C", taught)
    assert SNOW.choices  # the argument is not changed


@pytest.mark.parametrize(
    "said",
    [
        "B", "b", "(B)", "B.", "[b]", "**B**", '"B"', "'B'", "$B$", "  B)", "B: it falls", "B frozen water",
        "b. Frozen Water.", "frozen water", "Frozen  water.", "\n\n B\nmore", "B\n\nQuestion: C",
        "(B) because it falls",
    ],
)  # fmt: skip
def test_a_letter_or_the_text_of_a_choice_is_read(said: str) -> None:
    assert parse(f"It falls. {MARKER} {said}", SNOW) == "frozen water"
    assert is_right(f"{MARKER}{said}", SNOW)


@pytest.mark.parametrize(
    "said",
    ["", "   ", "\n", "D", "Z", "3", "BC", "B or C", "A/B", "A, B", "Bee", "no idea", "()", "B's", "Бb", "*"],
)
def test_nonsense_behind_the_marker_is_no_answer(said: str) -> None:
    assert parse(f"It falls. {MARKER} {said}", SNOW) is None
    assert not is_right(f"{MARKER} {said}", SNOW)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("frozen water, because it falls", "frozen water"),
        ("Frozen water. It falls.", "frozen water"),
        ('"sand" because it is dry', None),
        ("sand because it is dry", "sand"),
        ("frozen water or sand, because", None),
        ("sandy because it is dry", None),
    ],
)
def test_a_choice_that_is_explained_is_read(said: str, found: str | None) -> None:
    assert parse(f"{MARKER} {said}", SNOW) == found


def test_of_choices_that_begin_alike_the_longer_one_is_meant_and_a_point_is_no_end() -> None:
    example = Example(id="x", prompt="?", completion="", choices=("3", "ice", "ice. and water"), answer_idx=0)
    assert parse(f"{MARKER} ice. and water because so", example) == "ice. and water"
    assert parse(f"{MARKER} 3.5", example) is None


def test_a_path_without_the_marker_has_no_answer() -> None:
    for text in ("", "B", "The answer is B", "frozen water", "final answer B", "Final\nanswer: B"):
        assert parse(text, SNOW) is None


def test_a_word_that_begins_a_choice_is_no_letter() -> None:
    assert parse(f"{MARKER} A dog", SNOW) == "a dog"
    assert parse(f"{MARKER} A cat", SNOW) is None


def test_case_and_blanks_of_the_marker_do_not_matter() -> None:
    for marker in ("final answer:", "FINAL ANSWER :", "**Final  answer:**"):
        assert parse(f"It falls. {marker} B", SNOW) == "frozen water"


@pytest.mark.parametrize(
    "marker",
    [
        "**Final Answer**:",
        "*final answer* :",
        "__Final answer__:",
        "***Final  Answer***:",
        "_Final answer_\t:",
    ],
)
def test_emphasis_may_end_before_the_colon(marker: str) -> None:
    assert parse(f"It falls.\n{marker} frozen water", SNOW) == "frozen water"
    assert parse(f"It falls.\n{marker} **B**", SNOW) == "frozen water"
    assert parse(f"{MARKER} A\n{marker} 1,250", PENS) == "1250"
    assert is_right(f"{marker} ice", free("ice"))


@pytest.mark.parametrize(
    "marker", ["Final answer*B:", "Final answer****:", "Final answer**\n:", "Final answer-:"]
)
def test_other_signs_before_the_colon_are_no_marker(marker: str) -> None:
    assert parse(f"It falls. {marker} B", SNOW) is None


def test_the_last_marker_with_something_behind_it_counts() -> None:
    assert parse(f"{MARKER} A\nNo. {MARKER} B", SNOW) == "frozen water"
    assert parse(f"{MARKER} B\n{MARKER}\n", SNOW) == "frozen water"
    assert parse(f"{MARKER} B\n{MARKER} D", SNOW) is None
    assert parse(f"{MARKER} {MARKER} B", SNOW) == "frozen water"


def test_choices_that_read_the_same_are_the_same_answer() -> None:
    twice = Example(id="x", prompt="Which?", completion=" bridge", choices=("bridge", "bridge"), answer_idx=1)
    assert written("", twice) == " Final answer: bridge"
    assert is_right(f"{MARKER} A", twice)
    cased = dataclasses.replace(twice, choices=("Ice", " ice", "sand"), answer_idx=1)
    assert all(is_right(f"{MARKER} {said}", cased) for said in ("A", "b", "ice", "Ice!", "ICE;"))
    assert not is_right(f"{MARKER} sand!", cased)


def test_a_letter_goes_before_a_choice_that_is_a_letter_itself() -> None:
    example = Example(id="x", prompt="Which?", completion=" b", choices=("b", "a"), answer_idx=0)
    assert parse(f"{MARKER} a", example) == "b"
    assert written("", example) == " Final answer: A"


@given(choices=st.lists(TEXTS | PIECES, min_size=1, max_size=5).map(tuple), data=st.data())
def test_a_written_path_ends_on_the_right_choice_whatever_the_choices_are(choices, data) -> None:
    right = data.draw(st.integers(0, len(choices) - 1))
    example = Example(id="x", prompt="Which?", completion="", choices=choices, answer_idx=right)
    assert is_right(written("So.", example), example)


@pytest.mark.parametrize(
    "said",
    [
        "1250", "1,250", "$1,250.", "1250.00", "+1250", "01250", "1250 pens", "1,250%", "= 1250",
        "There are 1250.", "500 + 750 = 1,250", "**1250**", "\u20ac1250", "1250\nFinal", "\\boxed{1250}",
        "x = 2 = 1250",
    ],
)  # fmt: skip
def test_a_number_is_read_without_its_dress(said: str) -> None:
    assert parse(f"So. {MARKER} {said}", PENS) == "1250"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("-5", "-5"), ("\u22125", "-5"), ("-$5", "-5"), ("$-5", "-5"), ("-0", "0"), ("0.50", "0.5"),
        (".5", "0.5"), ("007", "7"), ("0", "0"), ("5.", "5"), ("12.0", "12"),
        ("1,000,000", "1000000"), ("100", "100"),
    ],
)  # fmt: skip
def test_numbers_have_one_form(said: str, found: str) -> None:
    assert parse(f"{MARKER} {said}", PENS) == found
    assert answer_of(free(said)) == found


@pytest.mark.parametrize(
    "said",
    ["", "many", "12,50", "1,2", "1 250", "3/4", "10:30", "1250 - 20", "5-6", "12 + 30", "3.14.15", "1 2 3"],
)
def test_a_line_that_may_mean_several_numbers_is_no_answer(said: str) -> None:
    assert parse(f"{MARKER} {said}", PENS) is None


def test_another_free_answer_is_compared_word_by_word() -> None:
    example = free("Grand  Mother")
    assert answer_of(example) == "grand mother"
    for said in ("grand mother", " Grand Mother.", '"grand mother"', "*Grand mother*"):
        assert is_right(f"{MARKER} {said}", example)
    for said in ("mother", "grand mother in law", "grandmother"):
        assert not is_right(f"{MARKER} {said}", example)


def test_an_unknown_answer_is_refused_by_name() -> None:
    blind = Example(id="q7", prompt="Which?", completion="", choices=("x", "y"))
    with pytest.raises(DataError, match="'q7': has no answer_idx; expected"):
        is_right(f"{MARKER} A", blind)
    assert parse(f"{MARKER} A", blind) == "x"
    with pytest.raises(DataError, match="'free': its completion holds no answer; expected"):
        written("So.", free(" "))


def test_more_choices_than_letters_are_refused_with_the_cure() -> None:
    many = Example(
        id="q7", prompt="Which?", completion=" 0", choices=tuple(map(str, range(27))), answer_idx=0
    )
    for ask in (path_prompt, answer_of):
        with pytest.raises(DataError, match=r"'q7': got 27 choices; expected 26 .*task short_answer"):
            ask(many)


@given(text=TEXTS | PIECES, example=st.sampled_from([SNOW, PENS, free("cat"), on_path(SNOW, "")]))
def test_whatever_a_model_writes_is_a_choice_an_answer_or_nothing(text: str, example: Example) -> None:
    found = parse(text, example)
    assert found is None or found in example.choices or (not example.choices and found)
    assert is_right(text, example) == (found == answer_of(example))
    assert parse(text + "\n" + MARKER, example) == found


@given(
    rationale=TEXTS | PIECES,
    answer=st.integers().map(str) | st.sampled_from(["cat", "1,000.50", "Yes", "0 1"]),
)
def test_the_written_path_is_right_whatever_its_rationale(rationale: str, answer: str) -> None:
    assert is_right(written(rationale, SNOW), SNOW)
    assert is_right(written(rationale, free(answer)), free(answer))


@given(value=st.integers(-(10**12), 10**12), places=st.integers(0, 3))
def test_a_number_reads_the_same_with_commas_and_zeros(value: int, places: int) -> None:
    dressed = f"{value:,}" + (f".{'0' * places}" if places else "")
    assert parse(f"{MARKER} {dressed}", PENS) == str(value)


@pytest.mark.parametrize(
    "piece", ["final ", MARKER, "(", "1,", "1", " ", "=", "a", "-", "*", "final answer ", "final answer*"]
)
def test_long_nonsense_is_read_in_no_time(piece: str) -> None:
    began = time.perf_counter()
    for example in (SNOW, PENS):
        parse(f"{MARKER} " + piece * (100_000 // len(piece)), example)
    assert time.perf_counter() - began < 10  # quadratic time would be minutes


def test_the_examples_of_the_module_are_true() -> None:
    assert doctest.testmod(reasoning) == (0, 3)
