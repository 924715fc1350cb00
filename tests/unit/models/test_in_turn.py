"""Of several models one is in memory at a time, each with its own adapter or none."""

from __future__ import annotations

import json
import weakref
from types import SimpleNamespace

import pytest
import torch

import tiny
from cotune.config import RuntimeConfig
from cotune.errors import ModelError
from cotune.models import causal_lm, zoo
from cotune.models import in_turn as in_turns
from cotune.models.in_turn import InTurn, Local, local
from cotune.models.lora import LoraStack, save_peft
from cotune.models.writer import LocalWriter
from cotune.records import Sampling


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """A collection takes a quarter second here, where many objects live."""
    if request.function is not test_one_model_is_in_memory_at_a_time:
        monkeypatch.setattr(in_turns, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """Two adapters of `slm`, with other layers and ranks, and one of `llm`."""
    found = tmp_path_factory.mktemp("adapters")
    slm, llm = tiny.loaded(small / "slm"), tiny.loaded(small / "llm")
    for name, lm, rank, targets in (
        ("one", slm, 2, "attention"),
        ("two", slm, 3, "all-linear"),
        ("big", llm, 2, "attention"),
    ):
        adapter = tiny.random_adapter(LoraStack(lm, rank, 4, targets), seed=rank, size=0.5)
        base = small / ("llm" if name == "big" else "slm")
        save_peft(adapter, found / name, str(base))
    return found


def in_turn(notes=None, **specs):
    said = notes.append if notes is not None else lambda _: None
    return InTurn(specs, RuntimeConfig(device="cpu"), said)


IDS = torch.arange(2, 12)[None]


def logits(loaded):
    if loaded.stack is not None:
        loaded.stack.load([loaded.adapter] if loaded.adapter else [])
    try:
        return loaded.lm.project(loaded.lm.hidden(IDS)[0])
    finally:
        if loaded.stack is not None:
            loaded.stack.load([])


def alone(base, adapter=None):
    """The same from a model that nobody else uses."""
    return logits(in_turn(x=Local(str(base), adapter))("x"))


def test_each_role_has_its_own_model_and_adapter_whatever_was_asked_before(small, folder):
    slm, llm = small / "slm", small / "llm"
    specs = {
        "bare": (slm, None),
        "one": (slm, folder / "one"),
        "two": (slm, folder / "two"),
        "big": (llm, folder / "big"),
        "large": (llm, None),
    }
    models = in_turn(**{role: Local(str(base), adapter) for role, (base, adapter) in specs.items()})
    wanted = {role: alone(*spec) for role, spec in specs.items()}
    assert not torch.allclose(wanted["bare"], wanted["one"], atol=1e-2)
    for role in ("one", "bare", "two", "one", "big", "large", "two", "bare"):
        torch.testing.assert_close(logits(models(role)), wanted[role], rtol=0, atol=0)


def test_a_base_that_several_roles_share_is_loaded_once(small, folder, monkeypatch):
    loads = []
    load = causal_lm.load
    monkeypatch.setattr(causal_lm, "load", lambda *a, **k: loads.append(a[0].name) or load(*a, **k))
    slm = str(small / "slm")
    notes = []
    models = in_turn(notes, a=Local(slm), b=Local(slm, folder / "one"), c=Local(str(small / "llm")))
    assert models("a").lm is models("b").lm
    assert models("b").stack is models("b").stack
    assert loads == ["slm"]
    models("c")
    models("a")
    assert loads == ["slm", "llm", "slm"]
    assert notes == ["loading slm", "loading llm", "loading slm"]


def test_one_model_is_in_memory_at_a_time(small, folder, monkeypatch):
    """When the next one is loaded, the one before and its adapters are gone."""
    alive = []
    load = causal_lm.load

    def watched(*args, **kwargs):
        assert [one() for one in alive if one() is not None] == []
        lm = load(*args, **kwargs)
        alive.extend([weakref.ref(lm), weakref.ref(lm.model)])
        return lm

    monkeypatch.setattr(causal_lm, "load", watched)
    models = in_turn(
        small=Local(str(small / "slm"), folder / "one"), large=Local(str(small / "llm"), folder / "big")
    )
    for role in ("small", "large", "small"):
        logits(models(role))
    assert len(alive) == 6


def test_an_adapter_of_another_base_is_refused(small, folder):
    models = in_turn(x=Local(str(small / "llm"), folder / "one"))
    with pytest.raises(ModelError, match=r"made for base .*Load the model it was trained on"):
        models("x")


def test_a_folder_that_holds_no_whole_adapter_is_refused(folder, tmp_path):
    (tmp_path / "adapter_config.json").write_text((folder / "one" / "adapter_config.json").read_text())
    with pytest.raises(ModelError, match="no readable PEFT adapter"):
        in_turn(x=local(str(tmp_path)))("x")


def test_an_adapter_whose_layers_this_model_has_not_is_refused(small, tmp_path):
    """Also if nobody wrote down which base it is of."""
    from safetensors.numpy import load_file, save_file

    stack = LoraStack(tiny.loaded(small / "slm"), 2, 4, "attention")
    save_peft(tiny.random_adapter(stack), tmp_path / "odd", str(small / "slm"))
    weights = tmp_path / "odd" / "adapter_model.safetensors"
    save_file({name.replace("self_attn", "cross_attn"): a for name, a in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="matches no layer"):
        in_turn(x=local(str(tmp_path / "odd")))("x")
    save_file({name.removeprefix("base_model."): a for name, a in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="layer"):
        in_turn(x=local(str(tmp_path / "odd")))("x")


def test_a_model_is_named_by_name_with_an_adapter_or_by_the_adapter_alone(small, folder, tmp_path):
    slm, one = str(small / "slm"), folder / "one"
    assert local("smollm2-135m") == Local("smollm2-135m")
    assert local(slm) == Local(slm)
    assert local(f"{slm}+{one}") == Local(slm, one)
    assert local(str(one)) == Local(slm, one)
    odd = tmp_path / "c++model"
    odd.mkdir()
    assert local(str(odd)) == Local(str(odd))
    assert local(f"{odd}+{one}") == Local(str(odd), one)


def test_what_is_no_adapter_is_told_with_what_was_expected(small, tmp_path):
    slm = small / "slm"
    with pytest.raises(ModelError, match=r"holds no adapter_config.json. Expected MODEL\+ADAPTER"):
        local(f"{slm}+{tmp_path / 'gone'}")
    for text in ("{}", "[]", "no json", '{"r": 2}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"the adapter does not name its model .*Name it: MODEL\+"):
            local(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    assert local(str(tmp_path)) == Local("x", tmp_path)


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="there is no such folder"):
        in_turn(x=Local(str(tmp_path / "gone")))("x")


def test_an_adapter_that_somebody_left_mounted_is_not_there_for_the_next(small, folder):
    slm = str(small / "slm")
    models = in_turn(bare=Local(slm), one=Local(slm, folder / "one"), two=Local(slm, folder / "two"))
    left = models("one")
    left.stack.load([left.adapter])
    torch.testing.assert_close(logits(models("two")), alone(slm, folder / "two"), rtol=0, atol=0)
    left.stack.load([left.adapter])
    torch.testing.assert_close(logits(models("bare")), alone(slm), rtol=0, atol=0)


def test_what_a_role_writes_is_written_with_its_adapter(small, folder):
    loaded = in_turn(x=local(str(folder / "two")))("x")
    with_it = LocalWriter(loaded.lm, loaded.stack, loaded.adapter)
    bare = LocalWriter(loaded.lm)
    sampling = Sampling(max_new_tokens=8)
    assert with_it.fingerprint != bare.fingerprint
    texts = [writer.write(["Q: fox?"], sampling)[0] for writer in (with_it, bare)]
    assert texts[0] != texts[1]
    assert loaded.lm.fingerprint == zoo.fingerprint(small / "slm")
