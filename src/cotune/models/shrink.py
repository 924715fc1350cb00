"""A depth-pruned student out of a teacher: measure on a few public texts which layers it misses least.

Paper: ShortGPT, Men et al. 2024, https://arxiv.org/abs/2403.03853 (block influence). It looks at hidden
states only, in one forward pass; on few texts many layers nearly tie, and the wrong one of a tie can cost a
nat. `greedy`, the default, therefore decides the ties by the student's own loss; every trial starts from the
remembered input of the layer that is left out.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cotune.errors import ModelError
from cotune.models.causal_lm import CausalLM, load
from cotune.models.gguf import silence
from cotune.models.layers import LayerStack, shrunk_config
from cotune.models.zoo import fingerprint

Method = Literal["greedy", "influence"]
MAX_TOKENS = 1024
"""Tokens, over all texts, that layers are measured on."""
ROW_TOKENS = 64
"""Length of the rows they are cut into."""
CANDIDATES = 5
"""Layers tried in each step of `greedy`."""
GREEDY_ROWS = 4
"""Rows that `greedy` computes losses on."""
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Choice:
    """Which layers go and why; what `shrink` writes into the student's `cotune.json`.

    `influence` has one value a layer. `loss_before` and `loss_after` are the cross-entropy, in nats a
    token, of the whole model and of the student on the texts.
    """

    removed: tuple[int, ...]
    method: Method
    influence: tuple[float, ...]
    loss_before: float
    loss_after: float
    num_tokens: int


def choose_layers(lm: CausalLM, texts: Sequence[str], *, remove: int, method: Method = "greedy") -> Choice:
    """Measure on a few public texts which `remove` layers the model misses least.

    Args:
        lm: the teacher; it is the same afterwards.
        texts: public texts of the kind the student will meet; their first `MAX_TOKENS` tokens are used.
        remove: how many layers go; at least one stays.
        method: `influence` takes the layers of least block influence (ShortGPT); `greedy` two thirds of them
            so, and the others one at a time, each time the one without which the loss on the texts is least,
            among the `CANDIDATES` of least influence.

    Raises:
        ModelError: `remove` leaves no layer or takes none; too little text.
    """
    depth = _depth(lm)
    if not 1 <= remove < depth:
        raise ModelError(f"remove={remove}: expected 1 to {depth - 1}, because the model has {depth} layers")
    rows = pack(lm, texts)
    influence = tuple(_influences(_states(lm, rows, range(depth))))
    pick = _greedy if method == "greedy" else _least_influence
    removed = tuple(sorted(pick(lm, rows, remove)))
    kept = [layer for layer in range(depth) if layer not in removed]
    before, after = _loss(lm, rows, range(depth)), _loss(lm, rows, kept)
    return Choice(removed, method, influence, before, after, rows.numel())


def _greedy(lm: CausalLM, rows: Tensor, remove: int) -> list[int]:
    """Two thirds go at once, by influence; the last third, which nearly tie, one by one, by loss."""
    rows = rows[:GREEDY_ROWS]
    at_once = _least_influence(lm, rows, remove - math.ceil(remove / 3))
    kept = [layer for layer in range(_depth(lm)) if layer not in at_once]
    while len(kept) > _depth(lm) - remove:
        states = _states(lm, rows, kept)
        influence = _influences(states)
        places = sorted(range(len(kept)), key=influence.__getitem__)[:CANDIDATES]
        losses = {place: _loss_without(lm, rows, kept, states, place) for place in places}
        del kept[min(losses, key=losses.__getitem__)]
    return [layer for layer in range(_depth(lm)) if layer not in kept]


def _least_influence(lm: CausalLM, rows: Tensor, remove: int) -> list[int]:
    influence = _influences(_states(lm, rows, range(_depth(lm))))
    return sorted(range(len(influence)), key=influence.__getitem__)[:remove]


def _loss_without(
    lm: CausalLM, rows: Tensor, kept: Sequence[int], states: Sequence[Tensor], place: int
) -> float:
    """Loss without the layer at `place` of `kept`: what runs before it is remembered in `states`."""
    rest = kept[place + 1 :]
    return _loss(lm, rows, rest, states[place]) if rest else _loss(lm, rows, kept[:place])


def _influences(states: Sequence[Tensor]) -> list[float]:
    """ShortGPT's block influence of every layer: 1 - mean over tokens of cos(input, output)."""
    return [1.0 - _cosine(a, b) for a, b in pairwise(states)]


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine of hidden states [rows, length, width]."""
    return float(F.cosine_similarity(a[:, 1:].float(), b[:, 1:].float(), dim=-1).mean())


def pack(lm: CausalLM, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> Tensor:
    """Ids [rows, ROW_TOKENS] without padding: the texts one after the other, each closed with EOS.

    Raises:
        ModelError: fewer than two tokens.
    """
    end = lm.tokenizer.eos_token_id
    close = [] if end is None else [int(end)]
    stream = [i for text in texts for i in [*lm.tokenizer(text)["input_ids"], *close]][:max_tokens]
    length = min(ROW_TOKENS, len(stream))
    if length < 2:
        raise ModelError(
            f"{len(texts)} texts are too few to shrink a model with; give 16 to 32 public examples"
        )
    whole = stream[: len(stream) // length * length]
    return torch.tensor(whole, device=lm.device).reshape(-1, length)


@torch.no_grad()
def _states(lm: CausalLM, rows: Tensor, kept: Sequence[int]) -> list[Tensor]:
    """Input of every kept layer, and the output of the last; each [rows, length, width]."""
    seen: list[Tensor] = []
    stack = LayerStack(lm.model)
    hooks = [stack.on_input(kept[0], lambda state: seen.append(state))]
    hooks += [stack.on_output(layer, seen.append) for layer in kept]
    try:
        with stack.only(kept):
            lm.hidden(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def _loss(lm: CausalLM, rows: Tensor, kept: Sequence[int], start: Tensor | None = None) -> float:
    """Cross-entropy, nats a token, with only the `kept` layers, the first of which is given `start`."""
    stack = LayerStack(lm.model)
    hook = stack.on_input(kept[0], lambda _state: start)
    try:
        with stack.only(kept):
            hidden = lm.hidden(rows)[:, :-1].flatten(0, 1)
    finally:
        hook.remove()
    target = rows[:, 1:].flatten()
    total = 0.0
    for first in range(0, len(target), _CHUNK):
        part = slice(first, first + _CHUNK)
        total += float(F.cross_entropy(lm.project(hidden[part]), target[part], reduction="sum"))
    return total / len(target)


def shrink(
    teacher: Path,
    out: Path,
    *,
    layers: int,
    texts: Sequence[str],
    method: Method = "greedy",
    device: str = "auto",
) -> Path:
    """Write a student that has `layers` of the teacher's layers: an ordinary transformers folder.

    The layers that go are chosen by `choose_layers`. Weights keep the teacher's type, tied weights stay tied,
    the tokenizer is the teacher's. `out/cotune.json` holds the choice and its measurements.

    Args:
        teacher: a transformers folder with safetensors weights.
        out: a folder that does not exist yet; it appears whole or not at all.
        layers: how many layers the student has, 1 to one less than the teacher.
        texts: 16 to 32 public texts of the kind the student will meet.
        method: see `choose_layers`.
        device: see `causal_lm.load`.

    Returns:
        `out`.

    Raises:
        ModelError: the number of layers is impossible, `out` exists, or the teacher cannot be read.
    """
    if out.exists():
        raise ModelError(f"{out} exists already; name another folder for the student, or delete this one")
    with silence():
        lm = load(teacher, fingerprint(teacher), device=device)
    depth = _depth(lm)
    if not 1 <= layers < depth:
        raise ModelError(f"layers={layers}: expected 1 to {depth - 1}, because {teacher} has {depth} layers")
    choice = choose_layers(lm, texts, remove=depth - layers, method=method)
    kept = [layer for layer in range(depth) if layer not in choice.removed]
    note = {"teacher": lm.fingerprint, **asdict(choice)}
    with appears_whole(out) as folder, silence():
        _cut(teacher, kept).save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        (folder / "cotune.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return out


def _cut(teacher: Path, kept: Sequence[int]) -> Any:
    """A model of the `kept` layers, with the teacher's own numbers and their type."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(teacher, dtype="auto", local_files_only=True)
    stack = LayerStack(whole)
    with torch.device("meta"):
        student = AutoModelForCausalLM.from_config(shrunk_config(whole.config, kept))
    student.load_state_dict(stack.renamed(whole.state_dict(), kept), strict=True, assign=True)
    student.tie_weights()
    student.generation_config = whole.generation_config
    return student


@contextmanager
def appears_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and vanishes when it does not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".shrink-", dir=out.parent) as temporary:
            folder = Path(temporary) / "model"
            folder.mkdir()
            yield folder
            folder.replace(out)
    except OSError as error:
        raise ModelError(
            f"{out}: cannot be written ({error}); free some space or name another folder"
        ) from None


def _depth(lm: CausalLM) -> int:
    return LayerStack(lm.model).depth
