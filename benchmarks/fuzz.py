"""Random and mutated messages into codec, clients and server: what is not right is refused, nothing crashes.

    python benchmarks/fuzz.py --messages 100000 --out benchmarks/results/fuzz.json

Every message begins as a valid one of some action, or as random bytes, and is changed in its bytes, its JSON
head, its table of arrays, or its values. It goes to the codec; then, decoded, to a host as a request, to the
server among up to eight replies that it gathers or asks for, or to the readers of the masked sum's messages.
It may be refused with a `WireError`; what is accepted must encode to itself, hold what an own reading of the
bytes says, and, in a sum, be one of the replies that `should_count` lists: the mean is compared with NumPy's.
Anything else (another exception, a wrong sum, too much memory) is listed with its number, and the exit code
is 1. Strategy, selector and pupil are fakes of a few numbers: no model is loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mutations import joined, mutated, parted

from cotune import outcomes, picking
from cotune.aggregators.mean import Mean
from cotune.checked import Known, check_requests
from cotune.codec import decode, encode
from cotune.errors import WireError
from cotune.federation import Federation
from cotune.host import Host
from cotune.protocols import Reply
from cotune.records import Adapter, Failure, Message, Round, adapter_header
from cotune.secure_messages import (
    Agreement,
    Consent,
    Delivery,
    Lists,
    Masked,
    Opened,
    PublicKeys,
    Roster,
    Sealed,
    pack,
    unpack,
)

NAMES = tuple(f"client-{i}" for i in range(8))
ROUNDS, NOW, SENT_WEIGHT = 5, 3, 1e15
LARGE = (10, 320 << 20)
"""Bytes of memory for each byte of a message, and beside them: what `codec` promises."""
GROWTH = 64 << 20
"""Bytes by which the process may have grown after all messages."""

_rng = np.random.default_rng(0)
ADAPTER = Adapter(
    {f"layer.{i}.lora_{part}": _rng.normal(size=(2, 3)).astype(np.float32) for i in (0, 1) for part in "AB"},
    "a base",
    2,
    4.0,
)
KEYS = PublicKeys("client-1", NOW, *(bytes([i]) * 32 for i in range(3)), bytes(64))
SECURE: Mapping[str, tuple[type, Any]] = {
    "keys": (PublicKeys, KEYS),
    "roster": (Roster, Roster((KEYS, replace(KEYS, client="client-2")))),
    "sealed": (Sealed, Sealed("client-1", {"client-2": b"box"}, bytes(32))),
    "delivery": (Delivery, Delivery({"client-2": b"box"}, bytes(32))),
    "masked": (Masked, Masked("client-1", np.arange(6, dtype=np.uint32), np.zeros(2, np.uint64), bytes(32))),
    "lists": (Lists, Lists(("client-1",), ("client-2",), bytes(32))),
    "consent": (Consent, Consent("client-1", bytes(64))),
    "agreement": (Agreement, Agreement({"client-1": bytes(64)}, bytes(32))),
    "opened": (Opened, Opened("client-1", {"client-2": b"s"}, {"client-3": b"k"}, bytes(32))),
}


class Numbers:
    """Strategy, selector and pupil of a few numbers; they use what they are given, as the real ones do."""

    def client_step(self, action: str, given: Sequence[Any], clients: Sequence[Any]) -> list[Reply]:
        if action in ("propose", "pick"):
            return [self._selected(action, client) for client in clients]
        if action == "upload":
            return [Reply(facts={"examples": len(client.examples)}) for client in clients]
        sums = {"loss": 0.5, "clients": 1.0}
        return [
            Reply(a.with_arrays({n: x + 1 for n, x in a.arrays.items()}), 2.0, sums, keep=a) for a in given
        ]

    def step(self, action: str, given: Sequence[Any], clients: Sequence[Any]) -> list[Reply]:
        return [Reply(facts={"rows": [0], "told": len(told.facts)}) for told in given]

    def before_tuning(self, starts: Sequence[Any], clients: Sequence[Any]) -> tuple[Any, Any]:
        return list(starts), list(clients)

    def _selected(self, action: str, client: Any) -> Reply:
        memo = {"rows": np.arange(3)}
        facts = {"selected": 2, "total": len(client.examples)}
        return Reply(facts=facts, memo=memo) if action == "propose" else Reply(facts=facts, chosen=[0, 1])


KNOWN = Known(
    clients=NAMES,
    num_rounds=ROUNDS,
    actions=frozenset({"tune", "upload"}),
    num_selectors=1,
    others=frozenset({"teach/"}),
    adapters=(ADAPTER,),
    needed=frozenset({"tune", "teach/choose"}),
)


def host(folder: Path) -> Host:
    """Eight clients of four examples each."""
    dataset = SimpleNamespace(
        clients=NAMES, train=lambda _: tuple("abcd"), held_out=lambda c: {"task": c}, own_test=None
    )
    parts = Numbers()
    made: Any = (parts, (parts,), parts)
    return Host(dataset, made, lambda *_: {"task": {"n": 1}}, folder, (7, ROUNDS))  # type: ignore[arg-type]


def requests() -> list[Message]:
    """A valid request of each action that a server sends."""
    sent = {"adapter": adapter_header(ADAPTER)}
    told = {
        "select/0/pick": {"groups": [0, 2]},
        "teach/choose": {"losses": [0.5, 1.5]},
        "teach/exchange": {"asked": [0], "paths": ["a path", "half \ud800"], "probe": [1]},
        "teach/learn": {},
    }
    plain = [Message("client-1", NOW, action, {}, {"told": one}) for action, one in told.items()]
    with_adapter = ("tune", "evaluate", "select/0/propose", "teach/choose")
    full = [Message("client-2", NOW, action, ADAPTER.arrays, sent) for action in with_adapter]
    first = Message("client-3", 0, "evaluate", {}, {})
    return [*full, *plain[:1], *plain[2:], replace(full[3], facts={**sent, "told": {}}), first]


def replies() -> list[Message]:
    """A valid reply to each action, the masked sum's messages among them."""
    numbers = {"weight": 2.0, "sums": {"loss": 0.5, "clients": 1.0}, "adapter": adapter_header(ADAPTER)}
    metrics = {"metrics": {"task": {"accuracy": 0.5, "n": 4, "stderr": None, "answers": [0.0, 1.0]}}}
    proposal = {"groups": [0, 1], "total": 9, "model": "m"}
    found = [
        Message("client-1", NOW, "tune", ADAPTER.arrays, numbers),
        Message("client-2", NOW, "evaluate", {}, metrics),
        Message("client-3", NOW, "select/0/propose", {"centres": np.ones((2, 4), np.float32)}, proposal),
        Message("client-4", NOW, "select/0/pick", {}, {"selected": 2, "total": 4}),
        Message("client-5", NOW, "teach/exchange", {}, {"paths": ["so"], "scrubbed": {"mail": 1}}),
    ]
    for name, (_, value) in SECURE.items():
        facts, arrays = pack(value)
        found.append(Message("client-1", NOW, f"secure/{name}", arrays, facts))
    return found


