"""Distilling Step-by-Step as a strategy: its ends, and which rationales are learned from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import tiny
from cotune import reasoning, report
from cotune.errors import ConfigError
from cotune.models.learner import Learner
from cotune.models.lora import LoraStack
from cotune.models.tune import TuneJob
from cotune.protocols import Client, Gathered, Parts
from cotune.records import Round, Written
from cotune.strategies.step_by_step import Config, build

PUBLIC = tuple(replace(e, rationale=f"{e.completion.strip()} stands there.") for e in tiny.examples(8))
BARE = tuple(replace(e, rationale=" \n") for e in PUBLIC)
FIRST = Round(1, 2, 3, ("client-1",))


@dataclass
class Scribe:
    """A teacher who says of each question what `says` holds for its row; what it was asked is kept."""

    says: list[str]
    fingerprint: str = "scribe"
    asked: list = field(default_factory=list)

    def write(self, prompts, sampling, keep=None):
        self.asked.append((list(prompts), sampling))
        return [Written(text, 1, 1, True) for text in self.says]


@dataclass
class Heard:
    """The verbs of a server whose clients all send the adapter that they were sent."""

    replies: int = 1
    told: list = field(default_factory=list)

    def gather(self, action, adapter, round):
        assert action == "tune"
        sums = {"loss": 2.5, "clients": 1.0}
        return Gathered(adapter, sums, 1) if self.replies else Gathered(None, {}, 0)

    def progress(self, phase, done, total, **facts):
        self.told.append((phase, done, total, facts))

    @property
    def notes(self):
        return [facts["note"] for *_, facts in self.told if "note" in facts]


@pytest.fixture
def slm() -> Learner:
    lm = tiny.lm(2)
    return Learner("slm", "slm", lm, LoraStack(lm, 2, 4, "attention"), tiny.tune_config())


def played(slm, public, scribe=None, verbs=None, rounds=(1,), **options):
    """The SLM's arrays after some rounds on the server, and the last round's losses."""
    teacher = (lambda guard: scribe) if scribe else None
    strategy = build(Config(**options), Parts({"slm": slm}, public, teacher=teacher))
    state, losses = strategy.init(3), {}
    for index in rounds:
        state, losses = strategy.server_round(state, replace(FIRST, index=index), verbs or Heard())
    return state.slm.arrays, losses


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one | other)


def right(example) -> str:
    return reasoning.written(example.rationale, example)


def wrong(example) -> str:
    return reasoning.written("It is not.", replace(example, answer_idx=(example.answer_idx + 1) % 3))


def test_a_round_names_three_losses_and_tells_of_each_step(slm):
    verbs = Heard()
    before = slm.fresh(3).arrays
    arrays, losses = played(slm, PUBLIC, verbs=verbs)
    assert set(losses) == {"slm", "label", "rationale"}
    assert losses["slm"] == 2.5
    assert not same(arrays, before)
    steps = [entry for entry in verbs.told if "tokens" in entry[3]]
    assert [entry[:3] for entry in steps] == [("co-tune", 1, 2), ("co-tune", 2, 2)]
    assert all(set(facts) == {"tokens", "loss_label", "loss_rationale"} for *_, facts in steps)
    assert verbs.notes == ["rationales: 8 of 8 public examples have one that can be learned from"]


def test_without_public_steps_a_run_is_fedavg_bit_for_bit(small, tmp_path):
    options = {"weights": "examples"}
    runs = {
        "avg": {"name": "fedavg", **options},
        "none": {"name": "step_by_step", "public_epochs": 0, **options},
        "some": {"name": "step_by_step", **options},
    }
    for out, strategy in runs.items():
        tiny.run(small, tmp_path / out, strategy=strategy)
    found = {out: tiny.adapter_bytes(tmp_path / out) for out in runs}
    assert found["avg"] == found["none"] != found["some"]
    losses = [[line["losses"] for line in report.read_rounds(tmp_path / out)] for out in ("avg", "none")]
    assert losses[0] == losses[1]


def test_with_weight_one_rationales_do_not_matter(slm):
    arrays, losses = played(slm, PUBLIC, weight=1.0)
    expected, _ = played(slm, BARE, weight=1.0)
    assert same(arrays, expected)
    assert set(losses) == {"slm", "label"}
    assert not same(arrays, played(slm, PUBLIC, weight=0.5)[0])


@pytest.mark.parametrize("index", [1, 2])
def test_with_weight_one_a_round_is_plain_tuning_on_the_public_set_bit_for_bit(slm, index):
    falling = replace(slm, config=tiny.tune_config(schedule="cosine"))
    arrays, _ = played(falling, PUBLIC, rounds=[index], weight=1.0, public_epochs=2)
    round = replace(FIRST, index=index)
    job = TuneJob(PUBLIC, slm.fresh(3), round.rng("public"), round.span)
    [tuned] = falling.prepared([job], 2)
    assert same(arrays, tuned.adapter.arrays)


def test_with_weight_zero_labels_do_not_matter(slm):
    others = [replace(e, completion=" pond") for e in PUBLIC]
    arrays, losses = played(slm, PUBLIC, weight=0.0)
    assert same(arrays, played(slm, others, weight=0.0)[0])
    assert set(losses) == {"slm", "rationale"}
    assert not same(played(slm, PUBLIC)[0], played(slm, others)[0])


def test_with_weight_zero_only_examples_with_a_rationale_are_used(slm):
    half = [*PUBLIC[:4], *BARE[4:]]
    verbs = Heard()
    arrays, _ = played(slm, half, verbs=verbs, weight=0.0)
    assert same(arrays, played(slm, PUBLIC[:4], weight=0.0)[0])
    assert verbs.notes == ["rationales: 4 of 8 public examples have one that can be learned from"]


def test_without_replies_nothing_changes(slm):
    verbs = Heard(replies=0)
    arrays, losses = played(slm, PUBLIC, verbs=verbs)
    assert same(arrays, slm.fresh(3).arrays)
    assert losses == {}
    assert not [facts for *_, facts in verbs.told if "tokens" in facts]


@pytest.mark.parametrize(("weights", "expected"), [("equal", [1, 1]), ("examples", [2, 5])])
def test_clients_tune_on_labels_and_count_as_in_fedavg(slm, weights, expected):
    clients = [Client(f"client-{n}", PUBLIC[:n], FIRST) for n in (2, 5)]
    strategy = build(Config(weights=weights), Parts({"slm": slm}, PUBLIC))
    given = [slm.fresh(3)] * 2
    replies = strategy.client_step("tune", given, clients)
    assert [reply.weight for reply in replies] == expected
    plain = slm.tune_clients([replace(c, examples=BARE[: len(c.examples)]) for c in clients], given)
    assert all(same(r.adapter.arrays, t.adapter.arrays) for r, t in zip(replies, plain, strict=True))


@pytest.mark.parametrize(
    ("public", "options", "message"),
    [
        (BARE, {}, r"none of the 8 public examples has a rationale.*rationales=teacher.*weight=1"),
        ((), {}, r"no public examples.*public_rows.*public_epochs=0"),
        ((), {"weight": 1.0}, r"no public examples"),
        (BARE, {"rationales": "teacher"}, r"nobody who could write.*rationales=data"),
    ],
)
def test_a_run_that_could_not_learn_is_refused_with_the_cure(slm, public, options, message):
    with pytest.raises(ConfigError, match=message):
        build(Config(**options), Parts({"slm": slm}, public))


@pytest.mark.parametrize("options", [{"weight": 1.0}, {"public_epochs": 0}])
def test_rationales_may_be_missing_where_none_is_needed(slm, options):
    scribe = Scribe([])
    for rationales in ("data", "teacher"):
        build(Config(rationales=rationales, **options), Parts({"slm": slm}, BARE))
        played(slm, BARE, scribe, rationales=rationales, **options)
    assert scribe.asked == []


def test_the_teacher_is_asked_for_paths_once_in_a_run(slm):
    scribe, verbs = Scribe([right(e) for e in PUBLIC]), Heard()
    loaded = []

    def teacher(guard):
        loaded.append(guard)
        return scribe

    config = Config(rationales="teacher", path_tokens=30)
    strategy = build(config, Parts({"slm": slm}, BARE, teacher=teacher))
    assert loaded == []
    state = strategy.init(3)
    for index in (1, 2):
        state, _ = strategy.server_round(state, replace(FIRST, index=index), verbs)
    assert loaded == [True]
    [(prompts, sampling)] = scribe.asked
    assert prompts == [reasoning.path_prompt(e) for e in PUBLIC]
    assert (sampling.max_new_tokens, sampling.temperature, sampling.stop) == (30, 0.0, reasoning.STOP)
    assert len(verbs.notes) == 1
    assert ("write", 0, 8, {}) in verbs.told


def test_what_the_teacher_wrote_before_its_answer_is_learned_as_if_it_stood_in_the_data(slm):
    scribe = Scribe([right(e) for e in PUBLIC])
    arrays, losses = played(slm, BARE, scribe, rationales="teacher", rounds=(1, 2))
    expected, means = played(slm, PUBLIC, rounds=(1, 2))
    assert same(arrays, expected)
    assert losses == means
    again, _ = played(slm, PUBLIC, scribe, rationales="teacher", rounds=(1, 2))
    assert same(again, expected)


def test_wrong_and_empty_paths_are_not_learned_from(slm):
    says = [right(e) for e in PUBLIC[:4]]
    says += [wrong(PUBLIC[4]), "", reasoning.written("", PUBLIC[6]), "It stands there, says nobody."]
    verbs = Heard()
    arrays, _ = played(slm, BARE, Scribe(says), verbs, rationales="teacher")
    assert same(arrays, played(slm, [*PUBLIC[:4], *BARE[4:]])[0])
    assert verbs.notes == ["rationales: 4 of 8 public examples have one that can be learned from"]


def test_without_the_guard_all_paths_that_say_something_are_learned_from(slm):
    says = [right(e) for e in PUBLIC[:4]]
    says += [wrong(PUBLIC[4]), "", reasoning.written("", PUBLIC[6]), "It stands there, says nobody."]
    arrays, _ = played(slm, BARE, Scribe(says), rationales="teacher", guard=False)
    kept = [
        *PUBLIC[:4],
        replace(BARE[4], rationale="It is not."),
        *BARE[5:7],
        replace(BARE[7], rationale="It stands there, says nobody."),
    ]
    assert same(arrays, played(slm, kept)[0])


def test_a_teacher_who_is_never_right_leaves_labels_alone_or_nothing(slm):
    scribe = Scribe([wrong(e) for e in PUBLIC])
    _, losses = played(slm, PUBLIC, scribe, rationales="teacher")
    assert set(losses) == {"slm", "label"}
    arrays, losses = played(slm, PUBLIC, scribe, rationales="teacher", weight=0.0)
    assert same(arrays, slm.fresh(3).arrays)
    assert set(losses) == {"slm"}


def test_public_examples_keep_the_question_and_label_that_evaluation_uses(slm):
    scribe = Scribe([right(e) for e in PUBLIC])
    strategy = build(Config(rationales="teacher"), Parts({"slm": slm}, BARE, teacher=lambda guard: scribe))
    assert strategy.reasoned(FIRST, Heard()) == list(PUBLIC)
