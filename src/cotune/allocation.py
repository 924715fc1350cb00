"""The server's half of teaching: who is taught by which public items, whose paths go where, what is learned.

Paper: LaDa, https://arxiv.org/abs/2602.18749. In each round clients say which items teach them; the server's
filters, one a client, say whose paths to which items teach the LLM; paths are traded for those items only;
clients learn from theirs before they tune, and the LLM from its own after that. Where the LLM is an endpoint
it only writes: it learns nothing, and no client's path is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from cotune import pool_view, reasoning
from cotune.host import TEACH
from cotune.lessons import Course, Lesson, Tutor, usable
from cotune.pool import Allocated, Allocator, Writer
from cotune.protocols import Reader, State, Verbs
from cotune.pupils import SERVER, TOLD, Rules, promise_kept
from cotune.records import Adapter, Example, Message, Round, Written
from cotune.scrub import shortened
from cotune.shelf import Shelf

Record = dict[str, Any]

HELD_BACK = ""
"""In place of a path that a gate holds back; nobody learns from an empty one."""
SAMPLES, SAMPLE_CHARS = 3, 600
"""How many items rounds.jsonl shows of a round, and the longest text of one."""
NUM_KINDS, MOST = 20, 10**9
"""How many kinds of scrubbed passages a client may name, and how many of one it may count in a round."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """The server's model.

    Attributes:
        writer: gives a writer for an adapter of the LLM; an endpoint has none.
        tutor: how the LLM learns; None for an endpoint.
        reader: the LLM being read from; None for an endpoint.
        model, spent: what an endpoint calls it, and what it has answered so far, by name.
    """

    writer: Callable[[Adapter | None], Writer]
    tutor: Tutor | None
    reader: Reader | None
    model: str = ""
    spent: Callable[[], Record] = dict


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client said: the items that teach it, those it is measured on from now on, and its losses.

    `taught` are the first of the items, as many as gates have left.
    """

    rows: list[int]
    probe: list[int]
    losses: pool_view.Losses | None
    taught: list[int]

    @property
    def sent(self) -> list[int]:
        """Items whose paths the client is sent."""
        return [*self.taught, *self.probe]

    def paths(self, mine: Mapping[int, Written]) -> list[str]:
        """What it is sent for each of its items and of its probe; nothing in place of what is held back."""
        held_back = len(self.rows) - len(self.taught)
        taught = [mine[row].text for row in self.taught]
        return [*taught, *[HELD_BACK] * held_back, *(mine[row].text for row in self.probe)]


@dataclass(frozen=True, slots=True)
class Traded:
    """What a round's exchange left on the server: lessons for the LLM, the filters' scores, and numbers."""

    lessons: tuple[Lesson, ...]
    scores: Mapping[str, Any]
    record: Record


