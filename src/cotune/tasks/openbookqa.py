"""Elementary science facts, four choices a question (FedCoLLM's OBQA).

Origin: OpenBookQA (Mihaylov et al. 2018, https://arxiv.org/abs/1809.02789), hub id allenai/openbookqa.
Licence: Apache-2.0 (the authors' repository).
Prompt: the bare question stem, then the text of a choice, as in FedCoLLM's code and lm-evaluation-harness.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, choice_example, options, text

SOURCE: str | None = "allenai/openbookqa:main@train"
TEST_SOURCE: str | None = "allenai/openbookqa:main@test"
DOMAIN = "science"
METRIC = "choice"


def example(row: Row, where: str) -> Example:
    """A row of the hub data set, or of a file `{question, choices, answer_idx}`."""
    question = text(row, "question_stem" if "question_stem" in row else "question", where)
    choices, answer_idx = options(row, where)
    return choice_example(row, where, question, choices, answer_idx, DOMAIN)
