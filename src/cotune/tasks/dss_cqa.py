"""Common sense with a rationale for every question: five choices.

Origin: CommonsenseQA (Talmor et al. 2019, https://arxiv.org/abs/1811.00937) with the rationales of PaLM 540B
out of https://github.com/google-research/distilling-step-by-step (Hsieh et al. 2023). They put it on no hub,
so rows {question, choices, answer_idx, rationale} come from a file, named by `data`.
A quarter of the rationales argues for another choice than the right one; they are kept, as the authors do.
Licence: MIT; the rationales Apache-2.0.
Prompt: the bare question, then the text of a choice, as `commonsense_qa` has it.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, choice_example, options, text

SOURCE: str | None = None
TEST_SOURCE: str | None = None
DOMAIN = "commonsense"
METRIC = "choice"


def example(row: Row, where: str) -> Example:
    """One question with its rationale, if the row has one."""
    question = text(row, "question", where)
    choices, answer_idx = options(row, where)
    return choice_example(row, where, question, choices, answer_idx, DOMAIN)
