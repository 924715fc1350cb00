"""cotune: tune one large language model on a server and many small ones on clients, together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(
    config: str | Path, *, overrides: Sequence[str] = (), out: str | Path | None = None
) -> dict[str, Any]:
    """Co-tune: all rounds of a YAML configuration, as `cotune run` does.

    Args:
        config: path of the YAML file.
        overrides: `path=value` strings, e.g. `slm.tune.lr=1e-3`.
        out: folder to write to; by default a free name under `runs/`.

    Returns:
        What stands in `results.json`.

    Raises:
        cotune.errors.CotuneError: the input is wrong, or the run failed and can be resumed.
    """
    from rich.console import Console

    from cotune import launch

    return launch.start(Path(config), overrides, Path(out) if out else None, Console(stderr=True))
