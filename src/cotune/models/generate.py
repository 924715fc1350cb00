"""Batched generation: prompts -> texts, greedy or sampled, the same for the same seed.

A sampled token is the largest of log-probability plus Gumbel noise (Gumbel 1954), and every text draws its
noise from a stream of its own, so that it depends on its prompt and the seed and not on what else is in the
batch (but for its last bits, see `LocalWriter.together`). A row that has ended leaves its batch soon: a few
long texts do not make the short ones cost as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from cotune.models.causal_lm import CausalLM
from cotune.models.score import batches, context_length
from cotune.records import Keep, Sampling, Written, derived_rng

GREEDY = Sampling()
TOGETHER = 16_384
"""Positions of a batch of texts. It changes speed and memory alone: keys and values of so many tokens are
held at a time, of SmolLM2-135M 46 kB each. A step of many rows costs little more than that of one row."""
_SHARE = 8
"""Rows that have ended leave when they are one in so many: leaving costs about as much as a token."""
_MARGIN = 8
"""Tokens read before a stop string, so that how a tokenizer decodes the first of them does not matter."""


def generate(
    lm: CausalLM, prompts: Sequence[str], *, tokens: int = TOGETHER, sampling: Sampling = GREEDY
) -> list[str]:
    """The texts of `write`."""
    return [written.text for written in write(lm, prompts, tokens=tokens, sampling=sampling)]


def write(
    lm: CausalLM,
    prompts: Sequence[str],
    *,
    tokens: int = TOGETHER,
    sampling: Sampling = GREEDY,
    keep: Keep | None = None,
) -> list[Written]:
    """What the model writes after each prompt.

    Args:
        lm: the model, with or without one adapter mounted.
        prompts: trailing blanks are the text's business, as in `CausalLM.encode_pair`; a prompt that leaves
            no room for `max_new_tokens` loses its start.
        tokens: positions per batch, new ones and padding included; a longer prompt gets a batch of its own.
        sampling: greedy unless told otherwise.
        keep: told some texts at a time, by number of the prompt, as soon as they are there.

    Returns:
        Texts in the order of `prompts`, without the prompt, special tokens and the stop string. Equal prompts
        get equal texts: for several texts of one prompt, ask with several seeds.
    """
    room = max(1, context_length(lm) - sampling.max_new_tokens)
    heads = [head[-room:] for head, _ in lm.encode_pairs([(prompt.rstrip(), "") for prompt in prompts])]
    found: dict[int, Written] = {}
    for numbers in batches([len(head) + sampling.max_new_tokens for head in heads], tokens):
        rows = [_Row(i, heads[i], _stream(lm, sampling, prompts[i])) for i in numbers]
        for new in _Batch(lm, rows, sampling).texts():
            found |= new
            if keep:
                keep(new)
    return [found[i] for i in range(len(heads))]


@dataclass(frozen=True, slots=True)
class _Row:
    """The number of a prompt, its tokens, and where the noise of its text comes from."""

    number: int
    head: list[int]
    stream: Generator | None


class _Batch:
    """Rows that are written together; ids [rows, length], padded on the left; mask [rows, final length]."""

    def __init__(self, lm: CausalLM, rows: Sequence[_Row], sampling: Sampling) -> None:
        self.lm, self.rows, self.sampling = lm, list(rows), sampling
        self.end_ids = _end_ids(lm)
        self.start = max(len(row.head) for row in rows)
        self.limit = self.start + sampling.max_new_tokens
        pad, gaps = lm.tokenizer.pad_token_id or 0, [self.start - len(row.head) for row in rows]
        padded = [[pad] * gap + row.head for gap, row in zip(gaps, rows, strict=True)]
        self.ids = torch.tensor(padded, device=lm.device)
        self.mask = torch.tensor([[0] * gap + [1] * (self.limit - gap) for gap in gaps], device=lm.device)
        self.cache: Any = None
        self.can_drop = True

    def texts(self) -> Iterator[dict[int, Written]]:
        """All texts by number of the prompt, some at a time."""
        while self.rows:
            ends = self._advance(-(-len(self.rows) // _SHARE) if self.can_drop else len(self.rows))
            is_full = self.ids.shape[1] >= self.limit
            over = [row for row in range(len(self.rows)) if is_full or row in ends]
            yield {self.rows[row].number: self._written(row, ends.get(row)) for row in over}
            self._drop(over)

    def _advance(self, patience: int) -> dict[int, int]:
        """Write on until so many rows have ended; returns the length at which each of them has."""
        from transformers import StoppingCriteriaList

        watch = _Watch(self, patience)
        with torch.no_grad():
            out = self.lm.model.generate(
                input_ids=self.ids,
                attention_mask=self.mask[:, : self.ids.shape[1]],
                generation_config=_plain_config(self.lm, self.limit - self.ids.shape[1], self.end_ids),
                logits_processor=_processors(self.sampling, [row.stream for row in self.rows]),
                stopping_criteria=StoppingCriteriaList([watch]),
                **({} if self.cache is None else {"past_key_values": self.cache}),
            )
        self.ids, self.cache = out.sequences, _selectable(getattr(out, "past_key_values", None))
        self.can_drop = self.cache is not None
        return watch.ends

    def _drop(self, rows: Sequence[int]) -> None:
        stay = [row for row in range(len(self.rows)) if row not in set(rows)]
        self.rows = [self.rows[row] for row in stay]
        chosen = torch.tensor(stay, dtype=torch.long, device=self.ids.device)
        self.ids, self.mask = self.ids[chosen], self.mask[chosen]
        if self.cache is not None and stay:
            self.cache.batch_select_indices(chosen)

    def _written(self, row: int, end: int | None) -> Written:
        """The text of a row that has ended at that length; None: the length cap cut it."""
        new = self.ids[row, self.start : end].tolist()
        plain = new[:-1] if new[-1] in self.end_ids else new
        text = str(self.lm.tokenizer.decode(plain, skip_special_tokens=True))
        return Written(self.sampling.cut(text), len(self.rows[row].head), len(new), end is not None)


class _Watch:
    """Sees every new token: which rows have ended, and when it is time to let them go."""

    def __init__(self, batch: _Batch, patience: int) -> None:
        self.tokenizer, self.start, self.stops = batch.lm.tokenizer, batch.start, batch.sampling.stop
        self.end_ids = torch.tensor(batch.end_ids, dtype=torch.long, device=batch.ids.device)
        self.reach = max((len(stop.encode()) for stop in self.stops), default=0) + _MARGIN
        self.patience = patience
        self.ends: dict[int, int] = {}

    def __call__(self, ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        if len(self.ends) < self.patience:
            for row in self._ended(ids):
                self.ends.setdefault(row, ids.shape[1])
        return torch.full((len(ids),), len(self.ends) >= self.patience, device=ids.device)

    def _ended(self, ids: Tensor) -> list[int]:
        found = torch.isin(ids[:, -1], self.end_ids).nonzero().flatten().tolist()
        if self.stops:  # a token is one byte or more, so a stop string that has just come is in the last few
            near = self.tokenizer.batch_decode(ids[:, max(self.start, ids.shape[1] - self.reach) :])
            found += [row for row, text in enumerate(near) if self._stopped(text) and self._is_over(ids[row])]
        return found

    def _is_over(self, ids: Tensor) -> bool:
        return self._stopped(self.tokenizer.decode(ids[self.start :]))

    def _stopped(self, text: str) -> bool:
        return any(stop in text for stop in self.stops)


def _selectable(cache: Any) -> Any:
    """The keys and values of a batch if rows can be taken out of them; else None: they are computed again."""
    from transformers import DynamicCache

    is_known = type(cache) is DynamicCache
    return cache if is_known and all(hasattr(x, "batch_select_indices") for x in cache.layers) else None


def _end_ids(lm: CausalLM) -> list[int]:
    """Tokens that end a text: the tokenizer's and those of the model's own generation settings."""
    own = lm.model.generation_config.eos_token_id
    found = [lm.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({int(token) for token in found if token is not None})


def _plain_config(lm: CausalLM, num_tokens: int, ends: list[int]) -> Any:
    """Settings that leave no room for those that came with the model (penalties, sampling, beams)."""
    from transformers import GenerationConfig

    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0, "min_length": 0}
    return GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=False,
        num_beams=1,
        no_repeat_ngram_size=0,
        eos_token_id=ends or None,
        pad_token_id=lm.tokenizer.pad_token_id or 0,
        return_dict_in_generate=True,
        **neutral,
    )


def _processors(sampling: Sampling, streams: Sequence[Generator | None]) -> Any:
    """What happens to the scores of the next token before the largest is taken."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if not sampling.temperature:
        return LogitsProcessorList()
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []

    def add_noise(_ids: Tensor, scores: Tensor) -> Tensor:
        waits = torch.stack([torch.empty_like(scores[0]).exponential_(generator=s) for s in streams])
        return scores - waits.log()

    return LogitsProcessorList([*warpers, add_noise])


def _stream(lm: CausalLM, sampling: Sampling, prompt: str) -> Generator | None:
    """Noise for the text of one prompt; none if it is greedy."""
    if not sampling.temperature:
        return None
    return Generator(lm.device).manual_seed(_seed(sampling.seed, prompt))


def _seed(seed: int, prompt: str) -> int:
    return int(derived_rng(seed, "generate", prompt).integers(1 << 62))
