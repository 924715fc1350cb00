"""What many clients cost in an embedded run: the server's memory, and the time that is not training.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --out benchmarks/results/scale.json

A random Llama of width 32, FedAvg, the same rows dealt to 1,000, 4,000 and 10,000 clients that tune on one of
theirs, a cohort of 100 in each round; every number of clients in a process of its own. Memory is the highest
resident size of a run; its slope over the number of clients is what one more client costs. Overhead is the
time of a round without local training (`Learner.tune`), for each member of the cohort: drawing them, messages
to bytes and back on both sides, checks, the mean, the checkpoint, the line of rounds.jsonl. It is told in
seconds of the clock and of the processor (`cpu`), which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

CLIENTS = (1_000, 4_000, 10_000)
AIMS = {"mib_per_1000_clients": 1.0, "overhead_ms_per_member": 5.0}


def write_model(folder: Path) -> Path:
    """A random Llama that knows bytes, as a folder that transformers loads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=258, num_hidden_layers=2, bos_token_id=0, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    made.save_pretrained(folder)
    return folder


def configured(folder: Path, clients: int, rows: int, cohort: int, rounds: int) -> dict[str, Any]:
    """A run of FedAvg on rows that are written here."""
    lines = (
        {"question": f"fox {i}?", "choices": ["red", "blue"], "answer_idx": i % 2, "id": str(i)}
        for i in range(rows + 4)
    )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    lora = {"rank": 2, "alpha": 4, "targets": "attention"}
    model = {"model": str(write_model(folder / "slm")), "lora": lora, "tune": {"epochs": clients / rows}}
    return {
        "rounds": rounds,
        "slm": model,
        "llm": model,
        "data": {
            "sources": [{"task": "multiple_choice", "data": str(path), "test_rows": 4}],
            "partition": {"name": "iid", "clients": clients},
        },
        "strategy": "fedavg",
        "cohort": {"fraction": cohort / clients},
        "evaluate": {"every": 0, "clients": 1},
        "runtime": {"device": "cpu", "threads": 1},
    }


def measured(clients: int, rows: int, cohort: int, rounds: int) -> dict[str, Any]:
    """One run in this process."""
    from cotune import build, config, report, session
    from cotune.models.learner import Learner

    training = [0.0, 0.0]
    tune = Learner.tune

    def timed(self: Learner, jobs: Any) -> Any:
        began = time.perf_counter(), time.process_time()
        found = tune(self, jobs)
        training[0] += time.perf_counter() - began[0]
        training[1] += time.process_time() - began[1]
        return found

    Learner.tune = timed  # type: ignore[method-assign]
    marks: list[tuple[float, float, float, float]] = []
    resident: list[int] = []

    def hear(event: Any) -> None:
        if event.phase == "checkpoint":
            marks.append((time.perf_counter(), time.process_time(), *training))
            resident.append(now_resident())

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = config.from_dict(configured(folder, clients, rows, cohort, rounds))
        loaded = build.session(made, folder, hear)
        before = now_resident()
        session.run(loaded, folder)
        lines = report.read_rounds(folder)[1:-1]
    spans = [[b - a for a, b in zip(one, two, strict=True)] for one, two in pairwise(marks)]
    spans = spans[1:-1]  # the first round warms up, the last one is evaluated
    members = len(lines[-1]["cohort"])
    return {
        "clients": clients,
        "cohort": members,
        "rounds": len(spans),
        "resident_bytes_loaded": before,
        "resident_bytes_by_round": resident,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "overhead_ms_per_member": statistics.median(1e3 * (s[0] - s[2]) / members for s in spans),
        "overhead_cpu_ms_per_member": statistics.median(1e3 * (s[1] - s[3]) / members for s in spans),
        "training_ms_per_member": statistics.median(1e3 * s[2] / members for s in spans),
        "up_bytes_per_member": lines[-1]["traffic"]["up_bytes"] / members,
    }


def now_resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def slope(found: list[dict[str, Any]], name: str) -> float:
    """MiB for each 1,000 clients more, by least squares."""
    counts, sizes = [one["clients"] for one in found], [one[name] for one in found]
    return statistics.linear_regression(counts, sizes).slope * 1000 / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS[-1], help="the largest number")
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, help="only so many clients, in this process")
    options = parser.parse_args()
    how = (options.clients, options.cohort, options.rounds)
    if options.one:
        print(json.dumps(measured(options.one, *how)))
        return
    counts = [*(n for n in CLIENTS if n < options.clients), options.clients]
    options_given = zip(("--clients", "--cohort", "--rounds"), how, strict=True)
    given = [str(part) for option in options_given for part in option]
    found = []
    for count in counts:
        command = [sys.executable, __file__, "--one", str(count), *given]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]), flush=True)
    summary = {
        "command": " ".join(["python benchmarks/scale.py", *given]),
        "cores": os.cpu_count(),
        "mib_per_1000_clients": slope(found, "peak_bytes"),
        "overhead_ms_per_member": found[-1]["overhead_ms_per_member"],
        "overhead_cpu_ms_per_member": found[-1]["overhead_cpu_ms_per_member"],
        "aims": AIMS,
        "runs": found,
    }
    print(json.dumps({name: summary[name] for name in AIMS}))
    if options.out:
        options.out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
