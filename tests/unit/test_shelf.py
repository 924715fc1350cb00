"""What a party keeps between rounds: the newest few, found again before a round, inside its own folder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.records import Adapter
from cotune.shelf import Shelf


def adapter(value: float) -> Adapter:
    return Adapter({"a": np.full(2, value, np.float32)}, "base", 1, 2.0)


def value(found: Adapter | None) -> float | None:
    return None if found is None else float(found.arrays["a"][0])


def keep(shelf: Shelf, owner: str, index: int) -> None:
    """An adapter full of the number of its round."""
    shelf.put_adapter(owner, "own", index, adapter(index))
    shelf.trim(owner, "own")


def test_a_client_reads_what_it_kept_before_the_round(tmp_path):
    shelf = Shelf(tmp_path)
    assert shelf.adapter("ann", "own", 1) is None
    for index in (1, 2, 3):
        keep(shelf, "ann", index)
    assert [value(shelf.adapter("ann", "own", before)) for before in (4, 3, 2)] == [3, 2, 1]
    assert shelf.adapter("bob", "own", 4) is None


def test_a_client_that_takes_part_now_and_then_can_repeat_its_last_round(tmp_path):
    """Killed in round 9 after it wrote: the resumed round 9 must start from what it kept in round 4."""
    shelf = Shelf(tmp_path)
    keep(shelf, "ann", 4)
    keep(shelf, "ann", 9)
    assert value(shelf.adapter("ann", "own", 9)) == 4


def test_the_checkpoint_before_the_newest_can_be_resumed(tmp_path):
    """Round 6 has begun; checkpoint 5 turns out to be torn, so round 5 is done again from what 4 left."""
    shelf = Shelf(tmp_path)
    for index in range(1, 7):
        keep(shelf, "ann", index)
    assert value(shelf.adapter("ann", "own", 5)) == 4


def test_few_files_stay(tmp_path):
    shelf = Shelf(tmp_path)
    for index in range(1, 30):
        keep(shelf, "ann", index)
    assert len(list(tmp_path.rglob("*.*"))) == 3


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_names_of_clients_stay_apart_and_inside_the_folder(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("shelf")
    shelf = Shelf(folder / "inside")
    try:
        for number, name in enumerate(names):
            shelf.put_adapter(name, "own", 1, adapter(number))
    except UnicodeEncodeError:
        return  # a lone surrogate is no name
    assert [value(shelf.adapter(name, "own", 2)) for name in names] == list(range(len(names)))
    assert {path.name for path in folder.iterdir()} == {"inside"}


@pytest.mark.parametrize("name", ["..", ".", "../up", "a/b", "/etc", "con\0"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    shelf = Shelf(tmp_path / "inside")
    keep(shelf, name, 1)
    assert value(shelf.adapter(name, "own", 2)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert len(list((tmp_path / "inside").iterdir())) == 1
