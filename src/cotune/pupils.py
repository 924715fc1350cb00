"""The clients' half of teaching: they say which public items teach them, trade reasoning paths, and learn.

Paper: LaDa, https://arxiv.org/abs/2602.18749, steps A to C and F of a round. A client's reference is its
model tuned once on its own examples; it and the filter stay on the client. What leaves it are numbers of
items, sums over its lessons (mean loss, pairs, tokens, scores and margins), its losses on the pool where the
allocator compares them, and, for the items that the server asked for, its paths, capped and scrubbed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cotune import pool_view, reasoning
from cotune.errors import DataError
from cotune.lessons import Course, Lesson, Tutor, usable
from cotune.models.tune import TuneJob
from cotune.pool import Allocator, Trained, Writer
from cotune.protocols import Client, Given, Reader, Reply
from cotune.records import Adapter, Example, Message, Round, Sampling, derived_rng
from cotune.scrub import Scrubber
from cotune.shelf import Shelf

SERVER = "server"
RECORDED = ("rows", "batches", "margins", "log_probs", "probe")
"""The arrays of a `Trained`."""
UNTAUGHT = Trained(*(np.zeros(0, dtype) for dtype in (np.int64, np.int64, *[np.float64] * 3)))
TOLD = ("loss", "pairs", "tokens", "cut")
"""What a client's sums say of its lessons: 0 without any, for masked sums must have the same names."""
OF_A_ROUND = ("start", "chosen", "lessons", "trained", "memory")
"""What a client keeps anew in each round, and need not keep for ever."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What both sides keep to.

    guard: only right paths teach. probe: items that are only measured. sampling: how paths are written.
    max_chars: longest path that is believed. private_paths: clients use their own rationales, for the
    reference and when they tune.
    """

    guard: bool
    probe: int
    sampling: Sampling
    max_chars: int
    private_paths: bool


