"""Models that selectors read from, by name, each loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cotune.config import RuntimeConfig
from cotune.models import causal_lm, encoder, zoo
from cotune.models.learner import Learner
from cotune.models.reader import Causal, ModelReader
from cotune.models.vectors import Vectors
from cotune.protocols import SLM
from cotune.wheels import cache_dir

Tick = Callable[[int, int], None]


@dataclass(slots=True)
class Readers:
    """`slm` is the clients' own model; any other name is a frozen one, from the catalogue, a folder or a hub.

    Attributes:
        slm: loads the clients' model; or the name of a frozen one that stands for it.
        runtime: device, type, and tokens per pass.
        note: told what is being loaded.
        tick: told how many texts are read, of how many.
    """

    slm: Callable[[], Learner] | str
    runtime: RuntimeConfig
    note: Callable[[str], None]
    tick: Tick = lambda *_: None
    loaded: dict[str, ModelReader] = field(default_factory=dict)

    def __call__(self, name: str) -> ModelReader:
        """The reader of a model.

        Raises:
            ModelError: there is no such model.
        """
        if name == SLM and isinstance(self.slm, str):
            name = self.slm
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    @property
    def num_cut(self) -> int:
        """Texts so far that were longer than the model that read them can read."""
        return sum(reader.num_cut for reader in self.loaded.values())

    def _load(self, name: str) -> ModelReader:
        vectors, tokens = Vectors(cache_dir() / "features.sqlite", self.note), self.runtime.score_tokens
        if name == SLM and not isinstance(self.slm, str):
            learner = self.slm()
            causal = Causal(learner.lm, learner.stack, learner.lm.fingerprint)
            return ModelReader(causal, tokens, vectors, self.tick)
        self.note(f"loading {name} to read with")
        folder = Path(zoo.resolve(name, progress=self.note))
        fingerprint = zoo.fingerprint(folder)
        if encoder.is_encoder(folder):
            read = encoder.load(folder, fingerprint, self.runtime.device)
            return ModelReader(read, tokens, vectors, self.tick)
        lm = causal_lm.load(folder, fingerprint, device=self.runtime.device, dtype=self.runtime.dtype)
        return ModelReader(Causal(lm, None, fingerprint), tokens, vectors, self.tick)
