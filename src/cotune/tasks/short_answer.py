"""Your own questions with a short answer: rows {question, answer}.

Origin: a file or hub data set of yours, named by `data`; or problems that reasoning-gym makes, by
`data: gym:<set>?size=500&seed=1` (see `cotune.gym`). Optional fields: id, domain, rationale. A number is
compared as a number, other answers word by word.
Licence: that of the data; reasoning-gym is Apache-2.0.
Prompt: our own chain of thought (see `cotune.reasoning`); the completion is the rationale and the answer.
"""

from __future__ import annotations

from cotune.reasoning import free_example
from cotune.records import Example
from cotune.rows import Row, optional_text, text, text_or_number

SOURCE: str | None = None
TEST_SOURCE: str | None = None
DOMAIN = "general"
METRIC = "path_accuracy"


def example(row: Row, where: str) -> Example:
    """One question."""
    question, answer = text(row, "question", where), text_or_number(row, "answer", where)
    return free_example(row, where, question, answer, optional_text(row, "rationale", where), DOMAIN)
