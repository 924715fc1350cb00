"""Composition of who writes paths and rationales: a model of this process, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cotune import reasoning
from cotune.allocation import Teacher, added
from cotune.config import Config
from cotune.models.learner import Learner
from cotune.models.path_cache import CachedWriter, PathCache
from cotune.models.writer import LocalWriter
from cotune.pool import Writer
from cotune.pupils import SERVER
from cotune.records import Adapter, Keep, Note, Progress, Sampling, Written
from cotune.shelf import Shelf
from cotune.wheels import cache_dir

RATIONALES = "rationales"
"""Under this name the server keeps who wrote them."""


@dataclass(frozen=True, slots=True)
class Around:
    """Where a run lives: its folder, who is told of progress, and who is told in words."""

    out: Path
    progress: Progress
    note: Note


def writer(learner: Learner, around: Around) -> Callable[[Adapter | None], Writer]:
    """The model of a learner, writing with an adapter; what it wrote once is kept on disk."""
    cache = PathCache(cache_dir() / "paths.sqlite", around.note)

    def writing_with(adapter: Adapter | None) -> Writer:
        local = LocalWriter(learner.lm, learner.stack, adapter)
        return CachedWriter(local, cache, around.progress, together=local.together)

    return writing_with


@dataclass(frozen=True, slots=True)
class Rationales:
    """Who writes rationales where nothing is traded: the endpoint that is named, else the LLM as it is.

    It is made when it is asked for. `load`: loads the LLM.
    """

    config: Config
    load: Callable[[], Learner]
    around: Around

    def __call__(self, guard: bool) -> Writer:
        """The writer. guard: its texts must end on an answer."""
        if self.config.teach.teacher:
            found = remote(self.config, self.around, guard)
            about: dict[str, Any] = {"model": found.model}
        else:
            llm = self.load()
            found = Teacher(writer(llm, self.around), None, None, llm.name)
            about = {"model": llm.name, "fingerprint": llm.lm.fingerprint}
        return Remembered(found, about, self._shelf)

    def describe(self) -> dict[str, Any]:
        """For results.json: the model, and what an endpoint has answered in this run, resumed or not."""
        kept = self._shelf.get(SERVER, RATIONALES, 0)
        return {"teacher": dict(kept.facts)} if kept else {}

    @property
    def _shelf(self) -> Shelf:
        return Shelf(self.around.out / "server")


@dataclass(frozen=True, slots=True)
class Remembered:
    """A teacher that writes rationales, and what is known about it, kept with the run as it grows."""

    teacher: Teacher
    about: Mapping[str, Any]
    shelf: Shelf

    @property
    def fingerprint(self) -> str:
        """The writer's."""
        return self.teacher.writer(None).fingerprint

    def write(self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None = None) -> list[Written]:
        """What it writes; what that took is kept even where it fails, for it was paid."""
        kept = self.shelf.get(SERVER, RATIONALES, 0)
        before = self.teacher.spent()
        try:
            return self.teacher.writer(None).write(prompts, sampling, keep)
        finally:
            used = added(self.teacher.spent(), before, kept.facts if kept else {})
            self.shelf.put(SERVER, RATIONALES, 0, {**self.about, **used}, {})


def remote(config: Config, around: Around, guard: bool) -> Teacher:
    """An endpoint, which only writes. guard: of many texts one at least must end on an answer."""
    from cotune.models.endpoint import EndpointWriter

    assert config.teach.teacher is not None
    makes_sense = reasoning.has_answer if guard else bool  # unguarded, any text teaches
    endpoint = EndpointWriter(config.teach.teacher, makes_sense=makes_sense)
    cached = CachedWriter(endpoint, PathCache(cache_dir() / "paths.sqlite", around.note), around.progress)

    def spent() -> dict[str, float | None]:
        usage = asdict(endpoint.usage)
        return {**{name.removeprefix("num_"): count for name, count in usage.items()}, "cost": endpoint.cost}

    return Teacher(lambda _: cached, None, None, config.teach.teacher.model, spent)
