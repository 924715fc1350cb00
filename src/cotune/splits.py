"""Each source cut into test, public and private rows: test first, and no text on two sides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cotune import partition
from cotune.config import FiveWayPartition, SourceConfig
from cotune.errors import DataError
from cotune.partition import IntArray
from cotune.records import derived_rng
from cotune.table import Entry


@dataclass(frozen=True, slots=True)
class Source:
    """The entries of one item of `data.sources`; `test_entries` when it has held-out data of its own."""

    settings: SourceConfig
    label: str
    entries: Sequence[Entry]
    test_entries: Sequence[Entry] | None


@dataclass(frozen=True, slots=True)
class Split:
    """One source after the cut; `owner` [private rows] names the client of each in a five-way split only."""

    source: Source
    test: Sequence[Entry] = ()
    public: Sequence[Entry] = ()
    private: Sequence[Entry] = ()
    owner: IntArray | None = None
    num_dropped: int = 0


def split(sources: Sequence[Source], seed: int, five_way: FiveWayPartition | None) -> list[Split]:
    """Cut all sources; a text that is held out in one source is in no other source's public or private rows.

    Raises:
        DataError: a source has fewer rows than are asked for.
    """
    splits = [_hold_out(source, seed, five_way) for source in sources]
    held = {entry.passage for one in splits for entry in one.test}
    splits = [_without(one, held) for one in splits]
    splits = [_cut_five_way(one, five_way) if five_way else _cut_public(one) for one in splits]
    shared = {entry.passage for one in splits for entry in one.public}
    splits = [_without(one, shared) for one in splits]
    return splits if five_way else [_cut_private(one) for one in splits]


def _hold_out(source: Source, seed: int, five_way: FiveWayPartition | None) -> Split:
    """Shuffle once; then the first rows are the test set, unless the source has held-out data of its own."""
    # default_rng(seed).permutation(n) is what Dataset.shuffle(seed) of the `datasets` library draws, so that
    # a five-way split of a hub data set has the rows of the published one.
    rng = np.random.default_rng(five_way.seed) if five_way else derived_rng(seed, "data", source.label)
    shuffled = [source.entries[row] for row in rng.permutation(len(source.entries)).tolist()]
    asked = source.settings.test_rows
    if source.test_entries is None:
        num_test = asked or 0
        _refuse_shortage(source, "test_rows", num_test, len(shuffled))
        return Split(source, test=shuffled[:num_test], private=shuffled[num_test:])
    if asked is None:
        return Split(source, test=source.test_entries, private=shuffled)
    if asked > len(source.test_entries):
        raise DataError(
            f"source {source.label}: test_rows asks for {asked} rows, the held-out data has "
            f"{len(source.test_entries)}. Lower test_rows."
        )
    chosen = derived_rng(seed, "data", source.label, "test").permutation(len(source.test_entries))[:asked]
    return Split(source, test=[source.test_entries[row] for row in sorted(chosen.tolist())], private=shuffled)


def _without(one: Split, passages: Collection[str]) -> Split:
    keep = np.array([entry.passage not in passages for entry in one.private], dtype=bool)
    return replace(
        one,
        private=[entry for entry, kept in zip(one.private, keep, strict=True) if kept],
        owner=None if one.owner is None else one.owner[keep],
        num_dropped=one.num_dropped + int((~keep).sum()),
    )


def _cut_public(one: Split) -> Split:
    asked = one.source.settings.public_rows
    _refuse_shortage(one.source, "public_rows", asked, len(one.private), one.num_dropped)
    return replace(one, public=one.private[:asked], private=one.private[asked:])


def _cut_private(one: Split) -> Split:
    asked = one.source.settings.train_rows
    if asked is None:
        return one
    _refuse_shortage(one.source, "train_rows", asked, len(one.private), one.num_dropped)
    return replace(one, private=one.private[:asked])


def _cut_five_way(one: Split, five_way: FiveWayPartition) -> Split:
    """Equal consecutive parts of the shuffled rows, one for each client and the last for everybody."""
    settings, label, clients = one.source.settings, one.source.label, five_way.clients
    if settings.public_rows:
        raise DataError(
            f"source {label}: public_rows is {settings.public_rows}, but five_way makes its last part "
            "public. Remove public_rows, or use the iid partition."
        )
    size = len(one.private) // (clients + 1)
    if settings.train_rows is not None:
        _refuse_shortage(one.source, "train_rows", settings.train_rows, size * clients, one.num_dropped)
        size = settings.train_rows // clients
    if size == 0:
        raise DataError(
            f"source {label}: {len(one.private)} rows (train_rows: {settings.train_rows}) do not make "
            f"{clients + 1} equal parts, one for each client and one public. Use fewer clients or more rows."
        )
    owner = partition.equal_parts(len(one.private), clients + 1, size)
    private = np.flatnonzero((owner >= 0) & (owner < clients))
    return replace(
        one,
        public=[one.private[row] for row in np.flatnonzero(owner == clients).tolist()],
        private=[one.private[row] for row in private.tolist()],
        owner=owner[private],
    )


def _refuse_shortage(source: Source, setting: str, asked: int, left: int, num_dropped: int = 0) -> None:
    if asked <= left:
        return
    dropped = f", {num_dropped} were left out because their text is held out or public" if num_dropped else ""
    raise DataError(
        f"source {source.label}: {setting} asks for {asked} rows, {left} are left of "
        f"{len(source.entries)}{dropped}. Lower {setting}, or give the source more rows."
    )
