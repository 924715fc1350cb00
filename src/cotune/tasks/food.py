"""Commerce: is this the name of a food?

Origin: openai/evals.
Licence: MIT (openai/evals).
Prompt: our own; `Is "..." food? Answer:`, No or Yes. The instruction of the original is left out.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, label_index

SOURCE: str | None = "wheel:evals/registry/data/food/samples.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "commerce"
METRIC = "choice"

CHOICES = ("No", "Yes")


def example(row: Row, where: str) -> Example:
    """One name."""
    question, _ = chat(row, where)
    name = question.removeprefix("Is the following string a food item or related to food? ").strip()
    answer_idx = label_index(row, CHOICES, where)
    return choice_example(row, where, f'Is "{name}" food? Answer:', CHOICES, answer_idx, DOMAIN)