@dataclass(frozen=True, slots=True)
class Pupils:
    """The clients of one process, all with the same model.

    Attributes:
        tutor: how the model learns; allocator: which items do it good.
        writer: the model, writing with an adapter; reader: the model, being read from.
        scrubber: what a path goes through before it leaves.
        measured: a client -> rows of the pool that it is measured on in the end, which must not teach it.
    """

    tutor: Tutor
    allocator: Allocator
    writer: Callable[[Adapter | None], Writer]
    reader: Reader
    scrubber: Scrubber
    shelf: Shelf
    rules: Rules
    measured: Callable[[str], Collection[int]]

    def step(self, action: str, given: Sequence[Given], clients: Sequence[Client]) -> list[Reply]:
        """One of `choose`, `exchange`, `learn`; one reply each, in order."""
        if action == "choose":
            self._prepare(given, clients)
        do = {"choose": self._choose, "exchange": self._exchange, "learn": self._learn}[action]
        return [do(told, client) for told, client in zip(given, clients, strict=True)]

    def before_tuning(
        self, starts: Sequence[Adapter], clients: Sequence[Client]
    ) -> tuple[list[Adapter], list[Client]]:
        """A client learns from this round's lessons, then tunes on its examples and on their rationales."""
        if not self.rules.private_paths:
            return self.distil(starts, clients), list(clients)
        both = [
            replace(client, examples=(*client.examples, *_paths(client)), counts=client.num_examples)
            for client in clients
        ]
        return self.distil(starts, clients), both

    def distil(self, starts: Sequence[Adapter], clients: Sequence[Client]) -> list[Adapter]:
        """Adapters after this round's lessons; a client without lessons starts as sent."""
        courses = [self._course(start, client) for start, client in zip(starts, clients, strict=True)]
        done = self.tutor.teach(courses)
        for client, taught in zip(clients, done, strict=True):
            facts = {name: getattr(taught, name) for name in TOLD}
            for trained in taught.trained.values():
                self.shelf.put(client.id, "trained", client.round.index, facts, trained_arrays(trained))
        return [taught.adapter for taught in done]

    def _prepare(self, given: Sequence[Given], clients: Sequence[Client]) -> None:
        """Keep the adapter that came; tune the reference of those that have none yet."""
        new = []
        for told, client in zip(given, clients, strict=True):
            assert told.adapter is not None
            self.shelf.put_adapter(client.id, "start", client.round.index, told.adapter)
            if self.shelf.newest(client.id, "reference", client.round.index + 1) is None:
                new.append((told.adapter, client))
        jobs = [TuneJob(self._private(client), adapter, client.rng("reference")) for adapter, client in new]
        for (_, client), tuned in zip(new, self.tutor.learner.tune(jobs), strict=True):
            self.shelf.put_adapter(client.id, "reference", client.round.index, tuned.adapter)

    def _private(self, client: Client) -> tuple[Example, ...]:
        """The client's examples; those with a rationale as texts that reason, unless told not to."""
        if not self.rules.private_paths:
            return tuple(client.examples)
        return tuple(_on_path(one) or one for one in client.examples)

    def _choose(self, told: Given, client: Client) -> Reply:
        items = len(self.tutor.pool)
        view = self._view(
            client, pool_view.losses_of(told.facts, items) if "losses" in self.allocator.needs else None
        )
        allocated = self.allocator.choose(view, self._memory(client))
        index, barred = client.round.index, self.measured(client.id)
        drawn = probe_rows(client.round, client.id, self.rules.probe, view.num_items)
        probe = [row for row in drawn if row not in barred]
        left = [row for row in allocated.rows.tolist() if row not in barred and row not in probe]
        rows = np.asarray(left, np.int64)
        self.shelf.put(client.id, "chosen", index, {}, {"rows": rows, "scores": allocated.scores})
        facts: dict[str, Any] = {"rows": rows.tolist()}
        if probe and self.shelf.newest(client.id, "probe", index) is None:
            facts["probe"] = probe
        if "losses" in self.allocator.needs:
            facts["losses"] = pool_view.told_losses(view.losses()[0])
        return Reply(facts=facts)

    def _exchange(self, told: Given, client: Client) -> Reply:
        """Write one's own paths; keep both sides' of the items that teach; hand over what was asked for."""
        items, index = len(self.tutor.pool), client.round.index
        chosen = self.shelf.get(client.id, "chosen", index)
        assert chosen is not None
        rows = chosen.arrays["rows"].tolist()
        probe = pool_view.rows_of(told.facts, "probe", items) if "probe" in told.facts else []
        asked = pool_view.rows_of(told.facts, "asked", items)
        theirs = pool_view.texts_of(told.facts, "paths", len(rows) + len(probe), self.rules.max_chars)
        paths = dict(zip([*rows, *probe], theirs, strict=True))
        own = self._write(client, sorted({*paths, *asked}))
        self._keep_lessons(client, "lessons", rows, paths, own)
        if probe:
            self._keep_lessons(client, "probe", probe, paths, own)
        scrubbed = [self.scrubber.scrub(own[row]) for row in asked]
        counts = sum((Counter(one.counts) for one in scrubbed), Counter[str]())
        return Reply(facts={"paths": [one.text for one in scrubbed], "scrubbed": dict(counts)})

    def _learn(self, _told: Given, client: Client) -> Reply:
        """The filter learns what this round's items were worth; only sums over items are told."""
        index = client.round.index
        kept = self.shelf.get(client.id, "trained", index)
        facts, trained, scores = dict.fromkeys(TOLD, 0.0), UNTAUGHT, np.zeros(0)
        if kept is not None:
            facts, trained = {name: float(kept.facts[name]) for name in TOLD}, trained_of(kept)
            memory = self.allocator.learn(self._view(client, None), self._memory(client), trained)
            self.shelf.put(client.id, "memory", index, {}, memory)
            chosen = self.shelf.get(client.id, "chosen", index)
            scores = chosen.arrays["scores"] if chosen else scores
        for name in OF_A_ROUND:
            self.shelf.trim(client.id, name)
        return Reply(sums={"clients": 1.0, **facts, **promise_kept(scores, trained)})

    def _course(self, start: Adapter, client: Client) -> Course:
        index = client.round.index
        reference = self.shelf.adapter(client.id, "reference", index + 1)
        lessons = self.shelf.get(client.id, "lessons", index)
        probe = self.shelf.newest(client.id, "probe", index + 1)
        return Course(
            start,
            reference or start,
            self._usable(lessons) if reference else [],
            self._usable(probe) if reference else [],
            client.rng("distil"),
            client.round.span,
        )

    def _usable(self, kept: Message | None) -> list[Lesson]:
        lessons = [Lesson(*one) for one in kept.facts["lessons"]] if kept else []
        return usable(lessons, self.tutor.pool, self.rules.guard)

    def _keep_lessons(
        self,
        client: Client,
        name: str,
        rows: Sequence[int],
        theirs: Mapping[int, str],
        own: Mapping[int, str],
    ) -> None:
        lessons = [[row, theirs[row], own[row], SERVER] for row in rows]
        self.shelf.put(client.id, name, client.round.index, {"lessons": lessons}, {})

    def _write(self, client: Client, rows: Sequence[int]) -> dict[int, str]:
        """Paths of the client's model: in its first round the reference, later what it was sent."""
        index = client.round.index
        is_new = self.shelf.get(client.id, "reference", index) is not None
        adapter = self.shelf.adapter(client.id, "reference" if is_new else "start", index + 1)
        prompts = [reasoning.path_prompt(self.tutor.pool[row]) for row in rows]
        written = self.writer(adapter).write(prompts, self.rules.sampling)
        return {row: one.text for row, one in zip(rows, written, strict=True)}

    def _view(self, client: Client, peer_losses: pool_view.Losses | None) -> pool_view.ModelView:
        return pool_view.ModelView(
            self.tutor.pool,
            client.examples,
            client.round,
            client.id,
            self.reader,
            peer_losses,
            lambda: self._losses(client),
            lambda count: self._attempts(client, count),
        )

    def _losses(self, client: Client) -> pool_view.Losses:
        self.reader.mount(self.shelf.adapter(client.id, "start", client.round.index + 1))
        found = pool_view.mean_losses(self.reader, self.tutor.pool)
        self.reader.mount(None)
        return found

    def _attempts(self, client: Client, count: int) -> list[tuple[str, ...]]:
        writer = self.writer(self.shelf.adapter(client.id, "start", client.round.index + 1))
        return pool_view.attempts(writer, self.tutor.pool, self.rules.sampling, count)

    def _memory(self, client: Client) -> Mapping[str, Any]:
        kept = self.shelf.newest(client.id, "memory", client.round.index)
        return kept.arrays if kept else {}


