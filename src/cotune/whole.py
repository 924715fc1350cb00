"""A file that is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write(path: Path, data: bytes | str, *, is_shared: bool = False) -> None:
    """Write under a temporary name, flush to disk, then put it in place; a reader sees the old or the new.

    The folder is made when it is not there. Text is UTF-8.

    Args:
        path: the file.
        data: all of it.
        is_shared: several processes may write it at once, and the last one counts. The temporary name is
            then this process's own; otherwise it is the same each time, so that a crash leaves one at most.

    Raises:
        OSError: it could not be written; what was there before is intact, and nothing else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if is_shared else f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
