"""Problems that a program makes and whose answers it knows: `gym:<set>?size=500&seed=1&<option>=<value>`.

Origin: reasoning-gym (Stojanovski et al. 2025, https://arxiv.org/abs/2505.24760), Apache-2.0, an extra of
cotune. A row is `{question, answer, domain}`, made for the task `short_answer`; its domain is the library's
category, so that clients can be split by it. Options are those of the set's own configuration, such as
`max_animals=5`; or `level=3` sets all that the library's curriculum for the set makes harder to that level,
the easier ones included, and single options go above it. The same source gives the same rows on every machine
with the same version of the library.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from cotune.errors import DataError, suggestion
from cotune.records import derived_rng
from cotune.rows import Row

PREFIX = "gym:"
SIZE = 500
SEED = 0

_NAMES = (
    "acre aiw arc_1d basic_arithmetic binary_alternation caesar_cipher chain_sum circuit_logic "
    "color_cube_rotation count_bits count_primes course_schedule family_relationships gcd gsm_symbolic "
    "largest_island lcm leg_counting letter_counting mahjong_puzzle maze needle_haystack number_filtering "
    "number_sequence products rectangle_count rotten_oranges self_reference simple_equations "
    "simple_geometry spell_backward string_manipulation string_splitting string_synthesis syllogism "
    "word_sequence_reversal zebra_puzzles"
)
EXACT = frozenset(_NAMES.split())
"""Sets with one right answer in one line, which do not depend on Python's hash seed (of version 0.1.25).

Left out: sets whose answers only a program can check (countdown, sudoku, ...), those with answers of several
lines (rotate_matrix, ...), isomorphic_strings, ransom_note and list_functions, whose problems change from
process to process, base_conversion, whose answers are digits and letters, and bf, which prints.
"""


def rows(source: str, limit: int | None = None) -> list[tuple[str, Row]]:
    """The problems of a source, or the first `limit`, each with its place.

    Raises:
        DataError: the set or an option is not known, a value does not fit, or the library is not installed.
    """
    name, _, query = source.removeprefix(PREFIX).partition("?")
    if name not in EXACT:
        raise DataError(
            f"{source}: {name!r} is no set of problems with one exact answer; expected one of: "
            f"{', '.join(sorted(EXACT))}.{suggestion(name, EXACT)}"
        )
    options = _options(source, query)
    size, seed = _count(source, options, "size", SIZE, 1), _count(source, options, "seed", SEED, 0)
    options |= {"size": size, "seed": _spread(name, seed)}
    if "level" in options:
        level = _count(source, options, "level", 0, 0)
        del options["level"]
        options = _graded(source, name, level) | options
    made = _make(source, name, options)
    try:
        problems = [made[index] for index in range(size if limit is None else min(limit, size))]
    except Exception as error:  # the library raises anything where options contradict each other
        raise _refused(source, error) from error
    domain = str(made.category)
    return [
        (f"{source}[{index}]", {"question": one["question"], "answer": str(one["answer"]), "domain": domain})
        for index, one in enumerate(problems)
    ]


def _options(source: str, query: str) -> dict[str, Any]:
    """The part behind the question mark; values are read as JSON where they are JSON."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise DataError(f"{source}: {error}; expected gym:<set>?size=500&seed=1&<option>=<value>") from error
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DataError(f"{source}: option {key!r} stands there twice; name it once.")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _count(source: str, options: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = options.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{source}: {key}: got {value!r}; expected a whole number, at least {least}")
    return value


def _spread(name: str, seed: int) -> int:
    """A seed far away from that of seed + 1: the library makes problem i out of its seed plus i."""
    return int(derived_rng(seed, "gym", name).integers(2**31))


def _library(source: str) -> tuple[Any, Any]:
    """The library, and its factory."""
    try:
        import reasoning_gym
        from reasoning_gym import factory
    except ImportError as error:
        raise DataError(
            f"{source}: made problems need the extra: pip install 'cotune[gym]'. Or give `data` a JSONL file."
        ) from error
    return reasoning_gym, factory


def _graded(source: str, name: str, level: int) -> dict[str, Any]:
    """Options of a level of the set's curriculum; an attribute with fewer levels stays at its last."""
    factory = _library(source)[1]
    if not factory.has_curriculum(name):
        raise DataError(f"{source}: {name} has no levels; set its own options instead.")
    curriculum = factory.create_curriculum(name)
    last = max(len(attribute.levels) for attribute in curriculum.attributes.values()) - 1
    if level > last:
        raise DataError(f"{source}: level: got {level}; {name} has levels 0 to {last}")
    curriculum.set_global_level(level)
    made = curriculum.generate_configuration()
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def _make(source: str, name: str, options: Mapping[str, Any]) -> Any:
    reasoning_gym, factory = _library(source)
    if name not in factory.DATASETS:
        raise DataError(
            f"{source}: this version of reasoning-gym has no set {name!r}; pip install 'cotune[gym]' anew."
        )
    known = [field.name for field in dataclasses.fields(factory.DATASETS[name][1])]
    for key in options:
        if key not in known:
            expected = ", ".join(sorted(known))
            raise DataError(
                f"{source}: {name} has no option {key!r}; it has {expected}.{suggestion(key, known)}"
            )
    try:
        return reasoning_gym.create_dataset(name, **options)
    except Exception as error:  # its own checks are assertions; a value of another type raises anything
        raise _refused(source, error) from error


def _refused(source: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{source}: reasoning-gym refuses these options ({reason}); change or remove them.")
