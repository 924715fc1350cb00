"""Local tuning speed: against a bare PyTorch loop with PEFT, and eight stacked clients against eight runs.

python benchmarks/tuning.py --model FOLDER --out benchmarks/results/tuning.json

One process, alternating turns, medians of ratios; the machine may be noisy, so only ratios are quoted.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cotune.config import TuneConfig
from cotune.models import causal_lm, zoo
from cotune.models.lora import LoraStack
from cotune.models.tune import TuneJob, tune
from cotune.records import Example

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def examples(lm: causal_lm.CausalLM, count: int, length: int, seed: int) -> list[Example]:
    """Rows of exactly `length` tokens, of which the last few are the completion."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = " ".join(str(n) for n in rng.integers(0, 9, length))
        ids = lm.tokenizer(words)["input_ids"][: length - 3]
        rows.append(
            Example(id=str(i), prompt=lm.tokenizer.decode(ids), completion=" 7 7", choices=("7 7", "8 8"))
        )
    return rows


def bare_peft(
    folder: Path, lm: causal_lm.CausalLM, rows: list[Example], config: TuneConfig
) -> Callable[[], int]:
    """The loop people write by hand: PEFT model, labels in, loss out, AdamW, clipping."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, lora_dropout=0.0))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    encoded = lm.encode(rows, config.max_length)
    pad = lm.tokenizer.pad_token_id

    def epoch() -> int:
        tokens = 0
        for start in range(0, len(encoded), config.batch_size):
            part = encoded[start : start + config.batch_size]
            longest = max(len(e.ids) for e in part)
            ids = torch.tensor([[*e.ids, *[pad] * (longest - len(e.ids))] for e in part])
            mask = torch.tensor([[1] * len(e.ids) + [0] * (longest - len(e.ids)) for e in part])
            labels = ids.clone()
            labels[mask == 0] = -100
            for row, e in enumerate(part):
                labels[row, : e.num_context] = -100
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimiser.step()
            optimiser.zero_grad()
            tokens += int(mask.sum())
        return tokens

    return epoch


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(
    a: Callable[[], object], b: Callable[[], object], turns: int
) -> tuple[list[float], list[float]]:
    """Times of a and b, taken in turn after one warm-up each."""
    a(), b()
    pairs = [(seconds(a), seconds(b)) for _ in range(turns)]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def main() -> None:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    folder = Path(zoo.resolve(options.model))
    lm = causal_lm.load(folder, zoo.fingerprint(folder), device="cpu")
    stack = LoraStack(lm, 8, 16.0, TARGETS)
    found: dict[str, object] = {
        "command": "python benchmarks/tuning.py --model smollm2-135m",
        "threads": torch.get_num_threads(),
    }

    config = TuneConfig(batch_size=8, lr=1e-4)
    rows = examples(lm, 16, 64, 0)
    fresh = stack.fresh(np.random.default_rng(0))
    plain = bare_peft(folder, lm, rows, config)
    ours, theirs = alternate(
        lambda: tune(lm, stack, [TuneJob(rows, fresh, np.random.default_rng(0))], config),
        plain,
        options.turns,
    )
    ratio = [t / o for o, t in zip(ours, theirs, strict=True)]
    tokens = sum(len(row.ids) for row in lm.encode(rows, 512))
    found["one_client"] = {
        "batch_size": 8,
        "length": 64,
        "cotune_tokens_per_second": tokens / median(ours),
        "bare_peft_tokens_per_second": tokens / median(theirs),
        "ratio_median": median(ratio),
        "ratios": ratio,
        "aim": 0.95,
    }

    config = TuneConfig(batch_size=1, lr=1e-4)
    parts = [examples(lm, 2, 64, k) for k in range(8)]

    def jobs() -> list[TuneJob]:
        return [TuneJob(part, fresh, np.random.default_rng(k)) for k, part in enumerate(parts)]

    together, apart = alternate(
        lambda: tune(lm, stack, jobs(), config, 8),
        lambda: [tune(lm, stack, [job], config, 1) for job in jobs()],
        options.turns,
    )
    ratio = [b / a for a, b in zip(together, apart, strict=True)]
    found["eight_clients"] = {
        "batch_size": 1,
        "length": 64,
        "seconds_stacked": median(together),
        "seconds_apart": median(apart),
        "ratio_median": median(ratio),
        "ratios": ratio,
        "aim": 1.5,
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
