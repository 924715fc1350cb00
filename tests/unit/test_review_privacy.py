"""What a review of private and deployed runs has found: each of these was once otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import masking
import tiny
from cotune import build, config, outbox, outcomes, pupils, report, session
from cotune.cohorts import Asked
from cotune.errors import ConfigError, WireError
from cotune.example_privacy import PrivateConfig, epsilon, sampling
from cotune.federation import _messages as messages_of
from cotune.host import Hosts
from cotune.identity_keys import simulated_identity, simulated_registry
from cotune.lessons import usable
from cotune.privacy_section import privacy_values
from cotune.records import Message, Round, refusal
from cotune.spending import ExampleSpending

NOISE = {"name": "clip_noise", "clip": 0.5, "where": "distributed", "dropout": 0}


@pytest.mark.parametrize("aggregator", ["secure_sum", "mean"])
def test_a_deployed_client_does_no_work_of_another_name(small, tmp_path, monkeypatch, aggregator):
    """Under another name an update would pass no guard, and be in another sum of the same round."""
    ready = tiny.ready(small, tmp_path, strategy="fedavg", rounds=1, aggregator=aggregator)
    made = config.from_dict(tiny.raw_config(small, strategy="fedavg", rounds=1, aggregator=aggregator))
    party = _Party(tmp_path, ready.federation.clients())
    monkeypatch.setattr(build, "own_secret", lambda _: lambda _name: bytes(32))
    host = build.host(made, party, ready.dataset)
    assert isinstance(host, Hosts)
    adapter = ready.families[0].strategy.init(3).slm
    [asked] = messages_of("tune", adapter, Round(1, 1, 3, ("client-1",)), None)
    for wrong in ({"action": "tune2"}, {"action": "upload"}, {"round": 2}, {"client": "client-2"}):
        with pytest.raises(WireError, match=r"unknown action|of round 2|does not live here"):
            host.handle([replace(asked, **wrong)])
    [reply] = host.handle([asked])
    assert "refused" not in reply.facts
    assert host.handle([replace(asked, action="evaluate", round=0)])[0].facts["metrics"]


class _Party:
    """As `parties.load` gives one."""

    def __init__(self, folder, clients):
        self.name, self.folder = "client-1", folder
        self.identity = simulated_identity(3, "client-1")
        self.registry = self
        self.of_clients = simulated_registry(3, clients)


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean"])
def test_noise_for_a_mean_does_not_go_with_an_aggregator_that_takes_none(small, tmp_path, aggregator):
    with pytest.raises(ConfigError, match="epsilon would be wrong"):
        tiny.ready(
            small,
            tmp_path,
            strategy="fedavg",
            aggregator=aggregator,
            cohort__minimum=3,
            guards=["clip_noise"],
        )


def test_a_largest_weight_that_would_round_noise_away_is_refused(small, tmp_path):
    with pytest.raises(ConfigError, match="rounding shows what noise should hide"):
        tiny.ready(
            small,
            tmp_path,
            strategy="fedavg",
            aggregator={"name": "secure_sum", "bits": 16, "largest_weight": 1e9},
            guards=[NOISE],
        )


def test_a_budget_counts_on_the_fewest_that_a_second_try_may_have(small, tmp_path):
    with pytest.raises(ConfigError, match=r"one round with noise_multiplier 1 can cost 5\.54"):
        tiny.ready(
            small,
            tmp_path,
            strategy="fedavg",
            aggregator="secure_sum",
            guards=[{**NOISE, "max_epsilon": 4.5}],
        )


def test_a_second_try_keeps_within_the_budget(small, tmp_path, monkeypatch):
    def answer(self, message, real=outbox.Outbox._answer):
        is_gone = (message.client, message.action) == ("client-1", "secure/mask")
        return refusal(message, "gone") if is_gone else real(self, message)

    monkeypatch.setattr(outbox.Outbox, "_answer", answer)
    guards = [{**NOISE, "max_epsilon": 5.6}]
    found = tiny.run(
        small, tmp_path / "run", strategy="fedavg", rounds=1, aggregator="secure_sum", guards=guards
    )
    [plan] = report.read_rounds(tmp_path / "run")[1]["masked"]
    assert (plan["attempt"], plan["in_the_sum"], found["secure_sum"]["fewest"]) == (1, 2, 2)
    assert 5.5 < found["privacy"]["epsilon"] <= 5.6


def test_the_page_tells_of_the_smallest_family(small, tmp_path):
    families = [{"name": "b", "model": str(small / "slm"), "clients": 4}]
    partition = {"name": "iid", "clients": 8}
    ready = tiny.ready(
        small,
        tmp_path,
        strategy="fedavg",
        rounds=1,
        aggregator="secure_sum",
        data__partition=partition,
        families=families,
    )
    found = {"secure_sum": ready.facts()["secure_sum"]}
    said = privacy_values(found, [{"masked": [{"in_the_sum": 4}]}])["masks"]
    assert "masks with 3 others, and a sum of fewer than 3 clients stays closed; up to 1 of them" in said
    assert privacy_values(found, [])["masks"] == "Sums were to be masked; none was made in this run."


def test_lessons_are_added_up_over_all_families():
    asked = Asked(3, 1.0, {"slm": ("ann", "bob"), "b": ("cid",)})
    assert asked("teach/learn", 1, "ann") == asked("teach/learn", 1, "cid") == ("ann", "bob", "cid")
    assert asked("tune", 1, "ann") == ("ann", "bob")


@pytest.mark.parametrize("untaught", [0, 1, 3])
def test_lessons_under_masks_of_two_families(small, tmp_path, monkeypatch, untaught):
    """A masked sum has the names that most clients send, so one without lessons must send them too."""
    calls = []

    def some(lessons, pool, guard):
        calls.append(usable(lessons, pool, guard))
        return calls[-1] if len(calls) > untaught else []

    monkeypatch.setattr(pupils, "usable", some)
    found = tiny.run(
        small,
        tmp_path / "run",
        strategy="fedavg",
        rounds=1,
        aggregator="secure_sum",
        allocator="everything",
        teach={"path_tokens": 6, "guard": False},
        data__partition={"name": "iid", "clients": 4},
        families=[{"name": "b", "model": str(small / "slm"), "clients": 2}],
    )
    told = report.read_rounds(tmp_path / "run")[1]["teaching"]["slm"]
    assert found["failures"] == 0
    assert told["clients"] == 4
    assert told["pairs"] == sum(map(len, calls[untaught:])) > 0


@pytest.mark.parametrize("client", ["client-1", "client-3"])
@pytest.mark.parametrize(
    "rubbish",
    [
        lambda found: {},
        lambda found: {task: {"n": 1} for task in found},
        lambda found: {task: {**one, "answers": one["answers"][:3]} for task, one in found.items()},
        lambda found: {task: {**one, "answers": [None] * one["n"]} for task, one in found.items()},
        lambda found: {task: {**one, "answers": 3} for task, one in found.items()},
    ],
    ids=["none", "no answers", "fewer answers", "empty answers", "a number"],
)
def test_scores_that_are_rubbish_do_not_end_a_run(small, tmp_path, rubbish, client):
    ready = tiny.ready(small, tmp_path / "run", strategy="fedavg", rounds=1)
    transport = ready.federation.transport
    send = transport.send

    def changed(messages):
        for reply, down, up in send(messages):
            is_odd = (reply.action, reply.client, reply.round) == ("evaluate", client, 1)
            facts = {"metrics": rubbish(reply.facts["metrics"])} if is_odd else reply.facts
            yield replace(reply, facts=facts), down, up

    transport.send = changed
    found = session.run(ready, tmp_path / "run")
    assert found["gain"]["slm"]["clients"] == 2
    (tmp_path / "run" / "config.yaml").write_text("seed: 3", encoding="utf-8")
    assert report.render(tmp_path / "run").is_file()


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_gain_is_the_difference_of_the_accuracies_that_stand_beside_it(is_shared):
    """Both are means over tasks, whatever number of questions each has."""
    first = {"food": [0, 0, 0, 0, 0, 0, 0, 0], "tomi": [1, 0]}
    better = {"food": [1, 1, 1, 1, 1, 1, 0, 0], "tomi": [1, 0]}
    worse = {"food": [0, 0, 0, 0, 0, 0, 0, 0], "tomi": [0, 0]}
    before = {"llm": first, "clients": {"ann": first, "bob": first}}
    after = {"llm": better, "clients": {"ann": better, "bob": worse}}
    found = outcomes.gains(before, after, is_shared)
    assert found["llm"]["mean"] == pytest.approx(0.75 / 2)
    assert found["slm"]["mean"] == pytest.approx((0.75 / 2 - 0.5 / 2) / 2)
    food, tomi = 6 * 0.25**2 + 2 * 0.75**2, 0.0  # of the LLM: squares about the mean
    assert found["llm"]["stderr"] == pytest.approx(math.sqrt(food / 7 / 8 + tomi) / 2)


def test_gains_without_anybody_who_can_be_compared():
    first, last = {"clients": {"ann": {"t": [1.0]}}}, {"clients": {"ann": {}}}
    assert outcomes.gains(first, last, is_shared=True) == {}


def test_a_number_that_one_client_does_not_give_is_the_mean_of_those_who_do():
    """A client cannot blank a number for everybody by leaving it out, nor bring in one of its own."""
    clients = {
        "ann": {"food": {"n": 2, "accuracy": 0.5, "nll": 1.0}},
        "bob": {"food": {"n": 4, "accuracy": None}},
        "eve": {"food": {"n": 4, "accuracy": 1.0, "nll": 3.0, "made_up": 1e15}},
    }
    found = outcomes.over_clients(clients, is_shared=False)
    assert found == {"food": {"accuracy": 0.75, "nll": 2.0, "n": 10}}


def test_an_update_made_again_after_its_sum_was_opened_goes_too(tmp_path):
    group = masking.Group(tmp_path, masking.named(3))
    masking.check(group, group.gather())
    client = group.names[0]
    again = Message(client, 1, "tune")
    group.members(client).keep(again, group.updates[client])
    kept = next((tmp_path / "clients").glob("*000/sums")) / "update.msg"
    assert kept.is_file()
    group.answer(client, "open", group.told["open", client])
    assert not kept.exists()


def test_epsilon_of_an_example_goes_by_what_selectors_left():
    spending = ExampleSpending(PrivateConfig(clip=1, noise_multiplier=1, delta=1e-5), 4, 1.0)
    chosen = {"round": 1, "cohort": ["ann"], "selection": {"counts": {"ann": 10}}}
    plain = {"round": 1, "cohort": ["ann"]}
    few, many = (sampling(size, 4, 1.0) for size in (10, 100))

    def cost(*rounds):
        return spending.summary([{"round": 0, "cohort": []}, *rounds], {"ann": 100, "bob": 0})["epsilon"]

    assert cost(plain) == pytest.approx(epsilon(1.0, many.q, many.steps, 1e-5))
    assert cost(chosen) == pytest.approx(epsilon(1.0, few.q, few.steps, 1e-5))
    assert cost(chosen) > 1.5 * cost(plain)
    assert cost(chosen, {"round": 2, "cohort": ["ann"]}) > cost(chosen), "what was chosen stays in use"
    assert np.isfinite(cost(plain, chosen))
