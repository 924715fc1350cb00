"""Features of texts: the last token in every layer of a causal model, or the mean token of an encoder.

Papers: FedHDS (all layers' last token), https://arxiv.org/abs/2410.10926; sentence encoders: Reimers and
Gurevych 2019, https://arxiv.org/abs/1908.10084. Texts of similar length share a pass; no head, no logits, and
of every layer only the last token is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotune.models.causal_lm import CausalLM
from cotune.models.layers import LayerStack
from cotune.models.score import batches, context_length

Floats = npt.NDArray[np.float32]
Part = tuple[list[int], Floats]
"""Numbers of some texts, and their features [texts, features]."""


@torch.no_grad()
def last_tokens(lm: CausalLM, texts: Sequence[str], tokens: int) -> Iterator[tuple[Part, int]]:
    """Hidden states of each text's last token: the embedding, then every layer, the last one normalised.

    Each layer's vector is standardised on its own (mean 0, deviation 1 over its width), so that no layer
    drowns the others.

    Args:
        lm: the model, with or without an adapter mounted.
        texts: any texts; an empty one is read as the start token.
        tokens: positions per forward pass, padding included; a longer text gets a pass of its own.

    Yields:
        ((numbers, [texts, (layers + 1) * width]), how many of them lost their start to fit the context).
    """
    rows, num_cut = _encode(lm, texts)
    stack = LayerStack(lm.model)
    for chosen in batches([len(row) for row in rows], tokens):
        last = torch.tensor([len(rows[i]) - 1 for i in chosen], device=lm.device)
        states = _read(lm, stack, _padded(lm, [rows[i] for i in chosen]), last)
        yield (chosen, _standard(states).flatten(1).cpu().numpy()), sum(num_cut[i] for i in chosen)


def _encode(lm: CausalLM, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
    limit = context_length(lm)
    found = lm.tokenizer(list(texts), add_special_tokens=True)["input_ids"] if texts else []
    rows = [ids or [lm.start_id] for ids in found]
    return [row[-limit:] for row in rows], [len(row) > limit for row in rows]


def _padded(lm: CausalLM, rows: Sequence[list[int]]) -> Tensor:
    pad, length = lm.tokenizer.pad_token_id or 0, max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], device=lm.device)


def _read(lm: CausalLM, stack: LayerStack, ids: Tensor, last: Tensor) -> Tensor:
    """[rows, layers + 1, width]: what the last token of each row is, from the embedding to the end."""
    seen: list[Tensor] = []
    here = torch.arange(len(ids), device=ids.device)

    def look(state: Tensor) -> None:
        seen.append(state[here, last].float())

    hooks = [stack.on_input(layer, look) for layer in range(stack.depth)]
    try:
        final = lm.hidden(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([*seen, final[here, last].float()], dim=1)


def _standard(states: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the last dimension."""
    centred = states - states.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


@torch.no_grad()
def mean_tokens(model: Any, tokenizer: Any, texts: Sequence[str], tokens: int) -> Iterator[tuple[Part, int]]:
    """Mean over a text's tokens of an encoder's last layer, of length 1; otherwise as `last_tokens`."""
    limit = int(model.config.max_position_embeddings)
    full = tokenizer(list(texts), truncation=False)["input_ids"] if texts else []
    rows = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if texts else []
    device = next(model.parameters()).device
    for chosen in batches([len(row) for row in rows], tokens):
        batch = tokenizer.pad({"input_ids": [rows[i] for i in chosen]}, return_tensors="pt").to(device)
        state = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        mean = (state * mask).sum(1) / mask.sum(1)
        mean = torch.nn.functional.normalize(mean, dim=1)
        yield (chosen, mean.cpu().numpy()), sum(len(full[i]) > limit for i in chosen)


def shared_basis(num_features: int, dimensions: int, seed: int) -> Floats:
    """The shared basis R, [features, dimensions]: Gaussian, the same wherever the seed is the same.

    Its scale keeps lengths: features of deviation 1 become coordinates of deviation 1.
    """
    drawn = np.random.Generator(np.random.Philox(seed)).standard_normal((num_features, dimensions))
    found: Floats = (drawn / np.sqrt(num_features)).astype(np.float32)
    return found
