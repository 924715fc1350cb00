"""One YAML file becomes frozen, typed values; all above `runtime` is the experiment and is fingerprinted.

All mistakes are reported at once, each with its path, what came, what was expected and, for a misspelt key,
the likely right one. After `build.py` no object holds the configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cotune import mistakes, plugins
from cotune import overrides as overriding
from cotune.audit_settings import AuditingConfig, GatesConfig
from cotune.endpoint_settings import PATIENCE
from cotune.errors import ConfigError
from cotune.example_privacy import PrivateConfig
from cotune.teach_settings import TeachConfig


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class ShrinkConfig(Settings):
    """Cut the model by depth before use (see `cotune.models.shrink`)."""

    layers: int = Field(gt=0, description="decoder layers to keep")
    method: Literal["greedy", "influence"] = Field(
        "greedy", description="how the layers to drop are found; influence is quick, greedy steadier"
    )
    heal_steps: int = Field(0, ge=0, description="distillation steps from the uncut model on public examples")


class LoraConfig(Settings):
    """Shape of the adapters (Hu et al. 2021)."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(16.0, gt=0, description="the product BA is scaled by alpha / rank")
    targets: Literal["all-linear", "attention"] | list[str] = Field(
        "attention", description="`attention` is q, k, v, o; or a list of module name endings"
    )


class TuneConfig(Settings):
    """How a model is tuned; FedCoLLM names none, so the defaults are its code's and FedMKT's tutorial."""

    epochs: float = Field(1.0, gt=0, description="passes over the examples in one round; may be a fraction")
    batch_size: int = Field(8, gt=0)
    lr: float = Field(3e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="over the whole run, not over one round"
    )
    warmup: float = Field(
        0.008, ge=0, lt=1, description="share of a round's steps in which lr rises linearly"
    )
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm per client")
    max_length: int = Field(512, gt=1, description="tokens; longer examples lose the start of their prompt")
    private: PrivateConfig | None = Field(
        None, description="hide every single example of a client (DP-SGD); of the clients' own tuning only"
    )


class ModelConfig(Settings):
    """A model, its adapter and how it is tuned."""

    model: str = Field(description="catalogue name, folder, or hub id")
    revision: str | None = Field(None, description="hub revision")
    shrink: ShrinkConfig | None = None
    lora: LoraConfig = LoraConfig()
    tune: TuneConfig = TuneConfig()
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class FamilyConfig(ModelConfig):
    """Clients that hold another model than `slm`: adapters are summed among them alone, text crosses."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]{0,30}$", description="of the family, e.g. gemma")
    clients: Annotated[int, Field(gt=0)] | list[str] = Field(
        description="how many, or their names; who is in no family holds `slm`"
    )


class SourceConfig(Settings):
    """Rows of one task: where they are and how many go to each purpose. They never overlap."""

    task: str
    data: str | None = Field(None, description="JSONL (.gz), hub id, or nothing for the task's own source")
    test_data: str | None = Field(None, description="held-out rows; without it they are cut from `data`")
    held_out: str | None = Field(
        None, description="KEY=VALUE: the rows whose field KEY is VALUE are the held-out ones, and no others"
    )
    train_rows: int | None = Field(
        None, gt=0, description="rows for the clients; all that are left by default"
    )
    public_rows: int = Field(0, ge=0, description="rows every party may read")
    test_rows: int | None = Field(
        None, ge=0, description="held-out rows; all of `test_data` or `held_out` by default"
    )
    metric: Literal["choice", "path_accuracy"] | None = Field(
        None, description="of held-out rows: by likeliest choice or written path; the task's by default"
    )


class IidPartition(Settings):
    """Every client gets an equal random part."""

    name: Literal["iid"]
    clients: int = Field(gt=0)


class DirichletPartition(Settings):
    """Each client's mixture over domains is drawn from Dirichlet(alpha)."""

    name: Literal["dirichlet"]
    clients: int = Field(gt=0)
    alpha: float = Field(0.5, gt=0)
    key: str = Field("domain", description="what is mixed: domain, task, or any field of the rows")


class ByKeyPartition(Settings):
    """One client for each value of a key."""

    name: Literal["by_key"]
    key: str = Field("domain", description="domain, or any field of the rows")


class FiveWayPartition(Settings):
    """FedCoLLM's split: shuffle with `seed`, cut clients + 1 equal parts, the last one is public."""

    name: Literal["five_way"]
    clients: int = Field(4, gt=0)
    seed: int = 123


Partition = Annotated[
    IidPartition | DirichletPartition | ByKeyPartition | FiveWayPartition, Field(discriminator="name")
]


class DataConfig(Settings):
    """Which rows there are and who holds them."""

    sources: list[SourceConfig] = Field(min_length=1)
    partition: Partition


class CohortConfig(Settings):
    """Who takes part in a round."""

    fraction: float = Field(1.0, gt=0, le=1, description="share of the clients, drawn anew each round")
    minimum: int = Field(1, gt=0, description="replies without which a round changes nothing")


class EvaluateConfig(Settings):
    """What is measured on held-out examples."""

    every: int = Field(1, ge=0, description="rounds between evaluations; 0: only before and after")
    clients: int = Field(100, gt=0, description="clients that are measured; more are drawn from, once")
    shown: int = Field(2, ge=0, description="held-out questions shown in the report, per task")


