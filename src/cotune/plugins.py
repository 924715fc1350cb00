"""File name -> object. The only place that imports by name.

A plug-in is one file in a slot's folder: `strategies/fedcollm.py` is the strategy `fedcollm`. It defines
`Config` (pydantic, frozen, no unknown keys) and `build`. A dotted name loads code from outside the package.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

from cotune.errors import ConfigError, suggestion

FOLDERS: Mapping[str, str] = {
    "strategy": "strategies",
    "selector": "selectors",
    "score": "scores",
    "policy": "policies",
    "allocator": "allocators",
    "loss": "losses",
    "aggregator": "aggregators",
    "guard": "guards",
    "audit": "audits",
    "transport": "transports",
    "task": "tasks",
}
"""Slot -> folder."""


class PluginConfig(BaseModel):
    """Options of one plug-in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def names(slot: str) -> tuple[str, ...]:
    """Every plug-in of a slot, by listing its folder."""
    folder = Path(__file__).parent / FOLDERS[slot]
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


def module(slot: str, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        ConfigError: there is no such plug-in, or an outside one cannot be imported.
    """
    known = names(slot)
    if name in known:
        return importlib.import_module(f"cotune.{FOLDERS[slot]}.{name}")
    if "." not in name:
        expected = ", ".join(known) or "none yet"
        raise ConfigError(
            f"{slot}: {name!r} not found; expected one of: {expected}.{suggestion(name, known)}"
        )
    try:
        return importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{slot}: {name!r} cannot be imported ({error}). Is its package installed here?"
        ) from error


def config_class(slot: str, name: str) -> type[BaseModel]:
    """The options of a plug-in; an empty set when it defines no `Config`."""
    found: Any = getattr(module(slot, name), "Config", PluginConfig)
    return found  # type: ignore[no-any-return]


def load(slot: str, name: str, options: Mapping[str, Any], **parts: Any) -> Any:
    """Build a plug-in from its options and the parts that `build.py` hands to its slot."""
    found = module(slot, name)
    if not hasattr(found, "build"):
        raise ConfigError(f"{slot}: {name!r} has no function `build`; see any file of cotune/{FOLDERS[slot]}")
    return found.build(config_class(slot, name).model_validate(dict(options)), **parts)


def summary(slot: str, name: str) -> str:
    """First line of the plug-in's docstring, read without importing it."""
    path = Path(__file__).parent / FOLDERS[slot] / f"{name}.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0] if doc else ""
