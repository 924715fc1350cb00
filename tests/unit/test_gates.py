"""A gate fires beyond its limit and at no less, against the first observation; what follows happens once."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import identities, plugins
from cotune.audit_settings import GatesConfig
from cotune.audits import canary
from cotune.examined import Verdict
from cotune.gates import Decision, decide, is_stopped, lowered
from cotune.protocols import State
from subjects import FakeSubject

LIMITS = GatesConfig(similarity=0.25, min_gain=0.125, identity=0.0625)
"""Numbers that floats hold exactly, so that a limit can be met to the bit."""


def line(index=0, accuracy=0.5, leaks=None, recall=None, **numbers):
    """A line of rounds.jsonl; `likeness=0.5` is what that audit says, None that it was asked in vain."""
    names = {"likeness": "likeness.mean", "rse": "overall", "ice": "strict"}
    audits = {a: {"summary": {names[a]: {"value": v}}} for a, v in numbers.items()}
    if leaks is not None:
        summary = {f"recall {role}": {"value": value} for role, value in (recall or {}).items()}
        audits["canary"] = {"leaks": leaks, "summary": summary}
    metrics = {} if accuracy is None else {"slm": {"task": {"accuracy": accuracy, "n": 8}}}
    return {"round": index, "metrics": metrics} | ({"audits": audits} if audits else {})


def fired(*records, **changes):
    return [found.gate for found in decide(records, LIMITS.model_copy(update=changes))]


def above(value):
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("before", "after", "gate"),
    [
        ({"likeness": 0.5}, {"likeness": 0.75}, None),
        ({"likeness": 0.5}, {"likeness": above(0.75)}, "similarity"),
        ({"likeness": -4.0}, {"likeness": 0.25}, None),  # 0: as alike as strangers
        ({"likeness": -4.0}, {"likeness": above(0.25)}, "similarity"),
        ({"likeness": 0.75}, {"likeness": 9.0}, None),
        ({"likeness": 0.75}, {"likeness": 0.25}, None),
        ({"rse": 2.0}, {"rse": 3.0}, None),
        ({"rse": 2.0}, {"rse": above(3.0)}, "similarity"),
        ({"rse": -1.0}, {"rse": 2.0}, None),
        ({"ice": 0.25}, {"ice": 0.3125}, None),
        ({"ice": 0.25}, {"ice": above(0.3125)}, "identity"),
        ({"ice": 0.5}, {"ice": 0.0}, None),
        ({"leaks": {"slm": False, "llm": False}}, {"leaks": {"slm": False, "llm": False}}, None),
        ({"leaks": {"slm": False, "llm": False}}, {"leaks": {"slm": True, "llm": False}}, "canary"),
        ({"leaks": {"slm": False}}, {"leaks": {"slm": False, "llm": True}}, "canary"),
        ({"leaks": {"slm": True}}, {"leaks": {"slm": True}}, None),
        ({"leaks": {"slm": True}}, {"leaks": {"slm": False}}, None),
    ],
)
def test_a_gate_fires_beyond_its_limit_and_at_no_less(before, after, gate):
    assert fired(line(0, **before), line(1, **after)) == ([gate] if gate else [])


@pytest.mark.parametrize(
    ("now", "fires"), [(0.625, False), (math.nextafter(0.625, 0), True), (0.5, True), (0.25, True)]
)
def test_growth_is_bought_with_task_gain(now, fires):
    """A gain of `min_gain` and more forgives, less does not."""
    found = fired(line(0, likeness=0.0, accuracy=0.5), line(1, likeness=1.0, accuracy=now))
    assert found == ["similarity"] * fires


def test_the_first_observation_is_the_baseline_and_the_gain_counts_since_the_last():
    small = [line(r, likeness=0.2 * r) for r in range(3)]
    assert fired(*small[:2]) == []
    assert fired(*small) == ["similarity"]  # 0.4 since the start, though 0.2 since the last
    late = line(3, likeness=0.6, accuracy=0.625)
    assert fired(*small, late) == []
    assert fired(*small, late, line(4, likeness=0.6, accuracy=0.625)) == ["similarity"]


def test_audits_asked_at_other_rounds_do_not_hide_what_the_task_gained():
    """Likeness is asked every second round, canaries in each: its gain counts since its own last answer."""
    canary = {"leaks": {"slm": False}}
    records = [
        line(0, likeness=0.0, accuracy=0.25, **canary),
        line(1, accuracy=0.5, **canary),
        line(2, likeness=1.0, accuracy=0.5, **canary),
    ]
    assert fired(*records) == []
    assert fired(*records[:2]) == []
    records[0]["metrics"]["slm"]["task"]["accuracy"] = 0.5
    assert fired(*records) == ["similarity"]


def test_a_number_that_is_not_there_fires_nothing():
    start, end = line(0, likeness=0.0), line(1, likeness=1.0)
    assert fired(start) == []
    assert fired() == []
    assert fired(start, line(1)) == []
    assert fired(start, end, line(2)) == []  # nothing was observed after round 2
    assert fired(start, line(1, likeness=None)) == []
    assert fired(line(0, likeness=None), end) == []
    assert fired(start, line(1, likeness=1.0, accuracy=None)) == []
    assert fired(line(0), line(1, ice=1.0)) == []
    assert fired(line(0, ice=None), line(1, ice=0.0), line(2, ice=1.0)) == ["identity"]


def test_rse_counts_where_it_is_and_likeness_where_it_is_not():
    assert fired(line(0, rse=2.0, likeness=0.0), line(1, rse=2.0, likeness=1.0)) == []
    assert fired(line(0, rse=2.0, likeness=1.0), line(1, rse=4.0, likeness=0.0)) == ["similarity"]
    assert fired(line(0, rse=None, likeness=0.0), line(1, rse=None, likeness=1.0)) == ["similarity"]


def test_the_mean_of_all_tasks_is_what_was_gained():
    def tasks(first, second):
        metrics = {"slm": {"a": {"accuracy": first, "n": 2}, "b": {"n": 9, "rouge_l": second}}}
        return {"metrics": metrics, "audits": {"likeness": {"summary": {"likeness.mean": {"value": first}}}}}

    assert fired(tasks(0.0, 0.5), tasks(1.0, 0.0)) == []  # 0.25 to 0.5
    [found] = decide([tasks(0.0, 0.875), tasks(1.0, 0.0)], LIMITS)
    assert found.numbers["gain"] == 0.0625


ALL = (
    line(0, likeness=0.0, ice=0.0, leaks={"slm": False}),
    line(1, likeness=1.0, ice=1.0, leaks={"slm": True}, recall={"slm": 0.75}),
)


@pytest.mark.parametrize("gate", ["similarity", "identity", "canary"])
@pytest.mark.parametrize("action", ["lower", "stop", "off"])
def test_each_gate_does_what_it_is_told(gate, action):
    found = decide(ALL, LIMITS.model_copy(update={f"on_{gate}": action}))
    assert {one.gate: one.action for one in found}.get(gate, "off") == action
    assert len(found) == 3 - (action == "off")


def test_a_decision_tells_the_numbers_it_was_made_from():
    similarity, identity, canary = (json.loads(json.dumps(one.as_facts())) for one in decide(ALL, LIMITS))
    assert similarity["numbers"] == {"first": 0.0, "last": 1.0, "growth": 1.0, "gain": 0.0}
    assert (similarity["gate"], similarity["action"]) == ("similarity", "lower")
    assert "likeness grew from 0.000 to 1.000, 100.0% of its scale (limit 25.0%)" in similarity["reason"]
    assert "+0.0 points since the last audit (asked for: 12.5)" in similarity["reason"]
    assert identity["numbers"] == {"first": 0.0, "last": 1.0, "growth": 1.0}
    assert "grew from 0.000 to 1.000 (limit +0.062)" in identity["reason"]
    assert (canary["numbers"], canary["action"]) == ({"slm": 0.75}, "stop")
    assert canary["reason"] == "planted facts leaked into slm (recall 0.75)"


def test_defaults_are_those_of_the_reference_design():
    """0.4 points of RSE, 1 point of the task, 0.02 of ICE's strict share."""
    none = GatesConfig()

    def default(before, after, gain=0.0):
        return [d.gate for d in decide([line(0, **before), line(1, accuracy=0.5 + gain, **after)], none)]

    assert default({"rse": 3.0}, {"rse": 3.39}) == []
    assert default({"rse": 3.0}, {"rse": 3.41}) == ["similarity"]
    assert default({"rse": 3.0}, {"rse": 3.41}, 0.009) == ["similarity"]
    assert default({"rse": 3.0}, {"rse": 3.41}, 0.011) == []
    assert default({"ice": 0.01}, {"ice": 0.029}) == []
    assert default({"ice": 0.01}, {"ice": 0.031}) == ["identity"]
    assert (none.on_similarity, none.on_identity, none.on_canary) == ("lower", "lower", "stop")


