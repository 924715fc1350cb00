"""Whole tiny runs whose sums are masked, whose updates are guarded, and what their records say of it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny
from cotune import config, report, session
from cotune.errors import ConfigError

DISTRIBUTED = {
    "name": "clip_noise",
    "clip": 0.5,
    "noise_multiplier": 1.0,
    "where": "distributed",
    "dropout": 0,
}


def arrays(out, role="slm"):
    return load_file(out / "adapters" / role / "adapter_model.safetensors")


def furthest(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """Runs of one round that differ in what stands between training and the wire, each done once."""
    folder, known = tmp_path_factory.mktemp("private"), {}

    def run(name, **changes):
        if name not in known:
            known[name] = tiny.run(small, folder / name, strategy="fedavg", **{"rounds": 1, **changes})
        return known[name], folder / name

    return run


def masked(runs):
    return runs("masked", aggregator="secure_sum")


def test_a_masked_run_ends_where_a_plain_one_does(runs):
    _, plain = runs("plain")
    found, out = masked(runs)
    steps = found["secure_sum"]["step"]
    assert 0 < furthest(arrays(plain), arrays(out)) < 3 * steps + 1e-6
    assert found["metrics"].keys() == {"slm", "clients"}


def test_its_server_gets_no_update_and_the_bytes_are_told_apart(runs):
    found, out = masked(runs)
    values = sum(array.size for array in arrays(out).values())
    assert 3 * 4 * values <= found["traffic"]["gathered_bytes"] <= 3 * (4 * values + 600)
    [line] = report.read_rounds(out)[1:]
    [plan] = line["masked"]
    assert (plan["asked_to_mask"], plan["in_the_sum"]) == (3, 3)


def test_a_round_says_that_it_was_full(runs):
    line = report.read_rounds(runs("plain")[1])[1]
    assert (line["status"], line["reason"]) == ("full", "3 of 3 replies count")


def test_noise_under_masks_is_counted_and_told_in_a_sentence(runs):
    found, out = runs("noisy", aggregator="secure_sum", guards=[DISTRIBUTED])
    privacy = found["privacy"]
    assert privacy["epsilon"] == pytest.approx(
        4.3772, abs=1e-3
    )  # of one Gaussian of multiplier 1, Balle & Wang
    assert "each client's scores on its held-out examples" in privacy["statement"]
    assert "added by the clients in equal shares" in privacy["statement"]
    changed = furthest(arrays(runs("plain")[1]), arrays(out))
    assert changed > 0.2  # noise of deviation 0.5 / 3 on each of thousands of values of the mean


def test_the_page_says_what_is_protected_and_what_is_not(runs):
    _, out = runs("noisy", aggregator="secure_sum", guards=[DISTRIBUTED])
    (out / config_name()).write_text("seed: 3", encoding="utf-8")
    page = report.render(out).read_text(encoding="utf-8")
    assert "One client&#39;s whole data: epsilon 4.38" in page
    assert re.search(r"not covered: [^<]*held-out examples", page)


def config_name():
    from cotune.launch import CONFIG

    return CONFIG


def test_a_run_stops_before_its_budget_is_exceeded_and_is_measured_then(small, tmp_path):
    guards = [{**DISTRIBUTED, "max_epsilon": 8.0}]
    found = tiny.run(
        small,
        tmp_path / "run",
        strategy="fedavg",
        rounds=4,
        aggregator="secure_sum",
        guards=guards,
        evaluate__every=0,
    )
    lines = report.read_rounds(tmp_path / "run")
    assert [line["privacy"]["epsilon"] < 8 for line in lines] == [True] * len(lines)
    assert (found["rounds"], found["status"]) == (2, "stopped")
    assert "above max_epsilon 8" in lines[-1]["privacy"]["stop"]
    assert "metrics" in lines[-1]
    again = session.run(
        tiny.ready(
            small, tmp_path / "run", strategy="fedavg", rounds=4, aggregator="secure_sum", guards=guards,
            evaluate__every=0,
        ),
        tmp_path / "run",
    )  # fmt: skip
    assert again["rounds"] == 2, "resuming does not spend more"


def test_fewer_bytes_and_nearly_the_same_adapter(runs):
    plain, folder = runs("plain")
    found, out = runs("quantized", guards=["quantize"])
    assert found["traffic"]["gathered_bytes"] < plain["traffic"]["gathered_bytes"] / 3
    assert 0 < furthest(arrays(folder), arrays(out)) < 1e-3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"strategy": "standalone", "guards": ["quantize"]}, "no client sends an update"),
        ({"guards": [DISTRIBUTED]}, "distributed without masked sums"),
        ({"guards": ["quantize", "clip_noise"]}, "Put quantize last"),
        ({"guards": ["quantize", "quantize"]}, "quantize is there twice"),
        ({"aggregator": "median"}, "Set cohort.minimum to at least"),
        (
            {
                "aggregator": "secure_sum",
                "cohort__fraction": 0.67,
                "selector": [{"name": "density", "every": 1}],
            },
            "masked sums of what it counts need all clients",
        ),
        (
            {"aggregator": "secure_sum", "guards": ["clip_noise", {"name": "quantize", "keep": 0.5}]},
            "noise of clip_noise would not hide it",
        ),
        (
            {"aggregator": "secure_sum", "data__partition": {"name": "iid", "clients": 1}},
            "expected at least 2",
        ),
        (
            {
                "aggregator": "secure_sum",
                "families": [{"name": "other", "model": "slm", "clients": ["client-1"]}],
            },
            "families: other has 1 client, expected at least 2: the masked sum of one",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(small, tmp_path, changes, problem):
    if "families" in changes:
        changes["families"][0]["model"] = str(small / "slm")
    with pytest.raises(ConfigError, match=problem):
        tiny.ready(small, tmp_path, **{"strategy": "fedavg", **changes})
    assert config.from_dict(tiny.raw_config(small, **{"strategy": "fedavg", **changes}))
