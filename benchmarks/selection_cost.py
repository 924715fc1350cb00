"""What choosing costs: FedHDS here against the procedure its released code follows, on the same clients.

    python benchmarks/selection_cost.py --data dolly.jsonl.gz --model smollm2-135m --measured 6 \
        --out benchmarks/results/selection_cost.json

The published procedure, written anew from its description: one example at a time through the whole model with
labels, so that logits and a loss are computed; all layers' last token to float64, one by one; one t-SNE
a client on all (layers + 1) * width columns; HDBSCAN; and a copy of the model for each client. Ours: batches
of similar length without the head, projected at once, HDBSCAN in the shared basis. Each side runs in its own
process; memory is the peak above what the process held once the model was loaded. Only `--measured` of the
200 clients are run, drawn by seed: the cost of a client does not depend on the others.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cotune.coreset import Question, read
from cotune.models import causal_lm, zoo
from cotune.models.causal_lm import CausalLM
from cotune.models.reader import Causal, ModelReader

MAX_LENGTH = 1024


def clients(data: str, measured: int) -> list[list[str]]:
    """Texts of some of 200 clients, Dirichlet 0.5 over the kinds of task."""
    source = read(Question(data, [{"name": "fedhds"}], partition="dirichlet:200:0.5:task"))
    names = sorted(source.dataset.clients)
    drawn = np.random.default_rng(0).choice(len(names), measured, replace=False)
    parts = [source.dataset.train(names[i]) for i in sorted(drawn)]
    return [[example.prompt + example.completion for example in part] for part in parts]


def load(model: str) -> CausalLM:
    """The model on the CPU."""
    folder = Path(zoo.resolve(model))
    return causal_lm.load(folder, zoo.fingerprint(folder), device="cpu")


def published(lm: CausalLM, parts: list[list[str]]) -> dict[str, float]:
    """Seconds of the passes and of everything after them."""
    from sklearn.cluster import HDBSCAN
    from sklearn.manifold import TSNE

    forward = after = 0.0
    for texts in parts:
        began = time.perf_counter()
        model = copy.deepcopy(lm.model)
        rows = []
        with torch.no_grad():
            for text in texts:
                ids = torch.tensor([lm.tokenizer(text)["input_ids"][:MAX_LENGTH]])
                out = model(input_ids=ids, labels=ids, output_hidden_states=True)
                last = [state[0, -1].cpu().numpy().astype(np.float64) for state in out.hidden_states]
                rows.append(np.concatenate(last))
        features = np.stack(rows)
        middle = time.perf_counter()
        perplexity = min(30, len(features) - 1)
        layout = TSNE(2, perplexity=perplexity, random_state=0).fit_transform(features)
        HDBSCAN(min_cluster_size=2, store_centers="centroid", copy=True).fit(layout)
        forward, after = forward + middle - began, after + time.perf_counter() - middle
    return {"forward": forward, "after": after}


def ours(lm: CausalLM, parts: list[list[str]]) -> dict[str, float]:
    """The same two numbers."""
    from cotune import groups

    reader = ModelReader(Causal(lm, None, lm.fingerprint), tokens=2048)
    began = time.perf_counter()
    features = reader.features([text for texts in parts for text in texts], 16, 0)
    middle, start = time.perf_counter(), 0
    for texts in parts:
        own = features[start : start + len(texts)]
        start += len(texts)
        labels, weights = groups.density_groups(own, 2, 0)
        groups.nearest(own, labels, groups.centres(own, labels, weights))
    return {"forward": middle - began, "after": time.perf_counter() - middle}


def measure(side: str, data: str, model: str, measured: int) -> dict[str, float]:
    """One side in this process; imports and a first pass are not counted."""
    parts, lm = clients(data, measured), load(model)
    run = {"published": published, "ours": ours}[side]
    run(lm, [["a short text to warm up", "and another one", "and one more", "and a fourth", "and a fifth"]])
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(lm, parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = sum(len(lm.tokenizer(text)["input_ids"]) for texts in parts for text in texts)
    sizes = {"examples": sum(map(len, parts)), "tokens": tokens}
    return {**found, **sizes, "peak_above_model_bytes": (peak - base) * 1024, "peak_bytes": peak * 1024}


def main() -> None:
    """Both sides, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--measured", type=int, default=6)
    parser.add_argument("--side")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.data, options.model, options.measured)))
        return
    found = {}
    for side in ("ours", "published"):
        command = [sys.executable, __file__, "--side", side, "--data", options.data, "--model", options.model]
        command += ["--measured", str(options.measured)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(side, found[side], flush=True)
    there, here = found["published"], found["ours"]
    found["ratio"] = {
        "whole": (there["forward"] + there["after"]) / (here["forward"] + here["after"]),
        "forward": there["forward"] / here["forward"],
        "after": there["after"] / here["after"],
        "peak_bytes": there["peak_bytes"] / here["peak_bytes"],
    }
    found["command"] = f"python benchmarks/selection_cost.py --data FILE --measured {options.measured}"
    print(json.dumps(found["ratio"], indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
