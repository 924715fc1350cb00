"""How a round ended, and what a client's error is called."""

from __future__ import annotations

import pytest

from cotune.endings import kind_of, outcome
from cotune.records import Failure


def lost(*pairs: tuple[str, str]) -> list[Failure]:
    return [Failure(client, 1, kind, "") for client, kind in pairs]


@pytest.mark.parametrize(
    ("asked", "usable", "minimum", "failures", "expected"),
    [
        (3, 3, 1, [], ("full", "3 of 3 replies count")),
        (3, 2, 2, lost(("bob", "late")), ("partial", "2 of 3 replies count; late: bob")),
        (
            4, 1, 2, lost(("dan", "crashed"), ("bob", "late"), ("cat", "out-of-memory")),
            ("failed", "1 of 4 replies count; late: bob; crashed: dan; out-of-memory: cat; "
            "at least 2 are needed"),
        ),
        (0, 0, 1, [], ("failed", "nobody was asked: no client of the cohort had anything to train on")),
        (2, 2, 1, lost(("mallory", "rejected")), ("full", "2 of 2 replies count; rejected: mallory")),
    ],
)  # fmt: skip
def test_a_round_ends_in_one_of_three_words(asked, usable, minimum, failures, expected):
    assert outcome(asked, usable, minimum, failures) == expected


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MemoryError(), "out-of-memory"),
        (OutOfMemoryError("x"), "out-of-memory"),
        (RuntimeError("CUDA error: out of memory"), "out-of-memory"),
        (RuntimeError("shape"), "crashed"),
    ],
)
def test_an_error_has_one_word(error, word):
    assert kind_of(error) == word