def _paths(client: Client) -> tuple[Example, ...]:
    """The client's examples as texts that reason, where they have a rationale and are no such text yet."""
    reasoned = [(one, path) for one in client.examples if (path := _on_path(one))]
    return tuple(
        path for one, path in reasoned if (path.prompt, path.completion) != (one.prompt, one.completion)
    )


def _on_path(example: Example) -> Example | None:
    """The example as a text that reasons; None without a rationale, or where it cannot be asked for one."""
    try:
        return reasoning.on_path(example, example.rationale) if example.rationale.strip() else None
    except DataError:
        return None


def probe_rows(round: Round, owner: str, count: int, num_items: int) -> list[int]:
    """Items on which a party is only measured: the same in every round, at most a tenth of the pool."""
    rng = derived_rng(round.seed, "probe", owner)
    drawn = rng.permutation(num_items)[: min(count, num_items // 10)]
    return sorted(drawn.tolist())


def trained_arrays(trained: Trained) -> dict[str, Any]:
    """What was recorded, as arrays by name."""
    return {name: getattr(trained, name) for name in RECORDED}


def trained_of(kept: Message) -> Trained:
    """The reverse."""
    return Trained(**{name: kept.arrays[name] for name in RECORDED})


def promise_kept(scores: Any, trained: Trained) -> dict[str, float]:
    """Sums from which the correlation of an item's score with its margin at its turn follows.

    An item counts once, with its first margin. Those whose score is not known are left out; there are none
    before the filter has learned something.
    """
    rows, first = np.unique(np.asarray(trained.rows, np.int64), return_index=True)
    known = np.isfinite(scores[rows]) if len(scores) else np.zeros(len(rows), bool)
    u, z = np.asarray(scores)[rows[known]] if len(scores) else np.zeros(0), trained.margins[first[known]]
    names = ("scored", "u", "z", "uu", "zz", "uz")
    values = (float(known.sum()), u.sum(), z.sum(), (u * u).sum(), (z * z).sum(), (u * z).sum())
    return {name: float(value) for name, value in zip(names, values, strict=True)}
