"""Grade-school word problems; the answer is a number.

Origin: GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168), hub id openai/gsm8k.
Licence: MIT.
Prompt: our own chain of thought (see `cotune.reasoning`); the completion is the human solution without its
calculator notes `<<...>>`, then the number. The original prompt is the bare question.
"""

from __future__ import annotations

import re

from cotune.reasoning import free_example
from cotune.records import Example
from cotune.rows import Row, optional_text, text, text_or_number, wrong

SOURCE: str | None = "openai/gsm8k:main@train"
TEST_SOURCE: str | None = "openai/gsm8k:main@test"
DOMAIN = "math"
METRIC = "path_accuracy"

_NOTE = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?[0-9][0-9,]*(\.[0-9]+)?")


def example(row: Row, where: str) -> Example:
    """A row of the hub data set, its solution and number in `answer`, or of a file with a rationale apart."""
    solution, mark, number = text_or_number(row, "answer", where).rpartition("####")
    if not _NUMBER.fullmatch(number.strip()):
        raise wrong(
            where, "answer", row["answer"], "a number, or a solution with #### and a number at its end"
        )
    rationale = optional_text(row, "rationale", where) or (solution if mark else "")
    question = text(row, "question", where)
    return free_example(row, where, question, number, _NOTE.sub("", rationale), DOMAIN)
