"""A frozen causal language model with its tokenizer: hidden states and logits, never more than asked for.

Logits are computed only for the positions a caller names, so nothing of shape [batch, length, vocabulary]
is ever kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cotune.errors import ModelError
from cotune.records import Example

AT_ONCE = 512
"""Examples for one call of the tokenizer: two to three times as fast as one by one, in bounded memory."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt + completion; the first `num_context` of them are given, the rest is predicted."""

    ids: tuple[int, ...]
    num_context: int
    was_cut: bool = False

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return len(self.ids) - self.num_context


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows and the places whose next token is predicted.

    ids [rows, length]; row, position, target [targets]: hidden state (row, position) predicts target.
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    target: Tensor


class CausalLM:
    """A frozen base model. Adapters are attached by `cotune.models.lora.LoraStack`."""

    def __init__(self, model: Any, tokenizer: Any, fingerprint: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        if self.head is None or self.body is model:
            raise ModelError(
                f"{type(model).__name__} has no separate body and output head. Use a causal language model "
                "(AutoModelForCausalLM)."
            )
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device  # type: ignore[no-any-return]

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.head.weight.shape[0])

    @property
    def start_id(self) -> int:
        """The token before everything: BOS, or EOS where the tokenizer has no BOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ModelError("the tokenizer has neither a BOS nor an EOS token; one of them must start a text.")

    def hidden(self, ids: Tensor, **extra: Any) -> Tensor:
        """Last hidden states, [rows, length, width], of right-padded ids [rows, length].

        Causal attention never looks right, so padding on the right needs no mask. `extra` goes to the body
        (e.g. a 4-D attention mask with its position ids).
        """
        out: Tensor = self.body(input_ids=ids, use_cache=False, **extra).last_hidden_state
        return out

    def project(self, hidden: Tensor) -> Tensor:
        """Next-token logits [positions, vocabulary] of hidden states [positions, width], at least float32."""
        logits: Tensor = self.head(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        config = self.model.config
        if getattr(config, "logits_scaling", None):
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):
            logits = logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def encode(self, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        """Tokens of examples, split as lm-evaluation-harness splits context and continuation.

        Free-text completions (no choices) are closed with EOS so that generation learns to stop. What is
        longer than `max_length` loses the start of its prompt, then the end of its completion.
        """
        found: list[Encoded] = []
        for begin in range(0, len(examples), AT_ONCE):
            some = examples[begin : begin + AT_ONCE]
            pairs = self.encode_pairs([(example.prompt, example.completion) for example in some])
            found += [
                fitted(context, self._closed(example, target), max_length)
                for example, (context, target) in zip(some, pairs, strict=True)
            ]
        return found

    def _closed(self, example: Example, target: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return target if example.choices or eos is None else [*target, int(eos)]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of what follows it, encoded together and split at the context's length.

        Trailing spaces of the context move to the continuation; an empty context becomes the start token. A
        text that already begins with the start token, as chat templates write it, gets no second one.
        """
        return self.encode_pairs([(context, continuation)])[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """`encode_pair` of many pairs in one call of the tokenizer, a context that repeats only once."""
        start = self.tokenizer.bos_token or self.tokenizer.eos_token
        texts: dict[tuple[str, bool], Any] = {}
        asked = []
        for context, continuation in pairs:
            head = context.rstrip()
            special = bool(head) and not (start and head.startswith(start))
            asked.append(((head, special), (context + continuation, special)))
            texts |= dict.fromkeys(asked[-1])
        for special in (False, True):
            keys = [key for key in texts if key[1] == special]
            if keys:
                found = self.tokenizer([text for text, _ in keys], add_special_tokens=special)["input_ids"]
                texts |= zip(keys, found, strict=True)
        return [self._split(texts[head], texts[whole]) for head, whole in asked]

    def _split(self, head: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
        if not head and whole[:1] != [self.start_id]:
            return [self.start_id], whole
        num_context = len(head) or 1
        return whole[:num_context], whole[num_context:]

    def batch(self, rows: Sequence[Encoded], length: int | None = None) -> Batch:
        """Right-padded tensors of some rows on the model's device."""
        length = length or max(len(row.ids) for row in rows)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row.ids, *[pad] * (length - len(row.ids))] for row in rows])
        places = [(r, p) for r, row in enumerate(rows) for p in range(row.num_context, len(row.ids))]
        where = torch.tensor(places, dtype=torch.long).reshape(-1, 2)
        target = ids[where[:, 0], where[:, 1]]
        device = self.device
        return Batch(ids.to(device), where[:, 0].to(device), where[:, 1].to(device) - 1, target.to(device))

    def _check_head(self) -> None:
        """The body and the head must together say what the whole model says."""
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        with torch.no_grad():
            whole = self.model(input_ids=ids, use_cache=False).logits[0].float()
            ours = self.project(self.hidden(ids)[0]).float()
        if not torch.allclose(whole, ours, rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{type(self.model).__name__} changes its logits after the head in an unknown way "
                f"(largest difference {float((whole - ours).abs().max()):.3g}). Please report this model."
            )


def fitted(context: list[int], target: list[int], max_length: int) -> Encoded:
    """Both as one text; what is too long loses the start of its context, then the end of its target."""
    kept = target[: max_length - 1]
    room = max_length - len(kept)
    head = context[-room:]
    return Encoded((*head, *kept), len(head), was_cut=len(head) < len(context) or len(kept) < len(target))


def load(
    folder: Path, fingerprint: str, *, device: str = "auto", dtype: str = "auto", remote_code: bool = False
) -> CausalLM:
    """Load a model folder once: float32 on a CPU, bfloat16 on an accelerator.

    Args:
        folder: an ordinary transformers folder (see `cotune.models.zoo.resolve`).
        fingerprint: hash of its weights.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `auto`, `float32`, `bfloat16`.
        remote_code: run code that comes with the model.

    Raises:
        ModelError: the folder cannot be loaded as a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cotune.models.gguf import silence

    place = pick_device(device)
    number = {"auto": torch.float32 if place.type == "cpu" else torch.bfloat16}.get(dtype)
    number = number or getattr(torch, dtype)
    try:
        with silence():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=number, trust_remote_code=remote_code)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{folder}: cannot be loaded as a causal language model: {first} "
            "Expected a transformers folder with config.json, safetensors weights and a tokenizer."
        ) from error
    return CausalLM(model.to(place), tokenizer, fingerprint)


def pick_device(name: str) -> torch.device:
    """`auto` takes an accelerator when there is one.

    Raises:
        ModelError: the named device is not there.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator()
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"runtime.device: {name!r} is not usable here ({error}). Use auto or cpu."
        ) from error


def tokenizer_digest(tokenizer: Any) -> str:
    """8 hex digits that name what a tokenizer does, for the keys of what is kept on disk."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def same_vocabulary(one: CausalLM, other: CausalLM) -> bool:
    """Whether a logit means the same token in both."""
    return one.vocab_size == other.vocab_size and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def check_vocabularies(llm: CausalLM, slm: CausalLM) -> None:
    """Logit distillation needs one vocabulary.

    Raises:
        ModelError: sizes or tokens differ; says both and what to do.
    """
    same = same_vocabulary(llm, slm)
    if not same:
        raise ModelError(
            f"llm and slm have different vocabularies ({llm.vocab_size} and {slm.vocab_size} logits, "
            f"{len(llm.tokenizer)} and {len(slm.tokenizer)} tokens), so they cannot share logits. "
            "Take two models of one family, cut the slm from the llm (slm.shrink), or set "
            "strategy.distill_weight=0."
        )
