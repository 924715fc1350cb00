"""Instructions of eight kinds, written by people (FedHDS's Dolly-15K).

Origin: Dolly 2.0 (Databricks 2023), hub id databricks/databricks-dolly-15k: rows {instruction, context,
response, category}. The domain is the category. No rows are held out; FedHDS holds out a whole category,
`held_out: category=summarization`.
Licence: CC BY-SA 3.0.
Prompt: the Alpaca template, with and without context, as the task `instruction` has it.
"""

from __future__ import annotations

from dataclasses import replace

from cotune.records import Example
from cotune.rows import Row, instruction_example, text

SOURCE: str | None = "databricks/databricks-dolly-15k@train"
TEST_SOURCE: str | None = None
DOMAIN = "general"
METRIC = "rouge_l"


def example(row: Row, where: str) -> Example:
    """One instruction with its response."""
    found = instruction_example(row, where, ("instruction", "context", "response"), "")
    return found if found.domain else replace(found, domain=text(row, "category", where))
