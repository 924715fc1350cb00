"""FedHDS: the right rows, the right group numbers, comparable centres, and every edge defined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cotune.protocols import Client, Given, SelectorParts, State
from cotune.records import Adapter, Example, Message, Round
from cotune.selectors import fedhds

TOPICS, WIDTH, FAR = 8, 40, 6
"""Topics from FAR on lie far from all others, so that nothing is near to them."""


@dataclass
class FakeReader:
    """Features by the text: `topic number`; a fixed middle for each topic and a little of its own."""

    model: str = "m1"
    mounted: list[Adapter | None] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return self.model

    def mount(self, adapter):
        self.mounted.append(adapter)

    def features(self, texts, dimensions, seed):
        found = np.stack([vector(text) for text in texts]) if texts else np.zeros((0, WIDTH), np.float32)
        if dimensions is None:
            return found
        basis = np.random.default_rng(seed).normal(size=(WIDTH, dimensions)) / np.sqrt(WIDTH)
        return (found @ basis).astype(np.float32)


def vector(text: str) -> np.ndarray[Any, Any]:
    topic, number = map(int, text.split())
    far = 15 if topic >= FAR else 3
    middle = np.random.default_rng(1000 + topic).normal(0, far, WIDTH)
    return (middle + np.random.default_rng(7 * topic + 1000 * number).normal(0, 0.1, WIDTH)).astype(
        np.float32
    )


def examples(topics, each=6, first=0):
    return tuple(
        Example(id=f"{t}-{i}", prompt=f"{t} ", completion=str(first + i)) for t in topics for i in range(each)
    )


class Network:
    """Both verbs, without a wire; clients are examples by name."""

    def __init__(self, selector, clients, round):
        self.selector, self.clients, self.round = selector, clients, round
        self.memo: dict[str, Any] = {}
        self.chosen: dict[str, list[int]] = {}
        self.refused: list[tuple[str, str]] = []
        self.sent: list[Message] = []

    def ask(self, action, adapter, round, told=None):
        names = sorted(told if told is not None else round.cohort)
        members = [Client(n, self.clients[n], self.round, memo=self.memo.get(n, {})) for n in names]
        given = [Given(adapter, (told or {}).get(n, {})) for n in names]
        replies = self.selector.client_step(action, given, members)
        for name, reply in zip(names, replies, strict=True):
            self.memo[name] = reply.memo or self.memo.get(name, {})
            if reply.chosen is not None:
                self.chosen[name] = list(reply.chosen)
        found = [Message(n, 1, action, r.arrays, r.facts) for n, r in zip(names, replies, strict=True)]
        self.sent += found
        return found

    def refuse(self, reply, reason):
        self.refused.append((reply.client, reason))

    def gather(self, *_):
        raise AssertionError("FedHDS gathers nothing")

    def progress(self, *_, **__):
        pass


def select(clients, reader=None, **options):
    reader = reader or FakeReader()
    selector = fedhds.build(fedhds.Config(**options), SelectorParts(lambda _: reader, 3))
    round = Round(1, 3, 7, tuple(sorted(clients)))
    network = Network(selector, clients, round)
    counts = selector.server_select(State(), round, network)
    return counts, network, selector


def picked_topics(clients, network):
    return [(name, int(clients[name][row].prompt)) for name, rows in network.chosen.items() for row in rows]


def test_every_topic_is_represented_once_over_all_clients():
    clients = {"ann": examples(range(8)), "bob": examples(range(8), first=50)}
    counts, network, _ = select(clients)
    topics = [topic for _, topic in picked_topics(clients, network)]
    assert sorted(topics) == list(range(8))
    assert sum(counts.values()) == 8


def test_a_topic_that_only_one_client_has_is_kept():
    clients = {"ann": examples([*range(6), 6]), "bob": examples([*range(6), 7], first=50)}
    _, network, _ = select(clients)
    assert sorted(topic for _, topic in picked_topics(clients, network)) == list(range(8))
    _, without, _ = select(clients, keep_server_noise=False)
    assert sorted(topic for _, topic in picked_topics(clients, without)) == list(range(6))


@pytest.mark.parametrize("mode", ["shared_basis", "paper"])
def test_every_sent_number_names_its_own_centre(mode):
    clients = {"ann": examples(range(4), each=10)}
    _, network, _ = select(clients, mode=mode, min_group=5)
    proposal = next(message for message in network.sent if message.action == "propose")
    labels, rows = network.memo["ann"]["labels"], network.memo["ann"]["rows"]
    topics = [int(example.prompt) for example in clients["ann"]]
    assert len(proposal.facts["groups"]) == 4
    for number in proposal.facts["groups"]:
        members = {topics[row] for row in np.flatnonzero(labels == number)}
        assert {topics[rows[number]]} == members


def test_permuting_the_data_permutes_the_choice_and_nothing_else():
    here = {"ann": examples(range(5)), "bob": examples(range(3, 8), first=30)}
    order = np.random.default_rng(0).permutation(len(here["ann"]))
    there = {"ann": tuple(here["ann"][i] for i in order), "bob": here["bob"]}
    _, one, _ = select(here)
    _, other, _ = select(there)
    ids = [
        sorted(data[n][row].id for n, rows in net.chosen.items() for row in rows)
        for data, net in ((here, one), (there, other))
    ]
    assert ids[0] == ids[1]


def test_nothing_but_centres_and_numbers_crosses():
    clients = {"ann": examples(range(4)), "bob": examples(range(4))}
    _, network, _ = select(clients)
    for message in network.sent:
        known = {"propose": {"groups", "total", "model"}, "pick": {"selected", "total"}}[message.action]
        assert set(message.facts) == known
        assert set(message.arrays) <= {"centres"}
        assert all(array.shape[1] == 16 for array in message.arrays.values())


def test_the_adapter_is_read_with_and_taken_off_again():
    reader, adapter = FakeReader(), Adapter({"a": np.ones(2)}, "base", 1, 1.0)
    selector = fedhds.build(fedhds.Config(), SelectorParts(lambda _: reader, 3))
    round = Round(1, 3, 7, ("ann",))
    network = Network(selector, {"ann": examples(range(3))}, round)
    selector.server_select(State(slm=adapter), round, network)
    assert reader.mounted == [adapter, None]
    frozen = fedhds.build(fedhds.Config(model="other"), SelectorParts(lambda _: reader, 3))
    frozen.server_select(State(slm=adapter), round, Network(frozen, {"ann": examples(range(3))}, round))
    assert reader.mounted[2:] == [None, None]


@pytest.mark.parametrize("mode", ["shared_basis", "paper"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_tiny_clients(mode, number):
    """Too small for groups: as a whole one group in the shared basis, nothing in the paper's mode."""
    clients = {"ann": examples([0], each=number)}
    counts, network, _ = select(clients, mode=mode)
    expected = 1 if mode == "shared_basis" and number else 0
    assert counts["ann"] == expected or (mode == "paper" and number == 3)  # three points may be a group
    assert len(network.chosen["ann"]) == counts["ann"]


