"""What is taken out of texts before they leave a client, and what must stay. All addresses are invented."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.errors import ConfigError
from cotune.reasoning import MARKER, parse, written
from cotune.records import Example
from cotune.scrub import CUT, MIN_CHARS, Scrubber

SCRUBBER = Scrubber()
PARTS = "a@b.org @ . b.c +49 0171 - (030) 12 1234 5678901 555-1234 = + DE89 [email] [cut ] [ x e\u0301"
PIECES = st.lists(
    st.sampled_from([*PARTS.split(), " ", "\n", MARKER]) | st.text(max_size=6), max_size=40
).map("".join)
PATTERNS = st.lists(
    st.sampled_from(
        [r"x", r"b(?!b)", r"\s", r"[a-z]+", r".", r"\d$", r"^\w", r"mail", r"(?i)final", r"(a|b)\1"]
    ),
    max_size=3,
)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Ask kim.lee+x@post-box.example.org, or Lee.", "Ask [email], or Lee."),
        ("<j\u00f6rg@m\u00fcller.example>", "<[email]>"),
        ("me\uff20site.org", "[email]"),
        ("account DE00 1234 5678 9012 3456 78 please", "account [iban] please"),
        ("XX00ABCD123456789012", "[iban]"),
        ("call +49 30 1234567 now", "call [phone] now"),
        ("+1 (555) 010-4567.", "[phone]."),
        ("0049-30-1234567", "[phone]"),
        ("(555) 010-4567 or (030) 123 456", "[phone] or [phone]"),
        ("030/1234567, 0171 123 45 67", "[phone], [phone]"),
        ("555 010 4567 and 1-555-010-4567", "[phone] and [phone]"),
        ("card 1234 5678 9012 3456", "card [number]"),
        ("id 12345678; 123-45-6789; 555-0104", "id [number]; [number]; [number]"),
        ("\u0661\u0662\u0663\u0664\u0665\u0666\u0667", "[number]"),
    ],
)
def test_contact_data_becomes_a_placeholder(text: str, scrubbed: str) -> None:
    found = SCRUBBER.scrub(text)
    assert found.text == scrubbed
    assert sum(found.counts.values()) == scrubbed.count("[")
    assert all(f"[{kind}]" in scrubbed for kind in found.counts)


@pytest.mark.parametrize(
    "text",
    [
        "12 + 30 = 42", "1,250 apples", "16-3-4=9", "1000-250-125 = 625", "$1,250-1000-500",
        "x = 1000-2500-1",
        "5 + 1000 + 200", "12 +30", "(200)(3000)", "2 4 8 16 32 64", "100 200 300", "3.14159265", "1,250,000",
        "$2500000", "10% of 2000", "5@2.50 each", "A@B", "@kim", "in 1999", "1999-2001", "from 1337-1453",
        "1990 1991 1992 1993", "2021-03-04", "04.03.2021", "at 10:30 on 12/25", "f(100) 250", "007", "AB12",
        "ON24 JUNE WILL THEY COME", "Final answer: B",
        "Final answer: 1,250", "caf\u00e9 \u6f22\u5b57 \U0001f600", "",
    ],
)  # fmt: skip
def test_arithmetic_years_and_answers_stay(text: str) -> None:
    found = SCRUBBER.scrub(text)
    assert (found.text, found.counts) == (text, {})


def test_kinds_are_counted() -> None:
    found = SCRUBBER.scrub("a@b.org c@d.org +49 30 1234567, 12345678")
    assert found.counts == {"email": 2, "phone": 1, "number": 1}


def test_placeholders_that_were_there_are_not_counted_nor_matched() -> None:
    found = Scrubber(["mail", "e"]).scrub("[email] mail e")
    assert found.text == "[email] [pattern] [pattern]"
    assert found.counts == {"pattern": 2}


def test_patterns_of_the_user_go_first() -> None:
    scrubber = Scrubber([r"ticket-\d+", r"(?i)\bproject \w+"])
    found = scrubber.scrub("See ticket-12345678 of Project Swan.")
    assert found.text == "See [pattern] of [pattern]."


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "(?P<x>a)(?P<x>b)", "*"])
def test_a_bad_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"patterns\[1\]: .* is no regular expression .*; write it"):
        Scrubber(["fine", pattern])


@pytest.mark.parametrize("pattern", ["", "a*", "x?", "(?=a)|"])
def test_a_pattern_that_matches_nothing_at_all_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"patterns\[0\]: .* matches the empty text; expected"):
        Scrubber([pattern])


def test_a_long_text_loses_its_middle_and_keeps_its_answer() -> None:
    example = Example(id="x", prompt="Which?", completion=" b", choices=("a", "b"), answer_idx=1)
    found = Scrubber(max_chars=100).scrub(written("Then this. " * 50, example))
    assert len(found.text) == 100
    assert found.counts == {"cut": 1}
    assert found.text.startswith(" Then this. Then")
    assert found.text.count(CUT) == 1
    assert parse(found.text, example) == "b"


def test_placeholders_are_not_cut_in_two() -> None:
    found = Scrubber(max_chars=MIN_CHARS).scrub("a@b.org " * 40)
    assert len(found.text) <= MIN_CHARS
    assert found.text.replace("[email]", "").replace(CUT, "").strip() == ""


@pytest.mark.parametrize("max_chars", [0, -1, MIN_CHARS - 1])
def test_too_small_a_cap_is_refused(max_chars: int) -> None:
    with pytest.raises(ConfigError, match=f"max_chars: got {max_chars}; expected at least {MIN_CHARS}"):
        Scrubber(max_chars=max_chars)


def test_a_lone_surrogate_does_not_reach_the_wire() -> None:
    assert SCRUBBER.scrub("a\ud800b").text.encode() == b"a?b"


@given(text=PIECES | st.text(), patterns=PATTERNS, max_chars=st.integers(MIN_CHARS, 200))
def test_scrubbing_twice_changes_nothing_and_the_cap_holds(
    text: str, patterns: list[str], max_chars: int
) -> None:
    scrubber = Scrubber(patterns, max_chars)
    once = scrubber.scrub(text)
    assert len(once.text) <= max_chars
    again = scrubber.scrub(once.text)
    assert (again.text, again.counts) == (once.text, {})


@given(
    before=st.sampled_from(["", "See ", "(", "mail: ", "\u6f22"]),
    local=st.from_regex(r"[a-z0-9]{1,8}([._+-][a-z0-9]{1,8}){0,3}", fullmatch=True),
    domain=st.from_regex(r"([a-z0-9-]{1,9}\.){1,3}[a-z]{2,6}", fullmatch=True),
    after=st.sampled_from(["", ".", ", then", ")", "\n"]),
)
def test_every_plain_address_goes(before: str, local: str, domain: str, after: str) -> None:
    found = SCRUBBER.scrub(f"{before}{local}@{domain}{after}").text
    assert "@" not in found
    assert found.endswith(f"[email]{after}")


@given(
    numbers=st.lists(st.integers(0, 999_999), min_size=1, max_size=6),
    sign=st.sampled_from([" + ", " - ", " * ", " / ", "+", "*", " = ", ", "]),
)
def test_equations_of_numbers_below_a_million_stay(numbers: list[int], sign: str) -> None:
    text = sign.join(f"{number:,}" for number in numbers) + f" = {sum(numbers):,}"
    assert SCRUBBER.scrub(text).text == text


HARD = [
    "a",
    "a@",
    "a@b.",
    "b.",
    "1-",
    "12-",
    "0012 ",
    "AB12 ",
    "AAAA ",
    "(",
    "(030)",
    "+1",
    "+1(1",
    "1234 ",
    "1",
    " ",
]


@pytest.mark.parametrize("piece", [*HARD, "[cut", "[email]", "0.12", "00 "])
def test_time_is_proportional_to_length(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    began = time.perf_counter()
    Scrubber(max_chars=200_000).scrub("a@" + text)
    assert time.perf_counter() - began < 15  # on a busy machine; quadratic time would be minutes
