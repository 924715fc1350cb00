"""Texts kept on disk: what a model has written once for a prompt is never written again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from cotune.errors import Paused, RunError
from cotune.models.kept import Kept
from cotune.pool import Writer
from cotune.records import Keep, Progress, Sampling, Written, readable, silent

FLUSH_SECONDS = 0.5
"""Longest time that a text which is there is not on disk yet; each writing costs about a hundredth of a
second, which is much where an endpoint answers a hundred times a second."""


class PathCache:
    """A file of texts by key, for several processes at a time; see `Kept` for a file that is broken."""

    def __init__(self, path: Path, note: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._kept = Kept(path, "paths", note)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Written]:
        """Those of the keys that are there."""
        found = {key: _decoded(value) for key, value in self._kept.get(keys).items()}
        return {key: written for key, written in found.items() if written is not None}

    def put(self, values: Mapping[bytes, Written]) -> None:
        """Keep some texts."""
        self._kept.put({key: json.dumps(astuple(written)).encode() for key, written in values.items()})


def path_key(fingerprint: str, prompt: str, sampling: Sampling) -> bytes:
    """Names a text by all it depends on. Without randomness, neither seed nor top_p is part of that."""
    how = sampling if sampling.temperature else replace(sampling, seed=0, top_p=1.0)
    named = json.dumps(["path", 1, fingerprint, prompt, astuple(how)])
    return hashlib.sha256(named.encode()).digest()


@dataclass(frozen=True, slots=True)
class CachedWriter:
    """See `cotune.pool.Writer`: another writer, asked only for what is not in the cache, and once.

    A text is kept at once or soon after, so that what a stopped run has written is found by the next one. An
    empty text is no path: it is asked for again, unless `keep_empty` says that it is an answer too.
    `progress` hears how many texts are there. `together`: a text depends on what else is written in the same
    call, as in 16 bit, where a batch changes the last bits; then only a whole list is found again.
    """

    writer: Writer
    cache: PathCache
    progress: Progress = silent
    keep_empty: bool = False
    together: bool = False

    @property
    def fingerprint(self) -> str:
        """Of the writer."""
        return self.writer.fingerprint

    def write(self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None = None) -> list[Written]:
        """A text for each prompt, out of the cache or new.

        Raises:
            Paused: the writer failed; says how many texts are kept.
        """
        named = self.writer.fingerprint
        if self.together:
            named += "-" + hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        keys = [path_key(named, prompt, sampling) for prompt in prompts]
        rows: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        found = self.cache.get(list(rows))
        if self.together and len(found) < len(rows):
            found = {}
        missing = [key for key in rows if key not in found]
        basket, done = _Basket(self.cache, self.keep_empty), 0

        def tell(some: Mapping[bytes, Written]) -> None:
            nonlocal done
            done += sum(len(rows[key]) for key in some)
            self.progress("write", done, len(keys))
            if keep and some:
                keep({row: written for key, written in some.items() for row in rows[key]})

        def store(new: Mapping[int, Written]) -> None:
            fresh = {missing[number]: written for number, written in new.items()}
            basket.add(fresh)
            found.update(fresh)
            tell(fresh)

        tell(dict(found))
        asked = [prompts[rows[key][0]] for key in missing]
        try:
            with basket:
                new = self.writer.write(asked, sampling, store) if missing else []
        except RunError as error:
            num_kept = sum(key in found and bool(found[key].text) for key in keys)
            raise Paused(
                f"{error}. {num_kept} of {len(keys)} texts are kept in {self.cache.path}; the others are "
                "asked for when the run goes on"
            ) from error
        found |= zip(missing, new, strict=True)
        return [found[key] for key in keys]


@dataclass(slots=True)
class _Basket:
    """Texts on their way to the disk: written together now and then, and however the writing ends."""

    cache: PathCache
    keep_empty: bool
    texts: dict[bytes, Written] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def __enter__(self) -> _Basket:
        return self

    def __exit__(self, *_: object) -> None:
        self.empty()

    def add(self, new: Mapping[bytes, Written]) -> None:
        """Take texts that can be used."""
        self.texts |= {key: written for key, written in new.items() if written.text or self.keep_empty}
        if time.monotonic() - self.since >= FLUSH_SECONDS:
            self.empty()

    def empty(self) -> None:
        """Keep them on disk."""
        if self.texts:
            self.cache.put(self.texts)
        self.texts, self.since = {}, time.monotonic()


def _decoded(value: bytes) -> Written | None:
    """None for what cannot have been kept here."""
    try:
        text, tokens_in, tokens_out, finished = json.loads(value)
        return Written(readable(str(text)), int(tokens_in), int(tokens_out), bool(finished))
    except (ValueError, TypeError):
        return None
