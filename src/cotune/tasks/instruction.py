"""Your own instructions: rows {instruction, input, output}, scored by Rouge-L.

Origin: a file or hub data set of yours, named by `data`. `input` may be missing or empty. Optional fields:
id, domain, rationale.
Licence: that of the data.
Prompt: the Alpaca template (https://github.com/tatsu-lab/stanford_alpaca), with and without input, as FedHDS
uses it on Natural Instructions; the line break after `### Response:` belongs to the completion.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, optional_text, own_id, text

SOURCE: str | None = None
TEST_SOURCE: str | None = None
DOMAIN = "general"
METRIC = "rouge_l"

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def example(row: Row, where: str) -> Example:
    """One instruction with its answer."""
    context = optional_text(row, "input", where).strip()
    template = WITH_INPUT if context else WITHOUT_INPUT
    return Example(
        id=own_id(row, where),
        prompt=template.format(instruction=text(row, "instruction", where).strip(), input=context),
        completion="\n" + text(row, "output", where).strip(),
        rationale=optional_text(row, "rationale", where),
        domain=optional_text(row, "domain", where) or DOMAIN,
    )
