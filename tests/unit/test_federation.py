"""What counts as a reply, what the server learns, and what is written down about the rest."""

from __future__ import annotations

import weakref
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cotune import outcomes
from cotune.aggregators.mean import Mean
from cotune.errors import WireError
from cotune.federation import Federation, check_reply, in_order
from cotune.protocols import Gathered, State
from cotune.records import Adapter, Event, Failure, Message, Round, adapter_header
from cotune.strategies import centralized
from faulty import Scripted

ADAPTER = Adapter({"a": np.zeros(2, np.float32), "b": np.zeros((2, 1), np.float32)}, "base", 1, 2.0)
NAMES = ("ann", "bob", "cid")
ROUND = Round(3, 5, 7, NAMES)


def reply_to(message: Message, value: float = 1.0, weight: float = 1.0, **sums: float) -> Message:
    arrays = {n: np.full_like(a, value) for n, a in message.arrays.items()}
    facts = {**message.facts, "weight": weight, "sums": sums}
    return replace(message, arrays=arrays, facts=facts)


def federation(answer, minimum: int = 1) -> Federation:
    return Federation(Scripted(NAMES, answer), Mean(), lambda _: None, minimum)


SENT = Message("ann", 3, "tune", ADAPTER.arrays, {"adapter": adapter_header(ADAPTER)})
GOOD = reply_to(SENT, loss=1.0)


def with_facts(**facts):
    return replace(GOOD, facts={**GOOD.facts, **facts})


def with_array(array):
    return replace(GOOD, arrays={**GOOD.arrays, "a": array})


BAD = {
    "unknown client": (replace(GOOD, client="eve"), "'eve', who was not asked"),
    "repeated": (replace(GOOD, client="bob"), "second reply of 'bob'"),
    "other round": (replace(GOOD, round=2), "of round 2; this is 'tune' of 3"),
    "other action": (replace(GOOD, action="evaluate"), "reply to 'evaluate' of round 3"),
    "no weight": (replace(GOOD, facts={"sums": {}}), "weight None"),
    "no arrays": (replace(GOOD, arrays={}), r"other arrays than were sent, first difference \['a'\]"),
    "nothing at all": (replace(GOOD, arrays={}, facts={}), "weight None"),
    "one array more": (replace(GOOD, arrays={**GOOD.arrays, "z": np.zeros(1)}), r"first difference \['z'\]"),
    "other shape": (with_array(np.zeros(3, np.float32)), r"a: float32\(3,\), expected \(2,\)"),
    "other type": (with_array(np.zeros(2, np.float64)), r"a: float64\(2,\)"),
    "not a number": (
        with_array(np.array([0, np.nan], np.float32)),
        "a: a value is not finite.*lower slm.tune.lr",
    ),
    "infinite": (with_array(np.array([0, np.inf], np.float32)), "a: a value is not finite"),
    "other base": (with_facts(adapter={"base": "x", "rank": 1, "alpha": 2.0}), "adapter of another base"),
    "other rank": (with_facts(adapter={"base": "base", "rank": 9, "alpha": 2.0}), "adapter of another base"),
    "no sums": (with_facts(sums=None), "a sum is missing"),
    "a sum that is text": (with_facts(sums={"loss": "low"}), "a sum is missing or is not finite"),
    "a diverged loss": (with_facts(sums={"loss": None}), "training diverged; lower slm.tune.lr"),
    "an endless sum": (with_facts(sums={"loss": 10**400}), "a sum is missing or is not finite"),
}
for value in (0, 0.0, -1.0, float("nan"), float("inf"), 10**400, "1", None):
    BAD[f"weight {value!r:.6}"] = (with_facts(weight=value), "expected a positive number")


@pytest.mark.parametrize("kind", BAD)
def test_a_reply_that_must_not_count_is_refused(kind):
    reply, complaint = BAD[kind]
    with pytest.raises(WireError, match=complaint):
        check_reply(reply, SENT, ({"ann", "bob"}, {"bob"}), "summed")


def test_a_good_reply_counts():
    check_reply(GOOD, SENT, ({"ann", "bob"}, {"bob"}), "summed")
    check_reply(replace(GOOD, arrays={}, facts={"answer": 3}), SENT, ({"ann"}, ()), "asked")


def test_gather_gives_a_weighted_mean_and_sums():
    values, weights = {"ann": 1.0, "bob": 2.0, "cid": 6.0}, {"ann": 1.0, "bob": 2.0, "cid": 1.0}
    network = federation(lambda m: [reply_to(m, values[m.client], weights[m.client], loss=0.5, clients=1)])
    found = network.gather("tune", ADAPTER, ROUND)
    # (1 + 4 + 6) / 4 = 2.75
    assert found.adapter.arrays["a"].tolist() == [2.75, 2.75]
    assert found.sums == {"loss": 1.5, "clients": 3}
    assert found.losses == {"slm": 0.5}
    assert found.num_replies == 3


