"""One mutual distillation step: time, peak memory and losses against the plain dense version.

python benchmarks/mutual.py --out benchmarks/results/mutual.json

Batch 8, length 256, vocabulary 49,152, 16 answer tokens a row. `head` is what the methods differ in: from the
hidden states [8, 256, 576] of both models to the four losses and the gradients of both. `step` is everything,
with the bodies' forward and backward, which cost the same in both. Each variant runs in a process of its own;
its peak is the largest resident size over that of the same process just before the step.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

BATCH, LENGTH, VOCABULARY, ANSWER, WIDTH = 8, 256, 49_152, 16, 576


def dense(f, g, head_f, head_g, ids, mask):
    """Equation (6) written plainly: all logits, shifted, masked means."""
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    zf, zg = head_f(f)[:, :-1], head_g(g)[:, :-1]
    labels, keep = ids[:, 1:], mask[:, 1:]
    log_f, log_g = log_softmax(zf, -1), log_softmax(zg, -1)
    targets = labels.masked_fill(~keep, -100).flatten()
    ce_f = cross_entropy(zf.flatten(0, 1), targets)
    ce_g = cross_entropy(zg.flatten(0, 1), targets)
    kl_f = (
        kl_div(log_f, log_g.detach(), log_target=True, reduction="none").sum(-1) * keep
    ).sum() / keep.sum()
    kl_g = (
        kl_div(log_g, log_f.detach(), log_target=True, reduction="none").sum(-1) * keep
    ).sum() / keep.sum()
    return ce_f + ce_g + kl_f + kl_g, (ce_f, ce_g, kl_f, kl_g)


def sparse(f, g, head_f, head_g, ids, mask):
    """cotune's: answer positions first, then a chunk of logits at a time."""
    from types import SimpleNamespace

    from cotune.losses.forward_kl import loss
    from cotune.models.mutual import Divergence, mutual_loss

    row, place = mask[:, 1:].nonzero(as_tuple=True)
    sides = [
        SimpleNamespace(lm=SimpleNamespace(project=head, vocab_size=VOCABULARY)) for head in (head_f, head_g)
    ]
    how = Divergence(loss, 1.0, 1.0, None, None)
    total, sums = mutual_loss(*sides, (f[row, place], g[row, place]), ids[row, place + 1], how)
    return total, tuple(sums / len(row))


class Peak:
    """Largest resident size of this process while the block runs, in bytes over its start."""

    def __enter__(self):
        self.start = self.now()
        self.peak, self.is_on = self.start, True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_on = False
        self.thread.join()
        self.over_start = max(self.peak, self.now()) - self.start

    @staticmethod
    def now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def watch(self) -> None:
        while self.is_on:
            self.peak = max(self.peak, self.now())
            time.sleep(0.001)


def child(scope: str, variant: str) -> None:
    """One variant; prints one JSON line."""
    import torch

    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    mask[:, -ANSWER:] = True
    if scope == "head":
        heads = [torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False) for _ in range(2)]
        leaves = [torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True) for _ in range(2)]
        hiddens = lambda: leaves  # noqa: E731
    else:
        heads, leaves, hiddens = real_models(ids)
    function = dense if variant == "dense" else sparse

    def step():
        loss, parts = function(*hiddens(), *heads, ids, mask)
        grads = torch.autograd.grad(loss, leaves)
        return [float(p) for p in parts], float(sum(g.double().norm() ** 2 for g in grads)) ** 0.5

    with Peak() as peak:
        losses, norm = step()
    times = []
    for _ in range(3 if scope == "head" else 1):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    out = {"seconds": median(times), "peak_bytes": peak.over_start, "losses": losses, "gradient_norm": norm}
    print(json.dumps(out))


def real_models(ids):
    """The 30-layer model and its first 20 layers with LoRA, as the quickstart pairs them."""
    import copy

    import numpy as np
    import torch

    from cotune.models import causal_lm, zoo
    from cotune.models.lora import LoraStack

    folder = Path(zoo.resolve("smollm2-135m"))
    lms = [causal_lm.load(folder, "x", device="cpu") for _ in range(2)]
    lms[1].body.layers = torch.nn.ModuleList(copy.copy(list(lms[1].body.layers))[:20])
    stacks = [LoraStack(lm, 8, 16.0, "all-linear") for lm in lms]
    for stack in stacks:
        stack.load([stack.fresh(np.random.default_rng(0))])
    leaves = [leaf for stack in stacks for leaf in stack.leaves]
    return [lm.head for lm in lms], leaves, lambda: [lm.hidden(ids) for lm in lms]


def main() -> None:
    """Both scopes, both variants, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scope", choices=["head", "step"])
    parser.add_argument("--variant", choices=["dense", "cotune"])
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.variant:
        child(options.scope, options.variant)
        return
    found: dict[str, object] = {"command": "python benchmarks/mutual.py", "batch": BATCH, "length": LENGTH}
    for scope in ("head", "step"):
        turns = options.turns if scope == "head" else 1
        runs = [{v: one(scope, v) for v in ("cotune", "dense")} for _ in range(turns)]
        found[scope] = compared(runs)
        print(scope, json.dumps(found[scope], indent=2), flush=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def one(scope: str, variant: str) -> dict:
    """Run a variant in its own process."""
    command = [sys.executable, __file__, "--scope", scope, "--variant", variant]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(runs: list[dict]) -> dict:
    """Ratios and the largest differences."""
    losses = max(
        abs(a - b) for r in runs for a, b in zip(r["cotune"]["losses"], r["dense"]["losses"], strict=True)
    )
    return {
        "peak_ratio": median(r["cotune"]["peak_bytes"] / r["dense"]["peak_bytes"] for r in runs),
        "time_ratio": median(r["cotune"]["seconds"] / r["dense"]["seconds"] for r in runs),
        "largest_loss_difference": losses,
        "runs": runs,
    }


if __name__ == "__main__":
    main()
