"""Typed fields out of untyped rows; an error names file, line, field, what came and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cotune.errors import DataError, suggestion
from cotune.records import DELIMITER, Example, readable

Row = Mapping[str, object]


def from_json(line: str) -> object:
    """What a line of JSON says, with a question mark for each half of a pair of surrogates.

    JSON can write such halves (`\\ud83d`), and no tokenizer reads them; all rows of users come through here.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return _encodable(json.loads(line))
    except RecursionError:
        raise ValueError("nested too deep") from None


def _encodable(value: object) -> object:
    match value:
        case str():
            return readable(value)
        case list():
            return [_encodable(part) for part in value]
        case dict():
            return {readable(key): _encodable(part) for key, part in value.items()}
        case _:
            return value


def wrong(where: str, field: str, came: object, expected: str) -> DataError:
    """The error of one field. `where` is file:line; long values are cut."""
    shown = json.dumps(came, ensure_ascii=False, default=repr)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return DataError(f"{where}: field {field!r}: got {shown}; expected {expected}")


def text(row: Row, field: str, where: str) -> str:
    """A string that must be there and must not be blank.

    Raises:
        DataError: it is missing, blank or no string.
    """
    if field not in row:
        known = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{where}: field {field!r} is missing; the row has {known}.{suggestion(field, row)}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise wrong(where, field, value, "a string that is not blank")
    return value


def text_or_number(row: Row, field: str, where: str) -> str:
    """A string that is not blank, or a number written as one.

    Raises:
        DataError: it is missing, blank, or neither.
    """
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text(row, field, where)


def optional_text(row: Row, field: str, where: str) -> str:
    """A string that may be missing or null; then it is empty.

    Raises:
        DataError: it is no string.
    """
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong(where, field, value, "a string, null, or no such field")
    return value


def texts(values: object, field: str, where: str) -> tuple[str, ...]:
    """A list of at least two strings, none blank.

    Raises:
        DataError: it is anything else.
    """
    expected = "a list of at least two strings, none blank"
    if not isinstance(values, list | tuple) or len(values) < 2:
        raise wrong(where, field, values, expected)
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise wrong(where, f"{field}[{index}]", value, expected)
    return tuple(values)


def index_below(row: Row, field: str, size: int, where: str) -> int:
    """A whole number from 0 to size - 1.

    Raises:
        DataError: it is missing, null (a split without answers) or out of range.
    """
    value = row.get(field)
    if value is None:
        raise wrong(where, field, value, f"0 to {size - 1}; use a split whose answers are published")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise wrong(
            where, field, value, f"a whole number from 0 to {size - 1}, the index of the right choice"
        )
    return value


def options(row: Row, where: str) -> tuple[tuple[str, ...], int]:
    """Choices and the index of the right one.

    Reads both `{choices: [text, ...], answer_idx}` and the hub's `{choices: {text, label}, answerKey}`.

    Raises:
        DataError: a field is missing, of another type or out of range.
    """
    if "choices" not in row:
        text(row, "choices", where)  # says what the row has instead
    choices = row["choices"]
    if not isinstance(choices, Mapping):
        found = texts(choices, "choices", where)
        return found, index_below(row, "answer_idx", len(found), where)
    found = texts(choices.get("text"), "choices.text", where)
    labels = texts(choices.get("label"), "choices.label", where)
    key = row.get("answerKey")
    if key not in labels or len(labels) != len(found):
        expected = f"one of {', '.join(labels)}; use a split whose answers are published"
        raise wrong(where, "answerKey", key, expected)
    return found, labels.index(str(key))


def chat(row: Row, where: str) -> tuple[str, str]:
    """The last message and the ideal answer of a row `{input: [{role, content}, ...], ideal}`.

    Raises:
        DataError: the row has another form.
    """
    messages = row.get("input")
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    content = last.get("content") if isinstance(last, Mapping) else None
    if not isinstance(content, str) or not content:
        raise wrong(where, "input", messages, "a list of chat messages, each with role and content")
    return content, text(row, "ideal", where)


def label_index(row: Row, labels: tuple[str, ...], where: str) -> int:
    """Which of `labels` the field `ideal` is.

    Raises:
        DataError: it is none of them.
    """
    ideal = text(row, "ideal", where)
    if ideal not in labels:
        raise wrong(where, "ideal", ideal, f"one of {', '.join(labels)}")
    return labels.index(ideal)


def choice_example(
    row: Row, where: str, prompt: str, choices: tuple[str, ...], answer_idx: int, domain: str
) -> Example:
    """A multiple-choice example; the row's own id, domain and rationale go before the task's."""
    return Example(
        id=own_id(row, where),
        prompt=prompt.rstrip(),
        completion=DELIMITER + choices[answer_idx],
        choices=choices,
        answer_idx=answer_idx,
        rationale=optional_text(row, "rationale", where),
        domain=optional_text(row, "domain", where) or domain,
    )


WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""The Alpaca template (https://github.com/tatsu-lab/stanford_alpaca)."""


def instruction_example(row: Row, where: str, fields: tuple[str, str, str], domain: str) -> Example:
    """An instruction with its answer in the Alpaca template; the row's own id, domain and rationale go first.

    The line break after `### Response:` belongs to the completion.

    Args:
        row: the row.
        where: its place.
        fields: the names of its instruction, input (may be missing or blank) and output.
        domain: the task's, where the row has none.

    Raises:
        DataError: the instruction or the output is missing or blank, or a field is no string.
    """
    instruction, context, output = fields
    given = optional_text(row, context, where).strip()
    template = WITH_INPUT if given else WITHOUT_INPUT
    return Example(
        id=own_id(row, where),
        prompt=template.format(instruction=text(row, instruction, where).strip(), input=given),
        completion="\n" + text(row, output, where).strip(),
        rationale=optional_text(row, "rationale", where),
        domain=optional_text(row, "domain", where) or domain,
    )


def own_id(row: Row, where: str) -> str:
    """The row's id, or an empty string for the loader to fill.

    Raises:
        DataError: it is neither a string nor a whole number.
    """
    value = row.get("id", "")
    if value is None or not isinstance(value, str | int) or isinstance(value, bool):
        raise wrong(where, "id", value, "a string, a whole number, or no such field")
    return str(value)
