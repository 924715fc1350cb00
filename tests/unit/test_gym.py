"""Problems made by reasoning-gym: the source with a stand-in, and the real library where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest

from cotune import gym, sources
from cotune.data import load_examples
from cotune.errors import DataError
from cotune.reasoning import is_right, written
from cotune.tasks import short_answer

NAME = "leg_counting"


@dataclass
class _Options:
    max_animals: int = 3
    wild: bool = False
    seed: int = 0
    size: int = 500


class _Made:
    """A set that repeats its options as problems."""

    category = "arithmetic"

    def __init__(self, options: _Options) -> None:
        assert options.max_animals > 0, "max_animals must be positive"
        self.options = options

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.options.max_animals == 99:
            raise IndexError("not so many animals")
        question = (
            f"{self.options.seed + index}: how many legs, {self.options.max_animals} {self.options.wild}?"
        )
        return {"question": question, "answer": "4", "metadata": {}}


class _Curriculum:
    """Four levels of one attribute."""

    attributes: ClassVar = {"max_animals": types.SimpleNamespace(levels=[2, 4, 6, 8])}

    def set_global_level(self, level: int) -> None:
        self.level = level

    def generate_configuration(self) -> _Options:
        return _Options(max_animals=self.attributes["max_animals"].levels[self.level])


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for reasoning_gym, which is an extra."""
    factory = types.ModuleType("reasoning_gym.factory")
    factory.DATASETS = dict.fromkeys((NAME, "acre"), (_Made, _Options))  # type: ignore[attr-defined]
    factory.has_curriculum = lambda name: name == NAME  # type: ignore[attr-defined]
    factory.create_curriculum = lambda name: _Curriculum()  # type: ignore[attr-defined]
    top = types.ModuleType("reasoning_gym")
    top.factory = factory  # type: ignore[attr-defined]
    top.create_dataset = lambda name, **options: _Made(_Options(**options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", top)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)


@pytest.mark.usefixtures("library")
def test_a_source_names_set_size_seed_and_options() -> None:
    source = f"gym:{NAME}?size=3&seed=1&max_animals=5&wild=true"
    found = sources.read(source)
    assert [where for where, _ in found] == [f"{source}[0]", f"{source}[1]", f"{source}[2]"]
    assert [row["domain"] for _, row in found] == ["arithmetic"] * 3
    assert str(found[0][1]["question"]).endswith("legs, 5 True?")
    assert sources.read(source, limit=2) == found[:2]
    assert [where for where, _ in sources.read_with_lines(source)[0]] == [where for where, _ in found]
    assert sources.read_with_lines(source)[1][0].startswith(b'{"question": ')
    assert len(sources.read(f"gym:{NAME}")) == gym.SIZE


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("options", "legs"), [("level=0", 2), ("level=3", 8), ("level=3&max_animals=5", 5), ("wild=false", 3)]
)
def test_a_level_sets_what_makes_problems_hard_unless_an_option_does(options: str, legs: int) -> None:
    (row,) = [row for _, row in gym.rows(f"gym:{NAME}?size=1&{options}")]
    assert str(row["question"]).endswith(f"legs, {legs} False?")


@pytest.mark.usefixtures("library")
def test_problems_of_neighbouring_seeds_do_not_overlap() -> None:
    # The library makes problem i out of its seed + i: seeds 1 and 2 as they are would share 99 of 100.
    one, two = (
        {str(row["question"]) for _, row in gym.rows(f"gym:{NAME}?size=100&seed={s}")} for s in (1, 2)
    )
    assert len(one) == len(two) == 100
    assert not one & two


@pytest.mark.usefixtures("library")
def test_the_rows_are_examples_of_the_task_short_answer() -> None:
    (example,) = load_examples("short_answer", f"gym:{NAME}?size=1")
    assert (example.domain, example.id) == ("arithmetic", "short_answer-0")
    assert example.completion == " Final answer: 4"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gym:leg_countin", "'leg_countin' is no set .*expected one of: acre, .*Did you mean 'leg_counting'"),
        ("gym:sudoku", "'sudoku' is no set of problems with one exact answer"),
        ("gym:", "'' is no set"),
        (
            f"gym:{NAME}?max_animal=3",
            "no option 'max_animal'; it has max_animals, .*Did you mean 'max_animals'",
        ),
        (f"gym:{NAME}?size=0", "size: got 0; expected a whole number, at least 1"),
        (f"gym:{NAME}?size=many", "size: got 'many'; expected a whole number"),
        (f"gym:{NAME}?seed=true", "seed: got True; expected a whole number, at least 0"),
        (f"gym:{NAME}?seed=1&seed=2", "option 'seed' stands there twice"),
        (f"gym:{NAME}?size", "expected gym:<set>[?]size=500"),
        (f"gym:{NAME}?max_animals=0", "refuses these options [(]max_animals must be positive[)]; change"),
        (f"gym:{NAME}?max_animals=x", "refuses these options"),
        (f"gym:{NAME}?max_animals=99", "refuses these options [(]not so many animals[)]"),
        (f"gym:{NAME}?level=4", "level: got 4; leg_counting has levels 0 to 3"),
        (f"gym:{NAME}?level=hard", "level: got 'hard'; expected a whole number, at least 0"),
        ("gym:acre?level=1", "acre has no levels; set its own options instead"),
        ("gym:syllogism", "this version of reasoning-gym has no set 'syllogism'"),
    ],
)
def test_a_wrong_source_is_refused_with_the_cure(source: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        sources.read(source)
    assert str(caught.value).startswith(f"{source}: ")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install 'cotune\[gym\]'"):
        gym.rows(f"gym:{NAME}")


real = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed (pip install 'cotune[gym]')"
)


@real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [2, pytest.param(12, marks=pytest.mark.real)])
@pytest.mark.parametrize("name", sorted(gym.EXACT))
def test_the_real_answers_are_exact(name: str, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    import reasoning_gym

    made = reasoning_gym.create_dataset(name, size=size, seed=gym._spread(name, 3))
    for index, (where, row) in enumerate(gym.rows(f"gym:{name}?size={size}&seed=3")):
        example = short_answer.example(row, where)
        assert is_right(written("", example), example)
        assert made.score_answer(row["answer"], made[index]) == 1.0  # the library's own judgement
    assert capsys.readouterr().out == ""  # some sets print, which would spoil --json


@real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("name", sorted(gym.EXACT))
def test_the_real_answers_are_exact_at_every_level(name: str, level: int) -> None:
    from reasoning_gym.factory import has_curriculum

    if not has_curriculum(name):
        with pytest.raises(DataError, match="has no levels"):
            gym.rows(f"gym:{name}?level={level}")
        return
    if (name, level) == ("caesar_cipher", 2):  # its curriculum (0.1.25) turns further than its set allows
        with pytest.raises(DataError, match="refuses these options"):
            gym.rows(f"gym:{name}?size=2&level={level}")
        return
    for where, row in gym.rows(f"gym:{name}?size=2&level={level}"):
        example = short_answer.example(row, where)
        assert is_right(written("", example), example)


@real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [2, pytest.param(6, marks=pytest.mark.real)])
def test_the_real_problems_are_the_same_in_every_process(size: int) -> None:
    code = f"""
import json
from cotune import gym
print(json.dumps({{name: gym.rows(f"gym:{{name}}?size={size}") for name in sorted(gym.EXACT)}}))
"""
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    elsewhere = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONHASHSEED": other},
        capture_output=True,
        text=True,
        check=True,
    )
    for name, rows in json.loads(elsewhere.stdout).items():
        assert [tuple(row) for row in rows] == gym.rows(f"gym:{name}?size={size}"), name
