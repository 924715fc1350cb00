"""Every plug-in that is found keeps the promises of its slot; a new file is covered at once."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import cotune
import tiny
from cotune import config, plugins, session
from cotune.errors import ConfigError, ModelError
from cotune.models.head import signal

ALL = [(slot, name) for slot in plugins.FOLDERS for name in plugins.names(slot)]
CONFIGURED = [(slot, name) for slot, name in ALL if slot not in ("loss", "task", "transport")]
SOURCED = [(slot, name) for slot, name in ALL if slot in ("strategy", "loss", "aggregator", "transport")]


def named(found):
    return [f"{slot}-{name}" for slot, name in found]


def each(found):
    return pytest.mark.parametrize(("slot", "name"), found, ids=named(found))


def names_of(slot, kind=None):
    found = [name for name in plugins.names(slot) if kind in (None, plugins.kind(slot, name))]
    return pytest.mark.parametrize("name", found)


@each(ALL)
def test_the_docstring_begins_with_one_short_sentence(slot, name):
    line = plugins.summary(slot, name)
    assert 10 <= len(line) <= 110
    assert line == inspect.getdoc(plugins.module(slot, name)).splitlines()[0]


@each(SOURCED)
def test_the_docstring_says_where_the_method_comes_from(slot, name):
    assert re.search(r"^(Paper|Origin): .*\S", plugins.module(slot, name).__doc__, re.M)


@each(ALL)
def test_a_plugin_imports_no_other_plugin(slot, name):
    path = Path(cotune.__file__).parent / plugins.FOLDERS[slot] / f"{name}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            assert not any(module.startswith(f"cotune.{folder}") for folder in plugins.FOLDERS.values())


@each(CONFIGURED)
def test_default_options_are_valid_and_cannot_be_changed(slot, name):
    made = plugins.config_class(slot, name)()
    assert plugins.config_class(slot, name).model_validate(made.model_dump(mode="json")) == made
    for field in type(made).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, field, 1)


@each(CONFIGURED)
def test_options_are_described(slot, name):
    for field, info in plugins.config_class(slot, name).model_fields.items():
        assert info.description, f"{slot} {name}: {field}"


@pytest.mark.parametrize(("key", "slot"), config.SLOTS.items())
def test_an_unknown_option_is_refused_with_its_path(key, slot, tmp_path):
    for name in plugins.names(slot):
        fields = list(plugins.config_class(slot, name).model_fields)
        misspelt = f"{fields[0]}x" if fields else "x"
        with pytest.raises(ConfigError) as caught:
            config.from_dict(tiny.raw_config(tmp_path) | {key: {"name": name, misspelt: 1}})
        assert f"{key}.{misspelt}: unknown key." in str(caught.value)
        if fields:
            assert f"Did you mean '{fields[0]}'?" in str(caught.value)


@pytest.mark.parametrize("slot", list(plugins.FOLDERS))
def test_a_name_that_is_not_there_is_refused_with_what_is(slot):
    with pytest.raises(ConfigError, match="not found; expected one of"):
        plugins.module(slot, "nonsense")


def test_an_outside_module_without_build_is_refused():
    with pytest.raises(ConfigError, match=r"'os.path' has no function `build`"):
        plugins.load("aggregator", "os.path", {})


def test_every_file_of_a_plugin_folder_is_found():
    root = Path(cotune.__file__).parent
    for slot, folder in plugins.FOLDERS.items():
        files = {path.stem for path in (root / folder).rglob("*.py")} - {"__init__"}
        assert files == set(plugins.names(slot))


@names_of("loss")
def test_a_loss_says_its_kind_and_says_it_without_being_imported(name):
    assert plugins.kind("loss", name) == plugins.module("loss", name).KIND
    assert plugins.kind("loss", name) in ("divergence", "preference")


@names_of("loss", "divergence")
def test_a_divergence_is_finite_repeatable_and_leaves_its_arguments_alone(name):
    loss = plugins.module("loss", name).loss
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 30, generator=rng) for _ in range(2))
    before = student.clone(), teacher.clone()
    found = [loss(student, signal(teacher, 2.0), 2.0) for _ in range(2)]
    assert found[0].shape == (5,)
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@names_of("loss", "preference")
def test_a_preference_loss_is_finite_falls_with_the_margin_and_leaves_its_arguments_alone(name):
    module = plugins.module("loss", name)
    rng = torch.Generator().manual_seed(0)
    trained, reference = ((-300 * torch.rand(2, 9, generator=rng)).unbind() for _ in range(2))
    before = [part.clone() for part in (*trained, *reference)]
    found = [module.loss(trained, reference, 0.1) for _ in range(2)]
    order = module.margin(trained, reference).argsort()
    assert found[0].shape == (9,)
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[0], found[1])
    assert (found[0][order].diff() <= 0).all()
    assert all(torch.equal(old, part) for old, part in zip(before, (*trained, *reference), strict=True))


@names_of("aggregator")
def test_an_aggregator_keeps_names_shapes_and_types_and_its_arguments(name):
    aggregator = plugins.load("aggregator", name, {})
    rng = np.random.default_rng(0)
    updates = [({"a": rng.standard_normal((2, 3)).astype(np.float32)}, 1.0 + k) for k in range(7)]
    before = [arrays["a"].copy() for arrays, _ in updates]
    found, again = aggregator.fold(updates), aggregator.fold(iter(updates))
    assert (found["a"].shape, found["a"].dtype) == ((2, 3), np.float32)
    assert np.array_equal(found["a"], again["a"])
    assert all(np.array_equal(old, arrays["a"]) for old, (arrays, _) in zip(before, updates, strict=True))


@names_of("strategy")
def test_a_strategy_says_what_it_trains_and_changes_no_state(small, tmp_path, name):
    ready = tiny.ready(small, tmp_path, strategy=name, rounds=1)
    strategy = ready.families[0].strategy
    assert strategy.trains == plugins.module("strategy", name).TRAINS
    assert strategy.trains <= {"slm", "llm"}
    state = strategy.init(3)
    arrays = [adapter.arrays for adapter in (state.slm, state.llm) if adapter]
    before = [{n: a.copy() for n, a in one.items()} for one in arrays]
    now = session.Round(1, 1, 3, ready.federation.clients())
    strategy.server_round(state, now, ready.federation)
    for old, new in zip(before, arrays, strict=True):
        assert all(np.array_equal(old[n], new[n]) for n in old)
    again = strategy.init(3)
    assert [adapter.arrays.keys() for adapter in (again.slm, again.llm) if adapter] == [
        o.keys() for o in before
    ]
    for old, new in zip(before, [a.arrays for a in (again.slm, again.llm) if a], strict=True):
        assert all(np.array_equal(old[n], new[n]) for n in old)


@names_of("strategy")
def test_a_strategy_leaves_alone_what_it_does_not_train(small, tmp_path, name):
    found = tiny.run(small, tmp_path / "out", strategy=name, rounds=1)
    trains = plugins.module("strategy", name).TRAINS
    assert set(found["models"]) == set(trains)
    assert {role for role in ("slm", "llm") if role in found["metrics"]} == set(trains)


@pytest.mark.parametrize("loss", ["jsd", "reverse_kl"])
def test_a_loss_that_needs_all_logits_refuses_top_k_before_anything_is_trained(small, tmp_path, loss):
    with pytest.raises(ModelError, match=r"set strategy.top_k to null"):
        tiny.ready(small, tmp_path, strategy={"name": "fedcollm", "loss": loss, "top_k": 5})
    tiny.ready(small, tmp_path, strategy={"name": "fedcollm", "loss": loss})


@names_of("loss", "preference")
def test_a_preference_loss_is_refused_where_a_divergence_is_wanted(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        config.from_dict(tiny.raw_config(tmp_path) | {"strategy": {"name": "fedcollm", "loss": name}})
    fitting = "forward_kl, jsd, reverse_kl"
    expected = (
        f"strategy.loss: {name!r} is of kind 'preference'; expected one of kind 'divergence': {fitting}."
    )
    assert expected in str(caught.value)


def test_an_outside_loss_that_does_not_say_its_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy.loss: 'os.path' does not say its KIND; expected one of"):
        config.from_dict(tiny.raw_config(tmp_path) | {"strategy": {"name": "fedcollm", "loss": "os.path"}})


def test_an_unknown_loss_is_refused_before_anything_is_trained(small, tmp_path):
    with pytest.raises(ConfigError, match=r"loss: 'forward_lk' not found.*Did you mean 'forward_kl'"):
        tiny.ready(small, tmp_path, strategy={"name": "fedcollm", "loss": "forward_lk"})
