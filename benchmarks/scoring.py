"""Multiple choice: questions per second against the Hugging Face backend of lm-evaluation-harness.

    python benchmarks/scoring.py --model FOLDER --data arc_easy_test.jsonl.gz --limit 200 --batch-size 8 \
        --out benchmarks/results/scoring.json

Needs the `bench` extra. One process, one loaded model, the same questions; both sides tokenise inside the
timing. The questions are cut into blocks; in every block the two sides take turns at being first, so that
whatever else the machine does meets both alike. Batch size is the number of rows in a forward pass on both
sides: for lm-eval a row is one (question, choice), for cotune one question with all its choices. With
`--unit positions` a pass of cotune instead holds at most as many token positions as lm-eval's largest pass.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from cotune.evaluate import choice_answers, summary
from cotune.metrics import choice_correct, choice_correct_norm
from cotune.models.causal_lm import CausalLM, load
from cotune.models.score import score_choices
from cotune.records import DELIMITER, Example

Sums = list[tuple[float, ...]]
UNLIMITED = 1 << 30


def main() -> None:
    options = read_options()
    examples = read_examples(options.data, options.limit)
    lm = load(options.model, "benchmark", device=options.device)
    sides = {"cotune": ours(lm, options), "lm_eval": theirs(lm, options.batch_size)}
    for side in sides.values():  # first calls allocate and, here, try whether the model honours trees
        side(examples[: options.batch_size])
    blocks = [examples[i :: options.blocks] for i in range(options.blocks)]
    times = [measure(sides, block, number, options.repeats) for number, block in enumerate(blocks)]
    order = [example for block in blocks for example in block]
    sums = {name: [row for block in times for row in block[name]["sums"]] for name in sides}
    result = describe(options, lm) | speeds(times, len(examples)) | agreement(order, sums)
    print(json.dumps(result, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, required=True, help="rows {question, choices, answer_idx}")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--unit", choices=("rows", "positions"), default="rows")
    parser.add_argument("--blocks", type=int, default=5, help="pieces of the data, timed in turns")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each side at every block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def read_examples(path: Path, limit: int) -> list[Example]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:limit]
    return [
        Example(
            id=str(number),
            prompt=f"Question: {row['question']}\nAnswer:",
            completion="",
            choices=tuple(row["choices"]),
            answer_idx=row["answer_idx"],
        )
        for number, row in enumerate(rows)
    ]


def ours(lm: CausalLM, options: argparse.Namespace) -> Callable[[list[Example]], Sums]:
    def in_rows(examples: list[Example]) -> Sums:
        """`batch_size` questions a pass, the longest first, as lm-eval orders its rows."""
        order = sorted(range(len(examples)), key=lambda i: -num_letters(examples[i]))
        found: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(order), options.batch_size):
            chosen = order[start : start + options.batch_size]
            found |= zip(
                chosen, score_choices(lm, [examples[i] for i in chosen], tokens=UNLIMITED), strict=True
            )
        return [found[i] for i in range(len(examples))]

    def in_positions(examples: list[Example]) -> Sums:
        texts = [example.prompt + DELIMITER + c for example in examples for c in example.choices]
        longest = max(len(ids) for ids in lm.tokenizer(texts)["input_ids"])
        return score_choices(lm, examples, tokens=options.batch_size * longest)

    return in_rows if options.unit == "rows" else in_positions


def num_letters(example: Example) -> int:
    """About how long a row of cotune is: the prompt once, and all its choices."""
    return len(example.prompt) + sum(len(choice) for choice in example.choices)


def theirs(lm: CausalLM, batch_size: int) -> Callable[[list[Example]], Sums]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness: Any = HFLM(
        pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size, device=str(lm.device)
    )

    def run(examples: list[Example]) -> Sums:
        pairs = [(example.prompt, DELIMITER + choice) for example in examples for choice in example.choices]
        asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        values = iter(value for value, _ in harness.loglikelihood(asked, disable_tqdm=True))
        return [tuple(next(values) for _ in example.choices) for example in examples]

    return run


def measure(sides: dict[str, Any], block: list[Example], number: int, repeats: int) -> dict[str, Any]:
    """Time of each side on one block: the smallest of its turns, wall and CPU seconds."""
    found: dict[str, Any] = {name: {"wall": [], "cpu": []} for name in sides}
    for turn in range(repeats):
        names = list(sides)
        for name in names if (number + turn) % 2 else reversed(names):
            start, busy = time.perf_counter(), time.process_time()
            found[name]["sums"] = sides[name](block)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[name]["wall"].append(time.perf_counter() - start)
            found[name]["cpu"].append(time.process_time() - busy)
    return found


def speeds(times: list[dict[str, Any]], num_examples: int) -> dict[str, Any]:
    wall = {name: [min(block[name]["wall"]) for block in times] for name in times[0]}
    cpu = {name: [min(block[name]["cpu"]) for block in times] for name in times[0]}
    ratios = [b / a for a, b in zip(wall["cotune"], wall["lm_eval"], strict=True)]
    return {
        "questions_per_second": {name: num_examples / sum(wall[name]) for name in wall},
        "seconds": {name: sum(wall[name]) for name in wall},
        "cpu_seconds": {name: sum(cpu[name]) for name in cpu},
        "ratio": {
            "whole": sum(wall["lm_eval"]) / sum(wall["cotune"]),
            "median_of_blocks": statistics.median(ratios),
            "blocks": ratios,
            "cpu_time": sum(cpu["lm_eval"]) / sum(cpu["cotune"]),
        },
    }


def agreement(examples: list[Example], sums: dict[str, Sums]) -> dict[str, Any]:
    """Accuracies, the questions on which they differ, and how near a tie the nearest question is."""
    gaps = [np.abs(np.subtract(a, b)).max() for a, b in zip(sums["cotune"], sums["lm_eval"], strict=True)]
    verdicts = {name: [judge(e, row) for e, row in zip(examples, sums[name], strict=True)] for name in sums}
    odd = [
        {"question": example.id, "cotune": list(mine), "lm_eval": list(row)}
        for example, mine, row, a, b in zip(
            examples, sums["cotune"], sums["lm_eval"], verdicts["cotune"], verdicts["lm_eval"], strict=True
        )
        if a != b
    ]
    return {
        "accuracy": {name: summary(choice_answers(examples, sums[name]), "choice") for name in sums},
        "accuracies_agree_to_the_last_question": not odd,
        "questions_that_differ": odd,
        "largest_difference_of_a_sum": float(max(gaps)),
        "smallest_margin_of_a_question": min(margin(row) for row in sums["lm_eval"]),
        "smallest_margin_per_character": min(
            margin(np.array(row) / [len(c) for c in e.choices])
            for e, row in zip(examples, sums["lm_eval"], strict=True)
        ),
    }


def judge(example: Example, row: tuple[float, ...]) -> tuple[int, int, bool, bool]:
    """What is chosen by either measure, and whether it is right."""
    answer = example.answer_idx or 0
    lengths = [len(choice) for choice in example.choices]
    return (
        int(np.argmax(row)),
        int(np.argmax(np.array(row) / lengths)),
        choice_correct(row, answer),
        choice_correct_norm(row, example.choices, answer),
    )


def margin(row: Any) -> float:
    best, second = sorted(row)[-1], sorted(row)[-2]
    return float(best - second)


def describe(options: argparse.Namespace, lm: CausalLM) -> dict[str, Any]:
    from importlib.metadata import version

    command = (
        f"python benchmarks/scoring.py --model FOLDER --data {options.data.name} --limit {options.limit} "
        f"--batch-size {options.batch_size} --unit {options.unit} --blocks {options.blocks} "
        f"--repeats {options.repeats} --device {options.device} --out FILE"
    )
    return {
        "command": command,
        "model": f"{lm.model.config.model_type}, {lm.model.num_parameters()} parameters, {lm.model.dtype}",
        "device": torch.cuda.get_device_name() if lm.device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": version("lm-eval"),
        },
    }


if __name__ == "__main__":
    main()
