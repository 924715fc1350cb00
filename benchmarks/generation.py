"""Writing reasoning paths: texts per second against a plain loop over `model.generate`, one prompt at a time.

    python benchmarks/generation.py --model FOLDER --data arc_easy_test.jsonl.gz --limit 256 \
        --out benchmarks/results/generation.json

Each side is a process of its own with the same prompts, greedy, with the same length cap; loading and a first
short text are not counted, tokenising is. The loop is the plain one: tokenise, `model.generate`, decode. Ours
is the writer that LaDa's paths come from. Where texts differ, it is told how near a tie their first different
token was: in float32, a sum in another order can turn one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from cotune.models.causal_lm import CausalLM, load
from cotune.models.writer import LocalWriter
from cotune.reasoning import path_prompt
from cotune.records import Example, Sampling

Said = tuple[str, int, bool]
"""Text, tokens written, and whether it came to its end."""
SIDES = ("cotune", "one_by_one")


def main() -> None:
    options = read_options()
    if options.side:
        options.out.write_text(json.dumps(measure(options)), encoding="utf-8")
        return
    found = {side: run(side, options) for side in SIDES}
    result = describe(options) | compare(found, options)
    print(json.dumps(result, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, required=True, help="rows {question, choices, answer_idx}")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16_384, help="positions per batch of ours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=SIDES, help="measure this one only, in this process")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def run(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "side.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--out", str(out)]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    print(side, {name: value for name, value in found.items() if name != "said"}, file=sys.stderr, flush=True)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    prompts = read_prompts(options.data, options.limit)
    lm = load(options.model, "benchmark", device=options.device)
    write = {"cotune": ours, "one_by_one": plainly}[options.side]
    write(lm, ["A first text."], 4, options.tokens)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_average, began, busy = os.getloadavg(), time.perf_counter(), time.process_time()
    said = write(lm, prompts, options.max_new_tokens, options.tokens)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - busy,
        "tokens": sum(number for _, number, _ in said),
        "threads": torch.get_num_threads(),
        "peak_above_loading_bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024,
        "load_average_before": load_average,
        "said": said,
    }


def read_prompts(path: Path, limit: int) -> list[str]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:limit]
    examples = [
        Example(id="", prompt=row["question"], completion="", choices=tuple(row["choices"])) for row in rows
    ]
    return [path_prompt(example) for example in examples]


def ours(lm: CausalLM, prompts: list[str], max_new_tokens: int, tokens: int) -> list[Said]:
    found = LocalWriter(lm, tokens=tokens).write(prompts, Sampling(max_new_tokens))
    return [(written.text, written.tokens_out, written.finished) for written in found]


def plainly(lm: CausalLM, prompts: list[str], max_new_tokens: int, _tokens: int) -> list[Said]:
    found = []
    for prompt in prompts:
        given = lm.tokenizer(prompt, return_tensors="pt").to(lm.device)
        out = lm.model.generate(**given, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[0, given["input_ids"].shape[1] :]
        is_finished = int(new[-1]) == lm.tokenizer.eos_token_id
        found.append((lm.tokenizer.decode(new, skip_special_tokens=True), len(new), is_finished))
    return found


def compare(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    here, there = (found[side] for side in SIDES)
    num_texts = len(here["said"])
    lengths = [number for _, number, _ in there["said"]]
    odd = [i for i in range(num_texts) if here["said"][i] != there["said"][i]]
    return {
        "texts": num_texts,
        "texts_per_second": {side: num_texts / found[side]["seconds"] for side in SIDES},
        "tokens_per_second": {side: found[side]["tokens"] / found[side]["seconds"] for side in SIDES},
        "ratio": {
            "texts_per_second": there["seconds"] / here["seconds"],
            "cpu_time": there["cpu_seconds"] / here["cpu_seconds"],
            "aim": 3,
        },
        "tokens_of_a_text": {"median": median(lengths), "min": min(lengths), "max": max(lengths)},
        "texts_that_end_by_themselves": sum(bool(is_finished) for *_, is_finished in there["said"]),
        "texts_that_differ": len(odd),
        "where_they_differ": [tie(options, i, here["said"][i][0], there["said"][i][0]) for i in odd[:5]],
        "sides": {
            side: {name: value for name, value in found[side].items() if name != "said"} for side in SIDES
        },
    }


def tie(options: argparse.Namespace, row: int, mine: str, theirs: str) -> dict[str, Any]:
    """By how much the model prefers its first choice to its second where two texts part."""
    lm = load(options.model, "benchmark", device=options.device)
    prompt = read_prompts(options.data, options.limit)[row]
    head = lm.tokenizer(prompt)["input_ids"]
    a, b = (lm.tokenizer(prompt + text)["input_ids"][len(head) :] for text in (mine, theirs))
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    with torch.no_grad():
        logits = lm.project(lm.hidden(torch.tensor([head + b[:same]], device=lm.device))[0, -1:])[0]
    best = logits.topk(2).values
    return {"row": row, "same_tokens": same, "logit_gap": float(best[0] - best[1])}


def describe(options: argparse.Namespace) -> dict[str, Any]:
    command = (
        f"python benchmarks/generation.py --model FOLDER --data {options.data.name} --limit {options.limit} "
        f"--max-new-tokens {options.max_new_tokens} --tokens {options.tokens} --device {options.device} "
        "--out FILE"
    )
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    sizes = {name: config.get(name) for name in ("model_type", "num_hidden_layers", "hidden_size")}
    return {
        "command": command,
        "model": sizes,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


if __name__ == "__main__":
    main()