class RuntimeConfig(Settings):
    """Changes speed and place only; not part of the fingerprint."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    stack: int = Field(8, gt=0, description="clients trained in one forward and backward")
    threads: int | None = Field(None, gt=0, description="CPU threads; torch's choice by default")
    deadline_seconds: float = Field(
        600.0, gt=0, description="until a client that is on another machine is late with a step"
    )
    score_tokens: int = Field(1024, gt=0, description="tokens scored in one forward pass")
    keep_checkpoints: int = Field(2, gt=0)


class PluginSpec(BaseModel):
    """`{name: ..., option: ...}`; the options are checked by the plug-in's own Config."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Config(Settings):
    """A whole run."""

    seed: int = Field(7, ge=0, lt=2**32)
    rounds: int = Field(5, gt=0)
    llm: ModelConfig
    slm: ModelConfig
    families: list[FamilyConfig] = Field(
        [], description="groups of clients with another model each; by default all hold `slm`"
    )
    data: DataConfig
    strategy: PluginSpec
    selector: list[PluginSpec] = Field(
        [], description="which private examples to train on; each chooses from what the one before it left"
    )
    allocator: PluginSpec | None = Field(
        None, description="which public examples teach which model by reasoning paths; none by default"
    )
    teach: TeachConfig = TeachConfig()
    aggregator: PluginSpec = PluginSpec(name="mean")
    guards: list[PluginSpec] = Field([], description="what an update goes through before it leaves a client")
    cohort: CohortConfig = CohortConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    audits: list[PluginSpec] = Field(
        [], description="what is asked about the models before, every so many rounds, and after"
    )
    auditing: AuditingConfig = AuditingConfig()
    gates: GatesConfig | None = Field(None, description="what follows from audits; nothing by default")
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _names_become_specs(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        found = {key: [spec for _, spec in _named(key, data[key])] for key in SLOTS if key in data}
        single = {key: (specs or [None])[0] for key, specs in found.items() if key not in LISTS}
        return {**data, **found, **single}


SLOTS: Mapping[str, str] = {
    "strategy": "strategy",
    "selector": "selector",
    "allocator": "allocator",
    "aggregator": "aggregator",
    "guards": "guard",
    "audits": "audit",
}
"""The keys of `Config` that name plug-ins, and their slots."""
LISTS = ("selector", "guards", "audits")
"""Those that may name several, which work one after the other."""


def _named(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each plug-in of a key with its path in the file: a bare name becomes `{name: ...}`."""
    several = key in LISTS and isinstance(value, list)
    for number, spec in enumerate(value if several else [value]):
        if spec is not None:
            place = f"{key}.{number}" if several else key
            yield place, {"name": spec} if isinstance(spec, str) else spec


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check a YAML file.

    Args:
        path: the file.
        overrides: `a.b=value` strings; the value is read as YAML.

    Raises:
        ConfigError: the file is missing, is not YAML, or any value is wrong (all of them at once).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 text ({error.reason}). Give the path of a YAML file."
        ) from error
    return parse(text, str(path), overrides)


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """Check YAML text; `where` names it in messages."""
    import yaml  # here, so that `cotune schema` starts fast

    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected keys such as seed, llm, slm, data; got {type(raw).__name__}.")
    for override in overrides:
        overriding.apply(raw, override, SLOTS)
    return from_dict(raw, where)


def from_dict(raw: Mapping[str, Any], where: str = "config") -> Config:
    """Check a nested dict.

    Raises:
        ConfigError: one line per mistake.
    """
    problems: list[str] = []
    config: Config | None = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += mistakes.of_model(Config, error)
    for key, slot in SLOTS.items():
        for place, spec in _named(key, raw.get(key)):
            problems += mistakes.of_plugin(slot, spec, place)
    if problems or config is None:
        lines = "\n".join(f"  {line}" for line in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{where}: {count}\n{lines}")
    return config


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `load` of it gives the same value."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def fingerprint(config: Config) -> str:
    """16 hex digits that name the experiment: all but `runtime`, plug-in defaults filled in."""
    of_endpoint = set(PATIENCE)
    patience = {"teach": {"teacher": of_endpoint}}
    patience["auditing"] = {"judge": of_endpoint, "mutator": of_endpoint}
    experiment = config.model_dump(mode="json", exclude={"runtime": True, **patience})
    for key, slot in SLOTS.items():
        found = getattr(config, key)
        filled = [_filled(slot, spec) for spec in (found if key in LISTS else [found]) if spec]
        experiment[key] = filled if key in LISTS else next(iter(filled), None)
    canonical = json.dumps(experiment, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def check_plugins(slot: str, specs: Sequence[Mapping[str, Any]]) -> None:
    """Check names and options of plug-ins that do not stand in a configuration file.

    Raises:
        ConfigError: one line per mistake.
    """
    problems = [line for spec in specs for line in mistakes.of_plugin(slot, spec, spec["name"])]
    if problems:
        raise ConfigError("\n".join(problems))


def _filled(slot: str, spec: PluginSpec) -> dict[str, Any]:
    """A plug-in's name and all its options, defaults included."""
    options = plugins.config_class(slot, spec.name).model_validate(spec.options)
    return {"name": spec.name, **options.model_dump(mode="json")}


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, plug-in options included."""
    schema = Config.model_json_schema()
    for key, slot in SLOTS.items():
        options = []
        for name in plugins.names(slot):
            part = plugins.config_class(slot, name).model_json_schema()
            part["properties"] = {"name": {"const": name}, **part.get("properties", {})}
            part["required"] = ["name", *part.get("required", [])]
            options.append({**part, "title": name})
        one = {"anyOf": [{"enum": list(plugins.names(slot))}, *options]}
        several = {"anyOf": [*one["anyOf"], {"type": "array", "items": one}]}
        one["anyOf"] += [{"type": "null"}] if Config.model_fields[key].default is None else []
        schema["properties"][key] = several if key in LISTS else one
    return cast(dict[str, Any], json.loads(json.dumps(schema)))
