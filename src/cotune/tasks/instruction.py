"""Your own instructions: rows {instruction, input, output}, scored by Rouge-L.

Origin: a file or hub data set of yours, named by `data`. `input` may be missing or empty. Optional fields:
id, domain, rationale.
Licence: that of the data.
Prompt: the Alpaca template (https://github.com/tatsu-lab/stanford_alpaca), with and without input, as FedHDS
uses it on Natural Instructions; the line break after `### Response:` belongs to the completion.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, instruction_example

SOURCE: str | None = None
TEST_SOURCE: str | None = None
DOMAIN = "general"
METRIC = "rouge_l"


def example(row: Row, where: str) -> Example:
    """One instruction with its answer."""
    return instruction_example(row, where, ("instruction", "input", "output"), DOMAIN)
