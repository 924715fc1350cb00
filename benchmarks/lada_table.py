"""LaDa's table: which public examples teach by reasoning paths, at equal shares of the pool, over seeds.

    python benchmarks/lada_table.py configs/lada_cqa.yaml --set data.sources.0.data=cqa_train.jsonl.gz \
        --runs runs/table --out benchmarks/results/lada_cqa.json

Every method begins from the same prepared models of its seed, sees the same public and private rows, and may
teach with the same share of the pool in each round and each direction. `everything`, not among the defaults,
trades all of it and trains on so much of a pass: `random` at a higher price. `none` teaches nothing.
`step_by_step` is Distilling Step-by-Step on the public set; its clients tune on labels alone and its SLM is
never asked for a path in the others' form, so compare it by the likeliest choice. What each was taught with
is counted in tokens. Runs that were stopped go on; those that are done stay as they are.

The summary has, by method, the gain in accuracy of paths with its standard error over questions (each before
and after), and how far LaDa is ahead; within two standard errors that is told as noise.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from math import hypot
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cotune import build, checkpoint, report, session
from cotune import config as configs
from cotune.codec import decode
from cotune.evaluate import evaluate
from cotune.models import causal_lm, zoo
from cotune.models.lora import LoraStack, load_peft
from cotune.protocols import State
from cotune.records import Event, Example

ARMS = {
    "none": ["allocator={name: random, keep: 0.01}", "teach.epochs=0"],
    "lada": ["allocator={name: lada, least: SHARE, most: SHARE, first: SHARE}"],
    "random": ["allocator={name: random, keep: SHARE}"],
    "loss_gap": ["allocator={name: loss_gap, most: SHARE}"],
    "step_by_step": ["allocator=null", "strategy={name: step_by_step, public_epochs: EPOCHS}"],
    "everything": ["allocator=everything", "teach.epochs=SHARE"],
}
FIRST = "none"
"""Prepares the models of a seed for all; it trades next to nothing and nobody learns from it."""
METRICS = ("path_accuracy", "accuracy")


def main() -> None:
    options = _options()
    for seed in map(int, options.seeds.split(",")):
        for arm in dict.fromkeys([FIRST, *options.arms.split(",")]):
            folder, made = options.runs / f"{seed}-{arm}", settings(options, seed, arm)
            if not (folder / "table.json").is_file():
                one_run(made, folder, options.runs / f"{seed}-{FIRST}")
            elif report.read_results(folder)["fingerprint"] != configs.fingerprint(made):
                raise SystemExit(f"{folder} was run with other settings; give another folder: --runs")
            _write(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", help="path=value")
    parser.add_argument("--seeds", default="7,8,9")
    parser.add_argument("--arms", default=",".join(list(ARMS)[:-1]), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--share", type=float, default=0.3, help="of the pool, in a round and a direction")
    parser.add_argument(
        "--public-epochs", type=float, default=0.5, help="of step_by_step: what its tokens follow from"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, which go on there")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    unknown = set(options.arms.split(",")) - set(ARMS)
    if unknown:
        parser.error(f"--arms: {', '.join(sorted(unknown))}; expected some of {', '.join(ARMS)}")
    return options


def settings(options: argparse.Namespace, seed: int, arm: str) -> configs.Config:
    """The configuration of one run."""
    values = {"SHARE": f"{options.share:g}", "EPOCHS": f"{options.public_epochs:g}"}
    own = [re.sub("SHARE|EPOCHS", lambda found: values[found[0]], line) for line in ARMS[arm]]
    fixed = [f"seed={seed}", "data.sources.0.metric=path_accuracy", "runtime.keep_checkpoints=99"]
    return configs.load(options.config, [*options.changes, *fixed, *own])


def one_run(made: configs.Config, folder: Path, first: Path) -> None:
    """Run it from the prepared models, then write down what it came to."""
    if made.allocator is None and folder.exists():
        shutil.rmtree(folder)  # its tokens are counted while it runs, so it begins anew
    folder.mkdir(parents=True, exist_ok=True)
    heard = Heard()
    ready = build.session(made, folder, heard)
    if folder != first and not (folder / "checkpoints").exists():
        _plant(first, folder, ready)
    session.run(ready, folder)
    own = 0 if made.allocator else heard.tokens
    found: dict[str, Any] = {**scores(folder), "taught": taught(report.read_rounds(folder), own)}
    models = report.read_results(folder)["models"]
    for role, about in ((role, models[role]) for role in ("llm", "slm") if role in found):
        saved, targets = folder / "adapters" / role, getattr(made, role).lora.targets
        found[role]["accuracy"] = by_choice(about["model"], saved, targets, ready.dataset.test)
    (folder / "table.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _plant(first: Path, folder: Path, ready: session.Session) -> None:
    """Give a new run the checkpoint that another one of its seed had before its first round."""
    prepared = first / "checkpoints" / "000000.ckpt"
    message = decode(prepared.read_bytes())
    state, record = checkpoint.unpacked(message), dict(message.facts["record"])
    if "llm" not in ready.roles:
        state = State(slm=state.slm)
        for part in ("metrics", "right"):
            kept = {name: value for name, value in record[part].items() if name not in ("llm", "shown")}
            record[part] = kept
    planted = checkpoint.Checkpoint(0, state, record)
    checkpoint.save(folder / "checkpoints", planted, ready.fingerprint, 99)


def scores(folder: Path) -> dict[str, Any]:
    """Accuracy of paths before and after, by role."""
    results = report.read_results(folder)
    found: dict[str, Any] = {}
    for role in ("llm", "slm"):
        for numbers in results["metrics"].get(role, {}).values():
            found[role] = {"before": numbers["before"]["path_accuracy"]}
            found[role]["path_accuracy"] = numbers["after"]["path_accuracy"]
            found[role] |= {"gain": results["gain"][role]["mean"], "stderr": results["gain"][role]["stderr"]}
    return found


class Heard:
    """Counts the tokens of step_by_step's public batches, of which rounds.jsonl says nothing."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, event: Event) -> None:
        self.tokens += event.facts.get("tokens", 0) if event.phase == "co-tune" else 0


