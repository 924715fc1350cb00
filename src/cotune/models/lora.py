"""Stacked LoRA: K adapters on one frozen base, trained in one forward and backward.

Origin: Hu et al. 2021, https://arxiv.org/abs/2106.09685 (the adapter); the stacking is ours.

All values of client k lie in row k of one matrix [K, parameters]; the arrays a layer uses are views of it.
They are float32, also on a bfloat16 base; float64 on a float64 base.
A batch of K groups of rows meets adapter k in group k through one batched product, and the optimiser, the
clipping and the export of a client touch one contiguous row. Layers are reached by forward hooks, so any
linear class serves: torch's, GPT-2's Conv1D, or a quantised one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from cotune.errors import ModelError
from cotune.models.causal_lm import CausalLM
from cotune.records import Adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "c_attn", "query_key_value")
"""Endings of the layers that `targets: attention` means: query, key, value and output projections."""


WEIGHTS = "adapter_model.safetensors"
BASE = "cotune_base"
"""Where the fingerprint of the base stands in the metadata of the weights."""


@dataclass(frozen=True, slots=True)
class _Site:
    """One adapted layer: where its A [rank, num_in] and B [num_out, rank] start in a client's row."""

    path: str
    num_in: int
    num_out: int
    start: int

    def names(self) -> tuple[str, str]:
        """PEFT's names of A and B."""
        prefix = f"base_model.model.{self.path}"
        return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


