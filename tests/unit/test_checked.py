"""A client's process acts on what its own configuration asked for, and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cotune.checked import Known, check_request, check_requests
from cotune.errors import WireError
from cotune.records import Adapter, Message, adapter_header

ADAPTER = Adapter({"a": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}, "base", 2, 4.0)
HEADER = adapter_header(ADAPTER)
KNOWN = Known(
    clients=frozenset({"ann", "bob"}),
    num_rounds=5,
    num_selectors=2,
    others=frozenset({"teach/", "secure/"}),
    adapters=(ADAPTER,),
    needed=frozenset({"tune"}),
)
TUNE = Message("ann", 3, "tune", ADAPTER.arrays, {"adapter": HEADER})
PLAIN = Message("ann", 3, "evaluate")


def with_header(**changes):
    return replace(TUNE, facts={"adapter": {**HEADER, **changes}})


def with_array(name, array):
    return replace(TUNE, arrays={**ADAPTER.arrays, name: array})


@pytest.mark.parametrize(
    "message",
    [
        TUNE,
        replace(TUNE, round=1),
        replace(TUNE, round=5),
        replace(PLAIN, round=0),
        replace(TUNE, action="evaluate"),
        replace(PLAIN, action="select/0/pick", facts={"told": {"groups": [1]}}),
        replace(TUNE, action="select/1/propose"),
        replace(TUNE, action="teach/choose", facts={"adapter": HEADER, "told": {}}),
        replace(PLAIN, action="secure/keys"),
        Message(
            "bob", 1, "select/0/share", {"sums": np.ones(9)}, {"adapter": {**HEADER, "base": "score:ira"}}
        ),
    ],
    ids=lambda message: f"{message.action} of {message.round}",
)
def test_what_a_server_of_the_run_sends_is_taken(message):
    check_request(message, KNOWN)


BAD = {
    "unknown client": (replace(TUNE, client="eve"), "'eve', who does not live here"),
    "half a surrogate": (replace(TUNE, client="\ud800"), "does not live here"),
    "before the first": (replace(TUNE, round=0), "'tune' of round 0; expected 1 to 5"),
    "below zero": (replace(PLAIN, round=-1), "round -1; expected 0 to 5"),
    "after the last": (replace(TUNE, round=6), "round 6; expected 1 to 5"),
    "endless round": (replace(TUNE, round=10**400), r"of round 10+\.\.\.; expected"),
    "unknown action": (replace(TUNE, action="upload"), "unknown action 'upload'; this client knows .*tune"),
    "no action": (replace(TUNE, action=""), "unknown action ''"),
    "long action": (replace(TUNE, action="x" * 10_000), "unknown action 'xxxx"),
    "third selector": (replace(PLAIN, action="select/2/pick"), "a number below 2"),
    "selector of no number": (replace(PLAIN, action="select/x/pick"), "unknown action"),
    "selector from the end": (replace(PLAIN, action="select/-1/pick"), "unknown action"),
    "selector without a step": (replace(PLAIN, action="select/0/"), "unknown action"),
    "step with a slash": (replace(PLAIN, action="teach/a/b"), "unknown action"),
    "line end": (replace(PLAIN, action="select/0/pick\n"), "unknown action"),
    "another fact": (replace(PLAIN, facts={"weight": 1}), "with 'weight'; expected nothing but"),
    "told a list": (replace(PLAIN, facts={"told": [1]}), r"told is \[1\]; expected facts"),
    "told nothing": (replace(PLAIN, facts={"told": None}), "told is None"),
    "arrays of nothing": (replace(TUNE, facts={}), "arrays that belong to no adapter"),
    "no adapter": (replace(TUNE, facts={}, arrays={}), "'tune' without an adapter"),
    "empty header": (replace(TUNE, facts={"adapter": {}}), "adapter {}; expected base"),
    "header a text": (replace(TUNE, facts={"adapter": "base"}), "adapter 'base'; expected"),
    "header with more": (with_header(more=1), "expected base"),
    "rank a truth": (with_header(rank=True), "expected base"),
    "alpha not a number": (with_header(alpha=float("nan")), "expected base"),
    "alpha endless": (with_header(alpha=10**400), "expected base"),
    "other base": (with_header(base="x"), "adapter .*'x'.*; expected .*'base': 'base'"),
    "other rank": (with_header(rank=3), "adapter .*; expected .*'rank': 2"),
    "other scale": (with_header(alpha=8.0), "adapter .*; expected"),
    "a score where none belongs": (with_header(base="score:ira"), "adapter .*; expected"),
    "array missing": (
        replace(TUNE, arrays={"a": ADAPTER.arrays["a"]}),
        r"b: missing; expected float32\(3,\)",
    ),
    "array too many": (with_array("c", np.zeros(1, np.float32)), "c: no such array in an adapter of base"),
    "other shape": (with_array("b", np.zeros(4, np.float32)), r"b: float32\(4,\); expected float32\(3,\)"),
    "other type": (with_array("b", np.zeros(3)), r"b: float64\(3,\); expected float32"),
    "not a number": (with_array("b", np.full(3, np.nan, np.float32)), "b: a value is not finite"),
    "infinite": (with_array("a", np.full((2, 3), np.inf, np.float32)), "a: a value is not finite"),
    "infinite score": (
        replace(with_header(base="score:x"), action="select/0/pick", arrays={"s": np.array([np.inf])}),
        "s: a value is not finite",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_anything_else_is_refused_in_few_words(kind):
    message, complaint = BAD[kind]
    with pytest.raises(WireError, match=complaint) as error:
        check_request(message, KNOWN)
    assert len(str(error.value)) < 500


def test_who_is_not_taught_and_has_no_masks_takes_no_such_step():
    bare = replace(KNOWN, others=frozenset(), num_selectors=0)
    for action in ("teach/choose", "secure/keys", "select/0/pick"):
        with pytest.raises(WireError, match="unknown action"):
            check_request(replace(PLAIN, action=action), bare)


def test_a_request_is_one_action_of_one_round_for_different_clients():
    both = [TUNE, replace(TUNE, client="bob")]
    check_requests(both, KNOWN)
    for messages, complaint in (
        ([], "without messages"),
        ([TUNE, TUNE], "two messages for 'ann'"),
        ([TUNE, replace(both[1], round=4)], "of round 4 beside 'tune' of round 3"),
        ([TUNE, replace(both[1], action="evaluate")], "'evaluate' of round 3 beside 'tune'"),
        ([TUNE, replace(both[1], arrays={})], "a: missing"),
    ):
        with pytest.raises(WireError, match=complaint):
            check_requests(messages, KNOWN)
