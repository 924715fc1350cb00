"""Word problems that differ little from one another; the answer is a number.

Origin: SVAMP (Patel et al. 2021, https://arxiv.org/abs/2103.07191), hub id ChilleD/SVAMP (no rationales).
With rationales of PaLM 540B it is part of https://github.com/google-research/distilling-step-by-step
(Hsieh et al. 2023), which is split in another way: take all rows from one of the two.
Not every rationale arrives at the right number.
Licence: MIT; the rationales Apache-2.0.
Prompt: our own chain of thought (see `cotune.reasoning`); the completion is the rationale and the number.
"""

from __future__ import annotations

from cotune.reasoning import free_example
from cotune.records import Example
from cotune.rows import Row, optional_text, text, text_or_number

SOURCE: str | None = "ChilleD/SVAMP@train"
TEST_SOURCE: str | None = "ChilleD/SVAMP@test"
DOMAIN = "math"
METRIC = "path_accuracy"


def example(row: Row, where: str) -> Example:
    """A row of the hub data set {Body, Question, Answer}, or of a file {question, rationale, answer}."""
    if "Body" in row:
        question = f"{text(row, 'Body', where).strip()} {text(row, 'Question', where).strip()}"
        answer = text_or_number(row, "Answer", where)
    else:
        question, answer = text(row, "question", where), text_or_number(row, "answer", where)
    return free_example(row, where, question, answer, optional_text(row, "rationale", where), DOMAIN)
