"""The JSON Schema of a configuration as text: made once for the source files it comes from, then kept."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from cotune import whole
from cotune.wheels import cache_dir


def text() -> str:
    """The schema; importing what it is made of takes longer than all else that `cotune schema` does."""
    path = cache_dir() / "schemas" / f"{_state()}.json"
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    from cotune import config

    made = json.dumps(config.json_schema(), indent=2, ensure_ascii=False)
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        whole.write(path, made, is_shared=True)
    return made


def _state() -> str:
    """Changes with any source file of the package: its name, size or time."""
    root = Path(__file__).parent
    files = sorted((str(path.relative_to(root)), path.stat()) for path in root.rglob("*.py"))
    words = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files]
    return hashlib.sha256("\n".join([str(root), *words]).encode()).hexdigest()[:16]
