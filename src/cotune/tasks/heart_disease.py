"""Medicine: does a patient with these signals have heart disease?

Origin: heart failure prediction (fedesoriano 2021, from five UCI heart disease sets), as packaged in openai/evals.
Licence: MIT (openai/evals).
Prompt: our own; the description, `Heart disease:`, No or Yes. The long instruction of the original is left out.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, label_index

SOURCE: str | None = "wheel:evals/registry/data/heart-disease/samples.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "medicine"
METRIC = "choice"

CHOICES = ("No", "Yes")


def example(row: Row, where: str) -> Example:
    """One patient."""
    description, _ = chat(row, where)
    answer_idx = label_index(row, ("0", "1"), where)
    return choice_example(row, where, f"{description.strip()}\nHeart disease:", CHOICES, answer_idx, DOMAIN)
