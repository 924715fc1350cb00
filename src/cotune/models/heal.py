"""Heal a pruned student: a few steps of distillation from its teacher on public texts.

The student's decoder layers are trained; its embedding and head stay the teacher's, so both keep speaking
about the same vocabulary in the same terms. Loss: KL(teacher || student) over the full distribution of every
token (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), in chunks of positions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cotune.errors import ModelError
from cotune.models.causal_lm import CausalLM, check_vocabularies, load
from cotune.models.gguf import silence
from cotune.models.head import chunked
from cotune.models.layers import LayerStack
from cotune.models.shrink import appears_whole, pack
from cotune.models.zoo import fingerprint
from cotune.records import derived_rng

MAX_TOKENS = 65_536
"""Tokens, over all texts, that a student is healed on."""


@dataclass(frozen=True, slots=True)
class Healing:
    """How long and how hard: AdamW with a linear decay of the rate to zero, gradients clipped to norm 1."""

    steps: int = 20
    rows: int = 8
    lr: float = 2e-4
    seed: int = 0
    device: str = "auto"


def heal(student: Path, teacher: Path, out: Path, *, texts: Sequence[str], healing: Healing) -> Path:
    """Write a healed copy of `student` to `out`: same seed and texts, same weights on the same machine.

    Args:
        student: a folder written by `shrink`.
        teacher: the folder it was cut from, or another model with the same vocabulary.
        out: a folder that does not exist yet; it appears whole or not at all.
        texts: public texts; up to `MAX_TOKENS` of their tokens are used, cut into rows.
        healing: steps, rows a step, rate, seed, device.

    Raises:
        ModelError: `out` exists, the vocabularies differ, or there is too little text.
    """
    if out.exists():
        raise ModelError(
            f"{out} exists already; name another folder for the healed student, or delete this one"
        )
    with silence():
        small = load(student, fingerprint(student), device=healing.device, dtype="float32")
        large = load(teacher, fingerprint(teacher), device=healing.device)
    check_vocabularies(large, small)
    rows = pack(small, texts, MAX_TOKENS)
    losses = _train(small, large, rows, healing)
    note_file = student / "cotune.json"
    note = json.loads(note_file.read_text(encoding="utf-8")) if note_file.is_file() else {}
    settings = {key: value for key, value in asdict(healing).items() if key != "device"}
    note["healing"] = {**settings, "tokens": rows.numel(), "losses": losses}
    with appears_whole(out) as folder, silence():
        small.model.save_pretrained(folder)
        small.tokenizer.save_pretrained(folder)
        (folder / "cotune.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return out


def _train(small: CausalLM, large: CausalLM, rows: Tensor, healing: Healing) -> list[float]:
    """Train the student's layers in place; returns the loss of each step, nats a token."""
    weights = [p for layer in LayerStack(small.model).modules for p in layer.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=healing.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / healing.steps, healing.steps)
    losses = []
    for step in range(healing.steps):
        rng = derived_rng(healing.seed, "heal", str(step))
        chosen = rng.choice(len(rows), size=min(healing.rows, len(rows)), replace=False)
        loss = divergence(small, large, rows[torch.from_numpy(chosen).to(rows.device)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(round(float(loss.detach()), 6))
    return losses


def divergence(small: CausalLM, large: CausalLM, ids: Tensor) -> Tensor:
    """KL(teacher || student), nats a token, on ids [rows, length]; differentiable in the student."""
    with torch.no_grad():
        target = large.hidden(ids).flatten(0, 1)
    hidden = small.hidden(ids).flatten(0, 1)

    def part_loss(part: slice, leaves: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            teacher = large.project(target[part]).log_softmax(-1)
        student = small.project(leaves[0]).log_softmax(-1)
        return F.kl_div(student, teacher, reduction="sum", log_target=True)

    return chunked(part_loss, (hidden,), small.vocab_size) / len(hidden)
