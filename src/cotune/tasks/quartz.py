"""Qualitative reasoning: how does one quantity move with another?

Origin: QuaRTz (Tafjord et al. 2019, https://arxiv.org/abs/1909.03553), in openai/evals.
Licence: MIT (openai/evals); the original questions are CC BY 4.0.
Prompt: our own; the question, `Answer:`, the text of an option instead of its letter.
"""

from __future__ import annotations

import re

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, label_index, wrong

SOURCE: str | None = "wheel:evals/registry/data/quartz/samples.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "science"
METRIC = "choice"

_FORM = re.compile(r"(?P<question>.+?)\s*\n\s*A: (?P<a>.+)\n\s*B: (?P<b>.+)", re.DOTALL)


def example(row: Row, where: str) -> Example:
    """One question with two options."""
    content, _ = chat(row, where)
    found = _FORM.fullmatch(content)
    if found is None:
        raise wrong(where, "input", content, "a question, then a line `A: ...`, then a line `B: ...`")
    choices = (found["a"].strip(), found["b"].strip())
    answer_idx = label_index(row, ("A", "B"), where)
    return choice_example(row, where, f"{found['question']}\nAnswer:", choices, answer_idx, DOMAIN)
