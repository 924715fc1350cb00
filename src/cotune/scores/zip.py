"""Greedy search for the examples that compress worst together: each adds text that is not there yet.

Paper: Yin et al. 2024 (Entropy Law, ZIP), https://arxiv.org/abs/2407.06645. R(S) is the bytes of S over those
of S after zlib, and a set of low R is sought: the K1 lowest of all, of these the K2 lowest next to what is
picked, in these K3 by greed from nothing; then again.

The published code never looks at the K2 - K3 others again (`official: true`); by default they come back,
and an exact copy waits until every different text is taken. zlib looks back 32 KiB, so what was picked long
ago is forgotten.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from cotune.plugins import PluginConfig
from cotune.protocols import Pool, Reader
from cotune.ranking import LocalScore, count_of, tellers
from cotune.records import Example

if TYPE_CHECKING:
    from cotune.ranking import Rows, Scores

NEEDS: frozenset[str] = frozenset()

USED = 1e6
"""Larger than any ratio: what the published code writes over the ratio of an example it has looked at."""
MOST = 100
"""Largest K3 unless one is set: the published one."""
OFTEN = 500
"""Texts compressed alone between two reports of progress."""

Tick = Callable[[int], None]
"""Told how many of the texts are done, as far as time goes."""


class Config(PluginConfig):
    """Options of ZIP."""

    keep: float = Field(0.05, gt=0, le=1, description="share of the examples to put in order; choose as many")
    official: bool = Field(
        False, description="leave out for good what lost in the third stage, as the published code"
    )
    text: Literal["json", "python"] = Field(
        "json",
        description="what is compressed: canonical JSON lines, or Python's text of the list, as published",
    )
    k1: int | None = Field(None, gt=0, description="candidates of the first stage; null: 50 K3")
    k2: int | None = Field(None, gt=0, description="of the second; null: 2 K3")
    k3: int | None = Field(
        None, gt=0, description="picked at a time; null: a twentieth of all to pick, at most 100"
    )


class Form(NamedTuple):
    """How a list of texts is written."""

    start: bytes
    between: bytes
    end: bytes


FORMS = {"json": Form(b"", b"\n", b""), "python": Form(b"[", b", ", b"]")}


class Sizes(NamedTuple):
    """Candidates of the three stages."""

    k1: int
    k2: int
    k3: int


class Stream:
    """Texts compressed so far; tells what R would be with one more, without compressing them again."""

    def __init__(self, form: Form) -> None:
        self.form, self.count = form, 0
        self._zlib = zlib.compressobj(9)
        self._plain = len(form.start)
        self._packed = len(self._zlib.compress(form.start))

    def ratio(self, text: bytes) -> float:
        """R of all texts and this one: the same bytes as if all were compressed at once."""
        more = (self.form.between if self.count else b"") + text + self.form.end
        copy = self._zlib.copy()
        packed = self._packed + len(copy.compress(more)) + len(copy.flush())
        return (self._plain + len(more)) / packed

    def add(self, text: bytes) -> None:
        """One more text."""
        more = (self.form.between if self.count else b"") + text
        self._packed += len(self._zlib.compress(more))
        self._plain += len(more)
        self.count += 1


def sizes(config: Config, budget: int) -> Sizes:
    """The candidates of each stage, scaled to how many are wanted."""
    k3 = config.k3 or min(MOST, max(1, budget // 20))
    return Sizes(config.k1 or 50 * k3, max(k3, config.k2 or 2 * k3), k3)


def serialise(example: Example, text: Literal["json", "python"]) -> bytes:
    """Prompt and completion, in a form that is the same everywhere."""
    fields = {"prompt": example.prompt, "completion": example.completion}
    written = (
        str(fields) if text == "python" else json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    )
    return written.encode("utf-8", "surrogatepass")


class Search:
    """The three stages, again and again: what is picked, and the ratio each text had when last looked at."""

    def __init__(
        self, texts: Sequence[bytes], config: Config, budget: int, tick: Tick = lambda _: None
    ) -> None:
        import numpy as np

        self.texts, self.form, self.is_official = texts, FORMS[config.text], config.official
        self.sizes, self.budget = sizes(config, budget), budget
        self.tick, self.tried = tick, 0
        alone = [self._alone(text) for text in texts]
        self.own = np.array(alone, np.float32 if config.official else np.float64)
        self.ratios = self.own.copy()
        self.anchor = Stream(self.form)
        self.picked: list[int] = []

    def run(self, rows: Rows) -> None:
        """Pick from these rows until none is left or the budget is reached."""
        import numpy as np

        while len(rows) and len(self.picked) < self.budget:
            new = self.next(rows)[: self.budget - len(self.picked)]
            for row in new:
                self.anchor.add(self.texts[row])
            self.picked += new
            rows = rows[~np.isin(rows, new)]
            self._tell()

    def next(self, rows: Rows) -> list[int]:
        """K3 of these rows."""
        import numpy as np

        first = rows[np.argsort(self.ratios[rows], kind="stable")[: self.sizes.k1]]
        self.tried += len(first)
        self.ratios[first] = [self.anchor.ratio(self.texts[row]) for row in first]
        second = first[np.argsort(self.ratios[first], kind="stable")[: self.sizes.k2]]
        if self.is_official:
            self.ratios[second] = USED
        left, stream = second.tolist(), Stream(self.form)
        third: list[int] = []
        while left and len(third) < self.sizes.k3:
            self.tried += len(left)
            ratios = [stream.ratio(self.texts[row]) for row in left]
            row = left.pop(int(np.argmin(np.asarray(ratios, self.own.dtype))))
            stream.add(self.texts[row])
            third.append(row)
        return third

    def _alone(self, text: bytes) -> float:
        self.tried += 1
        if self.tried % OFTEN == 0:
            self._tell()
        return Stream(self.form).ratio(text)

    def _tell(self) -> None:
        """Compressions so far, of those that it takes at most: a text alone costs as much as in company."""
        k1, k2, k3 = self.sizes
        batches = -(-self.budget // k3)
        expected = len(self.texts) + batches * (min(k1, len(self.texts)) + k2 * k3)
        self.tick(len(self.texts) * min(self.tried, expected) // expected)


def ordered(texts: Sequence[bytes], budget: int, config: Config, tick: Tick = lambda _: None) -> Rows:
    """All rows: the first `budget` as they are picked, the others by their own R, lowest first."""
    import numpy as np

    search = Search(texts, config, budget, tick)
    for rows in [list(range(len(texts)))] if config.official else levels(texts):
        search.run(np.array(rows, np.int64))
    rest = np.setdiff1d(np.arange(len(texts)), search.picked)
    return np.array([*search.picked, *rest[np.argsort(search.own[rest], kind="stable")]], np.int64)


def levels(texts: Sequence[bytes]) -> Iterator[list[int]]:
    """Rows of first copies, then of second ones, and so on."""
    seen: Counter[bytes] = Counter()
    found: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        found.setdefault(seen[text], []).append(row)
        seen[text] += 1
    yield from (found[level] for level in sorted(found))


def scores(examples: Sequence[Example], config: Config, tick: Tick = lambda _: None) -> Scores:
    """n for the first row of the order down to 1 for the last, [n]."""
    import numpy as np

    texts = [serialise(example, config.text) for example in examples]
    found = np.zeros(len(texts))
    if texts:
        rows = ordered(texts, count_of(config.keep, len(texts)), config, tick)
        found[rows] = np.arange(len(texts), 0, -1)
    tick(len(texts))
    return found


def build(config: Config) -> LocalScore:
    """The score."""

    def compute(pools: Sequence[Pool], _reader: Reader) -> list[Scores]:
        ticks = tellers(pools, "compressing")
        return [scores(pool.examples, config, tick) for pool, tick in zip(pools, ticks, strict=True)]

    return LocalScore(compute)