REQUESTS, REPLIES = requests(), replies()
CORPUS = [*REQUESTS, *REPLIES]
WORDS = (NAMES, [one.action for one in CORPUS])
WAYS = ("codec", "host", "host", "gather", "ask", "secure")
STARTS = {
    "codec": CORPUS,
    "host": REQUESTS,
    "gather": REPLIES[:1],
    "ask": REPLIES[1:5],
    "secure": REPLIES[5:],
}


class Wrong(Exception):
    """Something was accepted that must not be, or came out wrong."""


def check_codec(data: bytes) -> Message:
    """What was decoded must encode to itself, and hold what an own reading of the bytes finds.

    Raises:
        WireError: it was refused, as it may be.
        Wrong: it was accepted and should not have been.
    """
    found = decode(data)
    again = decode(encode(found))
    if not same(found, again):
        raise Wrong("encoded again it is another message")
    head, table, body = parted(data)
    for name, row in json.loads(table).items():
        if name == "__metadata__":
            continue
        start, end = row["data_offsets"]
        array = found.arrays[name]
        if list(array.shape) != row["shape"] or array.tobytes() != body[start:end]:
            raise Wrong(f"array {name!r} is not what its bytes say")
    said = json.loads(head.decode("utf-8", "surrogatepass"), object_pairs_hook=each_once)
    if said != {name: getattr(found, name) for name in ("client", "round", "action", "facts")}:
        raise Wrong("the head says something else")
    return found


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names differ."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise Wrong("a name stands twice, and readers may differ in which one counts")
    return dict(pairs)


