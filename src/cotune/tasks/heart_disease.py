"""Medicine: does a patient with these signals have heart disease?

Origin: heart failure prediction (fedesoriano 2021, out of five UCI heart disease sets), in openai/evals.
Licence: MIT (openai/evals).
Prompt: our own; the description, `Heart disease:`, No or Yes. The instruction of the original is left out,
and units and long labels are shortened, 99 to 80 tokens of SmolLM2: training time is proportional to tokens.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, label_index

SOURCE: str | None = "wheel:evals/registry/data/heart-disease/samples.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "medicine"
METRIC = "choice"

CHOICES = ("No", "Yes")

_SHORTER = (
    (" years", ""),
    (" mm Hg", ""),
    (" mg/dl", ""),
    ("Chest pain type", "Chest pain"),
    ("Resting blood pressure", "Blood pressure"),
    ("Serum cholesterol", "Cholesterol"),
    ("Resting ECG results", "ECG"),
    ("Max heart rate achieved", "Max heart rate"),
    ("Exercise induced angina", "Exercise angina"),
    ("Oldpeak", "ST depression"),
)


def example(row: Row, where: str) -> Example:
    """One patient."""
    description, _ = chat(row, where)
    for long, short in _SHORTER:
        description = description.replace(long, short)
    answer_idx = label_index(row, ("0", "1"), where)
    return choice_example(row, where, f"{description.strip()}\nHeart disease:", CHOICES, answer_idx, DOMAIN)
