"""School science, the part that word statistics get wrong (FedCoLLM's ARC-C).

Origin: AI2 Reasoning Challenge (Clark et al. 2018, https://arxiv.org/abs/1803.05457), hub id allenai/ai2_arc.
Licence: CC BY-SA 4.0.
Prompt: `Question: ... Answer:`, then the text of a choice, as in FedCoLLM's code and lm-evaluation-harness.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, choice_example, options, text

SOURCE: str | None = "allenai/ai2_arc:ARC-Challenge@train"
TEST_SOURCE: str | None = "allenai/ai2_arc:ARC-Challenge@test"
DOMAIN = "science"
METRIC = "choice"


def example(row: Row, where: str) -> Example:
    """A row of the hub data set, or of a file `{question, choices, answer_idx}`."""
    prompt = f"Question: {text(row, 'question', where)}\nAnswer:"
    choices, answer_idx = options(row, where)
    return choice_example(row, where, prompt, choices, answer_idx, DOMAIN)
