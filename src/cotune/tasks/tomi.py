"""Theory of mind: where is the thing, and where does somebody believe it is?

Origin: ToMi (Le et al. 2019, https://aclanthology.org/D19-1598), as packaged in openai/evals.
Licence: MIT (openai/evals).
Prompt: our own; the story, the question, `Answer:`. The choices are the places the thing was in, in order of
appearance. All questions about one story stay on one side of a split.
"""

from __future__ import annotations

import re

from cotune.records import Example
from cotune.rows import Row, chat, choice_example, wrong

SOURCE: str | None = "wheel:evals/registry/data/theory_of_mind/tomi/test.jsonl"
TEST_SOURCE: str | None = None
DOMAIN = "theory of mind"
METRIC = "choice"

_PLACE = re.compile(r"\b(?:is in|moved the [\w-]+ to) the ([\w-]+)\.")


def example(row: Row, where: str) -> Example:
    """One question about one story."""
    story, ideal = chat(row, where)
    places = tuple(dict.fromkeys(_PLACE.findall(story)))
    if len(places) < 2:
        raise wrong(where, "input", story, "a story that names at least two places")
    if ideal not in places:
        raise wrong(where, "ideal", ideal, f"a place of the story: {', '.join(places)}")
    choices = tuple(_plain(place) for place in places)
    return choice_example(row, where, f"{_plain(story)}\nAnswer:", choices, places.index(ideal), DOMAIN)


def passage(prompt: str) -> str:
    """The story without its question: what must not stand on two sides of a split."""
    return prompt.rpartition("Where ")[0]


def _plain(name: str) -> str:
    return name.replace("_", " ")
