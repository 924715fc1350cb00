"""The decoder layers of a model, of whatever family: found by their number, left out, renumbered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cotune.errors import ModelError

Handle = Any
"""What torch gives to take a hook off again: it has `remove()`."""


class LayerStack:
    """The one `ModuleList` of a model that holds as many modules as its config has layers."""

    def __init__(self, model: nn.Module) -> None:
        self.config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
        self.depth = int(self.config.num_hidden_layers)
        self.owner, self.attribute, self.name = self._find(model)
        self.modules: list[nn.Module] = list(getattr(self.owner, self.attribute))

    def on_input(self, layer: int, change: Callable[[Tensor], Tensor | None]) -> Handle:
        """Show a layer's input to `change`; what it returns, unless None, is what the layer gets."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = args[0] if args else kwargs["hidden_states"]
            other = change(state)
            if other is None:
                return None
            return ((other, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": other})

        return self.modules[layer].register_forward_pre_hook(hook, with_kwargs=True)

    def on_output(self, layer: int, look: Callable[[Tensor], None]) -> Handle:
        """Show a layer's output to `look`."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            look(output[0] if isinstance(output, tuple) else output)

        return self.modules[layer].register_forward_hook(hook)

    @contextmanager
    def only(self, kept: Sequence[int]) -> Iterator[None]:
        """Let the model run with these layers alone, in this order; everything is put back afterwards."""
        before = {**per_layer(self.config), "num_hidden_layers": self.depth}
        setattr(self.owner, self.attribute, nn.ModuleList([self.modules[i] for i in kept]))
        _reduce(self.config, kept)
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, nn.ModuleList(self.modules))
            for key, value in before.items():
                setattr(self.config, key, value)

    def renamed(self, state: dict[str, Tensor], kept: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a model that has only the `kept` layers, numbered from 0; nothing is copied."""
        places = {layer: place for place, layer in enumerate(kept)}
        prefix = f"{self.name}."
        renamed = {}
        for key, tensor in state.items():
            if not key.startswith(prefix):
                renamed[key] = tensor
                continue
            number, _, rest = key.removeprefix(prefix).partition(".")
            if int(number) in places:
                renamed[f"{prefix}{places[int(number)]}.{rest}"] = tensor
        return renamed

    def _find(self, model: nn.Module) -> tuple[nn.Module, str, str]:
        for path, module in model.named_modules():
            for attribute, child in module.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == self.depth:
                    return module, attribute, f"{path}.{attribute}".lstrip(".")
        raise ModelError(
            f"{type(model).__name__}: no list of {self.depth} decoder layers found, so it cannot be shrunk; "
            "expected a decoder like Llama, Qwen, Gemma, GPT-2 or OPT"
        )


def per_layer(config: Any) -> dict[str, list[Any]]:
    """The entries of a config that hold one value for each layer, e.g. `layer_types`; no lists of tokens."""
    depth = config.num_hidden_layers
    return {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list) and len(value) == depth and "token" not in key and key != "architectures"
    }


def shrunk_config(config: Any, kept: Sequence[int]) -> Any:
    """A copy of a model's config for the `kept` layers alone."""
    smaller = copy.deepcopy(config)
    _reduce(smaller.get_text_config(), kept)
    return smaller


def _reduce(config: Any, kept: Sequence[int]) -> None:
    """Cut depth and per-layer entries of a config down to the `kept` layers, in place."""
    entries = per_layer(config)
    config.num_hidden_layers = len(kept)
    for key, value in entries.items():
        setattr(config, key, [value[i] for i in kept])
