"""One YAML file: every mistake is named with its place and its cure, the experiment has one fingerprint."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import tiny
from cotune import config, plugins, schema
from cotune.config import Config, dump, fingerprint, from_dict, json_schema, load, parse
from cotune.endpoint_settings import PATIENCE
from cotune.errors import ConfigError

ROOT = Path(__file__).parents[2]
ENDPOINT = {"url": "http://localhost:1/v1", "model": "m"}
RAW = {
    "llm": {"model": "big"},
    "slm": {"model": "small"},
    "data": {
        "sources": [{"task": "tomi", "test_rows": 5}],
        "partition": {"name": "iid", "clients": 2},
    },
    "strategy": "fedcollm",
}
TEXT = yaml.safe_dump(RAW)


def changed(path: str, value) -> dict:
    raw = yaml.safe_load(TEXT)
    *parents, last = path.split(".")
    node = raw
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    node[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("rouds", 3, "rouds: unknown key. Did you mean 'rounds'?"),
        ("slm.tune.learning", 3, "slm.tune.learning: unknown key."),
        ("slm.tune.batchsize", 3, "slm.tune.batchsize: unknown key. Did you mean 'batch_size'?"),
        ("llm.lora.rnak", 3, "llm.lora.rnak: unknown key. Did you mean 'rank'?"),
        ("llm.shrink.layer", 3, "llm.shrink.layer: unknown key. Did you mean 'layers'?"),
        ("data.sources.0.taks", "x", "data.sources.0.taks: unknown key. Did you mean 'task'?"),
        ("data.partition.client", 3, "data.partition.client: unknown key. Did you mean 'clients'?"),
        ("data.partition.name", "idd", "data.partition.name: "),
        ("rounds", "many", "rounds: input should be a valid integer"),
        ("rounds", 0, "rounds: input should be greater than 0, got 0"),
        ("seed", -1, "seed: input should be greater than or equal to 0, got -1"),
        ("slm.tune.lr", -1.0, "slm.tune.lr: input should be greater than 0, got -1.0"),
        ("slm.tune.lr", float("nan"), "slm.tune.lr: input should be a finite number, got nan"),
        ("slm.tune.schedule", "cosin", "slm.tune.schedule: input should be 'constant', 'linear' or 'cosine'"),
        ("cohort.fraction", 1.5, "cohort.fraction: input should be less than or equal to 1, got 1.5"),
        ("runtime.deadline_seconds", 0, "runtime.deadline_seconds: input should be greater than 0"),
        ("data.sources", [], "data.sources: "),
        ("slm", {}, "slm.model: missing. Expected: catalogue name, folder, or hub id."),
        ("strategy", "fedcolm", "strategy: 'fedcolm' not found; expected one of: centralized, fedavg"),
        ("strategy", "fedcolm", "Did you mean 'fedcollm'?"),
        ("strategy", {"name": "fedcollm", "top": 3}, "strategy.top: unknown key. Did you mean 'top_k'?"),
        ("strategy", {"name": "fedcollm", "top_k": -3}, "strategy.top_k: input should be greater than 0"),
        ("strategy", {"name": "fedavg", "weights": "all"}, "strategy.weights: input should be 'equal' or"),
        ("strategy", {"top_k": 3}, "strategy.name: missing"),
        ("strategy", 3, "strategy: "),
        ("strategy", "no.such.module", "strategy: 'no.such.module' cannot be imported"),
        ("strategy", ".dotted", "strategy: '.dotted' cannot be imported"),
        ("aggregator", "medain", "Did you mean 'median'?"),
        ("aggregator", {"name": "mean", "trim": 0.1}, "aggregator.trim: unknown key"),
        ("audits", ["canary", "likenes"], "audit: 'likenes' not found; expected one of: canary"),
        ("audits", [{"name": "canary", "fact": 9}], "audits.0.fact: unknown key. Did you mean 'facts'?"),
        ("audits", [{"name": "canary", "every": 0}], "audits.0.every: input should be greater than 0"),
        ("auditing.judge", 3, "auditing.judge: input should be a valid dictionary"),
        ("auditing.judge", {**ENDPOINT, "lenght_key": "x"}, "auditing.judge.lenght_key: unknown key."),
        ("auditing.mutator", {"url": "localhost", "model": "m"}, "auditing.mutator.url: string should match"),
        ("auditing.mutator", {"url": "http://x/v1"}, "auditing.mutator.model: missing."),
        ("gates.factor", 1.0, "gates.factor: input should be less than 1"),
        ("gates.on_canary", "halt", "gates.on_canary: input should be 'lower', 'stop' or 'off', got 'halt'"),
        ("gates.on_likeness", "off", "gates.on_likeness: unknown key."),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_its_cure(path, value, complaint):
    with pytest.raises(ConfigError) as caught:
        from_dict(changed(path, value), "my.yaml")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("my.yaml: ")


def test_a_mistake_in_a_judge_is_named_once():
    """Though a judge may be a name as well."""
    with pytest.raises(ConfigError, match=r"^my.yaml: 1 problem\n  auditing.judge.concurrency: "):
        from_dict(changed("auditing.judge", {**ENDPOINT, "concurrency": 0}), "my.yaml")


def test_all_mistakes_come_at_once():
    raw = changed("rouds", 3) | {"seed": "x", "strategy": {"name": "fedcollm", "lambda": 1}}
    raw["llm"]["lora"] = {"rank": 0}
    with pytest.raises(ConfigError) as caught:
        from_dict(raw, "my.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == "my.yaml: 4 problems"
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "llm.lora.rank",
        "rouds",
        "seed",
        "strategy.lambda",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1", "not valid YAML"),
        ("- a\n- b", "expected keys such as seed, llm, slm, data; got list"),
        ("", "got NoneType"),
        ("just text", "got str"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("1: 2", "llm: missing"),
    ],
)
def test_what_is_no_configuration_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse(text, "my.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read \(No such file or directory\)"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load(tmp_path / "x.yaml")


def test_overrides_reach_every_place():
    found = parse(
        TEXT,
        "x",
        [
            "rounds=9",
            "slm.tune.lr=1e-3",
            "data.sources.0.task=food",
            "strategy.top_k=4",
            "llm.lora.targets=[q_proj, v_proj]",
            "runtime.threads=null",
            "llm.shrink={layers: 3}",
        ],
    )
    assert (found.rounds, found.slm.tune.lr, found.data.sources[0].task) == (9, 1e-3, "food")
    assert (found.strategy.name, found.strategy.options) == ("fedcollm", {"top_k": 4})
    assert found.llm.lora.targets == ["q_proj", "v_proj"]
    assert found.runtime.threads is None
    assert found.llm.shrink.layers == 3


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rounds", "expected path=value"),
        ("=3", "expected path=value"),
        ("rounds=[1", "the value is not YAML"),
        ("rounds=x", "rounds: input should be a valid integer"),
        ("llm.model.name=x", "llm.model is a value, not a group"),
        ("data.sources.7.task=x", "'7' is not an index of a list with 1 items"),
        ("data.sources.first.task=x", "'first' is not an index"),
        ("data.sources.0.task.x=1", "data.sources.0.task is a value, not a group"),
        ("data.sources.-1=x", "'-1' is not an index"),
        ("slm.tune.lrr=1", "Did you mean 'lr'?"),
        ("strategy.tempo=1", "strategy.tempo: unknown key"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override, complaint):
    with pytest.raises(ConfigError) as caught:
        parse(TEXT, "x", [override])
    assert complaint in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_published_configuration_is_valid_and_survives_writing(path):
    found = load(path)
    again = parse(dump(found), "again")
    assert again == found
    assert fingerprint(again) == fingerprint(found)


def test_defaults_written_out_are_the_same_experiment():
    short = from_dict(RAW)
    long = from_dict(changed("strategy", {"name": "fedcollm", "temperature": 1.0, "top_k": None}))
    assert fingerprint(short) == fingerprint(long)
    assert parse(dump(short), "x") == short


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif not isinstance(value, list):
        yield path, value


ENDPOINTS = (("teach", "teacher"), ("auditing", "judge"), ("auditing", "mutator"))
FULL = from_dict(
    {
        **changed("llm.shrink", {"layers": 3}),
        "teach": {"teacher": ENDPOINT},
        "auditing": {"judge": ENDPOINT, "mutator": ENDPOINT, "unrelated": "other"},
        "gates": {},
    },
).model_dump(mode="json")
OTHER = {"iid": "dirichlet", "fedcollm": "fedavg", "mean": "median"}
UNSET = {
    "revision": "x",
    "shrink": {"layers": 2},
    "api_key_env": "KEY",
    "private": {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
}


def altered(path, value):
    if isinstance(value, bool) or value is None:
        return UNSET.get(path[-1], not value)
    if isinstance(value, int | float):
        return value / 2 if path[-1] in ("fraction", "warmup", "factor") else value + 1
    return OTHER.get(value, value + "x")


@pytest.mark.parametrize("path", [p for p, _ in leaves(FULL)], ids=".".join)
def test_the_fingerprint_is_that_of_the_experiment_and_of_nothing_else(path):
    raw = copy.deepcopy(FULL)
    node = raw
    for key in path[:-1]:
        node = node[key]
    is_speed = path[0] == "runtime" or (path[:2] in ENDPOINTS and path[2] in PATIENCE)
    if path[0] == "runtime":
        others = {"device": "cpu", "dtype": "float32", "deadline_seconds": 9.0, "threads": 2}
        node[path[-1]] = others.get(path[-1], 77)
    else:
        old = node[path[-1]]
        node[path[-1]] = "random" if path == ("allocator",) else altered(path, old)
        try:
            from_dict(raw)
        except ConfigError as error:  # one of a few words: take another one of those it names
            node[path[-1]] = next(w for w in re.findall("'([^']+)'", str(error)) if w != old)
    assert (fingerprint(from_dict(raw)) == fingerprint(from_dict(FULL))) == is_speed


def test_a_plugin_option_changes_the_fingerprint():
    warm = from_dict(changed("strategy", {"name": "fedcollm", "temperature": 2.0}))
    assert fingerprint(warm) != fingerprint(from_dict(RAW))


def test_audits_their_options_and_gates_are_part_of_the_experiment():
    """Canaries are planted, and gates change what is taught."""
    found = [
        fingerprint(from_dict({**RAW, "audits": audits, "gates": gates}))
        for audits in ([], "canary", {"name": "canary", "repeats": 5}, ["canary", "likeness"])
        for gates in (None, {}, {"factor": 0.25})
    ]
    assert len(set(found)) == len(found)
    same = [fingerprint(from_dict({**RAW, "audits": audits})) for audits in ("canary", ["canary"])]
    assert same == [found[3], found[3]]


def test_a_judge_by_name_and_one_behind_an_endpoint_are_two_experiments():
    found = [fingerprint(from_dict({**RAW, "auditing": {"judge": judge}})) for judge in ("m", "n", ENDPOINT)]
    assert len(set(found)) == 3


def test_the_schema_covers_every_plugin_option():
    schema = json_schema()
    options = schema["properties"]["strategy"]["anyOf"]
    assert options[0] == {"enum": list(plugins.names("strategy"))}
    by_name = {option["title"]: option for option in options[1:]}
    assert by_name["fedcollm"]["properties"]["top_k"]["default"] is None
    assert by_name["fedcollm"]["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)


def test_the_schema_accepts_what_load_accepts():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in (ROOT / "configs").glob("*.yaml"):
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text())))
    assert not list(validator.iter_errors(FULL))
    assert list(validator.iter_errors(changed("rouds", 3)))
    assert list(validator.iter_errors(changed("strategy", {"name": "fedcollm", "top": 3})))


def test_a_tiny_configuration_of_the_tests_is_valid(tmp_path):
    assert load(tiny.write_config(tmp_path, slm__tune__lr=0.5)).slm.tune.lr == 0.5


def test_groups_cannot_be_changed():
    found = from_dict(RAW)
    with pytest.raises(Exception, match="frozen"):
        found.seed = 3


def test_every_setting_is_read_somewhere():
    """A key that nothing reads is a promise that nobody keeps."""
    text = "".join(p.read_text() for p in (ROOT / "src" / "cotune").rglob("*.py") if p.name != "config.py")
    groups = [m for m in vars(config).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    names = {name for group in groups for name in group.model_fields} - {"name"}
    unread = {name for name in names if f".{name}" not in text and f"{name}=" not in text}
    assert unread == set()


def test_the_kept_schema_is_the_one_that_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path))
    made = schema.text()
    assert json.loads(made) == config.json_schema()
    [kept] = (tmp_path / "schemas").iterdir()
    kept.write_text("kept", encoding="utf-8")
    assert schema.text() == "kept"
    monkeypatch.setattr(schema, "_state", lambda: "a file has changed")
    assert schema.text() == made
    monkeypatch.setenv("COTUNE_CACHE", str(kept))  # a file: nothing can be kept
    assert schema.text() == made
