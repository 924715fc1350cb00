"""What choosing costs: FedHDS here against the procedure its released code follows, on the same clients.

    python benchmarks/selection_cost.py --data dolly.jsonl.gz --model smollm2-135m --measured 6 \
        --out benchmarks/results/selection_cost.json

The published procedure, written anew from its description: one example at a time through the whole model with
labels, so that logits and a loss are computed; all layers' last token to float64, one by one; one t-SNE
a client on all (layers + 1) * width columns; HDBSCAN; and a copy of the model for each client. Ours: batches
of similar length without the head, projected at once, HDBSCAN in the shared basis. Each side runs in its own
process; memory is the peak above what the process held once the model was loaded. Only `--measured` of the
200 clients are run, drawn by seed: the cost of a client does not depend on the others.

What follows the passes is also measured for all 200 clients at their true sizes (`all_clients`), from
features that are drawn instead of read, because a pass over the whole file takes hours without an
accelerator; and `arithmetic` says what the machine's own matrix product allows: no pass can be faster.
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

from cotune import groups
from cotune.config import RuntimeConfig
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
        middle = time.perf_counter()
        published_after(np.stack(rows))
        forward, after = forward + middle - began, after + time.perf_counter() - middle
    return {"forward": forward, "after": after}


def published_after(features: np.ndarray) -> None:
    """One client: t-SNE of its own, then HDBSCAN."""
    from sklearn.cluster import HDBSCAN
    from sklearn.manifold import TSNE

    perplexity = min(30, len(features) - 1)
    layout = TSNE(2, perplexity=perplexity, random_state=0).fit_transform(features)
    HDBSCAN(min_cluster_size=2, store_centers="centroid", copy=True).fit(layout)


def ours(lm: CausalLM, parts: list[list[str]]) -> dict[str, float]:
    """The same two numbers."""
    reader = ModelReader(Causal(lm, None, lm.fingerprint), tokens=RuntimeConfig().score_tokens)
    began = time.perf_counter()
    features = reader.features([text for texts in parts for text in texts], 16, 0)
    middle, start = time.perf_counter(), 0
    for texts in parts:
        own = features[start : start + len(texts)]
        start += len(texts)
        our_after(own)
    return {"forward": middle - began, "after": time.perf_counter() - middle}


def our_after(features: np.ndarray) -> np.ndarray:
    """One client: HDBSCAN in the shared basis; its centres."""
    labels, weights = groups.density_groups(features, 2, 0)
    centres = groups.centres(features, labels, weights)
    groups.nearest(features, labels, centres)
    return centres


def all_clients(side: str, data: str) -> dict[str, float]:
    """Everything after the passes, for all clients, from drawn features: eight topics and noise."""
    source = read(Question(data, [{"name": "fedhds"}], partition="dirichlet:200:0.5:task"))
    sizes = [len(source.dataset.train(name)) for name in source.dataset.clients]
    rng, columns = np.random.default_rng(0), 31 * 576 if side == "published" else 16
    kind = np.float64 if side == "published" else np.float32
    topics = rng.normal(size=(8, columns))
    seconds, centres = 0.0, []
    for size in sizes:
        own = (topics[rng.integers(8, size=size)] + rng.normal(size=(size, columns))).astype(kind)
        began = time.perf_counter()
        if side == "ours":
            centres.append(our_after(own))
        elif size > 2:
            published_after(own)
        seconds += time.perf_counter() - began
    if side == "ours":
        began = time.perf_counter()
        our_after(np.concatenate(centres))
        seconds += time.perf_counter() - began
    return {"clients": len(sizes), "examples": sum(sizes), "seconds": seconds}


def arithmetic(tokens: int) -> dict[str, float]:
    """Seconds that the machine's matrix product needs for the model's layers, without and with the head."""
    wide = torch.randn(2048, 576)
    weight = torch.randn(1536, 576)
    torch.nn.functional.linear(wide, weight)
    began = time.perf_counter()
    for _ in range(50):
        torch.nn.functional.linear(wide, weight)
    rate = 50 * 2 * 2048 * 576 * 1536 / (time.perf_counter() - began)
    layers, head = 106_168_320, 28_311_552
    return {
        "flops_per_second": rate,
        "layers": 2 * layers * tokens / rate,
        "layers_and_head": 2 * (layers + head) * tokens / rate,
    }


def measure(side: str, data: str, model: str, measured: int) -> dict[str, float]:
    """One side in this process; imports and a first pass are not counted."""
    parts, lm = clients(data, measured), load(model)
    run = {"published": published, "ours": ours}[side]
    run(lm, [["a short text to warm up", "and another one", "and one more", "and a fourth", "and a fifth"]])
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(lm, parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before all_clients, which reads more
    tokens = sum(len(lm.tokenizer(text)["input_ids"]) for texts in parts for text in texts)
    sizes = {"examples": sum(map(len, parts)), "tokens": tokens}
    return {
        **found,
        **sizes,
        "all_clients": all_clients(side, data),
        "peak_above_model_bytes": (peak - base) * 1024,
        "peak_bytes": peak * 1024,
    }


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
        "after_all_clients": there["all_clients"]["seconds"] / here["all_clients"]["seconds"],
        "peak_bytes": there["peak_bytes"] / here["peak_bytes"],
        "peak_above_model_bytes": there["peak_above_model_bytes"] / here["peak_above_model_bytes"],
    }
    found["arithmetic"] = arithmetic(int(here["tokens"]))
    found["command"] = f"python benchmarks/selection_cost.py --data FILE --measured {options.measured}"
    print(json.dumps(found["ratio"], indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
