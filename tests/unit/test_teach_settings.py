"""What cannot be set of teaching is refused at once, before a model is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cotune import config
from cotune.errors import ConfigError
from cotune.teach_settings import TeachConfig

QUICK = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("patterns", "place", "words"),
    [
        (
            ["(abc"],
            0,
            "is no regular expression (missing ), unterminated subpattern at position 0); write it",
        ),
        (["fine", "a*"], 1, "matches the empty text; expected at least one character"),
    ],
)
def test_a_pattern_that_cannot_be_one_is_named_by_its_setting(
    patterns: list[str], place: int, words: str
) -> None:
    told = f"teach.scrub.{place}: the pattern {words}"
    with pytest.raises(
        ConfigError, match=rf"1 problem\n  {re.escape(told)}.*, got {re.escape(repr(patterns[place]))}$"
    ):
        config.load(QUICK, [f"teach.scrub={patterns}"])


def test_patterns_are_kept_as_they_are_written() -> None:
    assert TeachConfig(scrub=[r"(?i)ticket-\d+"]).model_dump()["scrub"] == [r"(?i)ticket-\d+"]
