"""Whole tiny runs with selectors: any selector with any strategy, sitting out, resuming, chains."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import tiny
from cotune import plugins, report, session
from cotune.errors import ModelError
from cotune.models.lora import load_peft
from cotune.records import Failure

SELECTORS = plugins.names("selector")
OPTIONS = {
    "superfiltering": {"model": "slm"},
    "fedhds": {"min_group": 2},
    "scored": {"score": "random", "policies": [{"name": "top_k", "keep": 0.5}]},
}


def named(name):
    return {"name": name, **OPTIONS.get(name, {})}


def stable(found: dict) -> dict:
    """Without seconds, which no two runs share."""
    found = {k: v for k, v in found.items() if k not in ("seconds", "peak_memory_bytes")}
    kept = ("selectors", "clients", "total", "chosen", "sat_out", "ask_bytes", "gather_bytes")
    return found | {"selection": {k: found["selection"][k] for k in kept}}


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_runs_and_repeats(small, tmp_path, name):
    found = [tiny.run(small, tmp_path / out, strategy="fedavg", selector=named(name)) for out in ("a", "b")]
    assert stable(found[0]) == stable(found[1])
    chosen = found[0]["selection"]
    assert chosen["selectors"] == [name]
    assert 0 <= chosen["chosen"] <= chosen["total"]
    assert all(0 <= row["chosen"] <= row["total"] for row in chosen["clients"].values())
    assert tiny.adapter_bytes(tmp_path / "a") == tiny.adapter_bytes(tmp_path / "b")


@pytest.mark.parametrize("strategy", plugins.names("strategy"))
def test_a_selector_works_with_every_strategy(small, tmp_path, strategy):
    whole = tiny.run(small, tmp_path / "whole", strategy=strategy)
    half = tiny.run(
        small, tmp_path / "half", strategy=strategy, selector={"name": "random_subset", "keep": 0.3}
    )
    assert (
        report.read_rounds(tmp_path / "whole")[-1]["losses"]
        != report.read_rounds(tmp_path / "half")[-1]["losses"]
    )
    assert "selection" not in whole
    assert 0 < half["selection"]["chosen"] < half["selection"]["total"]


def test_everything_is_the_run_without_a_selector(small, tmp_path):
    tiny.run(small, tmp_path / "none", strategy="fedavg")
    tiny.run(small, tmp_path / "all", strategy="fedavg", selector="everything")
    assert tiny.adapter_bytes(tmp_path / "none") == tiny.adapter_bytes(tmp_path / "all")


def test_without_a_winner_nothing_changes(small, tmp_path):
    nobody = {"name": "scored", "score": "random", "policies": [{"name": "floor", "at": 1e9}]}
    found = tiny.run(small, tmp_path / "run", strategy="fedavg", selector=nobody)
    rounds = report.read_rounds(tmp_path / "run")
    assert found["selection"]["chosen"] == 0
    assert all(line["status"] == "failed" and line["cohort"] == [] for line in rounds[1:])
    arrays = load_peft(tmp_path / "run" / "adapters" / "slm", "").arrays
    assert not any(array.any() for name, array in arrays.items() if "lora_B" in name)


def test_a_resumed_run_uses_what_was_chosen_before(small, tmp_path):
    once = {"name": "random_subset", "keep": 0.4, "every": 0}
    tiny.run(small, tmp_path / "whole", strategy="fedavg", selector=once)
    tiny.run(small, tmp_path / "part", strategy="fedavg", selector=once)
    checkpoints = sorted((tmp_path / "part" / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for path in checkpoints[1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tiny.run(small, tmp_path / "part", strategy="fedavg", selector=once)
    assert tiny.adapter_bytes(tmp_path / "whole") == tiny.adapter_bytes(tmp_path / "part")


class Lossy:
    """Loses what the second client says it has chosen in round 1."""

    def __init__(self, inner):
        self.inner, self.clients = inner, inner.clients

    def send(self, messages):
        for outcome, down, up in self.inner.send(messages):
            is_lost = outcome.action.endswith("pick") and outcome.round == 1
            is_lost = is_lost and outcome.client == self.clients()[1]
            yield (Failure(outcome.client, 1, "late", "by plan") if is_lost else outcome), down, up


def test_a_client_that_was_late_for_the_only_choice_trains_later_also_after_resuming(small, tmp_path):
    once = {"name": "random_subset", "keep": 0.4, "every": 0}

    def run(out):
        out.mkdir(exist_ok=True)
        changes = {"strategy": "fedavg", "selector": once, "runtime__keep_checkpoints": 9}
        ready = tiny.ready(small, out, rounds=3, **changes)
        ready.federation.transport = Lossy(ready.federation.transport)
        return session.run(ready, out)

    found = run(tmp_path / "whole")
    lines = [line["selection"] for line in report.read_rounds(tmp_path / "whole")[1:]]
    late = lines[0]["sat_out"]
    assert [line["sat_out"] for line in lines] == [late, [], []]
    assert [line.get("counts", {}).keys() == set(late) for line in lines] == [False, True, False]
    assert all(row["chosen"] > 0 for row in found["selection"]["clients"].values())
    run(tmp_path / "part")
    for path in sorted((tmp_path / "part" / "checkpoints").iterdir())[2:]:  # those of rounds 0 and 1 stay
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run(tmp_path / "part")
    assert stable(found)["selection"] == stable(again)["selection"]
    assert tiny.adapter_bytes(tmp_path / "whole") == tiny.adapter_bytes(tmp_path / "part")


def test_the_second_selector_chooses_from_what_the_first_left(small, tmp_path):
    chain = [{"name": "random_subset", "keep": 0.5}, {"name": "random_subset", "keep": 0.5}]
    found = tiny.run(small, tmp_path / "run", strategy="fedavg", selector=chain)
    assert found["selection"]["selectors"] == ["random_subset", "random_subset 2"]
    for row in found["selection"]["clients"].values():
        assert row["chosen"] <= np.ceil(row["total"] * 0.3)


def test_only_centres_and_numbers_cross(small, tmp_path):
    found = tiny.run(small, tmp_path / "run", strategy="fedavg", selector="fedhds")
    crossed = {(part["action"], part["verb"]) for part in found["selection"]["crossed"]}
    assert crossed == {("propose", "ask"), ("pick", "ask")}


def test_the_density_sketch_crosses_only_as_a_sum(small, tmp_path):
    found = tiny.run(
        small, tmp_path / "run", strategy="fedavg", selector={"name": "density", "method": "sketch"}
    )
    crossed = {(part["action"], part["verb"]) for part in found["selection"]["crossed"]}
    assert crossed == {("share", "gather"), ("pick", "ask")}
    assert found["selection"]["gather_bytes"] > 0


def test_a_run_without_selection_says_nothing_of_it(small, tmp_path):
    tiny.run(small, tmp_path / "run", strategy="fedavg")
    assert "selection" not in json.loads((tmp_path / "run" / "results.json").read_text())
    assert all("selection" not in line for line in report.read_rounds(tmp_path / "run"))


def test_examples_longer_than_the_reader_reads_are_counted_and_told(small, tmp_path):
    """The smallest text has some 15 tokens; a model of 8 positions cuts every one."""
    short = tiny.write_model(tmp_path / "short", max_position_embeddings=8)
    method = {"name": "fedhds", "model": str(short), "every": 0}
    found = tiny.run(small, tmp_path / "run", strategy="fedavg", selector=method)
    lines = [line["selection"] for line in report.read_rounds(tmp_path / "run")[1:]]
    num_examples = sum(row["total"] for row in found["selection"]["clients"].values())
    assert [line["cut"] for line in lines] == [num_examples] * len(lines)
    assert found["selection"]["cut"] == num_examples
    assert found["selection"]["num_clients"] == len(found["selection"]["clients"])
    (tmp_path / "run" / "config.yaml").write_text("seed: 7\n")
    page = report.render(tmp_path / "run").read_text(encoding="utf-8")
    assert f"{num_examples} examples were longer than the model" in page
    whole = tiny.run(small, tmp_path / "whole", strategy="fedavg", selector="random_subset")
    assert whole["selection"]["cut"] == 0


def test_a_model_to_read_with_that_is_nowhere_is_told_before_anything_is_trained(small, tmp_path):
    with pytest.raises(ModelError, match="model 'smolm' not found"):
        tiny.ready(small, tmp_path, selector={"name": "density", "model": "smolm"})
