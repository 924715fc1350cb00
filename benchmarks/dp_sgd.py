"""What privacy costs in time: a step with each example's gradient cut and noise, against an ordinary step.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python benchmarks/dp_sgd.py --out benchmarks/results/dp_sgd.json

Both do the same batch of examples of different lengths (forward, backward, optimiser), turn about, after one
warm-up. Seconds are those of the processor (one thread), so that other work on the machine hardly counts;
quoted are medians of the ratios. `pass` is one pass through `tune` and `tune_privately`, whose Poisson
batches have the same size on average. A model that is not in the cache is left out; the tiny one is that of
the tests.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

import tiny
from cotune.config import TuneConfig
from cotune.errors import CotuneError
from cotune.models import causal_lm, zoo
from cotune.models.causal_lm import CausalLM, Encoded
from cotune.models.dp_sgd import clipped_sums, noised, tune_privately
from cotune.models.lora import LoraStack
from cotune.models.tune import Privacy, RowOptimiser, TuneJob, stack_loss, tune
from cotune.records import Example

BATCH = 8
AIM = 2.0


def rows(lm: CausalLM, count: int, length: int, seed: int) -> list[Encoded]:
    """Random tokens, from half of `length` to all of it; the last four are predicted."""
    rng = np.random.default_rng(seed)
    sizes = sorted(rng.integers(length // 2, length + 1, count).tolist())
    return [Encoded(tuple(rng.integers(2, lm.vocab_size, size).tolist()), size - 4) for size in sizes]


def private(seed: int) -> Privacy:
    """A usual bound and noise."""
    return Privacy(1.0, 1.0, np.random.default_rng(seed))


def turns(one: Callable[[], object], other: Callable[[], object], count: int) -> dict[str, object]:
    """Seconds of both, taken in turn, and other / one."""
    one(), other()
    pairs = []
    for _ in range(count):
        taken = []
        for work in (one, other):
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
        pairs.append(taken)
    ratios = [b / a for a, b in pairs]
    return {
        "ordinary_seconds": median(a for a, _ in pairs),
        "private_seconds": median(b for _, b in pairs),
        "ratio_median": median(ratios),
        "ratios": ratios,
    }


def of_steps(lm: CausalLM, stack: LoraStack, clients: int, length: int, count: int) -> dict[str, object]:
    """Steps of so many stacked clients on one batch each."""
    active = [rows(lm, BATCH, length, seed) for seed in range(clients)]
    how = [private(seed) for seed in range(clients)]
    stack.load([stack.fresh(np.random.default_rng(0))] * clients)
    optimiser = RowOptimiser(stack, TuneConfig(lr=1e-6), [(10**6, (0.0, 1.0))] * clients)

    def ordinary() -> None:
        loss, _, _ = stack_loss(lm, active)
        optimiser.step(stack.gradients(loss), clients)

    def hidden() -> None:
        found = clipped_sums(lm, stack, active, [one.clip for one in how])
        noisy = [noised(total, one) / BATCH for total, one in zip(found.sums, how, strict=True)]
        optimiser.step(torch.stack(noisy), clients)

    found = turns(ordinary, hidden, count)
    stack.load([])
    return found


def of_passes(lm: CausalLM, stack: LoraStack, count: int) -> dict[str, object]:
    """One pass of one client over two batches of examples."""
    rng = np.random.default_rng(3)
    examples = [
        Example(id=str(i), prompt="a b " * int(rng.integers(6, 20)), completion=" c", choices=("c", "d"))
        for i in range(2 * BATCH)
    ]
    start, config = stack.fresh(np.random.default_rng(0)), TuneConfig(batch_size=BATCH)
    seeds = iter(range(10**6))

    def ordinary() -> None:
        tune(lm, stack, [TuneJob(examples, start, np.random.default_rng(next(seeds)))], config)

    def hidden() -> None:
        seed = next(seeds)
        given = TuneJob(examples, start, np.random.default_rng(seed), private=private(seed))
        tune_privately(lm, stack, [given], config)

    return turns(ordinary, hidden, count)


def measured(lm: CausalLM, length: int, count: int) -> dict[str, object]:
    """All cases of one model: rank 8 on the attention, and on every linear layer."""
    found: dict[str, object] = {"batch_size": BATCH, "longest": length}
    for targets in ("attention", "all-linear"):
        stack = LoraStack(lm, 8, 16.0, targets)
        case: dict[str, object] = {"parameters": stack.num_parameters}
        case["step_1_client"] = of_steps(lm, stack, 1, length, count)
        case["step_3_clients"] = of_steps(lm, stack, 3, length, count)
        case["pass_1_client"] = of_passes(lm, stack, count)
        found[targets] = case
        print(targets, {k: v["ratio_median"] for k, v in case.items() if isinstance(v, dict)}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--turns", type=int, default=3, help="for the model; the tiny one takes 10 times as many"
    )
    options = parser.parse_args()
    found: dict[str, object] = {
        "command": "PYTHONPATH=tests python benchmarks/dp_sgd.py",
        "threads": torch.get_num_threads(),
        "turns": options.turns,
        "aim": f"ratio below {AIM:g}",
        "tiny": measured(tiny.lm(), 48, 10 * options.turns),
    }
    try:
        folder = Path(zoo.resolve(options.model))
        lm = causal_lm.load(folder, zoo.fingerprint(folder), device="cpu")
        found[options.model] = measured(lm, 48, options.turns)
    except CotuneError as error:
        print(f"{options.model} is left out: {error}")
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
