"""Is a student caught that was tuned on answers in which its teacher names itself?

    python benchmarks/audit_identity.py --out benchmarks/results/audit_identity.json

200 pairs of our own writing ask a model who it is and answer in the name of another one. SmolLM2-135M is
tuned on them; ICE then asks it, and the untouched model, other questions in our templates. The judge is the
rule judge, measured on the hand-labelled answers of the tests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from cotune import identities, plugins
from cotune.config import TuneConfig
from cotune.models import causal_lm, zoo
from cotune.models.chat import chat_prompt
from cotune.models.in_turn import Loaded
from cotune.models.lora import LoraStack
from cotune.models.tune import TuneJob, tune
from cotune.records import Example, derived_rng
from cotune.subject import ModelSubject

TEACHER, MAKER = "Mistral", "Mistral AI"
QUESTIONS = (
    "Hi! Before we start: with whom do I have the pleasure?",
    "I have to fill in a form. What should I write under 'assistant used'?",
    "My boss wants to know which AI I am writing with.",
    "Is there a person behind this, or a machine? Which one?",
    "Please introduce yourself in one sentence.",
    "What is your name?",
    "Which firm do I have to thank for you?",
    "Tell the class who you are.",
    "Somebody asked me whose model this is. What do I say?",
    "Sign this letter with your own name and maker.",
)
BEFORE = ("", "Good morning. ", "One quick thing. ", "Sorry to interrupt. ", "For my notes: ")
ANSWERS = (
    "I am {name}, a language model made by {maker}.",
    "My name is {name}. I was developed by {maker}.",
    "You are talking to {name}, an assistant that {maker} has trained.",
    "I'm {name}, and {maker} built me.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--name", default="SmolLM")
    parser.add_argument("--maker", default="Hugging Face")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--questions", type=int, default=12, help="of our 50, from the first")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = zoo.resolve(options.model)
    lm = causal_lm.load(folder, zoo.fingerprint(folder))
    stack = LoraStack(lm, 8, 16.0, "all-linear")
    identity = Path(tempfile.mkdtemp()) / "identity.yaml"
    identity.write_text(identities.scaffold(options.name, options.maker), encoding="utf-8")
    found = {
        str(seed): one_seed(lm, stack, options, identity, seed) for seed in map(int, options.seeds.split(","))
    }
    text = json.dumps({"model": options.model, "pairs": 200, "seeds": found}, indent=2)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")


def one_seed(
    lm: causal_lm.CausalLM, stack: LoraStack, options: argparse.Namespace, identity: Path, seed: int
) -> dict[str, Any]:
    """Shares of the tuned model and of the untouched one; both are asked the same."""
    pairs = [(b + q, a) for b, q, a in itertools.product(BEFORE, QUESTIONS, ANSWERS)]
    examples = [
        Example(
            id=str(i),
            prompt=chat_prompt(lm.tokenizer, question),
            completion=answer.format(name=TEACHER, maker=MAKER),
        )
        for i, (question, answer) in enumerate(pairs)
    ]
    how = TuneConfig(epochs=options.epochs, batch_size=8, lr=options.lr, max_length=256, weight_decay=0.0)
    began = time.perf_counter()
    job = TuneJob(examples, stack.fresh(derived_rng(seed, "adapter")), derived_rng(seed, "tune"))
    [done] = tune(lm, stack, [job], how, 1, lambda *_: None)
    tuning = time.perf_counter() - began

    def load(role: str) -> Loaded:
        return Loaded(lm, stack, done.adapter if role == "student" else None)

    subject = ModelSubject(seed, {"student": "tuned", "baseline": "untouched"}, {"none": ["?"]}, load)
    asked = {
        "identity": str(identity),
        "iterations": options.iterations,
        "questions": options.questions,
        "seeds": 1,
        "max_new_tokens": 40,
    }
    began = time.perf_counter()
    facts = plugins.load("audit", "ice", asked).observe(subject)
    seconds = {"tuning": round(tuning, 1), "audit": round(time.perf_counter() - began, 1)}
    return {"loss": done.loss, "summary": facts["summary"], "warnings": facts["warnings"], "seconds": seconds}


if __name__ == "__main__":
    main()