def test_one_centre_wins_in_the_shared_basis_and_is_noise_in_the_paper():
    """The published code raises an exception here."""
    clients = {"ann": tuple(Example(id=str(i), prompt="0 ", completion="1") for i in range(9))}
    assert select(clients)[0] == {"ann": 1}
    assert select(clients, mode="paper")[0] == {"ann": 0}


def test_identical_examples_give_one():
    clients = {
        n: tuple(Example(id=f"{n}{i}", prompt="0 ", completion="1") for i in range(9)) for n in ("a", "b")
    }
    assert sum(select(clients)[0].values()) == 1


def test_keep_takes_the_groups_that_most_clients_share():
    clients = {
        "a": examples([0, 1, 2]),
        "b": examples([0, 1, 3], first=20),
        "c": examples([0, 4, 5], first=40),
    }
    _, network, _ = select(clients, keep=2 / 54)
    assert sorted(topic for _, topic in picked_topics(clients, network)) == [0, 1]
    assert sum(select(clients, keep=1e-6)[0].values()) == 1


def test_small_groups_are_not_sent():
    clients = {"ann": (*examples([0, 1], each=8), *examples([2], each=3))}
    _, network, _ = select(clients, smallest_sent=5)
    assert sorted(topic for _, topic in picked_topics(clients, network)) == [0, 1]


