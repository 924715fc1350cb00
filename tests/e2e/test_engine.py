"""Whole runs of the tiny configuration: what must not change a result, and what must."""

from __future__ import annotations

import json
import re
import time
import tracemalloc

import numpy as np
import pytest

import tiny
from cotune import config, report, session
from cotune.errors import RunError
from cotune.host import KEPT_ADAPTER
from cotune.models.lora import load_peft
from cotune.shelf import Shelf
from faulty import Faulty

STRATEGIES = ("standalone", "centralized", "fedavg", "fedcollm", "step_by_step")


def without_times(found: dict) -> dict:
    return {k: v for k, v in found.items() if k not in ("seconds", "peak_memory_bytes")}


def rounds(out):
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "phases")} for line in report.read_rounds(out)
    ]


def arrays(out, role="slm"):
    return load_peft(out / "adapters" / role, "").arrays


def assert_close(one, other, atol=1e-6):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=atol)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_configuration_and_seed_give_the_same_bytes(small, tmp_path, strategy):
    found = [tiny.run(small, tmp_path / name, strategy=strategy) for name in ("one", "two")]
    assert without_times(found[0]) == without_times(found[1])
    assert rounds(tmp_path / "one") == rounds(tmp_path / "two")
    for role in ("slm", "llm"):
        if (tmp_path / "one" / "adapters" / role).exists():
            assert tiny.adapter_bytes(tmp_path / "one", role) == tiny.adapter_bytes(tmp_path / "two", role)


def test_another_seed_gives_another_adapter(small, tmp_path):
    tiny.run(small, tmp_path / "one", strategy="fedavg", seed=3)
    tiny.run(small, tmp_path / "two", strategy="fedavg", seed=4)
    assert tiny.adapter_bytes(tmp_path / "one") != tiny.adapter_bytes(tmp_path / "two")


def test_fedcollm_without_public_steps_is_fedavg_bit_for_bit(small, tmp_path):
    tiny.run(small, tmp_path / "avg", strategy="fedavg")
    tiny.run(small, tmp_path / "collm", strategy={"name": "fedcollm", "public_epochs": 0})
    assert tiny.adapter_bytes(tmp_path / "avg") == tiny.adapter_bytes(tmp_path / "collm")


def test_fedcollm_with_public_steps_is_not_fedavg(small, tmp_path):
    tiny.run(small, tmp_path / "avg", strategy="fedavg")
    tiny.run(small, tmp_path / "collm")
    assert tiny.adapter_bytes(tmp_path / "avg") != tiny.adapter_bytes(tmp_path / "collm")


def one_client(**changes):
    partition = {"name": "iid", "clients": 1}
    return {"data__partition": partition, "rounds": 1, "strategy": "fedavg", **changes}


def test_one_client_and_one_round_of_fedavg_are_standalone(small, tmp_path):
    tiny.run(small, tmp_path / "avg", **one_client())
    tiny.run(small, tmp_path / "alone", **one_client(strategy="standalone"))
    shelf = Shelf(tmp_path / "alone" / "clients", "strategy")
    kept = shelf.adapter("client-1", KEPT_ADAPTER, 2)
    shared = arrays(tmp_path / "avg")
    assert all(np.array_equal(shared[name], kept.arrays[name]) for name in shared)


def test_many_identical_clients_are_one_client(small, tmp_path):
    """Each holds the same rows under another key; one batch holds them all, so their order is no matter."""
    rows = tiny.rows("places", 8)
    held = [{**row, "id": f"t{i}", "question": f"held {i}", "owner": "ann"} for i, row in enumerate(rows)]
    test = tiny.write_rows(tmp_path / "test.jsonl", held)

    def run(name, owners):
        copies = [{**row, "id": f"{o}{row['id']}", "owner": o} for o in owners for row in rows]
        data = tiny.write_rows(tmp_path / f"{name}.jsonl", copies)
        source = {"task": "multiple_choice", "data": str(data), "test_data": str(test)}
        tiny.run(
            small,
            tmp_path / name,
            strategy="fedavg",
            data={"sources": [source], "partition": {"name": "by_key", "key": "owner"}},
            slm__tune={"lr": 1e-2, "batch_size": 8, "warmup": 0.0},
        )
        return arrays(tmp_path / name)

    # rounding of sums over another order of rows, amplified by Adam where a gradient is near zero
    assert_close(run("one", ["ann"]), run("many", ["ann", "bob", "cid"]), atol=2e-4)