def test_the_order_of_replies_does_not_matter():
    rng = np.random.default_rng(0)
    noise = {name: rng.standard_normal(2).astype(np.float32) * 1e3 for name in NAMES}

    class Shuffled(Scripted):
        def send(self, messages):
            outcomes = list(super().send(messages))
            return iter([outcomes[i] for i in self.order])

    found = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        transport = Shuffled(
            NAMES, lambda m: [replace(reply_to(m, loss=0.1), arrays={**m.arrays, "a": noise[m.client]})]
        )
        transport.order = order
        gathered = Federation(transport, Mean(), lambda _: None).gather("tune", ADAPTER, ROUND)
        found.append((gathered.adapter.arrays["a"].tobytes(), gathered.sums))
    assert found[0] == found[1] == found[2]


def test_replies_are_folded_as_they_come_and_then_let_go():
    names, alive = tuple(f"c{i:02}" for i in range(20)), []

    class Watched(Scripted):
        def send(self, messages):
            seen: list[weakref.ref[Any]] = []
            for outcome in super().send(messages):
                seen.append(weakref.ref(outcome[0].arrays["a"]))
                alive.append(sum(one() is not None for one in seen))
                yield outcome

    network = Federation(Watched(names, lambda m: [reply_to(m, loss=1.0)]), Mean(), lambda _: None)
    found = network.gather("tune", ADAPTER, replace(ROUND, cohort=names))
    assert (found.num_replies, found.sums) == (20, {"loss": 20.0})
    assert max(alive) <= 4


def test_a_reply_is_held_only_until_those_before_it_have_come_or_failed():
    pulled: list[str] = []

    def outcomes():
        for outcome in (replace(GOOD, client="cid"), Failure("bob", 3, "late", ""), GOOD, "the end"):
            pulled.append(getattr(outcome, "client", "the end"))
            if outcome != "the end":
                yield outcome

    found = [(reply.client, tuple(pulled)) for reply in in_order(outcomes(), NAMES)]
    assert found == [("ann", ("cid", "bob", "ann")), ("cid", ("cid", "bob", "ann"))]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_replies_pass_sorted_whatever_comes_when(order):
    came = [replace(GOOD, client="cid"), Failure("bob", 3, "late", ""), GOOD, Failure("cid", 3, "late", "")]
    found = in_order([came[i] for i in order], (*NAMES, "dan"))
    assert [reply.client for reply in found] == ["ann", "cid"]


def test_nobody_answers_and_nothing_is_folded():
    class Strict(Mean):
        def fold(self, updates):
            found = list(updates)
            assert found, "the protocol promises at least one"
            return super().fold(found)

    for answer in (lambda m: [], lambda m: [reply_to(m, float("nan"))]):
        found = Federation(Scripted(NAMES, answer), Strict(), lambda _: None).gather("tune", ADAPTER, ROUND)
        assert found == Gathered(None, {}, 0)


def test_asked_replies_come_sorted_and_in_the_clear():
    network = federation(lambda m: [Message(m.client, m.round, m.action, {}, {"is": m.client})])
    found = network.ask("say", None, replace(ROUND, cohort=("cid", "ann", "bob")))
    assert [reply.facts["is"] for reply in found] == ["ann", "bob", "cid"]
    assert network.ledger.traffic == {
        "up_bytes": 300,
        "down_bytes": 30,
        "clear_bytes": 300,
        "gathered_bytes": 0,
    }


def test_gathered_bytes_are_counted_apart():
    network = federation(lambda m: [reply_to(m)])
    network.gather("tune", ADAPTER, ROUND)
    traffic = network.take_ledger().traffic
    assert (traffic["clear_bytes"], traffic["gathered_bytes"]) == (0, 300)
    assert network.ledger.traffic == dict.fromkeys(traffic, 0)


def test_failures_are_written_down_with_kind_and_reason_and_the_round_goes_on():
    def answer(message):
        if message.client == "ann":
            return [Failure("ann", message.round, "late", "took 90 s")]
        if message.client == "bob":
            return [reply_to(message, float("nan"))]
        return [reply_to(message, 5.0)]

    heard = []
    network = Federation(Scripted(NAMES, answer), Mean(), heard.append)
    found = network.gather("tune", ADAPTER, ROUND)
    assert found.adapter.arrays["a"].tolist() == [5, 5]
    late, rejected = network.ledger.failures
    assert late == Failure("ann", 3, "late", "took 90 s")
    assert (rejected.client, rejected.kind) == ("bob", "rejected")
    assert "not finite" in rejected.reason
    assert next(e.facts["note"] for e in heard if "note" in e.facts) == "late: took 90 s"


