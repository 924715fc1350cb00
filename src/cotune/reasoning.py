"""Reasoning paths as text: how one is asked for, how one is written, and which answer it ends on.

One zero-shot template for all tasks and models, because LaDa's prompts could not be read. A path ends with
`Final answer:` and the text of a choice where there are choices, else the answer alone; without that marker
it has no answer, and a path without an answer is not right. A choice's letter is read too, but not asked for:
a small model that reasons its way to a choice then names a letter by chance (docs/log.md, 2026-11-22).
Everything is read off the `Example`: its choices, or else the answer in its completion. A task overrides the
template by writing the prompt itself: a prompt that already ends as `path_prompt` would end it is left as it
is.

>>> snow = Example(id="", prompt="Snow is", completion=" ice", choices=("sand", "ice"), answer_idx=1)
>>> written("Snow melts.", snow)
' Snow melts.\\nFinal answer: ice'
>>> parse("It melts, so ... Final answer: (b)", snow)
'ice'
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS

from cotune.errors import DataError
from cotune.records import DELIMITER, Example
from cotune.rows import Row, optional_text, own_id, wrong

MARKER = "Final answer:"
"""Stands before the answer of every path; in what a model wrote, case, blanks and emphasis do not matter."""

STOP = ("\nQuestion:",)
"""Where an untuned model goes on with a question of its own, its path is over."""

_ASKS = f'Think step by step. Then end with a line "{MARKER}" and '
_CHOICE_ENDING = f"{_ASKS}the right choice.\nReasoning:"
_FREE_ENDING = f"{_ASKS}the answer alone.\nReasoning:"

_MARKER = re.compile(r"final[ \t]+answer[ \t]*+[*_]{0,3}+[ \t]*+:", re.IGNORECASE)
_LETTER = re.compile(r"[ (\[{*_\"'`$]*([A-Za-z])(?![^\W_]|['\u2019]\w)(.*)")
_CLOSES = (")", "]", "}", ".", ":", "!", "*", "_", '"', "'", "`", "$", " - ")
_GOES_ON = (". ", " because ", ", because ")
"""What may follow the text of a choice that is explained in the same line."""
_DIGITS = r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?P<decimals>\.[0-9]+)?"
_ALONE = re.compile(rf"[$\u20ac\u00a3\u00a5+]*(?P<sign>-?)[$\u20ac\u00a3\u00a5]?{_DIGITS}%?")
_FIRST = re.compile(
    rf"[^0-9]*?(?P<sign>-?)[$\u20ac\u00a3\u00a5]?{_DIGITS}"
    r"(?! ?[-+*/\u00d7\u00f7\u2044^:,.]? ?[$\u20ac\u00a3\u00a5]?[0-9])"
)


def path_prompt(example: Example) -> str:
    """The question, its lettered choices if it has any, and what the path must end with.

    Raises:
        DataError: there are more choices than letters.
    """
    if example.prompt.endswith((_CHOICE_ENDING, _FREE_ENDING)):
        return example.prompt
    question = example.prompt.strip().removesuffix("Answer:").removeprefix("Question:").strip()
    if not example.choices:
        return f"Question: {question}\n{_FREE_ENDING}"
    _check_choices(example)
    options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False))
    return "\n".join((f"Question: {question}", *options, _CHOICE_ENDING))


def written(rationale: str, example: Example) -> str:
    """What a model should write after `path_prompt`: the rationale, the marker and the right answer.

    It begins with the delimiter, as a completion does. Without a rationale only the last line is left.

    Raises:
        DataError: the example's right answer is not known.
    """
    answer_of(example)  # refuses an example without one
    shown = _named(example) if example.choices else _shown(example.completion)
    return DELIMITER + "\n".join(part for part in (rationale.strip(), f"{MARKER} {shown}") if part)


def on_path(example: Example, rationale: str) -> Example:
    """The same question as free text, to tune a model on: it is asked for a path and writes this rationale.

    Choices are left out, so that the end of the text is learned like that of any written answer.
    """
    prompt, completion = path_prompt(example), written(rationale, example)
    return dataclasses.replace(
        example, prompt=prompt, completion=completion, choices=(), answer_idx=None, rationale=rationale
    )


def answer_of(example: Example) -> str:
    """The right answer in the form that `parse` returns.

    Raises:
        DataError: the example has choices but no `answer_idx`, or no answer at all.
    """
    if example.choices:
        return example.choices[_right_index(example)]
    line = _line(_shown(example.completion))
    number = _ALONE.fullmatch(line)
    answer = _canonical(number) if number else line.casefold()
    if not answer:
        raise DataError(
            f"example {example.id!r}: its completion holds no answer; expected a number or a text."
        )
    return answer


def parse(text: str, example: Example) -> str | None:
    """The answer that a path ends on, or None: no marker, nothing behind it, or nothing that can be meant.

    The last marker that has text behind it counts, and of that text the first line. With choices: a letter
    (`B`, `b.`, `(B) because ...`) or else a choice word by word, alone or explained (`ice, because ...`);
    returned is the text of the choice. Without:
    where the right answer is a number, the first number (the one after `=` if there is one) without currency,
    unit, thousands commas and trailing zeros; else the line in lower case without closing signs or quotes
    around it.

    Raises:
        DataError: there are no choices and no right answer that tells a number from a text.
    """
    said = _said(text)
    if said is None:
        return None
    if example.choices:
        return _choice(said, example)
    if _ALONE.fullmatch(answer_of(example)):
        found = _FIRST.match(_line(said).rpartition("=")[2])
        return _canonical(found) if found else None
    return _line(said).casefold() or None


def is_right(text: str, example: Example) -> bool:
    """Whether a path ends on the right answer. Choices that read the same (but for case, blanks and what
    stands around them) are the same answer.

    Raises:
        DataError: the example's right answer is not known.
    """
    said, right = parse(text, example), answer_of(example)
    return said is not None and (said == right or _same(said, right))


def has_answer(text: str) -> bool:
    """Whether a path ends on an answer of whatever kind."""
    return _said(text) is not None


def reasons(text: str) -> str:
    """What a path says before it comes to an answer: the text before its first marker, or all of it."""
    return _MARKER.split(text, maxsplit=1)[0].strip()


def free_example(row: Row, where: str, question: str, answer: str, rationale: str, domain: str) -> Example:
    """An example without choices, asked for and written as a path; the row's own id and domain go first.

    Raises:
        DataError: the answer cannot stand behind the marker.
    """
    if len(answer.strip().splitlines()) != 1 or _MARKER.search(answer) or not _line(answer):
        raise wrong(where, "answer", answer, f"one line of text or a number, without {MARKER!r}")
    example = Example(
        id=own_id(row, where),
        prompt=f"Question: {question.strip()}\n{_FREE_ENDING}",
        completion=f"{DELIMITER}{MARKER} {answer.strip()}",
        rationale=rationale.strip(),
        domain=optional_text(row, "domain", where) or domain,
    )
    return dataclasses.replace(example, completion=written(example.rationale, example))


def _check_choices(example: Example) -> None:
    if len(example.choices) > len(LETTERS):
        raise DataError(
            f"example {example.id!r}: got {len(example.choices)} choices; expected {len(LETTERS)} at most, "
            "one letter each. Leave some out, or ask for the answer itself: task short_answer."
        )


def _right_index(example: Example) -> int:
    _check_choices(example)
    if example.answer_idx is None:
        raise DataError(f"example {example.id!r}: has no answer_idx; expected the right choice's index.")
    return example.answer_idx


def _named(example: Example) -> str:
    """The right choice as a path names it: its text, or its letter where the text would not be read as it."""
    index = _right_index(example)
    choice = example.choices[index].strip()
    return choice if parse(f"{MARKER} {choice}", example) == example.choices[index] else LETTERS[index]


def _said(text: str) -> str | None:
    """What stands behind the last marker that has anything behind it."""
    parts = (part.strip() for part in reversed(_MARKER.split(text)[1:]))
    return next((part for part in parts if part), None)


def _shown(completion: str) -> str:
    """The answer in a completion as it is written there: behind the marker, else all of it."""
    return (_said(completion) or completion).strip()


def _line(said: str) -> str:
    """The first line, blanks made single, with a plain minus sign and without quotes or closing signs."""
    first = next(iter(said.strip().splitlines()), "")
    return " ".join(first.replace("\u2212", "-").split()).strip(" *`\"'").rstrip(" .,;!*`\"'")


def _canonical(number: re.Match[str]) -> str:
    """1,250.50 as 1250.5, 007 as 7, -0 as 0."""
    whole = number["whole"].replace(",", "").lstrip("0") or "0"
    value = whole + (number["decimals"] or "").rstrip("0").rstrip(".")
    return value if value == "0" else number["sign"] + value


def _choice(said: str, example: Example) -> str | None:
    """The choice that is meant: by its letter, alone or closed or before its own text; or by its text."""
    found = _LETTER.match(" ".join(said.splitlines()[0].split()))
    index = LETTERS.find(found[1].upper()) if found else -1
    if found and index < len(example.choices):
        rest, choice = found[2], example.choices[index]
        if not rest.strip() or rest.startswith(_CLOSES) or _same(rest, choice):
            return choice
    told = next((choice for choice in example.choices if _same(said, choice)), None)
    return told if told is not None else _explained(said, example.choices)


def _explained(said: str, choices: Sequence[str]) -> str | None:
    """The longest choice that the line begins with, where it goes on with a reason."""
    line = _line(said).casefold()
    ways = ((choice, _line(choice).casefold() + more) for choice in choices for more in _GOES_ON)
    found = [choice for choice, way in ways if _line(choice) and line.startswith(way)]
    return max(found, key=len, default=None)


def _same(said: str, choice: str) -> bool:
    return _line(said).casefold() == _line(choice).casefold() != ""