def test_weights_by_examples_matter_only_when_clients_differ(small, tmp_path):
    def run(name, weights, partition):
        spec = {"name": "fedavg", "weights": weights}
        tiny.run(small, tmp_path / name, strategy=spec, data__partition=partition)
        return tiny.adapter_bytes(tmp_path / name)

    even, odd = {"name": "iid", "clients": 3}, {"name": "iid", "clients": 5}  # 24 rows: 8 each; 4 or 5 each
    assert run("a", "equal", even) == run("b", "examples", even)
    assert run("c", "equal", odd) != run("d", "examples", odd)


def test_partial_participation_is_drawn_by_seed(small, tmp_path):
    changes = {
        "strategy": "fedavg",
        "cohort__fraction": 0.4,
        "data__partition": {"name": "iid", "clients": 5},
    }

    def cohorts(name, **more):
        tiny.run(small, tmp_path / name, **changes, rounds=6, evaluate__every=0, **more)
        return [line["cohort"] for line in report.read_rounds(tmp_path / name)][1:]

    one = cohorts("one")
    assert one == cohorts("two")
    assert one != cohorts("three", seed=11)
    assert {len(cohort) for cohort in one} == {2}  # 0.4 x 5
    assert len({tuple(cohort) for cohort in one}) > 1


def test_runtime_changes_neither_the_fingerprint_nor_the_result(small, tmp_path):
    plain = tiny.run(small, tmp_path / "plain")
    others = {"runtime__threads": 1, "runtime__keep_checkpoints": 1, "runtime__dtype": "float32"}
    for number, knobs in enumerate([{"runtime__stack": 1}, {"runtime__score_tokens": 64}, others]):
        out = tmp_path / str(number)
        other = tiny.run(small, out, **knobs)
        assert other["fingerprint"] == plain["fingerprint"]
        for role in ("slm", "llm"):
            assert_close(arrays(tmp_path / "plain", role), arrays(out, role), atol=1e-4)
        assert other["metrics"]["slm"] == plain["metrics"]["slm"]


def test_results_hold_what_they_promise(small, tmp_path):
    found = tiny.run(small, tmp_path / "out")
    for role in ("slm", "llm"):
        for when in ("before", "after"):
            numbers = found["metrics"][role]["multiple_choice"][when]
            assert 0 <= numbers["accuracy"] <= 1
            assert numbers["n"] == 12
    assert (found["strategy"], found["seed"], found["rounds"], found["status"]) == ("fedcollm", 3, 2, "done")
    assert re.fullmatch("[0-9a-f]{16}", found["fingerprint"])
    assert {"up_bytes", "down_bytes", "clear_bytes", "gathered_bytes"} == found["traffic"].keys()
    assert found["seconds"] > 0
    assert {"python", "torch", "transformers", "peft", "numpy", "cotune"} <= found["versions"].keys()
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == report.plain(found)


def test_bytes_in_the_clear_and_in_sums_are_all_that_came_up(small, tmp_path):
    traffic = {s: tiny.run(small, tmp_path / s, strategy=s)["traffic"] for s in STRATEGIES}
    for numbers in traffic.values():
        assert numbers["clear_bytes"] + numbers["gathered_bytes"] == numbers["up_bytes"]
    # two rounds of three adapters: 2 layers x (4 x 32 in; 32 + 16 + 16 + 32 out) x rank 2 x 4 bytes
    size = 2 * (4 * 32 + 96) * 2 * 4
    assert 6 * size < traffic["fedavg"]["gathered_bytes"] < 6 * (size + 4000)
    assert traffic["centralized"]["gathered_bytes"] == 0
    assert traffic["standalone"]["gathered_bytes"] < size  # losses only