def taught(rounds: list[dict[str, Any]], tokens: int) -> dict[str, float]:
    """What each role learned from over all rounds, whose paths were right, and the seconds of the rounds."""
    found = {"seconds": sum(line["seconds"] for line in rounds[1:]), "slm_tokens": float(tokens)}
    for line in rounds:
        for role in ("llm", "slm"):
            for name in ("pairs", "tokens"):
                count = line.get("teaching", {}).get(role, {}).get(name, 0.0)
                found[f"{role}_{name}"] = found.get(f"{role}_{name}", 0.0) + count
            for name, count in line.get("teaching", {}).get(f"{role}_paths", {}).items():
                found[f"{role}_paths_{name}"] = found.get(f"{role}_paths_{name}", 0.0) + count
    return found


def by_choice(
    model: str, saved: Path, targets: str | list[str], test: Mapping[str, Sequence[Example]]
) -> float:
    """Accuracy of a model with a saved adapter by the likeliest choice."""
    place = zoo.resolve(model)
    lm = causal_lm.load(place, zoo.fingerprint(place))
    adapter = load_peft(saved, lm.fingerprint)
    LoraStack(lm, adapter.rank, adapter.alpha, targets).load([adapter])
    [examples] = test.values()
    return float(evaluate(lm, examples, "choice", tokens=1024)["accuracy"] or 0.0)


def table(runs: Path) -> dict[str, Any]:
    """All runs so far; by method and role the mean over seeds, and how far LaDa is ahead of it."""
    done = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in runs.glob("*/table.json")
    }
    by_arm: dict[str, dict[int, Any]] = {}
    for name, found in sorted(done.items()):
        seed, arm = name.split("-", 1)
        by_arm.setdefault(arm, {})[int(seed)] = found
    summary: dict[str, Any] = {}
    for arm, seeds in by_arm.items():
        for role, metric in product(("llm", "slm"), METRICS):
            if not all(role in found for found in seeds.values()):
                continue
            values = {seed: found[role][metric] for seed, found in seeds.items()}
            leads = {seed: found[role][metric] for seed, found in by_arm.get("lada", {}).items()}
            ahead = [leads[seed] - value for seed, value in values.items() if seed in leads]
            told = {"values": values, "mean": mean(values.values()), "lada_minus_it": _spread(ahead)}
            summary.setdefault(arm, {})[f"{role} {metric}"] = told
            if metric == "path_accuracy":
                summary[arm][f"{role} gain"] = _gain(seeds, by_arm.get("lada", {}), role)
    return {"runs": done, "summary": summary}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(values) if values else None, "sd": stdev(values) if len(values) > 1 else None}


def _gain(seeds: Mapping[int, Any], lada: Mapping[int, Any], role: str) -> dict[str, Any]:
    """Mean gain over seeds, its standard error, and whether LaDa's differs from it by more than noise."""
    both = sorted(seeds.keys() & lada.keys())
    ahead = [lada[seed][role]["gain"] - seeds[seed][role]["gain"] for seed in both]
    errors = [one[seed][role]["stderr"] for seed in both for one in (seeds, lada)]
    return {
        "mean": mean(found[role]["gain"] for found in seeds.values()),
        "stderr": hypot(*(found[role]["stderr"] for found in seeds.values())) / len(seeds),
        "lada_minus_it": mean(ahead) if both else None,
        "is_noise": abs(mean(ahead)) < 2 * hypot(*errors) / len(both) if both else None,
    }


def _write(options: argparse.Namespace) -> None:
    made = {name: str(value) for name, value in vars(options).items() if name not in ("runs", "out")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"options": made, **table(options.runs)}, indent=2)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
