"""cotune: tune one large language model on a server and many small ones on clients, together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cotune.coreset import Coreset

__all__ = ["run", "select"]


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


def select(
    data: str | Path,
    method: str | Sequence[str | dict[str, Any]] = "fedhds",
    *,
    out: str | Path | None = None,
    **how: Any,
) -> Coreset:
    """Choose examples from a file, as `cotune select` does.

    Args:
        data: JSONL file (.gz) or hub id.
        method: selectors joined by commas, or a list of names and `{"name": ..., option: ...}`.
        out: folder for coreset.jsonl, selection.json and map.html; nothing is written by default.
        how: `keep` (share), `model`, `task`, `seed`, and `partition`: `one`, `iid:N`,
            `dirichlet:N:ALPHA[:KEY]` or `by_key:KEY`.

    Returns:
        Chosen rows (`indices`), and `groups` and `scores` of every row where the method has them.

    Raises:
        cotune.errors.CotuneError: the input is wrong.
    """
    from rich.console import Console

    from cotune import launch_select
    from cotune.coreset import Question

    named = [name.strip() for name in method.split(",")] if isinstance(method, str) else method
    specs = [{"name": one} if isinstance(one, str) else dict(one) for one in named]
    target = Path(out) if out else None
    return launch_select.select(Question(str(data), specs, **how), target, Console(stderr=True))
