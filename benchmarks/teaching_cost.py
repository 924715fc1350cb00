"""What teaching costs in a run: the filters' share of a round, reference sums, and bytes against the formula.

    python benchmarks/teaching_cost.py configs/lada_cqa.yaml --set data.sources.0.data=cqa.jsonl.gz \
        --out benchmarks/results/teaching_cost.json

Runs the configuration in this process with a stopwatch around each part. The filter's own cost is the time
for contexts, choosing and learning, on both sides. The formula is bytes_round = sum over clients of
(items taught to it * (8 + its path) + items it was asked for * (8 + its path)); beside it stand the bytes
that the messages of the exchange had on the wire. Caches of features, texts and sums begin empty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cotune import build, config, report, session
from cotune.lessons import Tutor
from cotune.models.contrast import Pair
from cotune.pool_view import ModelView
from cotune.records import Adapter, Failure, Message, adapter_digest
from cotune.wheels import cache_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", help="path=value")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _empty_cache(Path(folder) / "cache")
        result = measured(config.load(options.config, options.changes), Path(folder) / "run")
    text = json.dumps({"machine": platform.platform(), "torch": torch.__version__, **result}, indent=2)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")


def _empty_cache(folder: Path) -> None:
    """A cache that knows models, but no features, texts or sums: those of earlier runs would cost nothing."""
    folder.mkdir()
    for name in ("models", "students", "wheels", "fingerprints"):
        if (cache_dir() / name).exists():
            (folder / name).symlink_to(cache_dir() / name)
    os.environ["COTUNE_CACHE"] = str(folder)


def measured(made: config.Config, folder: Path) -> dict[str, Any]:
    """Numbers of one run, round by round."""
    folder.mkdir()
    watch = Stopwatch()
    ready = build.session(made, folder, lambda _: None)
    allocator, transport = ready.allocation.allocator, ready.federation.transport
    allocator_kind = type(allocator)
    with (
        watch.around(ModelView, "_features", "contexts"),
        watch.around(allocator_kind, "choose", "choose"),
        watch.around(allocator_kind, "learn", "learn"),
        watch.around(Tutor, "_read", "reads"),
        watch.around(Tutor, "sums", "sums"),
        watch.references(),
    ):
        watch.listen(transport)
        session.run(ready, folder)
    rounds = report.read_rounds(folder)[1:]
    seconds = sum(line["seconds"] for line in rounds)
    own = watch.seconds["contexts"] + watch.seconds["choose"] + watch.seconds["learn"] - watch.inside
    payload = sum(line["teaching"]["payload_bytes"] for line in rounds)
    return {
        "rounds": len(rounds),
        "seconds_rounds": seconds,
        "seconds_filter": own,
        "filter_share": own / seconds,
        "seconds_by_part": dict(watch.seconds),
        "paths_under_references": len(watch.read),
        "of_them_read_more_than_once": sum(times > 1 for times in watch.read.values()),
        "formula_bytes": payload,
        "exchange_bytes": watch.counts["exchange"],
        "bytes_over_formula": watch.counts["exchange"] / payload if payload else None,
        "pairs": [[line["teaching"].get(s, {}).get("pairs") for s in ("slm", "llm")] for line in rounds],
        "llm_paths": [line["teaching"]["llm_paths"] for line in rounds],
        "slm_paths": [line["teaching"]["slm_paths"] for line in rounds],
    }


class Stopwatch:
    """Seconds and counts by name; time of contexts inside choosing and learning is not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.inside, self.depth = 0.0, 0
        self.read: Counter[tuple[str, str, str]] = Counter()

    @contextmanager
    def references(self) -> Iterator[None]:
        """Count how often each path was read under each frozen reference: adapter, question, path."""
        sums, read = Tutor.sums, Tutor._read
        under: list[bool] = []

        def asked(tutor: Tutor, reference: Adapter, lessons: Any) -> Any:
            under.append(True)
            found = sums(tutor, reference, lessons)
            under.pop()
            return found

        def noted(tutor: Tutor, adapter: Adapter, pairs: Sequence[Pair]) -> Any:
            name = adapter_digest(adapter) or ""
            texts = {(name, pair.prompt, text) for pair in pairs for text in (pair.preferred, pair.other)}
            self.read.update(texts if under else ())
            return read(tutor, adapter, pairs)

        Tutor.sums, Tutor._read = asked, noted  # type: ignore[method-assign]
        try:
            yield
        finally:
            Tutor.sums, Tutor._read = sums, read  # type: ignore[method-assign]

    @contextmanager
    def around(self, kind: type, method: str, name: str) -> Iterator[None]:
        """Time every call of a method."""
        plain = getattr(kind, method)

        def timed(*given: Any) -> Any:
            began = time.monotonic()
            self.depth += name in ("choose", "learn")
            found = plain(*given)
            self.depth -= name in ("choose", "learn")
            spent = time.monotonic() - began
            self.seconds[name] += spent
            self.inside += spent if name == "contexts" and self.depth else 0.0
            return found

        setattr(kind, method, timed)
        try:
            yield
        finally:
            setattr(kind, method, plain)

    def listen(self, transport: Any) -> None:
        """Count the bytes of the exchange of paths, both ways."""
        send = transport.send

        def heard(messages: Sequence[Message]) -> Iterator[tuple[Message | Failure, int, int]]:
            for outcome, down, up in send(messages):
                self.counts["exchange"] += (down + up) * (messages[0].action == "teach/exchange")
                yield outcome, down, up

        transport.send = heard


if __name__ == "__main__":
    main()