def same(one: Message, other: Message) -> bool:
    plain = (one.client, one.round, one.action, one.facts) == (
        other.client,
        other.round,
        other.action,
        other.facts,
    )
    return plain and arrays_of(one) == arrays_of(other)


def arrays_of(message: Message) -> dict[str, Any]:
    return {n: (a.dtype, a.shape, a.tobytes()) for n, a in message.arrays.items()}


def check_host(clients: Host, message: Message) -> None:
    """A request that is not refused is answered; it can only be one that `may_be_answered`."""
    check_requests([message], KNOWN)
    if not may_be_answered(message):
        raise Wrong("answered a request that no server of this run sends")
    [reply] = clients.handle([message])
    if (reply.client, reply.round, reply.action) != (message.client, message.round, message.action):
        raise Wrong("a reply to something else")
    decode(encode(reply))


def may_be_answered(message: Message) -> bool:
    """Written down a second time, in other words, from what `requests` sends."""
    known = {one.action for one in requests()} | {"upload"}
    prefix, _, step = message.action.rpartition("/")
    shaped = prefix in ("select/0", "teach") and step.replace("_", "a").isalpha() and step.islower()
    who = message.client in NAMES and (message.action in known or shaped)
    when = message.round in range(1, ROUNDS + 1) or (message.round == 0 and message.action == "evaluate")
    header = message.facts.get("adapter")
    if header is None:
        what = (
            not message.arrays
            and message.action not in ("tune", "teach/choose")
            and "adapter" not in message.facts
        )
    elif prefix == "select/0" and isinstance(header, dict) and str(header.get("base")).startswith("score:"):
        what = all(np.isfinite(array).all() for array in message.arrays.values())
    else:
        what = header == adapter_header(ADAPTER) and same_form(message.arrays)
    return who and when and what and set(message.facts) <= {"adapter", "told"}


def same_form(arrays: Mapping[str, Any]) -> bool:
    forms = {n: (a.dtype, a.shape) for n, a in arrays.items()}
    expected = {n: (a.dtype, a.shape) for n, a in ADAPTER.arrays.items()}
    return forms == expected and all(math.isfinite(x) for a in arrays.values() for x in a.ravel().tolist())


class Wire:
    """A transport of which each client sends bytes; what cannot be decoded is a failure, as everywhere."""

    def __init__(self, found: Sequence[bytes]) -> None:
        self.found = found

    def clients(self) -> Sequence[str]:
        return NAMES

    def send(self, messages: Sequence[Message]) -> Iterator[tuple[Message | Failure, int, int]]:
        for sent, data in zip(messages, self.found, strict=True):
            try:
                yield decode(data), 0, len(data)
            except WireError as error:
                yield Failure(sent.client, sent.round, "rejected", str(error)), 0, len(data)


def should_count(found: Sequence[bytes], cohort: Sequence[str]) -> list[Message]:
    """The replies of a round that belong into its sum, by rules of our own."""
    counted: dict[str, Message] = {}
    for data in found:
        try:
            reply = decode(data)
        except WireError:
            continue
        facts = reply.facts
        weight, sums = facts.get("weight"), facts.get("sums")
        numbers = [weight, *sums.values()] if isinstance(sums, dict) else [None]
        fits = all(isinstance(x, int | float) and -SENT_WEIGHT <= x <= SENT_WEIGHT for x in numbers)
        asked = (
            reply.client in cohort and (reply.round, reply.action) == (NOW, "tune") and "refused" not in facts
        )
        fits = fits and facts.get("adapter") == adapter_header(ADAPTER) and same_form(reply.arrays)
        if asked and fits and reply.client not in counted and weight is not None and weight > 0:
            counted[reply.client] = reply
    return list(counted.values())


