"""The client side: replies in order, what is kept, and what never travels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cotune.host import KEPT_ADAPTER, Host
from cotune.protocols import Reply
from cotune.records import Adapter, Message, adapter_header


def adapter(value: float) -> Adapter:
    return Adapter({"a": np.full(2, value, np.float32)}, "base", 1, 2.0)


def value(found: Adapter | None) -> float | None:
    return None if found is None else float(found.arrays["a"][0])


class Doubling:
    """Sends back twice what it got and keeps the half."""

    def client_step(self, action, given, clients):
        self.seen = [(action, client.id, value(client.kept), client.round.index) for client in clients]
        return [
            Reply(
                g and g.with_arrays({"a": 2 * g.arrays["a"]}),
                3.0,
                {"loss": self.loss},
                {"n": 1},
                adapter(0.5),
            )
            for g in given
        ]

    loss = 0.25


def host(tmp_path, strategy, evaluate=lambda adapter, held_out: {}) -> Host:
    dataset = SimpleNamespace(
        clients=("ann", "bob"), train=lambda c: (c,), held_out=lambda c: {"task": c}, own_test=None
    )
    return Host(dataset, (strategy, (), None), evaluate, tmp_path, (7, 5))


def message(client: str, given: Adapter | None = None, action: str = "tune", index: int = 2) -> Message:
    facts = {"adapter": adapter_header(given)} if given else {}
    return Message(client, index, action, given.arrays if given else {}, facts)


def test_replies_come_in_order_with_weight_and_sums(tmp_path):
    found = host(tmp_path, Doubling()).handle([message("bob", adapter(1)), message("ann", adapter(2))])
    assert [(m.client, m.round, m.action, value_of(m)) for m in found] == [
        ("bob", 2, "tune", 2.0),
        ("ann", 2, "tune", 4.0),
    ]
    assert found[0].facts == {
        "n": 1,
        "weight": 3.0,
        "sums": {"loss": 0.25},
        "adapter": {"base": "base", "rank": 1, "alpha": 2.0},
    }


def value_of(message: Message) -> float:
    return float(message.arrays["a"][0])


def test_what_a_client_keeps_never_travels_and_is_there_next_round(tmp_path):
    strategy = Doubling()
    clients = host(tmp_path, strategy)
    [reply] = clients.handle([message("ann")])
    assert reply.arrays == {}
    clients.handle([message("ann", index=3)])
    assert strategy.seen == [("tune", "ann", 0.5, 3)]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_diverged_loss_is_sent_as_nothing_so_that_the_server_can_refuse_it(tmp_path, loss):
    strategy = Doubling()
    strategy.loss = loss
    [reply] = host(tmp_path, strategy).handle([message("ann", adapter(1))])
    assert reply.facts["sums"] == {"loss": None}


def test_clients_with_the_same_questions_and_adapter_are_scored_once(tmp_path):
    calls = []

    def evaluate(given, held_out):
        calls.append((value(given), held_out))
        return {"task": {"n": 1}}

    clients = host(tmp_path, Doubling(), evaluate)
    shared = {"task": "all"}
    clients.dataset.held_out = lambda c: shared
    found = clients.handle([message(c, adapter(1), "evaluate") for c in ("ann", "bob")])
    assert calls == [(1.0, shared)]
    assert [reply.facts for reply in found] == [{"metrics": {"task": {"n": 1}}}] * 2
    assert all(not reply.arrays for reply in found)


def test_evaluation_takes_the_given_adapter_else_the_clients_own_else_none(tmp_path):
    calls = []
    clients = host(tmp_path, Doubling(), lambda given, held_out: calls.append(value(given)) or {})
    clients.handle([message("ann", action="evaluate")])
    clients.shelf.put_adapter("ann", KEPT_ADAPTER, 2, adapter(8))
    clients.handle([message("ann", action="evaluate")])
    clients.handle([message("ann", adapter(1), action="evaluate")])
    assert calls == [None, 8.0, 1.0]
