"""The client side: replies in order, what is kept, and what never travels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.host import Host, Store
from cotune.protocols import Reply
from cotune.records import Adapter, Message, adapter_header


def adapter(value: float) -> Adapter:
    return Adapter({"a": np.full(2, value, np.float32)}, "base", 1, 2.0)


def value(found: Adapter | None) -> float | None:
    return None if found is None else float(found.arrays["a"][0])


def test_a_client_reads_what_it_kept_before_the_round(tmp_path):
    store = Store(tmp_path)
    assert store.read("ann", 1) is None
    for index in (1, 2, 3):
        store.write("ann", index, adapter(index))
    assert [value(store.read("ann", before)) for before in (4, 3, 2)] == [3, 2, 1]
    assert store.read("bob", 4) is None


def test_a_client_that_takes_part_now_and_then_can_repeat_its_last_round(tmp_path):
    """Killed in round 9 after it wrote: the resumed round 9 must start from what it kept in round 4."""
    store = Store(tmp_path)
    store.write("ann", 4, adapter(4))
    store.write("ann", 9, adapter(9))
    assert value(store.read("ann", 9)) == 4


def test_the_checkpoint_before_the_newest_can_be_resumed(tmp_path):
    """Round 6 has begun; checkpoint 5 turns out to be torn, so round 5 is done again from what 4 left."""
    store = Store(tmp_path)
    for index in range(1, 7):
        store.write("ann", index, adapter(index))
    assert value(store.read("ann", 5)) == 4


def test_few_files_stay(tmp_path):
    store = Store(tmp_path)
    for index in range(1, 30):
        store.write("ann", index, adapter(index))
    assert len(list(tmp_path.rglob("*.*"))) == 3


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_names_of_clients_stay_apart_and_inside_the_folder(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder / "inside")
    try:
        for number, name in enumerate(names):
            store.write(name, 1, adapter(number))
    except UnicodeEncodeError:
        return  # a lone surrogate is no name
    assert [value(store.read(name, 2)) for name in names] == list(range(len(names)))
    assert {path.name for path in folder.iterdir()} == {"inside"}


@pytest.mark.parametrize("name", ["..", ".", "../up", "a/b", "/etc", "con\0"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    store = Store(tmp_path / "inside")
    store.write(name, 1, adapter(1))
    assert value(store.read(name, 2)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert len(list((tmp_path / "inside").iterdir())) == 1


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
    return Host(dataset, (strategy, (), None), evaluate, Store(tmp_path), (7, 5))


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
    clients.store.write("ann", 2, adapter(8))
    clients.handle([message("ann", action="evaluate")])
    clients.handle([message("ann", adapter(1), action="evaluate")])
    assert calls == [None, 8.0, 1.0]
