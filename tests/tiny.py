"""A model, a data set and a configuration so small that a whole run takes a second; all made here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cotune import build, config, session
from cotune.config import Config, TuneConfig
from cotune.models import zoo
from cotune.models.causal_lm import CausalLM, load
from cotune.models.lora import LoraStack
from cotune.records import Adapter, Event, Example

VOCAB = 258
"""256 bytes, <s> and </s>."""

ANIMALS = ("fox", "owl", "cat", "hen", "bee", "elk", "ant", "cow", "pig", "rat")
PLACES = ("barn", "lake", "wood")
COLOURS = ("red", "blue", "green")
REASONED = ("step_by_step",)
"""Strategies that learn from rationales: their rows have some."""


@cache
def tokenizer(is_turned: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte: any text has tokens, and their number can be counted by hand.

    Turned round, the same tokens have other numbers: the first is the last.
    """
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = tokens[::-1] if is_turned else tokens
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def llama(seed: int = 0, layers: int = 2, **changes: Any) -> LlamaForCausalLM:
    """A random Llama of width 32."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": VOCAB, "num_hidden_layers": layers, "max_position_embeddings": 512, **changes}
    return LlamaForCausalLM(LlamaConfig(initializer_range=0.1, bos_token_id=0, eos_token_id=1, **sizes))


def write_model(folder: Path, seed: int = 0, layers: int = 2, **changes: Any) -> Path:
    """The same as a folder that transformers can load."""
    llama(seed, layers, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def lm(seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32, **changes: Any) -> CausalLM:
    """The same, loaded."""
    return CausalLM(llama(seed, layers, **changes).to(dtype), tokenizer(), f"tiny-{seed}-{layers}")


def loaded(folder: Path) -> CausalLM:
    """A model of a folder on the CPU."""
    return load(folder, zoo.fingerprint(folder), device="cpu")


def random_adapter(stack: LoraStack, seed: int = 0, size: float = 0.1) -> Adapter:
    """An adapter that changes something: A and B random."""
    rng = np.random.default_rng(seed)
    fresh = stack.fresh(rng)
    return fresh.with_arrays(
        {n: (size * rng.standard_normal(a.shape)).astype(a.dtype) for n, a in fresh.arrays.items()}
    )


def difference(one: Adapter, other: Adapter) -> float:
    """The largest difference of two adapters over the largest value of the first."""
    gap = max(np.abs(one.arrays[n] - other.arrays[n]).max() for n in one.arrays)
    return float(gap / max(np.abs(a).max() for a in one.arrays.values()))


def rows(kind: str, number: int) -> list[dict[str, Any]]:
    """Questions of one domain; a pattern that a model can learn: the answer stands in the prompt."""
    words = PLACES if kind == "places" else COLOURS
    found = []
    for i in range(number):
        animal, answer = ANIMALS[i % len(ANIMALS)], (i * 7 + i // 10) % 3
        question = f"{animal} {i} {words[answer]}?"
        found.append(
            {
                "question": question,
                "choices": list(words),
                "answer_idx": answer,
                "domain": kind,
                "id": f"{kind}{i}",
            }
        )
    return found


def reasoned(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with a rationale for four of five."""
    texts = [f"{item['choices'][item['answer_idx']]} stands there." for item in items]
    return [
        {**item, **({"rationale": text} if row % 5 else {})}
        for row, (item, text) in enumerate(zip(items, texts, strict=True))
    ]


def write_rows(path: Path, items: Sequence[Mapping[str, Any]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def examples(number: int, kind: str = "places", seed: int = 0) -> tuple[Example, ...]:
    """Examples with prompts of different lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for i, row in enumerate(rows(kind, number)):
        prompt = "Q: " + "ab " * int(rng.integers(0, 6)) + row["question"] + "\nA:"
        choices, right = tuple(row["choices"]), row["answer_idx"]
        example = Example(
            id=str(i),
            prompt=prompt,
            completion=" " + choices[right],
            choices=choices,
            answer_idx=right,
            domain=kind,
        )
        found.append(example)
    return tuple(found)


def tune_config(**changes: Any) -> TuneConfig:
    """A constant rate and no decay, unless said otherwise."""
    plain = {"lr": 1e-2, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "batch_size": 4}
    return TuneConfig(**{**plain, **changes})


def raw_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of three clients and two rounds on files in `folder`, as a YAML file holds it."""
    llm, slm = folder / "llm", folder / "slm"
    if not llm.exists():
        write_model(llm, seed=1, layers=3)
        write_model(slm, seed=2, layers=2)
        for kind in ("places", "colours"):
            write_rows(folder / f"{kind}.jsonl", rows(kind, 30))
            write_rows(folder / f"reasoned_{kind}.jsonl", reasoned(rows(kind, 30)))
    tune = {"lr": 1e-2, "batch_size": 4, "warmup": 0.0}
    lora = {"rank": 2, "alpha": 4, "targets": "attention"}
    source = {"task": "multiple_choice", "train_rows": 12, "public_rows": 6, "test_rows": 6}
    named = changes.get("strategy", "fedcollm")
    start = "reasoned_" if (named if isinstance(named, str) else named["name"]) in REASONED else ""
    files = (f"{start}places", f"{start}colours")
    raw: dict[str, Any] = {
        "seed": 3,
        "rounds": 2,
        "llm": {"model": str(llm), "lora": lora, "tune": tune},
        "slm": {"model": str(slm), "lora": lora, "tune": tune},
        "data": {
            "sources": [{**source, "data": str(folder / f"{file}.jsonl")} for file in files],
            "partition": {"name": "iid", "clients": 3},
        },
        "strategy": "fedcollm",
        "runtime": {"device": "cpu"},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = raw
        for parent in parents:
            node[parent] = dict(node.get(parent) or {})
            node = node[parent]
        node[last] = value
    return raw


def write_config(folder: Path, **changes: Any) -> Path:
    """The same as a YAML file; `slm__tune__lr=1` means the value under these keys."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw_config(folder, **changes)), encoding="utf-8")
    return path


def ready(folder: Path, out: Path, events: list[Event] | None = None, **changes: Any) -> session.Session:
    """A session of the tiny configuration, built."""
    made: Config = config.from_dict(raw_config(folder, **changes))
    return build.session(made, out, (events if events is not None else []).append)


def run(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Run the tiny configuration without a command; returns what stands in results.json."""
    out.mkdir(parents=True, exist_ok=True)
    return session.run(ready(folder, out, **changes), out)


def adapter_bytes(out: Path, role: str = "slm") -> bytes:
    """The weights file of a finished run."""
    return (out / "adapters" / role / "adapter_model.safetensors").read_bytes()
