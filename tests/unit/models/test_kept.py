"""Bytes on disk: what is broken is moved aside, and several processes may write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from filelock import FileLock

from cotune.errors import RunError
from cotune.models import kept
from cotune.models.kept import Kept
from cotune.models.vectors import Vectors


def store(path, notes=None):
    return Kept(path, "things", (notes if notes is not None else []).append)


def test_many_values_are_found_again(tmp_path):
    path = tmp_path / "deep" / "c.sqlite"
    values = {str(i).encode(): b"v" * (i % 7) for i in range(1203)}
    store(path).put(values)
    store(path).put({b"7": b"new"})
    assert store(path).get([*values, b"missing"]) == values | {b"7": b"new"}
    assert store(path).get([]) == {}


def garbage(path):
    path.write_bytes(b"hello, this is no database at all, it is a diary")


def other_columns(path):
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE things (name TEXT, age INT, shoes INT)")


def damaged_page(path):
    store(path).put({str(i).encode(): b"x" * 500 for i in range(200)})
    raw = bytearray(path.read_bytes())
    for page in range(1, len(raw) // 4096):  # the first page says what the file is
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("spoil", [garbage, other_columns, damaged_page])
def test_a_file_that_is_broken_is_moved_aside_and_told_once(tmp_path, spoil):
    path, notes = tmp_path / "c.sqlite", []
    spoil(path)
    before = path.read_bytes()
    assert store(path, notes).get([b"1"]) == {}
    store(path, notes).put({b"1": b"one"})
    assert store(path, notes).get([b"1"]) == {b"1": b"one"}
    assert (tmp_path / "c.sqlite.broken").read_bytes() == before
    (note,) = notes
    assert "c.sqlite" in note
    assert "moved to c.sqlite.broken" in note


def test_files_that_were_moved_aside_before_stay(tmp_path):
    for _ in range(2):
        garbage(tmp_path / "c.sqlite")
        store(tmp_path / "c.sqlite").put({b"1": b"one"})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["c.sqlite", "c.sqlite.broken", "c.sqlite.broken-2", "c.sqlite.lock"]


def test_two_that_find_the_same_broken_file_move_it_once(tmp_path):
    path, notes = tmp_path / "c.sqlite", []
    garbage(path)
    with ThreadPoolExecutor(2) as pool:
        with FileLock(f"{path}.lock"):
            asked = [pool.submit(store(path, notes).put, {name: b"1"}) for name in (b"a", b"b")]
            time.sleep(0.05)
            assert not any(job.done() for job in asked)
        for job in asked:
            job.result(timeout=30)
    assert len(notes) == 1
    assert store(path).get([b"a", b"b"]) == {b"a": b"1", b"b": b"1"}


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "c.sqlite").mkdir()
    with pytest.raises(RunError, match=r"c\.sqlite: the cache cannot be used .*COTUNE_CACHE"):
        store(tmp_path / "c.sqlite").get([b"1"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="COTUNE_CACHE"):
        store(tmp_path / "file" / "c.sqlite")


def test_a_locked_file_is_left_where_it_is(tmp_path, monkeypatch):
    path, notes = tmp_path / "c.sqlite", []
    store(path).put({b"1": b"one"})
    connect = sqlite3.connect
    monkeypatch.setattr(kept.sqlite3, "connect", lambda where, timeout: connect(where, timeout=0.01))
    with closing(connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match="locked"):
            store(path, notes).put({b"2": b"two"})
    assert store(path).get([b"1", b"2"]) == {b"1": b"one"}
    assert not notes


WRITER = """
import sys
from pathlib import Path
from cotune.models.kept import Kept

store = Kept(Path(sys.argv[1]), "things", print)
for i in range(40):
    store.put({f"{sys.argv[2]}{i}".encode(): b"x" * 3000, b"same": sys.argv[2].encode()})
    assert store.get([b"same"])
"""


def test_several_processes_write_at_a_time(tmp_path):
    path = tmp_path / "c.sqlite"
    garbage(path)
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len("".join(said).splitlines()) == 1
    keys = [f"{name}{i}".encode() for name in "abc" for i in range(40)]
    assert len(store(path).get(keys)) == len(keys)


def test_a_broken_file_of_vectors_is_told(tmp_path):
    path, notes = tmp_path / "v.sqlite", []
    garbage(path)
    vectors = Vectors(path, notes.append)
    vectors.put({b"1": np.ones(3, np.float32)})
    assert vectors.get([b"1"])[b"1"].tolist() == [1, 1, 1]
    assert len(notes) == 1
