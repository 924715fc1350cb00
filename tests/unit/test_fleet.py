"""A student that is cut once, whoever else cuts the same one."""

from __future__ import annotations

import pytest

import tiny
from cotune import fleet
from cotune.config import ShrinkConfig
from cotune.errors import ModelError
from cotune.models.heal import Healing
from cotune.models.shrink import appears_whole

HOW = ShrinkConfig(layers=2, method="influence")


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))
    return tiny.write_model(tmp_path / "teacher", layers=4)


def test_two_runs_that_cut_the_same_student_at_once_both_have_it(teacher, monkeypatch):
    shrink = fleet.shrink

    def beside(source, out, **how):
        with appears_whole(out) as folder:
            shrink(source, out, **how)  # the other run is faster
            (folder / "own").touch()

    monkeypatch.setattr(fleet, "shrink", beside)
    student = fleet.cut(teacher, HOW, tiny.examples(8), "cpu")
    assert (student / "cotune.json").is_file()
    assert not (student / "own").exists()
    assert [path.name for path in student.parent.iterdir()] == [student.name]


def test_a_student_that_cannot_be_cut_is_told(teacher):
    with pytest.raises(ModelError, match="layers=4: expected 1 to 3"):
        fleet.cut(teacher, ShrinkConfig(layers=4, method="influence"), tiny.examples(8), "cpu")


def test_a_student_is_cut_and_healed_on_the_device_of_the_run_and_named_without_it(teacher, monkeypatch):
    seen, shrink, heal = [], fleet.shrink, fleet.heal

    def shrinking(*where, device, **how):
        seen.append(device)
        return shrink(*where, device="cpu", **how)

    def healing(*where, healing, **how):
        seen.append(healing.device)
        return heal(*where, healing=Healing(healing.steps, device="cpu"), **how)

    monkeypatch.setattr(fleet, "shrink", shrinking)
    monkeypatch.setattr(fleet, "heal", healing)
    how = ShrinkConfig(layers=2, method="influence", heal_steps=1)
    student = fleet.cut(teacher, how, tiny.examples(8), "cuda:1")
    assert seen == ["cuda:1", "cuda:1"]
    assert fleet.cut(teacher, how, tiny.examples(8), "cpu") == student
    assert seen == ["cuda:1", "cuda:1"]
