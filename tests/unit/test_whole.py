"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from cotune import whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_are_put_in_place_and_their_folder_is_made(tmp_path):
    whole.write(tmp_path / "new" / "a.json", "gr\u00fcn")
    whole.write(tmp_path / "new" / "b.msg", b"\x00\xff")
    assert (tmp_path / "new" / "a.json").read_bytes() == "gr\u00fcn".encode()
    assert (tmp_path / "new" / "b.msg").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "new") == ["a.json", "b.msg"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_was_there_is_intact_when_writing_fails(tmp_path, monkeypatch, step):
    target = tmp_path / "a.json"
    whole.write(target, "old")

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if step == "fsync" else (type(target), "replace")), fails)
        with pytest.raises(OSError, match="No space left"):
            whole.write(target, "new and longer")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_it_is_on_disk_before_it_is_in_place(tmp_path, monkeypatch):
    seen = []
    good = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append((tmp_path / "a").exists()), good(number)))
    whole.write(tmp_path / "a", b"1")
    assert seen == [False]
    assert (tmp_path / "a").read_bytes() == b"1"


def test_processes_that_write_the_same_file_at_once_do_not_mix(tmp_path):
    """Each of two writes its own text over and over; whoever reads sees one of them whole."""
    words = "import sys; from pathlib import Path; from cotune import whole\n"
    words += "for _ in range(100): whole.write(Path(sys.argv[1]), sys.argv[2] * 100_000, is_shared=True)"
    target = tmp_path / "report.html"
    writers = [subprocess.Popen([sys.executable, "-c", words, str(target), one]) for one in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if target.is_file():
            seen.add(target.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert names(tmp_path) == ["report.html"]


def test_a_part_that_a_crash_left_behind_is_no_obstacle(tmp_path):
    (tmp_path / "a.part").write_bytes(b"torn and long")
    whole.write(tmp_path / "a", b"1")
    assert names(tmp_path) == ["a"]
