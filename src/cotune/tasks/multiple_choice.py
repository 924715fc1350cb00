"""Your own questions: rows {question, choices, answer_idx}.

Origin: a file or hub data set of yours, named by `data`. Optional fields: id, domain, context (put before the
question), prompt (used as it is, instead of the form below), rationale.
Licence: that of the data.
Prompt: `Question: ... Answer:`, then the text of a choice, as lm-evaluation-harness has it for ARC.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, choice_example, optional_text, options, text

SOURCE: str | None = None
TEST_SOURCE: str | None = None
DOMAIN = "general"
METRIC = "choice"


def example(row: Row, where: str) -> Example:
    """One question."""
    prompt = optional_text(row, "prompt", where)
    if not prompt.strip():
        context = optional_text(row, "context", where).strip()
        question = f"Question: {text(row, 'question', where)}\nAnswer:"
        prompt = f"{context}\n{question}" if context else question
    choices, answer_idx = options(row, where)
    return choice_example(row, where, prompt, choices, answer_idx, DOMAIN)
