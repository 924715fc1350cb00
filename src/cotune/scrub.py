"""Text that leaves a client, made shorter and poorer: capped, and what looks like contact data replaced.

This is no anonymisation. Replaced is what its form gives away: e-mail addresses, IBANs, phone numbers,
numbers of seven digits or more, and what the user's own patterns find. Not found are names, street
addresses, dates of birth, user names, disguised addresses (`me at home dot org`), numbers of six digits or
fewer, longer ones with thousands commas, behind a decimal point or a currency sign, hyphens between digits
where an equation goes on, and everything that only its meaning gives away. In turn some harmless text is
lost: an answer, a binary number or a row of numbers that has seven digits and the form of a phone number or
an id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cotune.errors import ConfigError

MIN_CHARS = 64
"""Fewer leave no room for an answer and a placeholder."""

CUT = "[cut]"
"""Stands where the middle of a long text was; the start and the last quarter, with the answer, are kept."""

_PLACEHOLDER = re.compile(r"(\[(?:email|iban|phone|number|pattern|cut)\])")

# Every quantifier is bounded, possessive (++) or cannot match what stands behind it, so that time is
# proportional to length. A number does not begin inside a word, a number, a price or an equation ...
_START = r"(?<![\w.,+*/=^\u00d7\u00f7$\u20ac\u00a3\u00a5-])(?<![+*/=^\u00d7\u00f7-] )"
# ... and does not end where digits, letters or an equation go on.
_END = r"(?![\w\u20ac%]|[-.,/]\d| ?[+*/=^<>\u00d7\u00f7]| - )"
_DATE = r"(?!\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\d{4}-\d{1,2}-\d{1,2}\b|(?:1\d|20)\d\d-(?:1\d|20)\d\d\b)"


@dataclass(frozen=True, slots=True)
class _Rule:
    """What is replaced by `[kind]`: the matches of a pattern that hold so many digits at least."""

    kind: str
    pattern: re.Pattern[str]
    min_digits: int = 0


_RULES = (
    _Rule("email", re.compile(r"(?<![\w.%+'-])[\w.%+'-]++[@\uff20](?:[\w-]++\.)+(?=[^\W\d_])[\w-]++")),
    _Rule("iban", re.compile(r"\b[A-Za-z]{2}\d\d(?:[ -]?[A-Za-z\d]{4}){2,7}(?:[ -]?[A-Za-z\d]{1,3})?\b"), 8),
    # +49 30 1234567, 0049-30-1234567, +1 (555) 123-4567
    _Rule("phone", re.compile(r"(?<![\w.,])(?:\+|00)\d{1,4}+(?:[ ./-]{0,2}\(?\d{1,12}+\)?){1,7}+(?!\w)"), 8),
    # (555) 123-4567, (030) 123 456
    _Rule(
        "phone", re.compile(rf"(?<![\w.,])\((?:0\d{{1,4}}+|\d{{3}})\)(?:[ ./-]?\d{{2,8}}+){{1,4}}+{_END}"), 7
    ),
    # 555 123 4567, 1-555-123-4567
    _Rule("phone", re.compile(rf"{_START}(?:1([ .-]))?\d{{3}}([ .-])\d{{3}}\2\d{{4}}{_END}")),
    # 030/1234567, 0171 123 45 67
    _Rule("phone", re.compile(rf"{_START}{_DATE}0\d{{1,4}}+(?:[ ./-]\d{{2,8}}+){{1,4}}+{_END}"), 7),
    # 1234 5678 9012 3456, but not years in a row
    _Rule("number", re.compile(rf"{_START}(?!(?:19|20)\d\d (?:19|20)\d\d)\d{{4}}(?: \d{{4}}){{2,4}}+{_END}")),
    _Rule("number", re.compile(r"(?<![\d$\u20ac\u00a3\u00a5])(?<!\d[.,])\d{7,}+")),
    _Rule("number", re.compile(rf"{_START}{_DATE}\d{{2,6}}+(?:-\d{{2,6}}+)++{_END}"), 7),
)


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text that may be sent, and how often each kind of thing was replaced in it (`cut`: 1 if cut)."""

    text: str
    counts: Mapping[str, int]


class Scrubber:
    """Caps and scrubs texts; scrubbing twice changes nothing more."""

    def __init__(self, patterns: Sequence[str] = (), max_chars: int = 2000) -> None:
        """Compile the rules.

        Args:
            patterns: further regular expressions of Python's `re`; what they match becomes `[pattern]`. Each
                sees the text between placeholders as a text of its own. They run as they are: nested repeats
                such as `(a+)+` can take forever.
            max_chars: no text is longer afterwards.

        Raises:
            ConfigError: a pattern is no regular expression or matches everything; max_chars is too small.
        """
        if max_chars < MIN_CHARS:
            raise ConfigError(f"max_chars: got {max_chars}; expected at least {MIN_CHARS} characters")
        self.max_chars = max_chars
        own = [_Rule("pattern", _named(pattern, number)) for number, pattern in enumerate(patterns)]
        self.rules = (*own, *_RULES)

    def scrub(self, text: str) -> Scrubbed:
        """The text with placeholders, and the count of each kind.

        What is replaced or cut can bring about a new match, so this goes on until nothing changes; each turn
        leaves fewer characters outside placeholders, hence it ends.
        """
        counts: Counter[str] = Counter()
        text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be sent
        while True:
            found = text
            for rule in self.rules:
                found = _replaced(rule, found, counts)
            found = self._cut(found, counts)
            if found == text:
                return Scrubbed(text, dict(counts))
            text = found

    def _cut(self, text: str, counts: Counter[str]) -> str:
        found = shortened(text, self.max_chars)
        if found != text:
            counts["cut"] = 1
        return found


def shortened(text: str, max_chars: int) -> str:
    """Without its middle if it is longer than `max_chars`; placeholders stay whole or go."""
    if len(text) <= max_chars:
        return text
    room = max_chars - len(CUT)
    head, tail = room - room // 4, len(text) - room // 4
    for found in _PLACEHOLDER.finditer(text):
        head = found.start() if found.start() < head < found.end() else head
        tail = found.end() if found.start() < tail < found.end() else tail
    return text[:head] + CUT + text[tail:]


def _replaced(rule: _Rule, text: str, counts: Counter[str]) -> str:
    """The text with the rule's matches replaced, placeholders left alone."""

    def placeholder(match: re.Match[str]) -> str:
        found = match.group()
        if not found or sum(map(str.isdecimal, found)) < rule.min_digits:
            return found
        counts[rule.kind] += 1
        return f"[{rule.kind}]"

    parts = _PLACEHOLDER.split(text)  # every second part is a placeholder
    parts[::2] = [rule.pattern.sub(placeholder, part) for part in parts[::2]]
    return "".join(parts)


def compiled(pattern: str) -> re.Pattern[str]:
    """A user's pattern.

    Raises:
        ValueError: it is no regular expression, or matches everything; says which and the cure.
    """
    try:
        found = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"is no regular expression ({error}); write it as Python's re expects, with a backslash before "
            "signs that stand for themselves"
        ) from error
    if found.match(""):
        raise ValueError("matches the empty text; expected at least one character, e.g. + in place of *")
    return found


def _named(pattern: str, number: int) -> re.Pattern[str]:
    try:
        return compiled(pattern)
    except ValueError as error:
        raise ConfigError(f"patterns[{number}]: {pattern!r} {error}.") from error
