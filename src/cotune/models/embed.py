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
def last_tokens(lm: CausalLM, texts: Sequence[str], tokens: int, is_raw: bool) -> Iterator[Part]:
    """Hidden states of each text's last token: the embedding, then every layer, the last one normalised.

    Unless `is_raw`, each layer's vector is standardised on its own (mean 0, deviation 1 over its width), so
    that no layer drowns the others.

    Args:
        lm: the model, with or without an adapter mounted.
        texts: any texts; an empty one is read as the start token.
        tokens: positions per forward pass, padding included; a longer text gets a pass of its own.

        is_raw: as the layers are.

    Yields:
        Numbers of texts, and [texts, (layers + 1) * width]. A text longer than the context loses its start.
    """
    rows = [ids[-context_length(lm) :] or [lm.start_id] for ids in tokenized(lm.tokenizer, texts)]
    stack = LayerStack(lm.model)
    for chosen in batches([len(row) for row in rows], tokens):
        last = torch.tensor([len(rows[i]) - 1 for i in chosen], device=lm.device)
        ids = _padded([rows[i] for i in chosen], lm.tokenizer.pad_token_id or 0, lm.device)
        states = _read(lm, stack, ids, last)
        yield chosen, (states if is_raw else _standard(states)).flatten(1).cpu().numpy()


def tokenized(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, uncut."""
    # verbose: that a text is longer than the model reads is counted by the reader
    found: list[list[int]] = (
        tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
    )
    return found


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], device=device)


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
def mean_tokens(model: Any, tokenizer: Any, texts: Sequence[str], tokens: int) -> Iterator[Part]:
    """Mean over a text's tokens of an encoder's last layer, of length 1; a long text loses its end."""
    limit = encoder_limit(model, tokenizer)
    rows = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if texts else []
    device = next(model.parameters()).device
    for chosen in batches([len(row) for row in rows], tokens):
        ids = _padded([rows[i] for i in chosen], tokenizer.pad_token_id or 0, device)
        lengths = torch.tensor([len(rows[i]) for i in chosen], device=device)
        mask = torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]
        state = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        mean = (state * mask[..., None]).sum(1) / lengths[:, None]
        mean = torch.nn.functional.normalize(mean, dim=1)
        yield chosen, mean.cpu().numpy()


def encoder_limit(model: Any, tokenizer: Any) -> int:
    """Tokens an encoder can read; some say more in their configuration than their positions allow."""
    return min(int(model.config.max_position_embeddings), int(tokenizer.model_max_length))


def shared_basis(num_features: int, dimensions: int, seed: int) -> Floats:
    """The shared basis R, [features, dimensions]: Gaussian, the same wherever the seed is the same.

    Its scale keeps lengths: features of deviation 1 become coordinates of deviation 1. Directions are drawn
    one after the other, so that a narrower basis of the same seed is the beginning of a wider one.
    """
    drawn = np.random.Generator(np.random.Philox(seed)).standard_normal((dimensions, num_features))
    found: Floats = np.ascontiguousarray(drawn.T / np.sqrt(num_features), np.float32)
    return found
