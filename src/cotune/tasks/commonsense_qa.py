"""Common sense: five choices a question (FedCoLLM's CQA).

Origin: CommonsenseQA (Talmor et al. 2019, https://arxiv.org/abs/1811.00937), hub id tau/commonsense_qa.
Licence: MIT.
Prompt: the bare question, then the text of a choice, as FedCoLLM's code has it (FATE-LLM, FedMKT tutorial).
The test split has no published answers; held-out rows are the validation (dev) split.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, choice_example, options, text

SOURCE: str | None = "tau/commonsense_qa@train"
TEST_SOURCE: str | None = "tau/commonsense_qa@validation"
DOMAIN = "commonsense"
METRIC = "choice"


def example(row: Row, where: str) -> Example:
    """A row of the hub data set, or of a file `{question, choices, answer_idx}`."""
    question = text(row, "question", where)
    choices, answer_idx = options(row, where)
    return choice_example(row, where, question, choices, answer_idx, DOMAIN)
