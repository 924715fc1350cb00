"""What a masked sum costs: one client's time and bytes; 1,000 clients, 5 percent of which leave at each step.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/secure_sum.py --out benchmarks/results/secure_sum.json

Seconds are those of the processor (one thread), so that other work on the machine does not count;
`wall_seconds` is the whole case as it ran. With `--flower PYTHON`, a Python that has flwr 1.41 installed, the
same size also goes through the client's half of Flower's SecAgg+ (its own functions: shares, quantise, own
mask, one mask a neighbour) in the same run. Ours also has keys, seals, checks and the encoded messages in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLOWER = """
import json, sys, time
import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine, parameters_addition, parameters_mod, parameters_multiply, parameters_subtraction)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

size, near, repeats = map(int, sys.argv[1:])
given = [np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)]
peers = [generate_key_pairs() for _ in range(near)]
secret, _ = generate_key_pairs()
seconds = []
for _ in range(repeats):
    began = time.process_time()
    create_shares(bytes(32), near // 2 + 2, near + 1)
    create_shares(private_key_to_bytes(secret), near // 2 + 2, near + 1)
    masked = factor_combine(1 << 21, quantize(parameters_multiply(given, 0.5), 8.0, 1 << 22))
    shapes = [array.shape for array in masked]
    masked = parameters_addition(masked, pseudo_rand_gen(bytes(range(32)), 1 << 32, shapes))
    for place, (_, public) in enumerate(peers):
        mask = pseudo_rand_gen(generate_shared_key(secret, public), 1 << 32, shapes)
        masked = (parameters_addition if place % 2 else parameters_subtraction)(masked, mask)
    body = [ndarray_to_bytes(array) for array in parameters_mod(masked, 1 << 32)]
    seconds.append(time.process_time() - began)
print(json.dumps({"seconds": seconds, "up_bytes": sum(map(len, body))}))
"""


def sum_of(
    num_clients: int, size: int, bits: int, how: tuple[int, float], drop: float = 0.0
) -> tuple[dict[str, Any], list[float]]:
    """One sum in this process; `how`: the number of neighbours (0: as planned) and the drop-out planned for.

    Returns:
        What it cost, and the seconds of each client in all its steps.
    """
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from cotune import secure_client, secure_server
    from cotune.codec import encode
    from cotune.fixed_point import Grid, Layout
    from cotune.memory import peak
    from cotune.neighbours import Plan, plan
    from cotune.records import Message
    from cotune.secure_messages import Terms, pack

    names = tuple(sorted(f"client-{i:05d}" for i in range(num_clients)))
    near, dropout = how
    chosen = plan(num_clients, dropout, 0.0)
    if near:
        quorum = num_clients // 2 + 1
        chosen = Plan(num_clients, 0, chosen.dropped, near, near // 2 + 2, quorum, 1.0, 1.0)
    layout = Layout((("update", (size,)),), ("loss",), Grid(bits, 1.0, num_clients), 1.0)
    terms = Terms("benchmark", 1, names, chosen, layout)
    identities = {name: Ed25519PrivateKey.generate() for name in names}
    registry = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    spent, sent = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    members: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    steps: dict[str, float] = {}
    began_all = time.perf_counter()

    def timed(name: str, step: str, function: Callable[..., Any], *given: Any) -> Any:
        began = time.process_time()
        members[name], message = function(*given)
        facts, arrays = pack(message)
        sent[name] += len(encode(Message(name, 1, step, arrays, facts)))
        took = time.process_time() - began
        spent[name] += took
        steps[step] = steps.get(step, 0.0) + took
        return message

    def stay(who: Any) -> list[str]:
        kept = rng.permutation(sorted(who))[round(drop * num_clients) :]
        return sorted(map(str, kept))

    server = 0.0

    def serve(function: Callable[..., Any], *given: Any) -> Any:
        nonlocal server
        began = time.process_time()
        found = function(*given)
        server += time.process_time() - began
        return found

    keys = [timed(n, "keys", secure_client.begin, terms, n, identities[n]) for n in names]
    circle = serve(secure_server.roster, terms, keys, registry)
    sealed = [
        timed(n, "share", secure_client.share, members[n], circle.roster, registry) for n in stay(names)
    ]
    told = serve(secure_server.deliveries, circle, sealed)
    del sealed
    plain, weights = np.zeros(size), 0.0

    def give(name: str) -> Any:
        nonlocal plain, weights
        update, weight = rng.uniform(-1, 1, size).astype(np.float32), float(rng.uniform(0.1, 1))
        plain, weights = plain + update.astype(np.float64) * weight, weights + weight

        def both(member: Any, delivery: Any) -> Any:
            return secure_client.mask(
                member, delivery, layout.encode({"update": update}, weight, {"loss": 1.0})
            )

        return timed(name, "mask", both, members[name], told[name])

    clients_before = sum(spent.values())
    began = time.process_time()
    staying = stay(told)
    made = 0.0

    def coming() -> Any:
        nonlocal made
        for name in staying:
            start = time.process_time()
            one = give(name)
            made += time.process_time() - start
            yield one

    total = secure_server.add_up(circle, told, coming())
    server += time.process_time() - began - made
    assert sum(spent.values()) > clients_before
    lists = serve(secure_server.lists, circle, told, total)
    agreeing = stay(lists.alive)
    consents = [
        timed(n, "consent", secure_client.consent, members[n], lists, identities[n]) for n in agreeing
    ]
    agreed = serve(secure_server.agreement, circle, lists, consents, registry)
    last = stay(agreeing)
    opened = [timed(n, "open", secure_client.open_masks, members[n], agreed, registry) for n in last]
    began = time.process_time()
    result = secure_server.open_sum(circle, lists, total, opened)
    opening = time.process_time() - began
    error = float(np.abs(result.arrays["update"] - plain / weights).max())
    allowed = layout.error(result.weight, result.num_clients) + 2.0**-24
    assert error <= allowed, (error, allowed)
    facts = {
        "clients": num_clients,
        "parameters": size,
        "bits": bits,
        "neighbours": chosen.num_neighbours,
        "threshold": chosen.threshold,
        "in_sum": result.num_clients,
        "opened_by": len(opened),
        "client_seconds_median": statistics.median(spent[n] for n in last),
        "client_seconds_most": max(spent.values()),
        "client_seconds_by_step": {step: took / num_clients for step, took in steps.items()},
        "wall_seconds": time.perf_counter() - began_all,
        "server_seconds": server + opening,
        "server_seconds_opening": opening,
        "up_bytes_per_parameter": max(sent.values()) / size,
        "error": error,
        "error_allowed": allowed,
        "peak_bytes": peak(),
    }
    return facts, [spent[n] for n in last]


def flower(python: str, size: int, near: int, repeats: int) -> dict[str, Any]:
    """The client's half of Flower's SecAgg+ on the same size, in a process of that Python."""
    command = [python, "-c", FLOWER, str(size), str(near), str(repeats)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return {
        "client_seconds_median": statistics.median(found["seconds"]),
        "client_seconds": found["seconds"],
        "up_bytes_per_parameter": found["up_bytes"] / size,
    }


CASES: dict[str, tuple[int, int, int, tuple[int, float], float]] = {
    "32 bits": (13, 1_000_000, 32, (10, 0.0), 0.0),
    "16 bits": (13, 1_000_000, 16, (10, 0.0), 0.0),
    "1,000 clients": (1_000, 100_000, 32, (0, 0.2), 0.05),
}
"""Clients, parameters, bits, (neighbours, planned drop-out), drop-out at each later step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--flower", help="a Python that has flwr 1.41")
    parser.add_argument("--case", choices=sorted(CASES), help="only this one, in this process")
    parser.add_argument("--clients", type=int, help="fewer than 1,000 in the large case")
    options = parser.parse_args()
    if options.case:
        given = list(CASES[options.case])
        if options.clients and given[0] == 1_000:
            given[0] = options.clients
        print(json.dumps(sum_of(*given)[0]))  # type: ignore[arg-type]
        return
    found: dict[str, Any] = {"command": "python benchmarks/secure_sum.py", "cores": os.cpu_count()}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case]
        if options.clients:
            command += ["--clients", str(options.clients)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[case] = json.loads(done.stdout)
        print(case, found[case], flush=True)
        if case == "32 bits" and options.flower:
            found["flower"] = flower(options.flower, 1_000_000, 10, 5)
            ratio = found["flower"]["client_seconds_median"] / found[case]["client_seconds_median"]
            found["times_faster_than_flower"] = ratio
            print("flower", found["flower"], f"ratio {ratio:.1f}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
