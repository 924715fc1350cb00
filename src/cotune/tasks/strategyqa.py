"""Yes or no, by steps that the question does not name.

Origin: StrategyQA (Geva et al. 2021, https://arxiv.org/abs/2101.02235), hub id ChilleD/StrategyQA: the
questions whose answers are published.
Licence: MIT.
Prompt: `Question: ... Answer:`, yes or no. The rationale is the annotators' facts.
"""

from __future__ import annotations

from cotune.records import Example
from cotune.rows import Row, choice_example, text, wrong

SOURCE: str | None = "ChilleD/StrategyQA@train"
TEST_SOURCE: str | None = "ChilleD/StrategyQA@test"
DOMAIN = "commonsense"
METRIC = "choice"

CHOICES = ("yes", "no")
_ANSWERS = {True: 0, False: 1, "yes": 0, "no": 1}


def example(row: Row, where: str) -> Example:
    """A row of the hub data set (a truth value and facts), or of a file (yes or no and a rationale)."""
    prompt = f"Question: {text(row, 'question', where).strip()}\nAnswer:"
    answer = row.get("answer")
    if not isinstance(answer, bool | str) or answer not in _ANSWERS:
        raise wrong(
            where, "answer", answer, "true, false, yes or no; use a split whose answers are published"
        )
    known = row if row.get("rationale") else {**row, "rationale": _joined(row.get("facts"), where)}
    return choice_example(known, where, prompt, CHOICES, _ANSWERS[answer], DOMAIN)


def _joined(facts: object, where: str) -> str:
    """Facts as one text: a list of sentences, one string, or none."""
    sentences = [facts] if isinstance(facts, str) else facts or []
    if not isinstance(sentences, list | tuple) or not all(isinstance(fact, str) for fact in sentences):
        raise wrong(where, "facts", facts, "a string, a list of strings, or no such field")
    return " ".join(fact.strip() for fact in sentences)
