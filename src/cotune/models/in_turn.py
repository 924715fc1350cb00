"""Local models by role, one in memory at a time: the next one is loaded when it is asked for."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cotune.config import RuntimeConfig
from cotune.errors import ModelError
from cotune.models import causal_lm, zoo
from cotune.models.causal_lm import CausalLM
from cotune.models.lora import LoraStack, load_stack
from cotune.records import Adapter


@dataclass(frozen=True, slots=True)
class Local:
    """A model of this machine, perhaps with the folder of a PEFT adapter on it."""

    model: str
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready: `stack` holds its adapters, `adapter` is the one it is used with; None: bare."""

    lm: CausalLM
    stack: LoraStack | None = None
    adapter: Adapter | None = None


def local(text: str) -> Local:
    """`MODEL`, `MODEL+ADAPTER`, or the folder of a PEFT adapter, which names its model itself.

    Raises:
        ModelError: the adapter's folder does not say which model it belongs to.
    """
    if (Path(text) / "adapter_config.json").is_file():
        return Local(_base_of(Path(text)), Path(text))
    model, plus, adapter = text.rpartition("+")
    if plus and model and (Path(adapter) / "adapter_config.json").is_file():
        return Local(model, Path(adapter))
    if plus and model and not Path(text).exists():
        raise ModelError(
            f"{text!r}: {adapter!r} holds no adapter_config.json. Expected MODEL+ADAPTER, where ADAPTER is a "
            "folder in PEFT's format, such as runs/quickstart/adapters/slm"
        )
    return Local(text)


def _base_of(folder: Path) -> str:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: the adapter does not name its model ({error}). Name it: MODEL+{folder}"
        ) from error


@dataclass(slots=True)
class InTurn:
    """Calling it with a role gives the model; a model that another role uses too is not loaded again."""

    specs: Mapping[str, Local]
    runtime: RuntimeConfig
    note: Callable[[str], None]
    _folder: Path | None = field(default=None, init=False)
    _lm: CausalLM | None = field(default=None, init=False)
    _stacks: dict[Path, tuple[LoraStack, Adapter]] = field(default_factory=dict, init=False)

    def __call__(self, role: str) -> Loaded:
        """The model of a role, with its adapter mounted or none.

        Raises:
            ModelError: there is no such model, or the adapter does not fit it.
        """
        spec = self.specs[role]
        lm = self._model(Path(zoo.resolve(spec.model, progress=self.note)))
        for stack, _ in self._stacks.values():
            stack.load([])
        if spec.adapter is None:
            return Loaded(lm)
        if spec.adapter not in self._stacks:
            self._stacks[spec.adapter] = load_stack(lm, spec.adapter)
        stack, adapter = self._stacks[spec.adapter]
        return Loaded(lm, stack, adapter)

    def _model(self, folder: Path) -> CausalLM:
        if self._lm is None or folder != self._folder:
            if self._lm is not None:
                self._lm, self._stacks = None, {}
                gc.collect()  # two models need not fit in memory together
            self.note(f"loading {folder.name}")
            self._lm = causal_lm.load(
                folder, zoo.fingerprint(folder), device=self.runtime.device, dtype=self.runtime.dtype
            )
            self._folder = folder
        return self._lm