def test_the_run_is_over_if_any_gate_says_so():
    lower, stop = ({"action": action} for action in ("lower", "stop"))
    assert not is_stopped({})
    assert not is_stopped({"gates": []})
    assert not is_stopped({"gates": [lower, lower]})
    assert is_stopped({"gates": [lower, stop]})
    assert is_stopped({"gates": [stop, lower]})


def decisions(*actions):
    return [Decision(f"gate {n}", action, "", {}) for n, action in enumerate(actions)]


@pytest.mark.parametrize(
    ("actions", "left"), [((), 0.8), (("stop",), 0.8), (("lower",), 0.4), (("lower", "stop", "lower"), 0.4)]
)
def test_two_gates_that_lower_in_one_round_lower_once(actions, left):
    state = State(distil=0.8)
    found = lowered(state, decisions(*actions), LIMITS)
    assert found.distil == left
    assert state.distil == 0.8  # values in, values out


@given(st.lists(st.booleans(), max_size=8), st.sampled_from([0.0, 0.25, 0.5]))
def test_a_gate_that_fires_again_lowers_again(rounds, factor):
    state, config = State(), LIMITS.model_copy(update={"factor": factor})
    for fires in rounds:
        state = lowered(state, decisions("lower") if fires else [], config)
    assert state.distil == factor ** sum(rounds)