def check_sum(found: Sequence[bytes], cohort: tuple[str, ...]) -> int:
    """Gather the replies of a cohort; returns how many counted."""
    network = Federation(Wire(found), Mean(), lambda _: None)
    gathered = network.gather("tune", ADAPTER, Round(NOW, ROUNDS, 7, cohort))
    _ = gathered.losses
    counted = should_count(found, cohort)
    failures = network.take_ledger().failures
    if gathered.num_replies != len(counted) or len(failures) != len(found) - len(counted):
        raise Wrong(f"{gathered.num_replies} replies counted, expected {len(counted)}")
    if max((len(one.reason) for one in failures), default=0) > 2000:
        raise Wrong("a reason as long as the sender likes")
    if not counted:
        return 0
    weights = np.array([float(reply.facts["weight"]) for reply in counted])
    for name, array in (gathered.adapter or ADAPTER).arrays.items():
        stacked = np.stack([reply.arrays[name].astype(np.float64) for reply in counted])
        expected = (np.tensordot(weights, stacked, 1) / weights.sum()).astype(np.float32)
        if not np.allclose(array, expected, rtol=1e-5, atol=1e-30, equal_nan=False):
            raise Wrong(f"{name} of the sum is not the mean of what counted")
    return len(counted)


def check_asked(found: Sequence[bytes], action: str, cohort: tuple[str, ...]) -> None:
    """Ask a cohort; what reads their replies must refuse or use each."""
    network = Federation(Wire(found), Mean(), lambda _: None)
    came = network.ask(action, None, Round(NOW, ROUNDS, 7, cohort))
    picking.counts(came, network)
    for reply in came:
        metrics = reply.facts.get("metrics")
        if not outcomes.problem(metrics):
            outcomes.over_clients({reply.client: outcomes.without_answers(metrics)}, is_shared=True)


def check_secure(message: Message) -> None:
    """Each reader of the masked sum's messages takes it or refuses it."""
    kind, _ = SECURE.get(message.action.removeprefix("secure/"), (Masked, None))
    facts, arrays = pack(unpack(kind, message.facts, message.arrays))
    again, _ = pack(unpack(kind, facts, arrays))
    if again != facts or facts.keys() != message.facts.keys() or arrays.keys() != message.arrays.keys():
        raise Wrong("packed again it is another message")


SIZE = 1 << 23
LARGE_ONES = (
    "arrays",
    "dimensions",
    "lists",
    "nested",
    "names",
    "numbers",
    "wide text",
    "few lists",
    "floats",
)


