"""A checkpoint is whole or not there; the newest good one counts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from cotune import checkpoint
from cotune.checkpoint import Checkpoint, latest, save
from cotune.codec import encode
from cotune.errors import ConfigError, RunError
from cotune.protocols import State
from cotune.records import Adapter


def state(value: float) -> State:
    def adapter(base: str) -> Adapter:
        return Adapter({"a/b": np.full(3, value, np.float32), "c": np.ones((2, 2), np.float32)}, base, 2, 4.0)

    return State(slm=adapter("small"), llm=adapter("large"))


def write(folder: Path, *rounds: int, keep: int = 2) -> None:
    for index in rounds:
        save(folder, Checkpoint(index, state(index), {"round": index, "x": [1, None]}), "print", keep)


def test_what_was_saved_is_found_again(tmp_path):
    write(tmp_path, 3)
    found = latest(tmp_path, "print")
    assert (found.round, found.record) == (3, {"round": 3, "x": [1, None]})
    for role in ("slm", "llm"):
        before, after = getattr(state(3), role), getattr(found.state, role)
        assert (before.base, before.rank, before.alpha) == (after.base, after.rank, after.alpha)
        assert all(np.array_equal(before.arrays[n], after.arrays[n]) for n in before.arrays)


def test_a_state_without_adapters_is_found_again(tmp_path):
    save(tmp_path, Checkpoint(1, State(), {}), "print", 2)
    assert latest(tmp_path, "print").state == State()


def test_what_gates_have_left_of_teaching_is_found_again(tmp_path):
    save(tmp_path, Checkpoint(1, state(1).replace(distil=0.125), {}), "print", 2)
    assert latest(tmp_path, "print").state.distil == 0.125


def test_a_checkpoint_from_before_there_were_gates_has_all_of_it(tmp_path, monkeypatch):
    def without(message):
        message.facts.pop("distil")
        return encode(message)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "encode", without)
        save(tmp_path, Checkpoint(1, state(1).replace(distil=0.125), {}), "print", 2)
    assert latest(tmp_path, "print").state.distil == 1.0


def test_there_is_none(tmp_path):
    assert latest(tmp_path, "print") is None
    assert latest(tmp_path / "gone", "print") is None


def test_only_the_newest_stay(tmp_path):
    write(tmp_path, 0, 1, 2, 3, 10, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003.ckpt", "000010.ckpt"]


@pytest.mark.parametrize("damage", ["torn", "empty", "noise", "unfinished"])
def test_a_damaged_newest_one_gives_way_to_the_one_before(tmp_path, damage):
    write(tmp_path, 1, 2)
    newest = tmp_path / "000002.ckpt"
    whole = newest.read_bytes()
    if damage == "unfinished":
        newest.rename(newest.with_suffix(".part"))
    else:
        newest.write_bytes({"torn": whole[: len(whole) // 2], "empty": b"", "noise": os.urandom(500)}[damage])
    assert latest(tmp_path, "print").round == 1


def test_another_experiment_is_refused(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"made by experiment print, this is other.*another --out"):
        latest(tmp_path, "other")


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    folder = tmp_path / "run" / "checkpoints"
    write(folder, 1)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            write = staticmethod(full)

        monkeypatch.setattr(Path, "open", lambda self, *_: Full())
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=rf"No space left.*cotune resume {tmp_path / 'run'}") as caught:
        write(folder, 2)
    monkeypatch.undo()
    assert caught.value.exit_code == 3
    assert [path.name for path in folder.iterdir()] == ["000001.ckpt"]
    assert latest(folder, "print").round == 1
