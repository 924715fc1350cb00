"""A model of this process as a writer of texts, with or without an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cotune.models import generate
from cotune.models.causal_lm import CausalLM, tokenizer_digest
from cotune.models.lora import LoraStack
from cotune.models.score import context_length
from cotune.records import Adapter, Keep, Sampling, Written, adapter_digest


@dataclass(frozen=True, slots=True)
class LocalWriter:
    """See `cotune.pool.Writer`.

    Attributes:
        lm: the model.
        stack: where its adapters are mounted; None for a model that has none.
        adapter: what it writes with, mounted anew at each `write`; None: the bare model.
        tokens: positions per batch, new ones included; see `generate.TOGETHER`.
    """

    lm: CausalLM
    stack: LoraStack | None = None
    adapter: Adapter | None = None
    tokens: int = generate.TOGETHER

    @property
    def fingerprint(self) -> str:
        """Of weights and their type, context, tokenizer, and adapter unless it changes nothing."""
        adapter = None if self.adapter is None or self.adapter.is_neutral else self.adapter
        how = (tokenizer_digest(self.lm.tokenizer), str(self.lm.model.dtype), str(context_length(self.lm)))
        return "-".join((self.lm.fingerprint, *how, adapter_digest(adapter) or "bare"))

    @property
    def together(self) -> bool:
        """Whether what is written in the same batch changes a text: everywhere but in float32 on a CPU, a
        batch moves the last bits, which now and then decide between two tokens."""
        return self.lm.device.type != "cpu" or self.lm.model.dtype != torch.float32

    def write(self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None = None) -> list[Written]:
        """What the model writes after each prompt; see `cotune.models.generate.write`."""
        if self.stack is not None:
            self.stack.load([self.adapter] if self.adapter else [])
        try:
            return generate.write(self.lm, prompts, tokens=self.tokens, sampling=sampling, keep=keep)
        finally:
            if self.stack is not None:  # whoever uses the model next finds it bare
                self.stack.load([])
