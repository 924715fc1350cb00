"""What selectors are worth: the same federated tuning on what each of them chose, on tasks nobody trained on.

    python benchmarks/selection_quality.py --train dolly.jsonl.gz --held-out summarization \
        --rows 600 --clients 8 --seeds 1,2,3 --out benchmarks/results/selection_quality.json
    python benchmarks/selection_quality.py --train dolly.jsonl.gz --noise 0.5 --rows 400 --clients 8 \
        --arms clean,everything,noise_floor --out benchmarks/results/selection_noise.json

Each arm is one `cotune run` with FedAvg on the same rows, dealt to the same clients; only `selector` differs.
The model is then asked the held-out rows: Rouge-L of what it writes (greedy), and the mean loss of a
reference's token, which is steadier. `--noise` shuffles that share of each client's answers among its own
rows first, and measures how well alignment (IRA) finds them; arm `clean` trains on the unshuffled rows. A
result that stands in `--out` is not computed again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cotune.answer_loss import ira, read
from cotune.evaluate import answers
from cotune.models import causal_lm, zoo
from cotune.models.causal_lm import CausalLM
from cotune.models.generate import Sampling
from cotune.models.lora import load_stack
from cotune.models.reader import Causal, ModelReader
from cotune.models.score import score_pairs
from cotune.protocols import Pool
from cotune.records import Example
from cotune.tasks import instruction

Row = dict[str, Any]

ARMS: Mapping[str, Any] = {
    "clean": [],
    "everything": [],
    "random": {"name": "random_subset"},
    "fedhds_paper": {"name": "fedhds", "mode": "paper", "every": 0},
    "fedhds_shared_basis": {"name": "fedhds", "every": 0},
    "fedhds_turbo": {"name": "fedhds", "every": 0, "model": "all-MiniLM-L6-v2"},
    "feddqc": {"name": "feddqc"},
    "density": {"name": "density"},
    "noise_floor": {"name": "noise_floor"},
}
TRAIN_TOKENS, TEST_TOKENS, NEW_TOKENS = 128, 320, 64


def main() -> None:
    """All arms and seeds, one after the other."""
    options = _options()
    lm = _load(options.model)
    rows, test = _rows(options, lm)
    found = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    found["command"] = "python " + " ".join(sys.argv)
    known = {(run["arm"], run["seed"]) for run in found["runs"]}
    if ("zero_shot", 0) not in known:
        found["runs"].append({"arm": "zero_shot", "seed": 0, **_measure(lm, None, test)})
    for seed in (int(seed) for seed in options.seeds.split(",")):
        noisy, detected = _shuffled(rows, options, lm, seed) if options.noise else (rows, None)
        if detected:
            found.setdefault("detection", {})[str(seed)] = detected
        for arm in options.arms.split(","):
            if (arm, seed) in known:
                continue
            run = _run(arm, seed, rows if arm == "clean" else noisy, options)
            run |= _measure(lm, run.pop("adapter"), test)
            found["runs"].append(run)
            print(json.dumps(run), flush=True)
            _write(options.out, found)
    found["summary"] = _summary(found["runs"])
    _write(options.out, found)
    print(json.dumps(found["summary"], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="held-out rows; by default rows of --held-out")
    parser.add_argument("--held-out", default="", help="a value of `task` that nobody trains on")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--test-rows", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8, help="0: one for each task")
    parser.add_argument("--keep", type=float, default=0.015)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--train-tokens", type=int, default=TRAIN_TOKENS)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--arms", default=",".join(a for a in ARMS if a not in ("clean", "noise_floor")))
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _load(model: str) -> CausalLM:
    folder = Path(zoo.resolve(model))
    return causal_lm.load(folder, zoo.fingerprint(folder), device="cpu")


def _read(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _rows(options: argparse.Namespace, lm: CausalLM) -> tuple[list[Row], list[Example]]:
    """Short rows to train on and to be asked, drawn once."""
    rng = np.random.default_rng(0)
    rows = _read(options.train)
    held = [row for row in rows if row["task"] == options.held_out]
    rows = _short([row for row in rows if row["task"] != options.held_out], options.train_tokens, lm)
    drawn = rng.permutation(len(rows))
    if options.test:
        held = _read(options.test)
    elif not options.held_out:
        held = [rows[i] for i in drawn[options.rows : options.rows + 4 * options.test_rows]]
    held = _short(held, TEST_TOKENS, lm)
    test = [held[i] for i in rng.permutation(len(held))[: options.test_rows]]
    return [rows[i] for i in drawn[: options.rows]], [_example(row) for row in test]


def _short(rows: Sequence[Row], limit: int, lm: CausalLM) -> list[Row]:
    examples = [_example(row) for row in rows]
    lengths = [len(ids) for ids in lm.tokenizer([e.prompt + e.completion for e in examples])["input_ids"]]
    return [row for row, length in zip(rows, lengths, strict=True) if length <= limit]


def _example(row: Row) -> Example:
    return instruction.example(row, row["id"])


def _owners(rows: Sequence[Row], options: argparse.Namespace, seed: int) -> list[list[int]]:
    """Rows of each client, as the runs deal them."""
    from cotune import data
    from cotune.config import DataConfig

    with tempfile.TemporaryDirectory() as folder:
        path = _save(rows, Path(folder))
        dataset = data.load(DataConfig.model_validate(_data(path, options)), seed)
    place = {row["id"]: number for number, row in enumerate(rows)}
    return [[place[e.id] for e in dataset.train(client)] for client in dataset.clients]


def _shuffled(
    rows: list[Row], options: argparse.Namespace, lm: CausalLM, seed: int
) -> tuple[list[Row], dict[str, float]]:
    """Answers of some of each client's rows change places; and how well IRA tells them from the others."""
    from sklearn.metrics import roc_auc_score

    rng, noisy = np.random.default_rng(seed), [dict(row) for row in rows]
    wrong = np.zeros(len(rows), bool)
    for own in _owners(rows, options, seed):
        picked = rng.permutation(own)[: round(options.noise * len(own))]
        for here, there in zip(picked, np.roll(picked, 1), strict=True):
            noisy[here]["output"] = rows[there]["output"]
            wrong[here] = noisy[here]["output"] != rows[here]["output"]
    reader = ModelReader(Causal(lm, None, lm.fingerprint), tokens=1024)
    loss = read([Pool([_example(row) for row in noisy], rng)], reader, "")
    values = ira(loss, "mean")
    return noisy, {
        "auc": float(roc_auc_score(~wrong, values)),
        "auc_sum": float(roc_auc_score(~wrong, ira(loss, "sum"))),
        "shuffled": int(wrong.sum()),
        "kept_of_shuffled_at_0": float((values[wrong] >= 0).mean()),
        "kept_of_right_at_0": float((values[~wrong] >= 0).mean()),
    }