def test_growth_that_stays_fires_in_every_observation():
    records = [line(0, likeness=0.0), *(line(r, likeness=0.5) for r in (1, 2, 3))]
    assert [fired(*records[:n]) for n in (2, 3, 4)] == [["similarity"]] * 3


class Strict:
    """5 for equal answers, 1 for others."""

    name = fingerprint = "strict"
    is_anchored = False

    def compare(self, comparisons):
        return [Verdict(*[5.0 if pair.first == pair.second else 1.0] * 4) for pair in comparisons]


def test_the_audits_have_the_numbers_that_gates_go_by(tmp_path):
    """Under these very names; a gate on a name that no audit writes would never fire."""
    identity = tmp_path / "identity.yaml"
    identity.write_text(identities.scaffold("Pebble", "Stonework"), encoding="utf-8")
    options = {"ice": {"identity": str(identity), "questions": 2, "iterations": 2}}

    def records(slm, hit):
        answers = {"slm": slm, "llm": lambda message: f"I am Claude, made by Anthropic. {message}"}
        subject = FakeSubject(answers, judge=Strict(), log_probs=lambda role, *_: hit(*_))
        for name in ("likeness", "rse", "ice", "canary"):
            yield name, plugins.load("audit", name, options.get(name, {})).observe(subject)

    planted = {fact.prompt + fact.completion for fact in canary.build(canary.Config()).canaries(0).planted}
    start = dict(records(lambda message: f"Well, {message[:9]}", lambda *_: 0.0))
    end = dict(
        records(lambda m: f"I am Claude, made by Anthropic. {m}", lambda *pair: "".join(pair) in planted)
    )
    found = decide([line(0) | {"audits": start}, line(1) | {"audits": end}], GatesConfig())
    assert [one.gate for one in found] == ["similarity", "identity", "canary"]
    assert found[2].numbers == {"llm": 1.0, "slm": 1.0}
    without_rse = [{k: v for k, v in audits.items() if k != "rse"} for audits in (start, end)]
    lines = [line(n) | {"audits": audits} for n, audits in enumerate(without_rse)]
    assert decide(lines, GatesConfig())[0].reason.startswith("likeness grew from ")


def test_a_canary_in_what_crossed_leaks_and_a_first_unprompted_hit_fires():
    def line(leaks, hard):
        share = {"value": hard, "low": None, "high": None, "n": 9}
        canary = {"leaks": {"slm": False}, "channels": {"text": {"replies": {"leaks": leaks}}}}
        ice = {"summary": {"strict": {**share, "value": 0.01}, "hard": share}}
        return {"audits": {"canary": canary, "ice": ice}}

    quiet = [line(False, 0.0), line(False, 0.0)]
    assert decide(quiet, GatesConfig()) == []
    found = decide([line(False, 0.0), line(True, 0.005)], GatesConfig())
    assert [one.gate for one in found] == ["identity", "canary"]
    assert "text replies" in found[1].reason
