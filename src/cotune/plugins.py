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
    doc = ast.get_docstring(_source(slot, name)) or ""
    return doc.splitlines()[0] if doc else ""


def kind(slot: str, name: str) -> str:
    """What a plug-in says of itself as `KIND = "..."`, or nothing; ours are read without importing them.

    Raises:
        ConfigError: there is no such plug-in, or an outside one cannot be imported.
    """
    if name not in names(slot):
        return str(getattr(module(slot, name), "KIND", ""))
    for node in _source(slot, name).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "KIND":
            return str(ast.literal_eval(node.value))
    return ""


def require_kind(slot: str, name: str, wanted: str, place: str) -> None:
    """Refuse a plug-in whose `KIND` is another one; `place` is the path of the name in the file.

    Raises:
        ConfigError: it is, or there is no such plug-in.
    """
    found = kind(slot, name)
    if found != wanted:
        fitting = ", ".join(known for known in names(slot) if kind(slot, known) == wanted)
        came = f"is of kind {found!r}" if found else "does not say its KIND"
        raise ConfigError(f"{place}: {name!r} {came}; expected one of kind {wanted!r}: {fitting}.")


def _source(slot: str, name: str) -> ast.Module:
    path = Path(__file__).parent / FOLDERS[slot] / f"{name}.py"
    return ast.parse(path.read_text(encoding="utf-8"))