@dataclass(frozen=True, slots=True)
class Allocation:
    """See the module.

    Attributes:
        teacher: the LLM.
        allocator: which items teach the LLM, for each client apart.
        pool: the public items.
        shelf: what the server keeps, about each client apart.
        rules: what both sides keep to.
    """

    teacher: Teacher
    allocator: Allocator
    pool: Sequence[Example]
    shelf: Shelf
    rules: Rules

    def trade(self, families: Sequence[tuple[State, Round]], verbs: Verbs) -> Traded:
        """Steps A and B: who wants what, the server's paths down, the clients' paths up.

        Args:
            families: the state and the round as each family of clients sees them; one at least.
            verbs: how clients are reached.
        """
        state, round = families[0]
        if state.llm is not None and self.shelf.newest(SERVER, "reference", round.index + 1) is None:
            self.shelf.put_adapter(SERVER, "reference", round.index, state.llm)
        own_losses = self._losses(state)
        told = {} if own_losses is None else {"losses": pool_view.told_losses(own_losses)}
        replies = [
            reply
            for own, part in families
            for reply in verbs.ask(f"{TEACH}choose", own.slm, part, dict.fromkeys(part.cohort, told))
        ]
        wishes = self._wishes(sorted(replies, key=lambda reply: reply.client), state, verbs)
        allocated = {
            client: self._choose(client, state, round, own_losses, wish.losses)
            for client, wish in wishes.items()
        }
        asked = {client: _left(found.rows.tolist(), state) for client, found in allocated.items()}
        wanted = {row for wish in wishes.values() for row in wish.sent}
        wanted |= {row for rows in asked.values() for row in rows}
        mine, spent = self._write(state, sorted(wanted), round, verbs)
        theirs, told_counts = self._exchange(wishes, asked, mine, round, verbs)
        lessons = [
            Lesson(row, theirs[client][row], mine[row].text, client)
            for client in theirs
            for row in asked[client]
        ]
        kept = usable(lessons, self.pool, self.rules.guard)
        scores = {client: found.scores for client, found in allocated.items()}
        record = _record(wishes, asked, mine, theirs, self.pool)
        counted = {"llm_lessons": len(kept), "scrubbed": told_counts}
        return Traded(tuple(kept), scores, record | counted | spent)

    def learn(self, traded: Traded, state: State, round: Round, verbs: Verbs) -> tuple[State, Record]:
        """Steps D and F: the LLM learns from its clients' paths, then all filters from what it was worth."""
        record, tutor = dict(traded.record), self.teacher.tutor
        cohort = tuple(sorted(record["wanted"]))
        if cohort:
            record["slm"] = dict(verbs.gather(f"{TEACH}learn", None, replace(round, cohort=cohort)).sums)
        if tutor is None or state.llm is None:
            return state, record
        rng = round.rng("distil", SERVER)
        reference = self.shelf.adapter(SERVER, "reference", round.index + 1)
        assert reference is not None  # kept in `trade`
        course = Course(state.llm, reference, traded.lessons, (), rng, round.span)
        [taught] = tutor.teach([course])
        sums: dict[str, float] = {}
        for client, trained in taught.trained.items():
            view = self._view(client, state, round)
            memory = self.allocator.learn(view, self._memory(client, round), trained)
            self.shelf.put(client, "memory", round.index, {}, memory)
            self.shelf.trim(client, "memory")
            for name, value in promise_kept(traded.scores[client], trained).items():
                sums[name] = sums.get(name, 0.0) + value
        facts = {name: getattr(taught, name) for name in TOLD}
        record["llm"] = {**facts, **sums}
        return state.replace(llm=taught.adapter), record

    def _wishes(self, replies: Sequence[Message], state: State, verbs: Verbs) -> dict[str, Wish]:
        """What usable replies say; the others are refused."""
        found = {}
        for reply in replies:
            try:
                found[reply.client] = self._wish(reply, state)
            except ValueError as error:
                verbs.refuse(reply, str(error))
        return found

    def _wish(self, reply: Message, state: State) -> Wish:
        items = len(self.pool)
        rows = pool_view.rows_of(reply.facts, "rows", items)
        probe = pool_view.rows_of(reply.facts, "probe", items) if "probe" in reply.facts else []
        losses = pool_view.losses_of(reply.facts, items) if "losses" in self.allocator.needs else None
        return Wish(rows, probe, losses, _left(rows, state))

    def _choose(
        self,
        client: str,
        state: State,
        round: Round,
        own: pool_view.Losses | None,
        peer: pool_view.Losses | None,
    ) -> Allocated:
        """Items whose paths of this client teach the LLM."""
        if self.teacher.tutor is None:
            return Allocated(np.zeros(0, np.int64), np.zeros(0))
        view = self._view(client, state, round, own, peer)
        return self.allocator.choose(view, self._memory(client, round))

    def _write(
        self, state: State, rows: Sequence[int], round: Round, verbs: Verbs
    ) -> tuple[dict[int, Written], Record]:
        """The paths to these items, and what an endpoint took for them in all tries of the round."""
        verbs.progress("write", 0, len(rows))
        prompts = [reasoning.path_prompt(self.pool[row]) for row in rows]
        before = self.teacher.spent()
        try:
            written = self.teacher.writer(state.llm).write(prompts, self.rules.sampling)
        except BaseException:  # also Ctrl-C: what was answered was paid for
            self._remember_spent(before, round)
            raise
        spent, most = self._remember_spent(before, round), self.rules.max_chars
        capped = [  # as it crosses, and is counted
            replace(one, text=shortened(one.text, most), finished=one.finished and len(one.text) <= most)
            for one in written
        ]
        return dict(zip(rows, capped, strict=True)), spent

    def _remember_spent(self, before: Record, round: Round) -> Record:
        """What an endpoint has answered in this round, tries that failed included; nothing without one."""
        now = self.teacher.spent()
        if not now:
            return {}
        kept = self.shelf.get(SERVER, "spent", round.index)
        earlier: Record = dict(kept.facts) if kept else {}
        used = added(now, before, earlier)
        self.shelf.put(SERVER, "spent", round.index, used, {})
        return {"endpoint": {"model": self.teacher.model, **used}}

    def _exchange(
        self,
        wishes: Mapping[str, Wish],
        asked: Mapping[str, list[int]],
        mine: Mapping[int, Written],
        round: Round,
        verbs: Verbs,
    ) -> tuple[dict[str, dict[int, str]], Record]:
        """The server's paths down; the clients' up, by client and row, and what was scrubbed in them."""
        told: dict[str, Record] = {}
        for client, wish in wishes.items():
            told[client] = {"paths": wish.paths(mine), "asked": asked[client]}
            told[client] |= {"probe": wish.probe} if wish.probe else {}
        theirs: dict[str, dict[int, str]] = {}
        scrubbed: dict[str, int] = {}
        for reply in verbs.ask(f"{TEACH}exchange", None, round, told) if told else []:
            rows = asked[reply.client]
            try:
                texts = pool_view.texts_of(reply.facts, "paths", len(rows), self.rules.max_chars)
            except ValueError as error:
                verbs.refuse(reply, str(error))
                continue
            theirs[reply.client] = dict(zip(rows, texts, strict=True))
            for name, count in _counts(reply.facts.get("scrubbed")).items():
                scrubbed[name] = scrubbed.get(name, 0) + count
        return theirs, scrubbed

    def _view(
        self,
        client: str,
        state: State,
        round: Round,
        own: pool_view.Losses | None = None,
        peer: pool_view.Losses | None = None,
    ) -> pool_view.ModelView:
        """The pool for one client's filter; losses are the LLM's own and the client's."""
        teacher = self.teacher
        assert teacher.reader is not None
        return pool_view.ModelView(
            self.pool,
            (),
            round,
            f"{SERVER}/{client}",
            teacher.reader,
            peer,
            None if own is None else lambda: own,
            lambda count: pool_view.attempts(
                teacher.writer(state.llm), self.pool, self.rules.sampling, count
            ),
        )

    def _losses(self, state: State) -> pool_view.Losses | None:
        """Losses of the reference answers under the LLM as it is, once for all clients; None: not needed."""
        reader = self.teacher.reader
        if reader is None or "losses" not in self.allocator.needs:
            return None
        reader.mount(state.llm)
        found = pool_view.mean_losses(reader, self.pool)
        reader.mount(None)
        return found

    def _memory(self, client: str, round: Round) -> Mapping[str, Any]:
        kept = self.shelf.newest(client, "memory", round.index)
        return kept.arrays if kept else {}