def _save(rows: Sequence[Row], folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _data(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    if options.clients:
        part = {"name": "dirichlet", "clients": options.clients, "alpha": 0.5, "key": "task"}
    else:
        part = {"name": "by_key", "key": "task"}
    return {"sources": [{"task": "instruction", "data": str(path), "test_rows": 0}], "partition": part}


def _run(arm: str, seed: int, rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
    """One `cotune run`; what it says about selection, and its adapter."""
    folder = Path(tempfile.mkdtemp(prefix="cotune-quality-"))
    selector = dict(ARMS[arm]) if ARMS[arm] else []
    if selector and arm != "noise_floor":
        selector["keep"] = options.keep
    tune = {"epochs": 1, "batch_size": 1, "lr": options.lr, "max_length": 320, "weight_decay": 0.0}
    model = {"model": options.model, "lora": {"targets": "all-linear"}, "tune": tune}
    config = {
        "seed": seed,
        "rounds": options.rounds,
        "llm": model,
        "slm": model,
        "strategy": {"name": "fedavg", "weights": "examples"},
        "selector": selector,
        "data": _data(_save(rows, folder), options),
        "cohort": {"fraction": options.fraction},
        "evaluate": {"every": 0},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    began, out = time.perf_counter(), folder / "out"
    subprocess.run([sys.executable, "-m", "cotune", "run", str(path), "--out", str(out)], check=True)
    results = json.loads((out / "results.json").read_text())
    choice = results.get("selection", {})
    clients = choice.get("clients", {}).values()
    return {
        "arm": arm,
        "seed": seed,
        "adapter": out / "adapters" / "slm",
        "kept": sum(client["chosen"] for client in clients) if clients else len(rows),
        "trained": choice.get("chosen"),
        "seconds_select": choice.get("seconds", 0.0),
        "seconds_tune": choice.get("seconds_tuning") or _tuning(out),
        "seconds": time.perf_counter() - began,
    }


def _tuning(out: Path) -> float:
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return float(sum(line["phases"].get("tune", 0.0) for line in lines))


def _measure(lm: CausalLM, adapter: Path | None, test: Sequence[Example]) -> dict[str, float]:
    if adapter is not None:
        lm = _load(str(zoo.resolve(lm_name(adapter))))
        stack, found = load_stack(lm, adapter)
        stack.load([found])
    written = answers(lm, test, "rouge_l", tokens=4096, sampling=Sampling(max_new_tokens=NEW_TOKENS))
    loss = score_pairs(lm, [(e.prompt, e.completion) for e in test], tokens=1024)
    return {
        "rouge_l": float(np.mean([answer.score for answer in written])),
        "rouge_l_stderr": float(np.std([a.score for a in written], ddof=1) / len(written) ** 0.5),
        "loss": float(-loss.sums.sum() / loss.counts.sum()),
        "words": float(np.mean([len(answer.text.split()) for answer in written])),
    }


def lm_name(adapter: Path) -> str:
    """The base model that an adapter's configuration names."""
    return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        names = [name for name in own[0] if name not in ("arm", "seed") and own[0][name] is not None]
        found[arm] = {
            name: [
                float(np.mean([run[name] for run in own])),
                float(np.std([run[name] for run in own], ddof=1)) if len(own) > 1 else None,
            ]
            for name in names
        }
    return found


def _write(path: Path, found: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
