"""The models of a run, loaded: the LLM where it is needed, and the SLM of each family of clients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cotune import families, plugins
from cotune.config import Config, ModelConfig, RuntimeConfig, ShrinkConfig
from cotune.data import Dataset
from cotune.errors import ModelError
from cotune.models import causal_lm, zoo
from cotune.models.heal import Healing, heal
from cotune.models.learner import Hiding, Learner
from cotune.models.lora import LoraStack, save_peft
from cotune.models.shrink import shrink
from cotune.models.tune import Tick
from cotune.protocols import SLM, State
from cotune.records import Example, Note
from cotune.wheels import cache_dir

SHRINK_TEXTS = 32
"""Public examples on which the layers' influence is measured."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The models of a run: the LLM where it is needed, and of each family the SLM and who holds it."""

    llm: Learner | None
    slms: Mapping[str, Learner]
    members: Mapping[str, tuple[str, ...]]

    @property
    def roles(self) -> frozenset[str]:
        """Which of `slm` and `llm` there are."""
        return frozenset([SLM] * bool(self.slms) + ["llm"] * bool(self.llm))

    @property
    def num_values(self) -> int:
        """Values of one client's update; of the family that has most."""
        return max((slm.stack.num_parameters for slm in self.slms.values()), default=0)

    def of(self, family: str) -> dict[str, Learner]:
        """The models that a strategy meets, by role."""
        slm = {SLM: self.slms[family]} if self.slms else {}
        return {**slm, **({"llm": self.llm} if self.llm else {})}

    @property
    def models(self) -> dict[str, Learner]:
        """All of them: `llm`, and the SLMs by family."""
        return {**({"llm": self.llm} if self.llm else {}), **self.slms}

    def hiding(self, config: Config, secret_of: Callable[[str], bytes]) -> Fleet:
        """The same where clients tune so that none of their examples shows, if the configuration says so."""
        models = families.models(config)
        slms = {
            name: replace(slm, hiding=Hiding(private, secret_of))
            if (private := models[name].tune.private)
            else slm
            for name, slm in self.slms.items()
        }
        return replace(self, slms=slms)

    def describe(self, config: Config) -> dict[str, Any]:
        """Which models, and where they are, for results.json; `label` is for people to read."""
        asked = {"llm": config.llm, **families.models(config)}
        named = {
            name: {"model": m.name, "label": _label(asked[name]), "fingerprint": m.lm.fingerprint}
            for name, m in self.models.items()
        }
        return {"device": str(next(iter(self.models.values())).lm.device), "models": named}

    def save(self, folder: Path, state: State) -> None:
        """The adapters in PEFT's format, one folder each."""
        for name, adapter in state.adapters().items():
            save_peft(adapter, folder / name, self.models[name].name)


def load(
    config: Config, dataset: Dataset, tick: Callable[[str], Tick], note: Note, client: str | None = None
) -> Fleet:
    """What the strategy trains, and both roles where they teach each other; an endpoint stands for the LLM.

    Where no SLM is trained, who would hold which does not matter. A process of one `client` holds the SLM of
    its family, and nothing else.
    """
    trained = plugins.module("strategy", config.strategy.name).TRAINS
    wanted = trained | ({SLM, "llm"} if config.allocator else set())
    if config.allocator and config.teach.teacher:
        wanted -= {"llm"}
    members = families.members(config, dataset.clients)
    if client is not None:
        members = {name: found for name, found in members.items() if client in found}
        wanted -= {"llm"}
    around = (config.runtime, dataset.public, note)
    llm = learner("llm", config.llm, tick, around) if "llm" in wanted else None
    if SLM not in wanted:
        return Fleet(llm, {}, {SLM: dataset.clients})
    slms = {
        name: learner(SLM, model, tick, around)
        for name, model in families.models(config).items()
        if name in members
    }
    return Fleet(llm, slms, members)


def _label(model: ModelConfig) -> str:
    return f"{model.model}, {model.shrink.layers} layers" if model.shrink else model.model


def learner(
    role: str,
    model: ModelConfig,
    tick: Callable[[str], Tick],
    around: tuple[RuntimeConfig, Sequence[Example], Note],
) -> Learner:
    """One role's model: found, cut if asked for, loaded, and given its adapters."""
    runtime, public, note = around
    folder, name = Path(zoo.resolve(model.model, revision=model.revision, progress=note)), model.model
    if model.shrink is not None:
        note(f"cutting {model.model} to {model.shrink.layers} layers")
        folder = cut(folder, model.shrink, public, runtime.device)
        name = str(folder)
    note(f"loading {role} {model.model}")
    lm = causal_lm.load(
        folder,
        zoo.fingerprint(folder),
        device=runtime.device,
        dtype=runtime.dtype,
        remote_code=model.trust_remote_code,
    )
    stack = LoraStack(lm, model.lora.rank, model.lora.alpha, model.lora.targets)
    return Learner(role, name, lm, stack, model.tune, runtime.stack, tick(role))


def cut(teacher: Path, how: ShrinkConfig, public: Sequence[Example], device: str) -> Path:
    """The depth-pruned student of a teacher; made once for the same teacher, public texts and settings.

    Where it is made (`device`: see `causal_lm.load`) does not tell two students apart.
    """
    texts = [example.prompt + example.completion for example in public]
    few = texts[:: max(1, len(texts) // SHRINK_TEXTS)][:SHRINK_TEXTS]
    student = _student([zoo.fingerprint(teacher), how.layers, how.method, few])
    _once(
        student,
        lambda: shrink(teacher, student, layers=how.layers, texts=few, method=how.method, device=device),
    )
    if how.heal_steps == 0:
        return student
    healed = _student([student.name, how.heal_steps, texts])
    healing = Healing(steps=how.heal_steps, device=device)
    _once(healed, lambda: heal(student, teacher, healed, texts=texts, healing=healing))
    return healed


def _once(student: Path, make: Callable[[], object]) -> None:
    """Make a student that is not there; another run that makes the same one may be faster."""
    if not student.exists():
        try:
            make()
        except ModelError:
            if not student.exists():
                raise


def _student(made_from: Sequence[Any]) -> Path:
    """Where the student made from these values is kept; it appears there whole or not at all."""
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    return cache_dir() / "students" / digest