def test_the_task_is_learned(small, tmp_path):
    found = tiny.run(
        small, tmp_path / "out", rounds=3, slm__tune={"lr": 2e-2, "batch_size": 4, "epochs": 4.0}
    )
    losses = [line["losses"] for line in report.read_rounds(tmp_path / "out")][1:]
    assert losses[-1]["slm"] < 0.85 * losses[0]["slm"]
    assert losses[-1]["llm"] < losses[0]["llm"]
    assert found["failures"] == 0


@pytest.mark.parametrize("strategy", ["fedavg", "fedcollm"])
@pytest.mark.parametrize("seed", range(3))
def test_a_faulty_network_leaves_the_run_going(small, tmp_path, strategy, seed):
    out = tmp_path / "out"
    out.mkdir()
    ready = tiny.ready(small, out, strategy=strategy, rounds=4, evaluate__every=0)
    network = Faulty(ready.federation.transport, seed)
    ready.federation.transport = network
    found = session.run(ready, out)
    lines = report.read_rounds(out)
    bad = [(r, c) for (r, c), fate in network.fates.items() if fate != "well"]
    assert bad
    assert found["failures"] == len(bad)  # of a repeated reply the second one failed
    for line in lines[1:]:
        named = {f["client"]: (f["kind"], f["reason"]) for f in line["failures"]}
        assert sorted(named) == sorted(c for r, c in bad if r == line["round"])
        assert all(kind in ("crashed", "late", "rejected") and reason for kind, reason in named.values())
    assert all(np.isfinite(array).all() for array in arrays(out).values())


def losing(ready, lost, action):
    """The replies of these clients to this action do not come back; late ones still come last."""
    network = Faulty(ready.federation.transport, seed=0)
    network._fate = lambda reply: [] if reply.client in lost and reply.action == action else [reply]
    ready.federation.transport = network


@pytest.mark.parametrize("lost", [("client-2",), ("client-1", "client-2", "client-3")])
def test_an_evaluation_that_does_not_come_back_is_left_out(small, tmp_path, lost):
    out = tmp_path / "out"
    out.mkdir()
    ready = tiny.ready(small, out, strategy="fedavg", rounds=1)
    losing(ready, lost, "evaluate")
    found = session.run(ready, out)
    assert found["status"] == "done"
    assert set(found["metrics"]["clients"]) == {"client-1", "client-2", "client-3"} - set(lost)
    (out / "config.yaml").write_text("seed: 3")
    assert report.render(out).is_file()


def test_a_lost_client_is_as_if_it_had_not_been_asked(small, tmp_path):
    """Two of three reply: their mean, not two thirds of it."""
    out = tmp_path / "out"
    out.mkdir()
    ready = tiny.ready(small, out, strategy="fedavg", rounds=1)
    losing(ready, ("client-2",), "tune")
    state = ready.families[0].strategy.init(3)
    cohort = ("client-1", "client-2", "client-3")
    both = ready.families[0].strategy.server_round(state, session.Round(1, 1, 3, cohort), ready.federation)[0]
    two = ready.families[0].strategy.server_round(
        state, session.Round(1, 1, 3, (cohort[0], cohort[2])), ready.federation
    )[0]
    assert_close(both.slm.arrays, two.slm.arrays)


@pytest.mark.parametrize("strategy", ["fedavg", "fedcollm"])
def test_a_round_below_the_minimum_leaves_the_adapters_as_they_are(small, tmp_path, strategy):
    out = tmp_path / "out"
    out.mkdir()
    ready = tiny.ready(small, out, strategy=strategy, rounds=1, cohort__minimum=4)
    found = session.run(ready, out)
    assert report.read_rounds(out)[1]["status"] == "failed"
    fresh = ready.families[0].strategy.init(3)
    assert all(np.array_equal(arrays(out)[n], a) for n, a in fresh.slm.arrays.items())
    assert (
        found["metrics"]["slm"]["multiple_choice"]["before"]
        == found["metrics"]["slm"]["multiple_choice"]["after"]
    )


def test_a_client_that_diverges_is_refused_and_the_run_goes_on(small, tmp_path):
    found = tiny.run(small, tmp_path / "out", strategy="fedavg", slm__tune={"lr": 1e30, "batch_size": 4})
    failures = [f for line in report.read_rounds(tmp_path / "out") for f in line["failures"]]
    assert found["failures"] == len(failures) == 6
    assert {f["kind"] for f in failures} == {"rejected"}
    assert "lower slm.tune.lr" in failures[0]["reason"]
    assert not any(arrays(tmp_path / "out")[n].any() for n in arrays(tmp_path / "out") if "lora_B" in n)


