"""Do the audits see distillation? A student is tuned on the teacher's answers for 0, 1, 2, 3 epochs.

    python benchmarks/audit_validity.py --data dolly.jsonl.gz --out benchmarks/results/audit_validity.json

Beside it the same student is tuned on people's answers to the same questions for as many epochs; it is the
baseline of every observation, so that differences come with a paired interval and a p-value. Likeness is
judge-free; RSE is judged by a local model of a third family. A seed that stands in `--out` is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from cotune import audit_prompts, fleet, plugins
from cotune.config import RuntimeConfig, ShrinkConfig, TuneConfig
from cotune.models import causal_lm, zoo
from cotune.models.chat import chat_prompt
from cotune.models.in_turn import InTurn, Loaded, Local
from cotune.models.lora import LoraStack
from cotune.models.tune import TuneJob, tune
from cotune.records import Adapter, Example, Sampling, derived_rng
from cotune.sources import read
from cotune.subject import ModelSubject, appoint


def main() -> None:
    options = _options()
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {"seeds": {}}
    found["options"] = {name: str(value) for name, value in vars(options).items() if name != "out"}
    stage = Stage(options)
    for seed in map(int, options.seeds.split(",")):
        if str(seed) not in found["seeds"]:
            found["seeds"][str(seed)] = stage.one_seed(seed)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for seed, epochs in found["seeds"].items():
        for row in epochs:
            print(seed, row["epoch"], {name: value for name, value in row.items() if name != "epoch"})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="rows {instruction, input, output}")
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--judge", default="gemma3-270m", help="a model of a third family; empty: none")
    parser.add_argument("--layers", type=int, default=14, help="of the student, cut from the teacher")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=12, help="prompts of each of our three sets")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Stage:
    """Teacher and student in memory, and the questions."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        folder = zoo.resolve(options.teacher)
        rows = [
            row for _, row in read(options.data) if not row.get("input") and len(row["instruction"]) < 200
        ]
        self.rows = [row for row in rows if 20 < len(row["output"]) < 300]
        texts = [_example("", row["instruction"], row["output"]) for row in self.rows[:64]]
        small = fleet.cut(folder, ShrinkConfig(layers=options.layers, method="influence"), texts, "auto")
        self.lms = {
            "reference": causal_lm.load(folder, zoo.fingerprint(folder)),
            "student": causal_lm.load(small, zoo.fingerprint(small)),
        }
        self.stack = LoraStack(self.lms["student"], 8, 16.0, "all-linear")
        self.sampling = Sampling(max_new_tokens=options.new_tokens)
        self.others = InTurn({"judge": Local(options.judge)}, RuntimeConfig(), print)
        sets = audit_prompts.own()
        self.sets = {name: prompts[: options.limit] for name, prompts in sets.items()}

    def one_seed(self, seed: int) -> list[dict[str, Any]]:
        """What both audits say before tuning and after each epoch on the teacher's answers."""
        drawn = derived_rng(seed, "rows").permutation(len(self.rows))[: self.options.rows]
        rows = [self.rows[i] for i in drawn.tolist()]
        questions = [row["instruction"] for row in rows]
        written = self.subject(seed, None, None).answers("reference", questions, self.sampling)
        tokenizer = self.lms["student"].tokenizer
        prompts = [chat_prompt(tokenizer, question) for question in questions]
        human = [
            _example(f"h{i}", p, row["output"]) for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
        ]
        taught = [
            _example(f"t{i}", p, w.text, w.finished)
            for i, (p, w) in enumerate(zip(prompts, written, strict=True))
        ]
        fresh = self.stack.fresh(derived_rng(seed, "adapter"))
        baseline = self.tuned(human, fresh, seed)[-1]
        return [
            {"epoch": epoch, **self.observed(seed, adapter, baseline)}
            for epoch, adapter in enumerate([fresh, *self.tuned(taught, fresh, seed)])
        ]

    def tuned(self, examples: list[Example], start: Adapter, seed: int) -> list[Adapter]:
        """The adapter after each epoch."""
        found, epochs = [], self.options.epochs
        how = TuneConfig(
            epochs=1, batch_size=8, lr=self.options.lr, max_length=256, weight_decay=0.0, warmup=0.3
        )
        for epoch in range(epochs):
            rng = derived_rng(seed, "tune", str(epoch))
            span = (epoch / epochs, (epoch + 1) / epochs)
            [done] = tune(
                self.lms["student"], self.stack, [TuneJob(examples, start, rng, span)], how, 1, _silent
            )
            start = done.adapter
            found.append(start)
        return found

    def observed(self, seed: int, adapter: Adapter, baseline: Adapter) -> dict[str, Any]:
        """Headline numbers of both audits."""
        subject, told = self.subject(seed, adapter, baseline), {}
        names = ["likeness", *(["rse"] if self.options.judge else [])]
        for name in names:
            began = time.perf_counter()
            options = {"limit": self.options.limit, "max_new_tokens": self.options.new_tokens}
            facts = plugins.load("audit", name, options).observe(subject)
            told[name] = {key: _short(value) for key, value in facts["summary"].items()}
            told[name] |= {key: facts[key] for key in ("warnings", "self_check", "usable") if key in facts}
            told[name]["seconds"] = round(time.perf_counter() - began, 1)
            if name == "likeness":
                told[name]["gain_p"] = facts["mean"].get("gain_p")
        return told

    def subject(self, seed: int, adapter: Adapter | None, baseline: Adapter | None) -> ModelSubject:
        """Teacher, student, the student that people taught, and the judge."""

        def load(role: str) -> Loaded:
            if role == "judge":
                return self.others(role)
            if role == "reference":
                return Loaded(self.lms[role])
            return Loaded(self.lms["student"], self.stack, adapter if role == "student" else baseline)

        roles = {"student": "student", "reference": "teacher", "baseline": "student taught by people"}
        helpers = frozenset({"judge"} if self.options.judge else ())
        found = ModelSubject(seed, roles, self.sets, load, {}, helpers)
        if helpers:
            appoint(found, self.options.judge)
        return found


def _example(name: str, prompt: str, answer: str, has_end: bool = True) -> Example:
    """An answer that the length cap cut is trained on without an end, as choices are."""
    return Example(id=name, prompt=prompt, completion=answer, choices=() if has_end else (answer,))


def _short(estimate: dict[str, Any]) -> list[float | None]:
    values = (estimate["value"], estimate["low"], estimate["high"])
    return [None if value is None else round(float(np.round(value, 4)), 4) for value in values]


def _silent(*_: Any) -> None:
    pass


if __name__ == "__main__":
    main()