def test_the_second_reply_of_a_client_does_not_count():
    network = federation(lambda m: [reply_to(m, 1.0), reply_to(m, 100.0)])
    assert network.gather("tune", ADAPTER, ROUND).adapter.arrays["a"].tolist() == [1, 1]
    assert [failure.kind for failure in network.ledger.failures] == ["rejected"] * 3


@pytest.mark.parametrize(("minimum", "counts"), [(2, True), (3, False)])
def test_below_the_minimum_a_round_changes_nothing(minimum, counts):
    def answer(message):
        return [reply_to(message)] if message.client != "bob" else []

    found = federation(answer, minimum).gather("tune", ADAPTER, ROUND)
    assert (found.adapter is not None) == counts
    assert found.num_replies == 2
    if not counts:
        assert found == Gathered(None, {}, 2)
        assert found.losses == {}


def test_nobody_answers():
    found = federation(lambda m: []).gather("tune", ADAPTER, ROUND)
    assert found.adapter is None


def test_clients_may_send_sums_without_an_adapter():
    network = federation(
        lambda m: [Message(m.client, m.round, m.action, {}, {"weight": 1.0, "sums": {"n": 2}})]
    )
    found = network.gather("tune", None, ROUND)
    assert (found.adapter, found.sums) == (None, {"n": 6})


def test_only_the_cohort_is_asked():
    transport = Scripted(NAMES, lambda m: [reply_to(m)])
    Federation(transport, Mean(), lambda _: None).gather("tune", ADAPTER, replace(ROUND, cohort=("bob",)))
    assert [message.client for message in transport.seen] == ["bob"]


def test_each_client_is_told_its_own_and_only_those_who_are_told_are_asked():
    network = federation(lambda m: [Message(m.client, m.round, m.action, {}, {"told": m.facts.get("told")})])
    found = network.ask("say", None, ROUND, {"bob": {"groups": [1]}, "ann": {}})
    assert [(reply.client, reply.facts["told"]) for reply in found] == [
        ("ann", None),
        ("bob", {"groups": [1]}),
    ]
    assert network.ask("say", None, ROUND, {}) == []


def test_a_reply_can_be_refused_after_it_came():
    heard: list[Event] = []
    network = Federation(Scripted(NAMES, lambda m: [reply_to(m)]), Mean(), heard.append)
    first, *_ = network.ask("say", None, ROUND)
    network.refuse(first, "nonsense")
    assert network.ledger.failures == [Failure(first.client, 3, "rejected", "nonsense")]
    assert heard[-1].facts["note"] == "rejected: nonsense"


def test_arrays_that_are_asked_for_may_have_any_shape_but_must_be_finite():
    def answer(message):
        value = np.nan if message.client == "bob" else 1.0
        return [Message(message.client, message.round, message.action, {"c": np.full((2, 3), value)}, {})]

    network = federation(answer)
    assert [reply.client for reply in network.ask("propose", None, ROUND)] == ["ann", "cid"]
    assert "not finite" in network.ledger.failures[0].reason


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (None, "NoneType"),
        ([], "list"),
        ({"food": 3}, "numbers by name"),
        ({"food": {"accuracy": 0.5}}, "with n"),
        ({"food": {"n": 3, "accuracy": "high"}}, "accuracy"),
        ({"food": {"n": 3, "accuracy": float("inf")}}, "accuracy"),
        ({"food": {"n": 3, "answers": [1, None, "x"]}}, "answers"),
    ],
)
def test_numbers_that_a_client_cannot_have_measured_are_named(metrics, words):
    assert words in outcomes.problem(metrics)
    assert outcomes.problem({"food": {"n": 2, "accuracy": 0.5, "answers": [1, 0], "shown": ["a"]}}) == ""


@pytest.mark.parametrize(
    "change", [{"id": 3}, {"choices": None}, {"answer_idx": "0"}, {"extra": 1}, {"prompt": None}]
)
def test_centralized_refuses_rows_that_are_no_examples(change):
    good = {
        "id": "a",
        "prompt": "p",
        "completion": "c",
        "choices": ["x"],
        "answer_idx": 0,
        "rationale": "",
        "domain": "",
    }
    rows = {"ann": good, "bob": {**good, **change}, "cid": good}
    network = federation(lambda m: [Message(m.client, m.round, m.action, {}, {"examples": [rows[m.client]]})])
    taught: list[int] = []

    class Learner:
        def tune_clients(self, clients, starts):
            taught.append(len(clients[0].examples))
            return [SimpleNamespace(adapter=ADAPTER, loss=1.0)]

    strategy = centralized.Centralized(Learner(), ())
    strategy.server_round(State(llm=ADAPTER), ROUND, network)
    assert taught == [2]
    assert [failure.client for failure in network.ledger.failures] == ["bob"]