def test_a_server_that_diverges_ends_the_run_with_the_last_good_checkpoint(small, tmp_path):
    with pytest.raises(RunError, match=r"round 1: the (slm|llm) adapter is not finite.*lower llm.tune.lr"):
        tiny.run(small, tmp_path / "out", llm__tune={"lr": 1e30, "batch_size": 2})
    assert [p.name for p in (tmp_path / "out" / "checkpoints").glob("*.ckpt")] == ["000000.ckpt"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clients_with_their_own_kinds_of_text(small, tmp_path, strategy):
    """One client a domain, each measured on its own questions, as in the quickstart."""
    partition = {"name": "by_key", "key": "domain"}
    found = tiny.run(small, tmp_path / "out", strategy=strategy, data__partition=partition)
    if "slm" in found["metrics"]:
        assert set(found["metrics"]["clients"]) == {"places", "colours"}
        assert found["metrics"]["slm"]["multiple_choice"]["after"]["n"] == 12  # 6 of each
        assert found["gain"]["slm"]["clients"] == 2
    (tmp_path / "out" / "config.yaml").write_text("seed: 3")
    assert report.render(tmp_path / "out").is_file()


def test_free_text_is_tuned_and_scored_by_rouge(small, tmp_path):
    items = [{"instruction": f"say {i}", "output": f"it is {i % 3}", "id": f"i{i}"} for i in range(20)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", items)
    source = {"task": "instruction", "data": str(data), "test_rows": 2, "public_rows": 4}
    found = tiny.run(
        small,
        tmp_path / "out",
        data={"sources": [source], "partition": {"name": "iid", "clients": 2}},
        rounds=1,
        evaluate__every=0,
    )
    numbers = found["metrics"]["slm"]["instruction"]["after"]
    assert 0 <= numbers["rouge_l"] <= 1
    assert "accuracy" not in numbers


def test_a_bfloat16_base_has_float32_adapters(small, tmp_path):
    tiny.run(small, tmp_path / "out", runtime__dtype="bfloat16", runtime__device="cpu")
    assert {a.dtype for a in arrays(tmp_path / "out").values()} == {np.dtype(np.float32)}


def test_a_shrunk_student_is_cut_once(small, tmp_path, monkeypatch):
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))
    slm = {**tiny.raw_config(small)["slm"], "model": str(small / "llm"), "shrink": {"layers": 2}}
    for name in ("one", "two"):
        tiny.run(small, tmp_path / name, slm=slm, rounds=1)
    assert tiny.adapter_bytes(tmp_path / "one") == tiny.adapter_bytes(tmp_path / "two")
    students = [p for p in (tmp_path / "cache" / "students").iterdir() if (p / "config.json").is_file()]
    assert len(students) == 1


def test_ten_thousand_clients(small, tmp_path):
    rows = [{"question": f"{i} barn?", "choices": ["barn", "lake"], "answer_idx": 0} for i in range(10_004)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    source = {"task": "multiple_choice", "data": str(data), "test_rows": 4}
    out = tmp_path / "out"
    out.mkdir()
    began = time.monotonic()
    ready = tiny.ready(
        small,
        out,
        strategy="fedavg",
        rounds=1,
        cohort__fraction=0.002,
        evaluate__clients=5,
        data={"sources": [source], "partition": {"name": "iid", "clients": 10_000}},
    )
    tracemalloc.start()
    found = session.run(ready, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["data"]["num_clients"] == 10_000
    assert len(report.read_rounds(out)[1]["cohort"]) == 20
    assert peak < 30 * 2**20
    assert time.monotonic() - began < 30


def test_nothing_in_a_session_holds_the_configuration(small, tmp_path):
    ready = tiny.ready(small, tmp_path)
    held = [*vars(ready.federation).values(), *vars(ready.families[0].strategy).values()]
    assert not any(isinstance(value, config.Config) for value in held)
