"""Load a sentence encoder: a transformers folder whose architecture has no language-model head.

Origin: mean-pooled BERT encoders, Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084.
"""

from __future__ import annotations

import json
from pathlib import Path

from cotune.errors import ModelError
from cotune.models.causal_lm import pick_device
from cotune.models.reader import Encoder


def is_encoder(folder: Path) -> bool:
    """Whether the folder's configuration names an architecture without a language-model head."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = config.get("architectures") or [] if isinstance(config, dict) else []
    return bool(names) and not any("CausalLM" in name or "LMHead" in name for name in names)


def load(folder: Path, fingerprint: str, device: str) -> Encoder:
    """The encoder, in float32.

    Raises:
        ModelError: the folder cannot be loaded as an encoder.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from cotune.models.gguf import silence

    try:
        with silence():
            model = AutoModel.from_pretrained(folder, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: cannot be loaded as a sentence encoder: {first}") from error
    return Encoder(model.eval().requires_grad_(False).to(pick_device(device)), tokenizer, fingerprint)