def added(now: Record, before: Record, earlier: Mapping[str, Any]) -> Record:
    """What was used since `before`, and earlier on top of it; None where it is not known."""
    return {
        name: None if value is None else value - (before[name] or 0) + (earlier.get(name) or 0)
        for name, value in now.items()
    }


def _left(rows: Sequence[int], state: State) -> list[int]:
    """The share of the items that gates have left, the best first."""
    return list(rows[: math.ceil(state.distil * len(rows))])


def _counts(facts: Any) -> dict[str, int]:
    """What a client says it scrubbed, as far as it can be believed."""
    named = islice(facts.items() if isinstance(facts, dict) else (), NUM_KINDS)
    return {str(name)[:20]: count for name, count in named if type(count) is int and 0 <= count <= MOST}


def _record(
    wishes: Mapping[str, Wish],
    asked: Mapping[str, list[int]],
    mine: Mapping[int, Written],
    theirs: Mapping[str, Mapping[int, str]],
    pool: Sequence[Example],
) -> Record:
    """What a round's exchange came to, for rounds.jsonl.

    `payload_bytes` is what the exchange must send by LaDa's own count: of each traded path its text and eight
    bytes for its item.
    """
    down = sum(8 + _size(mine[row].text) for wish in wishes.values() for row in wish.sent)
    up = sum(8 + _size(text) for texts in theirs.values() for text in texts.values())
    own = [(row, written.text) for row, written in mine.items()]
    others = [(row, text) for texts in theirs.values() for row, text in texts.items()]
    return {
        "pool": len(pool),
        "wanted": {client: wish.rows for client, wish in wishes.items()},
        "taught": {client: wish.taught for client, wish in wishes.items()},
        "probe": {client: wish.probe for client, wish in wishes.items() if wish.probe},
        "asked": dict(asked),
        "llm_paths": _quality(own, pool)
        | {"cut": sum(bool(written.text) and not written.finished for written in mine.values())},
        "slm_paths": _quality(others, pool),
        "payload_bytes": down + up,
        "samples": _samples(mine, theirs, pool),
    }


def _samples(
    mine: Mapping[int, Written], theirs: Mapping[str, Mapping[int, str]], pool: Sequence[Example]
) -> list[Record]:
    """A few items with both sides' paths, of different clients where it can be; else with the LLM's alone.

    Clients' paths are those that crossed, capped and scrubbed.
    """
    written = {row: one.text for row, one in mine.items() if one.text.strip()}
    chosen: dict[int, str] = {}
    for client, texts in [*theirs.items()] * SAMPLES:
        both = (row for row, text in texts.items() if text.strip() and row in written and row not in chosen)
        chosen |= dict.fromkeys(islice(both, 1 if len(chosen) < SAMPLES else 0), client)
    chosen |= dict.fromkeys(islice((row for row in written if row not in chosen), SAMPLES - len(chosen)), "")
    found = []
    for row, client in chosen.items():
        question = reasoning.path_prompt(pool[row]).rsplit("\n", 2)[0]  # without how to answer it
        one: Record = {"row": row, "client": client or None, "question": shortened(question, SAMPLE_CHARS)}
        one["answer"] = shortened(reasoning.answer_of(pool[row]), SAMPLE_CHARS)
        for side, text in (("llm", written[row]), ("slm", theirs[client][row] if client else "")):
            told = {
                f"{side}_path": shortened(text, SAMPLE_CHARS),
                f"{side}_right": reasoning.is_right(text, pool[row]),
            }
            one |= told if text else {}
        found.append(one)
    return found


def _quality(paths: Sequence[tuple[int, str]], pool: Sequence[Example]) -> Record:
    """How many paths there are, end on an answer, and on the right one."""
    answered = [(text, pool[row]) for row, text in paths if reasoning.parse(text, pool[row]) is not None]
    right = [reasoning.is_right(text, example) for text, example in answered]
    return {"paths": len(paths), "answered": len(right), "right": sum(right)}


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
