"""Batched generation: prompts -> texts, greedy or sampled, the same for the same seed.

A sampled token is the largest of log-probability plus Gumbel noise (Gumbel 1954), and every prompt draws its
noise from a stream of its own, so that a text does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cotune.models.causal_lm import CausalLM
from cotune.models.score import batches, context_length
from cotune.records import derived_rng


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are drawn.

    max_new_tokens: at most so many; temperature 0 is greedy; top_p: tokens outside the most likely part of
    that mass are never drawn; seed: the only source of randomness; stop: a text ends before any of these.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


GREEDY = Sampling()


def generate(lm: CausalLM, prompts: Sequence[str], *, tokens: int, sampling: Sampling = GREEDY) -> list[str]:
    """What the model writes after each prompt.

    Args:
        lm: the model, with or without one adapter mounted.
        prompts: trailing blanks are the text's business, as in `CausalLM.encode_pair`; a prompt that leaves
            no room for `max_new_tokens` loses its start.
        tokens: positions per batch, new ones and padding included; a longer prompt gets a batch of its own.
        sampling: greedy unless told otherwise.

    Returns:
        Texts in the order of `prompts`, without the prompt, special tokens and the stop string.
    """
    room = max(1, context_length(lm) - sampling.max_new_tokens)
    rows = [head[-room:] for head, _ in lm.encode_pairs([(prompt.rstrip(), "") for prompt in prompts])]
    texts = [""] * len(rows)
    for batch in batches([len(row) + sampling.max_new_tokens for row in rows], tokens):
        for index, text in zip(batch, _continue(lm, rows, batch, sampling), strict=True):
            texts[index] = text
    return texts


def _continue(lm: CausalLM, rows: Sequence[list[int]], batch: Sequence[int], sampling: Sampling) -> list[str]:
    length = max(len(rows[i]) for i in batch)
    pad = lm.tokenizer.pad_token_id or 0
    ids = torch.tensor([[*[pad] * (length - len(rows[i])), *rows[i]] for i in batch], device=lm.device)
    mask = torch.tensor([[0] * (length - len(rows[i])) + [1] * len(rows[i]) for i in batch], device=lm.device)
    ends = _end_ids(lm)
    with torch.no_grad():
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=_plain_config(sampling.max_new_tokens, ends, pad),
            logits_processor=_processors(sampling, batch, lm.device),
            stopping_criteria=_stops(lm, sampling, length),
        )
    return [_text(lm, row, ends, sampling.stop) for row in out[:, length:].tolist()]


def _end_ids(lm: CausalLM) -> list[int]:
    """Tokens that end a text: the tokenizer's and those of the model's own generation settings."""
    own = lm.model.generation_config.eos_token_id
    found = [lm.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({int(token) for token in found if token is not None})


def _plain_config(max_new_tokens: int, ends: list[int], pad: int) -> Any:
    """Settings that leave no room for those that came with the model (penalties, sampling, beams)."""
    from transformers import GenerationConfig

    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0, "min_length": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        no_repeat_ngram_size=0,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **neutral,
    )


def _processors(sampling: Sampling, batch: Sequence[int], device: torch.device) -> Any:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if not sampling.temperature:
        return LogitsProcessorList()
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    streams = [torch.Generator(device).manual_seed(_seed(sampling.seed, index)) for index in batch]

    def add_noise(_ids: Tensor, scores: Tensor) -> Tensor:
        waits = torch.stack([torch.empty_like(scores[0]).exponential_(generator=s) for s in streams])
        return scores - waits.log()

    return LogitsProcessorList([*warpers, add_noise])


def _seed(seed: int, index: int) -> int:
    return int(derived_rng(seed, "generate", str(index)).integers(1 << 62))


def _stops(lm: CausalLM, sampling: Sampling, length: int) -> Any:
    """Ends a row as soon as its new text holds a stop string."""
    from transformers import StoppingCriteriaList

    def is_over(ids: Tensor, _scores: Any, **_kwargs: Any) -> Tensor:
        texts = lm.tokenizer.batch_decode(ids[:, length:])
        over = [any(stop in text for stop in sampling.stop) for text in texts]
        return torch.tensor(over, device=ids.device)

    return StoppingCriteriaList([is_over] if sampling.stop else [])


def _text(lm: CausalLM, ids: list[int], ends: list[int], stops: Sequence[str]) -> str:
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = str(lm.tokenizer.decode(ids[:last], skip_special_tokens=True))
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
