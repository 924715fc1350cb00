"""`--set path=value`: values from the command line, put into a configuration before it is checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cotune.errors import ConfigError


def apply(raw: dict[str, Any], override: str, slots: Collection[str]) -> None:
    """Put the value of `a.b=value` into nested dicts and lists; a bare name of `slots` becomes a group.

    Raises:
        ConfigError: it is not of that form, or there is no such place.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected path=value, e.g. --set slm.tune.lr=1e-3")
    *parents, last = key.split(".")
    node: Any = raw
    for depth, name in enumerate(parents):
        if isinstance(node, list):
            node = _item(node, name, override)
        else:
            if isinstance(node.get(name), str) and depth == 0 and name in slots:
                node[name] = {"name": node[name]}
            node = node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override!r}: {'.'.join(parents[: depth + 1])} is a value, not a group")
    try:
        parsed = plain_value(value)
    except ConfigError as error:
        raise ConfigError(f"--set {override!r}: {error}") from error
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _item(node: list[Any], name: str, override: str) -> Any:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"--set {override!r}: {name!r} is not an index of a list with {len(node)} items")
    return node[int(name)]


def plain_value(text: str) -> Any:
    """What a value on the command line means, read as YAML.

    Raises:
        ConfigError: it is not YAML.
    """
    import yaml

    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"the value is not YAML: {error}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
