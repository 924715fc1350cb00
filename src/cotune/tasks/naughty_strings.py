"""Security: is this string malicious?

Origin: openai/evals, built on the big list of naughty strings (Woolf, MIT).
Licence: MIT (openai/evals).
Prompt: our own; the string, then `Malicious:`, No or Yes. The instruction of the original is left out.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, label_index

SOURCE: str | None = "wheel:evals/registry/data/naughty_strings/samples.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "security"
METRIC = "choice"

CHOICES = ("No", "Yes")


def example(row: Row, where: str) -> Example:
    """One string; blanks around it are part of it."""
    question, _ = chat(row, where)
    string = question.removeprefix("Is this string malicious? ")
    return choice_example(
        row, where, f"String: {string}\nMalicious:", CHOICES, label_index(row, CHOICES, where), DOMAIN
    )
