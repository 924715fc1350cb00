"""Adapters on a frozen base: what they compute, and which are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import tiny
from cotune.errors import ModelError
from cotune.models.lora import LoraStack, load_peft, save_peft, stacked_product
from cotune.records import derived_rng

IDS = torch.arange(2, 22).view(4, 5)


@pytest.fixture
def lm():
    return tiny.lm()


def test_product_of_a_group_by_hand():
    # x = (1, 2); A = (1, 1) so the low value is 3; B = (2, 0)^T; scaling 0.5: adds (3, 0)
    out = stacked_product(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[10.0, 20.0]]),
        (torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[2.0], [0.0]]])),
        (1, 0.5),
    )
    assert out.tolist() == [[13.0, 20.0]]


def test_each_group_meets_its_own_adapter():
    rng = torch.Generator().manual_seed(0)
    x, out = (torch.randn(6, 3, n, generator=rng, dtype=torch.float64) for n in (5, 4))
    a, b = (torch.randn(3, *s, generator=rng, dtype=torch.float64) for s in ((2, 5), (4, 2)))
    found = stacked_product(x, out, (a, b), (3, 0.7))
    for k in range(3):
        mine = slice(2 * k, 2 * k + 2)
        expected = out[mine] + 0.7 * x[mine] @ a[k].T @ b[k].T
        torch.testing.assert_close(found[mine], expected, rtol=1e-12, atol=1e-12)


def test_a_fresh_adapter_changes_nothing(lm):
    stack = LoraStack(lm, 2, 4, "all-linear")
    plain = lm.hidden(IDS)
    stack.load([stack.fresh(derived_rng(0, "x"))])
    assert torch.equal(lm.hidden(IDS), plain)


def test_unmounting_gives_back_the_plain_model(lm):
    stack = LoraStack(lm, 2, 4, "all-linear")
    plain = lm.hidden(IDS)
    stack.load([tiny.random_adapter(stack)])
    assert not torch.allclose(lm.hidden(IDS), plain)
    stack.load([])
    assert torch.equal(lm.hidden(IDS), plain)


def test_mounting_many_is_mounting_each(lm):
    stack = LoraStack(lm, 2, 4, "all-linear")
    adapters = [tiny.random_adapter(stack, seed) for seed in range(4)]
    stack.load(adapters)
    together = lm.hidden(IDS)
    for k, adapter in enumerate(adapters):
        stack.load([adapter])
        torch.testing.assert_close(lm.hidden(IDS[k : k + 1])[0], together[k], rtol=1e-5, atol=1e-6)


def test_only_the_active_adapters_take_part(lm):
    stack = LoraStack(lm, 2, 4, "all-linear")
    adapters = [tiny.random_adapter(stack, seed) for seed in range(3)]
    stack.load(adapters)
    stack.activate(2)
    found = lm.hidden(IDS)
    stack.load(adapters[:2])
    torch.testing.assert_close(lm.hidden(IDS), found)


def test_exporting_gives_back_what_was_loaded(lm):
    stack = LoraStack(lm, 2, 4, "attention")
    adapters = [tiny.random_adapter(stack, seed) for seed in range(3)]
    stack.load(adapters)
    for before, after in zip(adapters, stack.export(), strict=True):
        assert (before.base, before.rank, before.alpha) == (after.base, after.rank, after.alpha)
        assert all(np.array_equal(before.arrays[n], after.arrays[n]) for n in before.arrays)


def test_an_exported_adapter_does_not_change_when_the_stack_does(lm):
    stack = LoraStack(lm, 2, 4, "attention")
    stack.load([tiny.random_adapter(stack)])
    [exported] = stack.export()
    name = next(iter(exported.arrays))
    before = exported.arrays[name].copy()
    with torch.no_grad():
        stack.values.add_(1.0)
    assert np.array_equal(exported.arrays[name], before)


def test_the_adapter_is_float64_only_on_a_float64_base():
    for base, kind in [
        (torch.float32, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float64, np.float64),
    ]:
        stack = LoraStack(tiny.lm(dtype=base), 2, 4, "attention")
        assert {a.dtype for a in stack.fresh(derived_rng(0)).arrays.values()} == {np.dtype(kind)}


def test_targets_by_word_by_ending_and_by_path():
    def count(targets):
        return len(LoraStack(tiny.lm(), 2, 4, targets).sites)

    # two layers: q, k, v, o are 4 each; gate, up and down 3 more; the output head never
    assert count("attention") == 8
    assert count("all-linear") == 14
    assert count(["q_proj", "up_proj"]) == 4
    assert count(["model.layers.1.self_attn.q_proj"]) == 1


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ModelError, match=r"'c_fc'.*matches no layer; this model has .*down_proj.*q_proj"):
        LoraStack(tiny.lm(), 2, 4, ["c_fc"])


def test_a_linear_class_of_another_library_is_adapted(lm):
    class Quantised(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = inner.in_features, inner.out_features
            self.weight = nn.Parameter((inner.weight * 10).round(), requires_grad=False)

        def forward(self, x):
            return x @ self.weight.T / 10

    attention = lm.model.model.layers[0].self_attn
    attention.q_proj = Quantised(attention.q_proj)
    stack = LoraStack(lm, 2, 4, ["q_proj"])
    plain = lm.hidden(IDS)
    stack.load([tiny.random_adapter(stack)])
    assert not torch.allclose(lm.hidden(IDS), plain)


def test_adapters_that_do_not_belong_here_are_refused(lm):
    stack = LoraStack(lm, 2, 4, "attention")
    good = stack.fresh(derived_rng(0))
    name = next(iter(good.arrays))
    fewer = {n: a for n, a in good.arrays.items() if n != name}
    wider = {**good.arrays, name: np.zeros((2, 33), np.float32)}
    cases = [
        (replace(good, base="other"), f"made for base other, but this model is {lm.fingerprint}"),
        (replace(good, rank=3), "rank 3, alpha 4; the configuration says rank 2"),
        (replace(good, alpha=5.0), "alpha 5; the configuration says rank 2, alpha 4"),
        (good.with_arrays(fewer), f"first difference '{name}'"),
        (good.with_arrays(wider), r"has shape \(2, 33\), expected \(2, 32\)"),
    ]
    for adapter, complaint in cases:
        with pytest.raises(ModelError, match=complaint):
            stack.load([adapter])


def test_saving_and_loading_gives_the_same_adapter(lm, tmp_path):
    stack = LoraStack(lm, 2, 4, "attention")
    adapter = tiny.random_adapter(stack)
    save_peft(adapter, tmp_path, "somewhere")
    found = load_peft(tmp_path, "ignored: the folder names its base")
    assert (found.base, found.rank, found.alpha) == (adapter.base, 2, 4.0)
    assert all(np.array_equal(found.arrays[n], adapter.arrays[n]) for n in adapter.arrays)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"peft_type": "IA3"}, "got IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": None}, "no readable PEFT adapter"),
    ],
)
def test_what_is_not_plain_lora_is_refused(tmp_path, change, complaint):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **change}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=complaint):
        load_peft(tmp_path, "base")


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"Expected adapter_config.json and adapter_model.safetensors"):
        load_peft(tmp_path, "base")