def test_noise_changes_centres_and_stays_bounded():
    clients = {"ann": examples(range(4))}
    plain = next(m for m in select(clients)[1].sent if m.action == "propose").arrays["centres"]
    noisy = next(m for m in select(clients, noise=0.1)[1].sent if m.action == "propose").arrays["centres"]
    again = next(m for m in select(clients, noise=0.1)[1].sent if m.action == "propose").arrays["centres"]
    assert not np.allclose(plain, noisy)
    assert np.abs(noisy).max() < 1 + 6 * 0.1
    np.testing.assert_array_equal(noisy, again)


class TwoModels(FakeReader):
    """Client `bob` reads with another model."""

    @property
    def fingerprint(self):
        self.model = {"m1": "m2", "m2": "m1"}[self.model]
        return {"m2": "m1", "m1": "m2"}[self.model]


def test_centres_of_another_model_are_refused_with_both_fingerprints():
    clients = {"ann": examples([0]), "bob": examples([1]), "cid": examples([2])}
    reader = TwoModels()
    _, network, _ = select(clients, reader)
    assert [name for name, _ in network.refused] == ["bob"]
    assert "m2" in network.refused[0][1]
    assert "m1" in network.refused[0][1]
    assert set(network.chosen) == {"ann", "cid"}


@pytest.mark.parametrize(
    ("facts", "centres", "words"),
    [
        ({"groups": ["0"], "total": 3, "model": "m"}, np.zeros((1, 16)), "whole numbers"),
        ({"groups": [0], "total": 3, "model": "m"}, np.zeros((2, 16)), "expected one"),
        ({"groups": [0], "total": 3, "model": "m"}, np.zeros((1, 3)), "3 dimensions"),
        ({"groups": [0], "model": "m"}, np.zeros((1, 16)), "total"),
        ({}, np.zeros((1, 16)), "whole numbers"),
    ],
)
def test_a_malformed_proposal_is_refused(facts, centres, words):
    selector = fedhds.build(fedhds.Config(), SelectorParts(lambda _: FakeReader(), 3))
    network = Network(selector, {}, Round(1, 3, 7, ()))
    assert selector._usable([Message("ann", 1, "propose", {"centres": centres}, facts)], network) == []
    assert words in network.refused[0][1]


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5]), (0, [1]), (2, [1, 3, 5])])
def test_how_often(every, due):
    selector = fedhds.build(fedhds.Config(every=every), SelectorParts(lambda _: FakeReader(), 5))
    assert [i for i in range(1, 6) if selector.is_due(Round(i, 5, 7, ()))] == due
    assert selector.asks_all is (every != 1)


def test_nearest_centres_of_two_clients_agree_on_the_topic():
    """Each from its own t-SNE, layouts cannot be compared; in the shared basis they can."""
    clients = {"ann": examples(range(TOPICS), each=12), "bob": examples(range(TOPICS), each=12, first=100)}

    def agreement(mode):
        _, network, _ = select(clients, mode=mode, min_group=5)
        centres, topics = {}, {}
        for message in (m for m in network.sent if m.action == "propose"):
            rows = network.memo[message.client]["rows"]
            centres[message.client] = message.arrays["centres"]
            topics[message.client] = [
                int(clients[message.client][rows[n]].prompt) for n in message.facts["groups"]
            ]
        distance = np.square(centres["ann"][:, None] - centres["bob"][None]).sum(-1)
        nearest = np.array(topics["bob"])[distance.argmin(1)]
        return float((nearest == np.array(topics["ann"])).mean())

    assert agreement("shared_basis") >= 0.95
    assert agreement("paper") < 0.6


def test_grouping_is_told_as_examples_of_all_clients():
    told = []
    parts = SelectorParts(lambda _: FakeReader(), 3, lambda *at: told.append(at))
    selector = fedhds.build(fedhds.Config(), parts)
    clients = {"ann": examples(range(4)), "bob": examples(range(2)), "eve": ()}
    now = Round(1, 3, 7, tuple(clients))
    selector.server_select(State(), now, Network(selector, clients, now))
    grouped = [(done, total) for what, done, total in told if what == "grouping"]
    assert grouped == sorted(grouped)
    assert grouped[0] == (0, 36)
    assert {(24, 36), (36, 36)} <= set(grouped)
    assert [what for what, _, _ in told][-1] == "grouping centres"
