"""Social common sense: why did somebody do that, and what comes next?

Origin: Social IQa (Sap et al. 2019, https://arxiv.org/abs/1904.09728), in openai/evals.
Licence: MIT (openai/evals).
Prompt: our own; the situation and question, `Answer:`, the text of an option instead of its letter.
"""

from __future__ import annotations

import re

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, label_index, wrong

SOURCE: str | None = "wheel:evals/registry/data/theory_of_mind/socialiqa/test.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "social"
METRIC = "choice"

_FORM = re.compile(r"(?P<question>.+?)\s*A: (?P<a>.+?); B: (?P<b>.+?); C: (?P<c>.+?)\.?\s*", re.DOTALL)


def example(row: Row, where: str) -> Example:
    """One question with three options."""
    content, _ = chat(row, where)
    found = _FORM.fullmatch(content)
    if found is None:
        raise wrong(where, "input", content, "a question, then `A: ...; B: ...; C: ...`")
    choices = (found["a"].strip(), found["b"].strip(), found["c"].strip())
    answer_idx = label_index(row, ("A", "B", "C"), where)
    return choice_example(row, where, f"{found['question']}\nAnswer:", choices, answer_idx, DOMAIN)
