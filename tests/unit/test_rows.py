from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import rows
from cotune.errors import DataError

WHERE = "mine.jsonl:3"


def test_a_missing_field_names_place_field_and_a_likely_misspelling() -> None:
    with pytest.raises(
        DataError, match=r"mine\.jsonl:3: field 'question' is missing; .*Did you mean 'qestion'"
    ):
        rows.text({"qestion": "Why?"}, "question", WHERE)


@pytest.mark.parametrize("value", [7, None, "", "  ", ["a"]])
def test_a_field_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl:3: field 'question': got .*expected a string"):
        rows.text({"question": value}, "question", WHERE)


def test_optional_text_may_be_missing_or_null_but_not_a_number() -> None:
    assert rows.optional_text({}, "input", WHERE) == ""
    assert rows.optional_text({"input": None}, "input", WHERE) == ""
    with pytest.raises(DataError, match="field 'input': got 3; expected a string, null"):
        rows.optional_text({"input": 3}, "input", WHERE)


def test_options_read_the_form_of_files_and_of_the_hub() -> None:
    assert rows.options({"choices": ["a", "b"], "answer_idx": 1}, WHERE) == (("a", "b"), 1)
    hub = {"choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    assert rows.options(hub, WHERE) == (("a", "b", "c"), 2)


@pytest.mark.parametrize("value", [2, -1, True, "0", 0.0])
def test_an_answer_index_out_of_range_or_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"field 'answer_idx': got .*; expected a whole number from 0 to 1"):
        rows.options({"choices": ["a", "b"], "answer_idx": value}, WHERE)


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["a", "b"], "answer_idx": None},
        {"choices": ["a", "b"]},
        {"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": ""},
    ],
)
def test_a_row_without_answer_is_refused_with_the_cure(row: rows.Row) -> None:
    with pytest.raises(DataError, match="use a split whose answers are published"):
        rows.options(row, WHERE)


@pytest.mark.parametrize("choices", [None, "ab", ["a"], ["a", ""], ["a", 2], {"text": ["a", "b"]}, {}])
def test_choices_that_are_no_list_of_texts_are_refused(choices: object) -> None:
    with pytest.raises(DataError, match=r"field 'choices.*expected a list of at least two strings"):
        rows.options({"choices": choices, "answer_idx": 0}, WHERE)


def test_missing_choices_are_named() -> None:
    with pytest.raises(DataError, match="field 'choices' is missing; the row has 'question'"):
        rows.options({"question": "Why?"}, WHERE)


@pytest.mark.parametrize("messages", [None, [], ["hello"], [{"role": "user"}], "hello"])
def test_a_row_without_chat_messages_is_refused(messages: object) -> None:
    with pytest.raises(DataError, match=r"field 'input': got .*expected a list of chat messages"):
        rows.chat({"input": messages, "ideal": "Yes"}, WHERE)


def test_a_label_outside_the_known_ones_is_refused() -> None:
    with pytest.raises(DataError, match="field 'ideal': got \"Maybe\"; expected one of No, Yes"):
        rows.label_index({"ideal": "Maybe"}, ("No", "Yes"), WHERE)


def test_long_values_are_cut_in_messages() -> None:
    message = str(rows.wrong(WHERE, "question", "x" * 5000, "less"))
    assert len(message) < 150
    assert "..." in message


@pytest.mark.parametrize("value", [None, True, 1.5, ["a"]])
def test_an_id_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"field 'id': got .*expected a string, a whole number"):
        rows.own_id({"id": value}, WHERE)


@given(
    st.recursive(
        st.text() | st.integers() | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_read_as_it_stands_there(value: object) -> None:
    assert rows.from_json(json.dumps(value)) == value


@given(st.text(st.characters()), st.text(st.characters(categories=["Cs"]), max_size=3))
def test_whatever_is_read_can_be_encoded(before: str, half: str) -> None:
    found = rows.from_json(json.dumps({half: [before + half]}))
    json.dumps(found, ensure_ascii=False).encode()


def test_ids_may_be_numbers_or_missing() -> None:
    assert rows.own_id({"id": 12}, WHERE) == "12"
    assert rows.own_id({}, WHERE) == ""