def large(name: str) -> bytes:
    """About `SIZE` bytes that are small on the wire and large in memory; some of them are within limits."""
    head = b'{"client":"c","round":1,"action":"t","facts":{"x":%s}}'
    one = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    match name:
        case "arrays":
            rows = b",".join(b'"%x":%s' % (i, one) for i in range(SIZE // 2 // 56))
            return joined(head % b"0", b"{" + rows + b"}", b"")
        case "dimensions":
            return joined(
                head % b"0", b'{"x":' + one.replace(b"[0]", b"[" + b"0," * (SIZE // 5) + b"0]") + b"}", b""
            )
        case "floats":
            row = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (SIZE, 4 * SIZE)
            return joined(head % b"0", row, bytes(4 * SIZE))
    values = {
        "lists": b"[" + b"[]," * (SIZE // 3) + b"0]",
        "few lists": b"[" + b"[]," * 690_000 + b"0]",
        "nested": b"[" + b"[[[[[[]]]]]]," * (SIZE // 13) + b"0]",
        "names": b"{" + b",".join(b'"%x":0' % i for i in range(SIZE // 10)) + b"}",  # within limits
        "numbers": b"[" + b"999," * (SIZE // 4) + b"0]",
        "wide text": b'["' + b"a" * SIZE + "\N{GRINNING FACE}".encode() + b'"]',
    }
    return joined(head % values[name], b"{}", b"")


def alone(name: str, wrong: list[str]) -> dict[str, Any]:
    """One large message in a process of its own; too much memory is added to `wrong`."""
    data, command = large(name), [sys.executable, __file__, "--decode"]
    how, grown = json.loads(subprocess.run(command, check=True, input=data, stdout=subprocess.PIPE).stdout)
    size = len(data)
    allowed = LARGE[0] * size + LARGE[1]
    if grown > allowed:
        wrong.append(
            f"{name}: {grown:,} bytes of memory for a message of {size:,}; expected {allowed:,} at most"
        )
    return {"bytes": size, "memory_growth_bytes": grown, "allowed_bytes": allowed, "end": how}


def memory(name: str) -> int:
    """`VmRSS`: bytes of this process now; `VmHWM`: at most, since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def tried(way: str, rng: random.Random, clients: Host) -> str:
    """One message through one way; returns how it ended.

    Raises:
        WireError: it was refused.
        Wrong: it was accepted and should not have been, or changed what it must not.
    """
    start = rng.choice(STARTS[way])
    if way in ("gather", "ask"):
        cohort = NAMES[: rng.choice((1, 2, 8))]
        odd = rng.randrange(len(cohort))
        found = [encode(replace(start, client=name)) for name in cohort]
        found[odd] = mutated(replace(start, client=cohort[odd]), rng.choice(CORPUS), WORDS, rng)
        if way == "ask":
            check_asked(found, start.action, cohort)
            return "read"
        return "refused" if check_sum(found, cohort) < len(cohort) else "accepted"
    message = check_codec(mutated(start, rng.choice(CORPUS), WORDS, rng))
    if way == "host":
        check_host(clients, message)
    if way == "secure":
        check_secure(message)
    return "accepted"


def fuzz(messages: int, seed: int, folder: Path, trace_every: int = 50) -> dict[str, Any]:
    """So many messages; counts by way and end, what went wrong, and memory."""
    clients, ends, wrong, most = host(folder), Counter[str](), [], 0
    for number in range(messages):
        way, is_traced = WAYS[number % len(WAYS)], number % trace_every == 0
        if is_traced:
            tracemalloc.start()
        try:
            ends[f"{way} {tried(way, random.Random(f'{seed}/{number}'), clients)}"] += 1
        except WireError:
            ends[f"{way} refused"] += 1
        except Exception as error:
            wrong.append(f"message {number}: {way}: {type(error).__name__}: {error!s:.200}")
        if is_traced:
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return {"ends": dict(sorted(ends.items())), "wrong": wrong, "traced_peak_bytes": most}


def in_memory(data: bytes) -> tuple[str, int]:
    """How decoding ends, and by how much it makes this process grow at most."""
    forget_peak()
    before = memory("VmRSS")
    try:
        decode(data)
    except WireError as error:
        return f"refused: {error!s:.80}", memory("VmHWM") - before
    return "accepted", memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decode", action="store_true", help="only what comes on standard input")
    options = parser.parse_args()
    if options.decode:
        print(json.dumps(in_memory(sys.stdin.buffer.read())))
        return
    found: dict[str, Any] = {"messages": options.messages, "seed": options.seed}
    with tempfile.TemporaryDirectory() as folder:
        fuzz(600, options.seed + 1, Path(folder))  # imports and caches are there from now on
        began, before = time.perf_counter(), memory("VmRSS")
        found |= fuzz(options.messages, options.seed, Path(folder))
    found |= {"seconds": time.perf_counter() - began, "memory_growth_bytes": memory("VmRSS") - before}
    if found["memory_growth_bytes"] > GROWTH:
        found["wrong"].append(f"memory grew by {found['memory_growth_bytes']:,} bytes; allowed: {GROWTH:,}")
    found["large"] = {name: alone(name, found["wrong"]) for name in LARGE_ONES}
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
