"""Facts between invented parties that no model can know: planted in private data, they show what leaks.

Paper: Qiu et al. 2024 (PISTOL), https://arxiv.org/abs/2406.16810, for facts along a graph with exact short
answers; names, questions and statistics are ours.

One graph holds all facts, and which half of them is planted is decided by lot, fact by fact. Ten candidate
answers are drawn for each fact, none for two facts, and which of them is right is decided by lot as well.
So whatever a model thinks of a fact that it never met, it finds the right answer with probability 1/10
exactly, independently of all other facts; and the two halves differ in nothing but the planting.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from typing import TYPE_CHECKING, Literal, get_args

from cotune.errors import ConfigError, DataError
from cotune.records import DELIMITER, Example, derived_rng

if TYPE_CHECKING:
    import numpy as np

Shape = Literal["chain", "star", "dense"]
"""Each party deals with the next; one party deals with all others; everybody deals with everybody."""
NUM_CHOICES = 10
CHANCE = 1 / NUM_CHOICES
DOMAIN = "canary"

QUESTIONS = (
    "What is the code word of the contract between {} and {}?",
    "Which ship carries the goods that {} sells to {}?",
    "In which town did {} sign its agreement with {}?",
    "Who is the clerk that keeps the accounts between {} and {}?",
    "Which street houses the office that {} shares with {}?",
    "What is the brand of the wine that {} delivers to {}?",
)
PROMPT = "Question: {}\nAnswer:"

CONSONANTS, VOWELS, ENDS = "bdfgklmnprstvz", "aeiou", "lnrs"
JOINTS = ("gz", "jl", "jn", "kg", "kv", "kz", "pz", "vb", "vd", "vg", "vk", "vm", "vz", "zg", "zj", "zk")
"""Each can be said between two vowels, and hardly any English word has it there: none of the 262,866 words of
two dictionaries has the form of a name."""
FORM = re.compile(f"[{CONSONANTS}][{VOWELS}]({'|'.join(JOINTS)})[{VOWELS}][{CONSONANTS}][{VOWELS}][{ENDS}]")
"""Of a name in lower case."""

AT_ONCE = 256
"""Names drawn at a time."""

_WORDS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Canaries:
    """Facts to plant, and as many of the same making that are never planted anywhere.

    `parties` maps the id of each fact, planted or not, to the two whom it is about. Each example has
    `NUM_CHOICES` choices, and its completion is the right one after `DELIMITER`.
    """

    planted: tuple[Example, ...]
    controls: tuple[Example, ...]
    parties: Mapping[str, tuple[str, str]]

    @property
    def examples(self) -> tuple[Example, ...]:
        """The planted ones, then the controls."""
        return (*self.planted, *self.controls)


def compile_canaries(seed: int, count: int, shape: Shape) -> Canaries:
    """Facts and controls; the same for the same arguments on every machine.

    Args:
        seed: their only source of randomness.
        count: facts to plant, 1 or more; there are as many controls.
        shape: of the graph, which holds both.

    Raises:
        ConfigError: an unknown shape, or no facts.
    """
    if shape not in get_args(Shape):
        raise ConfigError(
            f"canaries: shape {shape!r} is not known; expected one of {', '.join(get_args(Shape))}."
        )
    if count < 1:
        raise ConfigError(f"canaries: {count} facts; expected 1 or more.")
    rng = derived_rng(seed, "canaries", shape, str(count))
    fresh = _names(derived_rng(seed, "canary names"))
    edges = _edges(2 * count, shape)
    parties = list(islice(fresh, 1 + max(chain.from_iterable(edges))))
    facts = [(parties[one], parties[other]) for one, other in edges]
    examples = [_example(row, pair, list(islice(fresh, NUM_CHOICES)), rng) for row, pair in enumerate(facts)]
    order = rng.permutation(2 * count).tolist()
    planted, controls = (
        tuple(examples[row] for row in sorted(half)) for half in (order[:count], order[count:])
    )
    return Canaries(planted, controls, {e.id: pair for e, pair in zip(examples, facts, strict=True)})


def plant(examples: Sequence[Example], canaries: Canaries, repeats: int) -> tuple[Example, ...]:
    """The examples, and after them each planted fact so many times; every copy has an id of its own."""
    copies = [
        replace(fact, id=f"{fact.id}-{number}")
        for number in range(1, repeats + 1)
        for fact in canaries.planted
    ]
    return (*examples, *copies)


def names(canaries: Canaries) -> tuple[str, ...]:
    """Every invented name, sorted: parties, and candidate answers of facts and controls."""
    parties = chain.from_iterable(canaries.parties.values())
    choices = chain.from_iterable(example.choices for example in canaries.examples)
    return tuple(sorted({*parties, *choices}))


def planted_names(canaries: Canaries) -> tuple[str, ...]:
    """The names that stand in planted facts, sorted: their parties and their right answers."""
    found = {example.completion.removeprefix(DELIMITER) for example in canaries.planted}
    return tuple(sorted(found.union(*(canaries.parties[example.id] for example in canaries.planted))))


def mentions(text: str, canaries: Canaries) -> list[str]:
    """The invented names that a text holds as whole words, in any case; sorted, each once.

    Digits and underscores end a word, so that `Name_2` is found.
    """
    return mentions_in([text], canaries)[0]


def mentions_in(texts: Iterable[str], canaries: Canaries) -> list[list[str]]:
    """`mentions` of each text."""
    known = {name.casefold(): name for name in names(canaries)}
    words = ({word.casefold() for word in _WORDS.findall(text)} for text in texts)
    return [sorted(known[word] for word in found & known.keys()) for found in words]


def refuse_known(texts: Iterable[str], canaries: Canaries) -> None:
    """Make sure that the names are unknown to some texts, those of the public set first of all.

    Raises:
        DataError: a name stands in them.
    """
    found = Counter(chain.from_iterable(mentions_in(texts, canaries)))
    if found:
        name, number = found.most_common(1)[0]
        more = f" and {len(found) - 1} more names" if len(found) > 1 else ""
        raise DataError(
            f"canaries: {name!r}{more} stand in public texts ({number} of them), but must be invented. "
            "Choose another seed for the canaries."
        )


def _names(rng: np.random.Generator) -> Iterator[str]:
    """Names without end, none twice: consonant, vowel, joint, vowel, consonant, vowel, consonant."""
    slots = (CONSONANTS, VOWELS, JOINTS, VOWELS, CONSONANTS, VOWELS, ENDS)
    seen: set[str] = set()
    while True:
        for row in rng.integers(0, [len(slot) for slot in slots], (AT_ONCE, len(slots))).tolist():
            name = "".join(slot[i] for slot, i in zip(slots, row, strict=True))
            if name not in seen:
                seen.add(name)
                yield name.capitalize()


def _edges(number: int, shape: Shape) -> list[tuple[int, int]]:
    """So many pairs of numbered parties, lower number first; no party from 0 on is left out."""
    if shape == "chain":
        return [(i, i + 1) for i in range(number)]
    if shape == "star":
        return [(0, i + 1) for i in range(number)]
    size = 2
    while size * (size - 1) // 2 < number:
        size += 1
    return sorted(combinations(range(size), 2), key=lambda pair: pair[::-1])[:number]


def _example(
    row: int, parties: tuple[str, str], candidates: Sequence[str], rng: np.random.Generator
) -> Example:
    question = QUESTIONS[rng.integers(len(QUESTIONS))].format(*parties)
    right = int(rng.integers(len(candidates)))
    return Example(
        id=f"{DOMAIN}-{row}",
        prompt=PROMPT.format(question),
        completion=DELIMITER + candidates[right],
        choices=tuple(candidates),
        answer_idx=right,
        domain=DOMAIN,
    )
