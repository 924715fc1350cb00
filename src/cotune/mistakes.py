"""What a person is told about a wrong configuration: path, what came, what was expected, the likely key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cotune import plugins
from cotune.audit_settings import ENDPOINT, NAME
from cotune.errors import ConfigError, suggestion


def of_plugin(slot: str, spec: Any, place: str) -> list[str]:
    """One line per mistake in the name and the options of a plug-in; `place` is its path in the file."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        return []  # the frame has already complained
    name = spec["name"]
    try:
        model = plugins.config_class(slot, name)
        model.model_validate({key: value for key, value in spec.items() if key != "name"})
    except ConfigError as error:
        return [str(error)]
    except ValidationError as error:
        return [f"{place}.{line}" for line in of_model(model, error)]
    return []


def of_model(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per mistake that pydantic found."""
    return [_line(model, item) for item in error.errors(include_url=False)]


def _line(model: type[BaseModel], item: Any) -> str:
    tags = {"iid", "dirichlet", "by_key", "five_way"}
    path = ".".join(str(part) for part in item["loc"] if part not in tags and not _is_type(part))
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        parent = list(item["loc"][:-1])
        return f"{path}: unknown key.{suggestion(str(item['loc'][-1]), _fields_at(model, parent))}"
    if kind == "missing":
        return f"{path}: missing. {_description(model, item['loc'])}".rstrip()
    if kind.startswith("union_tag"):
        return f"{path}.name: {item['msg']}"
    return f"{path}: {item['msg'][0].lower()}{item['msg'][1:]}, got {value!r}"


def _is_type(part: object) -> bool:
    """Where several types would do, pydantic names the one that it tried."""
    return part in ("constrained-int", NAME, ENDPOINT) or str(part).startswith("list[")


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> Iterable[str]:
    """Field names of the group at `path`, looked up through lists, optionals and unions."""
    candidates = [model]
    for part in path:
        if isinstance(part, int):
            continue
        inner = [_models_in(c.model_fields[part].annotation) for c in candidates if part in c.model_fields]
        if inner:
            candidates = [m for group in inner for m in group]
    return [name for candidate in candidates for name in candidate.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found


def _description(model: type[BaseModel], path: Sequence[Any]) -> str:
    for candidate in [model, *(m for f in model.model_fields.values() for m in _models_in(f.annotation))]:
        field = candidate.model_fields.get(str(path[-1]))
        if field is not None and field.description:
            return f"Expected: {field.description}."
    return ""