class LoraStack:
    """K adapters mounted on one model. With none mounted the model is its plain self."""

    def __init__(self, lm: CausalLM, rank: int, alpha: float, targets: str | Sequence[str]) -> None:
        self.rank, self.alpha, self.base = rank, alpha, lm.fingerprint
        self.device = lm.device
        self.kind = np.float64 if lm.model.dtype == torch.float64 else np.float32
        self.sites: list[_Site] = []
        self.values = torch.empty(0)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._groups = 0
        start = 0
        for index, (path, layer) in enumerate(_targets(lm, targets)):
            num_in, num_out = _features(path, layer)
            self.sites.append(_Site(path, num_in, num_out, start))
            start += rank * (num_in + num_out)
            layer.register_forward_hook(self._hook(index))
        self.num_parameters = start

    def load(self, adapters: Sequence[Adapter]) -> None:
        """Mount adapters, one per group of rows; an empty sequence unmounts."""
        for adapter in adapters:
            self.check(adapter)
        rows = [np.concatenate([adapter.arrays[n].ravel() for n in self.names()]) for adapter in adapters]
        self._groups = len(rows)
        self._pairs = []
        if not rows:
            return
        self.values = torch.from_numpy(np.stack(rows).astype(self.kind, copy=False)).to(self.device)
        for site in self.sites:
            middle = site.start + self.rank * site.num_in
            a = self._view(slice(site.start, middle), (self.rank, site.num_in))
            b = self._view(slice(middle, middle + self.rank * site.num_out), (site.num_out, self.rank))
            self._pairs.append((a, b))

    def gradients(self, loss: Tensor) -> Tensor:
        """Gradient of a scalar with respect to every mounted value, [K, parameters]."""
        return self.flatten(torch.autograd.grad(loss, self.leaves))

    @property
    def leaves(self) -> list[Tensor]:
        """Every mounted A and B, [K, ...], in the order of a client's row."""
        return [leaf for pair in self._pairs for leaf in pair]

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Gradients of the leaves as rows, [K, parameters]."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def activate(self, groups: int) -> None:
        """Let only the first `groups` adapters take part; a batch then holds that many groups of rows."""
        self._groups = groups

    def export(self) -> list[Adapter]:
        """The mounted adapters as they are now."""
        rows = self.values.detach().cpu().numpy()
        return [Adapter(dict(self._split(row.copy())), self.base, self.rank, self.alpha) for row in rows]

    def fresh(self, rng: np.random.Generator) -> Adapter:
        """A new adapter that changes nothing yet: A uniform in +-1/sqrt(in) as PEFT draws it, B zero."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for site in self.sites:
            bound = 1 / math.sqrt(site.num_in)
            name_a, name_b = site.names()
            arrays[name_a] = rng.uniform(-bound, bound, (self.rank, site.num_in)).astype(self.kind)
            arrays[name_b] = np.zeros((site.num_out, self.rank), self.kind)
        return Adapter(arrays, self.base, self.rank, self.alpha)

    def names(self) -> Iterator[str]:
        """Array names in the order of a client's row."""
        for site in self.sites:
            yield from site.names()

    def check(self, adapter: Adapter) -> None:
        """Refuse an adapter that does not belong here.

        Raises:
            ModelError: other base, rank, scaling, layers or shapes; names the first difference.
        """
        if adapter.base != self.base:
            raise ModelError(
                f"adapter: made for base {adapter.base}, but this model is {self.base}. "
                "Load the model it was trained on, or train a new adapter."
            )
        if (adapter.rank, adapter.alpha) != (self.rank, self.alpha):
            raise ModelError(
                f"adapter: rank {adapter.rank}, alpha {adapter.alpha:g}; the configuration says rank "
                f"{self.rank}, alpha {self.alpha:g}. Make lora.rank and lora.alpha agree."
            )
        shapes = self.shapes()
        if adapter.arrays.keys() != shapes.keys():
            odd = sorted(adapter.arrays.keys() ^ shapes.keys())[0]
            raise ModelError(f"adapter: other layers than lora.targets, first difference {odd!r}.")
        for name, shape in shapes.items():
            if adapter.arrays[name].shape != shape:
                came = adapter.arrays[name].shape
                raise ModelError(f"adapter: {name} has shape {came}, expected {shape}.")

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every array by name."""
        found: dict[str, tuple[int, int]] = {}
        for site in self.sites:
            name_a, name_b = site.names()
            found[name_a], found[name_b] = (self.rank, site.num_in), (site.num_out, self.rank)
        return found

    def _view(self, columns: slice, shape: tuple[int, int]) -> Tensor:
        """A leaf [K, *shape] inside `values`."""
        return self.values[:, columns].view(-1, *shape).requires_grad_()

    def _split(self, row: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        shapes = self.shapes()
        start = 0
        for name in self.names():
            size = math.prod(shapes[name])
            yield name, row[start : start + size].reshape(shapes[name])
            start += size

    def _hook(self, index: int) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if not self._groups:
                return None
            a, b = self._pairs[index]
            return stacked_product(inputs[0], out, (a, b), (self._groups, self.alpha / self.rank))

        return add


def stacked_product(x: Tensor, out: Tensor, pair: tuple[Tensor, Tensor], how: tuple[int, float]) -> Tensor:
    """out + scaling * x A_k^T B_k^T, group by group.

    Args:
        x: [groups * rows, ..., in].
        out: [groups * rows, ..., out], what the frozen layer said.
        pair: A [K, rank, in] and B [K, out, rank], K >= groups; the first `groups` are used.
        how: groups and scaling.
    """
    groups, scaling = how
    a, b = (m if m.shape[0] == groups else m[:groups] for m in pair)
    a, b = a.to(x.dtype), b.to(x.dtype)
    if groups == 1:
        low = nn.functional.linear(x, a[0])
        return torch.add(out, nn.functional.linear(low, b[0]), alpha=scaling)
    low = torch.bmm(x.reshape(groups, -1, x.shape[-1]), a.transpose(1, 2))
    wide = out.reshape(groups, -1, out.shape[-1])
    return torch.baddbmm(wide, low, b.transpose(1, 2), alpha=scaling).view(out.shape)


def save_peft(adapter: Adapter, folder: Path, base_model: str) -> None:
    """Write an adapter as PEFT does: `adapter_model.safetensors` and `adapter_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": _paths(adapter),
    }
    arrays = {k: np.ascontiguousarray(v) for k, v in adapter.arrays.items()}
    # The base goes into the weights' metadata, for PEFT warns of keys it does not know in the configuration.
    # One entry only: safetensors writes several in any order, and equal adapters shall have equal bytes.
    save_file(arrays, folder / WEIGHTS, metadata={BASE: adapter.base})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_NOT_PLAIN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
"""Settings of PEFT under which A and B alone, scaled by alpha / rank, are not the whole adapter."""


def load_peft(folder: Path, base: str) -> Adapter:
    """Read a LoRA adapter in PEFT's format.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        base: fingerprint of the model it goes on; used where the folder does not name one.

    Raises:
        ModelError: files are missing or are no plain LoRA.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        arrays: Mapping[str, Any] = load_file(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "np") as file:
            base = (file.metadata() or {}).get(BASE, base)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: no readable PEFT adapter ({error}). Expected adapter_config.json and "
            "adapter_model.safetensors."
        ) from error
    odd = [name for name in _NOT_PLAIN if config.get(name)]
    if config.get("peft_type") != "LORA" or odd:
        came = ", ".join([str(config.get("peft_type")), *odd])
        raise ModelError(f"{folder}: only plain LoRA adapters are supported, got {came}.")
    floats = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return Adapter(floats, base, rank, alpha)


def load_stack(lm: CausalLM, folder: Path) -> tuple[LoraStack, Adapter]:
    """A saved adapter with a stack that it fits, on its model; `stack.load([adapter])` mounts it.

    Raises:
        ModelError: as `load_peft`, or the adapter does not belong to the model.
    """
    adapter = load_peft(folder, lm.fingerprint)
    stack = LoraStack(lm, adapter.rank, adapter.alpha, _paths(adapter))
    stack.check(adapter)
    return stack, adapter


def _paths(adapter: Adapter) -> list[str]:
    """The layers that an adapter changes."""
    return sorted({name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in adapter.arrays})


def _targets(lm: CausalLM, targets: str | Sequence[str]) -> list[tuple[str, Any]]:
    found = []
    for path, layer in lm.model.named_modules():
        if layer is lm.head or not _is_linear(layer):
            continue
        last = path.rsplit(".", 1)[-1]
        endings = ATTENTION if targets == "attention" else targets
        if targets == "all-linear" or last in endings or path in endings:
            found.append((path, layer))
    if not found:
        linear = sorted({p.rsplit(".", 1)[-1] for p, m in lm.model.named_modules() if _is_linear(m)})
        raise ModelError(f"lora.targets: {targets!r} matches no layer; this model has {', '.join(linear)}.")
    return found


def _is_linear(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Embedding) or weight is None or list(layer.children()):
        return False
    return hasattr(layer, "in_features") or type(layer).__name__ == "Conv1D"


def _features(path: str, layer: Any) -> tuple[int, int]:
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    if type(layer).__name__ == "Conv1D":
        num_in, num_out = layer.weight.shape
        return int(num_in), int(num_out)
    raise ModelError(f"{path}: {type(layer).__name__} does not say its sizes; leave it out of lora.targets.")
