"""How one model learns from reasoning paths: of two paths to an item, the peer's is preferred to its own.

Paper: LaDa, https://arxiv.org/abs/2602.18749, its reasoning distillation. The same steps serve a client that
is taught by the LLM, and the LLM that is taught by its clients; the reference is a second adapter on the same
frozen model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cotune import reasoning
from cotune.models.contrast import (
    ContrastConfig,
    Contrasted,
    ContrastJob,
    Pair,
    Sums,
    contrast,
    informative,
    reference_sums,
)
from cotune.models.learner import Learner
from cotune.models.vectors import Vectors
from cotune.pool import Trained
from cotune.records import DELIMITER, Adapter, Example, adapter_digest
from cotune.rewards import preference

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lesson:
    """Two paths to item `row` of the pool. `owner`: the client whose path one of them is."""

    row: int
    preferred: str
    other: str
    owner: str


@dataclass(frozen=True, slots=True)
class Course:
    """What one adapter learns from in one round. `reference`: the frozen one it is measured against; `probe`:
    lessons that are only measured, before and after; `span`: as in `TuneJob`."""

    adapter: Adapter
    reference: Adapter
    lessons: Sequence[Lesson]
    probe: Sequence[Lesson]
    rng: np.random.Generator
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Taught:
    """A finished course: the new adapter, what was recorded for each owner, the mean loss, how many pairs it
    learned from, and how many tokens and `cut` paths they had, each as often as it was read."""

    adapter: Adapter
    trained: Mapping[str, Trained]
    loss: float
    pairs: int
    tokens: int
    cut: int


def usable(lessons: Sequence[Lesson], pool: Sequence[Example], guard: bool) -> list[Lesson]:
    """Lessons whose two paths differ and are both there, and, under `guard`, whose preferred one is right.

    Args:
        lessons: as they came.
        pool: the public items.
        guard: off, a party learns from whatever its peer wrote, as printed.
    """
    told = [lesson for lesson in lessons if lesson.preferred.strip() and lesson.other.strip()]
    if guard:
        told = [lesson for lesson in told if reasoning.is_right(lesson.preferred, pool[lesson.row])]
    return [told[i] for i in informative([Pair("", lesson.preferred, lesson.other) for lesson in told])]


@dataclass(frozen=True, slots=True)
class Tutor:
    """One model that is taught.

    Attributes:
        learner: the model and its adapters.
        pool: the public items.
        config: the preference loss and how it is minimised.
        known: sums of paths under references, kept with the run; they never change.
        tokens: positions per forward pass where nothing is trained.
    """

    learner: Learner
    pool: Sequence[Example]
    config: ContrastConfig
    known: Vectors
    tokens: int

    def teach(self, courses: Sequence[Course]) -> list[Taught]:
        """Train each course's adapter on its lessons; one without lessons keeps its adapter."""
        if not self.config.tune.epochs:
            courses = [replace(course, lessons=(), probe=()) for course in courses]
        references = [self.sums(course.reference, course.lessons) for course in courses]
        before = [self._preference(course.adapter, course) for course in courses]
        jobs = [
            ContrastJob(
                self._pairs(course.lessons),
                course.adapter,
                reference,
                course.rng,
                course.span,
                weights(course.lessons),
            )
            for course, reference in zip(courses, references, strict=True)
        ]
        learner = self.learner
        done = contrast(learner.lm, learner.stack, jobs, self.config, learner.limit, learner.tick)
        after = [self._preference(found.adapter, course) for found, course in zip(done, courses, strict=True)]
        return [
            _taught(course, found, [*old, *new])
            for course, found, old, new in zip(courses, done, before, after, strict=True)
        ]

    def sums(self, reference: Adapter, lessons: Sequence[Lesson]) -> Sums:
        """Log-probabilities of both paths of each lesson under a frozen adapter; each is read once a run.

        What stands in a forward pass together changes the last bits of a sum, and a resumed run must find
        the very bits: so they are kept with the run.
        """
        pairs = self._pairs(lessons)
        texts = [(pair.prompt, text) for pair in pairs for text in (pair.preferred, pair.other)]
        keys = [self._key(reference, *text) for text in texts]
        found = {key: float(value[0]) for key, value in self.known.get(list(dict.fromkeys(keys))).items()}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if new:
            read, _ = self._read(reference, [Pair(prompt, path, path) for prompt, path in new.values()])
            kept = read.astype(np.float32)
            self.known.put({key: kept[[place]] for place, key in enumerate(new)})
            found |= zip(new, kept.astype(np.float64).tolist(), strict=True)
        both = np.array([found[key] for key in keys], np.float64)
        return both[::2], both[1::2]

    def _preference(self, adapter: Adapter, course: Course) -> list[float]:
        """Mean preference probability on the probe, in a list; an empty one without a probe."""
        if not course.probe:
            return []
        now, then = self._read(adapter, self._pairs(course.probe)), self.sums(course.reference, course.probe)
        margins = (now[0] - then[0]) - (now[1] - then[1])
        return [float(np.mean(preference(margins, self.config.beta)))]

    def _read(self, adapter: Adapter, pairs: Sequence[Pair]) -> Sums:
        learner = self.learner
        learner.stack.load([adapter])
        found = reference_sums(learner.lm, pairs, max_length=self.config.tune.max_length, tokens=self.tokens)
        learner.stack.load([])
        return found

    def _pairs(self, lessons: Sequence[Lesson]) -> list[Pair]:
        return [
            Pair(reasoning.path_prompt(self.pool[one.row]), following(one.preferred), following(one.other))
            for one in lessons
        ]

    def _key(self, reference: Adapter, prompt: str, path: str) -> bytes:
        how = ("sum", "1", self.learner.lm.fingerprint, adapter_digest(reference) or "")
        named = "\x1f".join((*how, str(self.config.tune.max_length), str(self.tokens), prompt, path))
        return hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()


def weights(lessons: Sequence[Lesson]) -> Floats:
    """What each lesson counts, [lessons], 1 on the mean: an item as much as another, however many owners
    had a path to it (LaDa, the server's loss: the mean over an item's clients)."""
    times = Counter(lesson.row for lesson in lessons)
    found = np.array([1 / times[lesson.row] for lesson in lessons], np.float64)
    return found / found.mean() if len(found) else found


def following(path: str) -> str:
    """A path as the text that follows its prompt."""
    return DELIMITER + path.strip()


def with_pace(config: ContrastConfig, **changes: object) -> ContrastConfig:
    """The same loss, trained otherwise: learning rate, batch size, passes."""
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(config, tune=config.tune.model_copy(update=given))


def _taught(course: Course, found: Contrasted, probe: Sequence[float]) -> Taught:
    records = found.records
    owners = [course.lessons[record.row].owner for record in records]
    rows = np.array([course.lessons[record.row].row for record in records], np.int64)
    batches = np.array([record.batch for record in records], np.int64)
    margins = np.array([record.margin for record in records], np.float64)
    means = np.array([record.preferred_mean for record in records], np.float64)
    trained = {}
    for owner in dict.fromkeys(owners):
        own = np.array([each == owner for each in owners])
        trained[owner] = Trained(rows[own], batches[own], margins[own], means[own], np.array(probe))
    num_pairs = len({record.row for record in records})
    return Taught(found.adapter, trained, found.loss, num_pairs, found.tokens, found.cut)
