"""Audits and gates that could not work in a run are refused with what to do, before anything is loaded."""

from __future__ import annotations

import pytest

from cotune import build, config, misfits, plugins
from cotune.errors import ConfigError

ENDPOINT = {"url": "http://localhost:1/v1", "model": "m"}
JUDGED = {"judge": "gemma3-270m"}
RAW = {
    "llm": {"model": "big"},
    "slm": {"model": "small"},
    "data": {"sources": [{"task": "tomi", "test_rows": 5}], "partition": {"name": "iid", "clients": 2}},
    "strategy": "fedcollm",
}


def refuse(**changes):
    misfits.refuse(config.from_dict({**RAW, **changes}))


def ice(path, **options):
    return {"name": "ice", "identity": str(path), **options}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"audits": ["canary", "likeness", "canary"]}, "audits: canary is there twice.*Take one of them out"),
        (
            {"audits": "likeness", "strategy": "fedavg"},
            "likeness compares the SLM with the LLM, and in a run of strategy 'fedavg' there is no LLM.*"
            "Take a strategy that trains both, e.g. fedcollm, or an allocator",
        ),
        ({"audits": "likeness", "strategy": "centralized"}, "strategy 'centralized' there is no SLM"),
        ({"audits": "homogenisation", "strategy": "step_by_step"}, "homogenisation .* there is no LLM"),
        ({"audits": "rse", "strategy": "fedavg", "auditing": JUDGED}, "rse .* there is no LLM"),
        ({"audits": "rse"}, r"rse needs somebody who compares answers.*\(auditing.judge\), or take likeness"),
        ({"audits": "ice"}, "identity is missing. Make one: cotune audit init"),
        ({"audits": ice("gone.yaml")}, "identity 'gone.yaml': no such file. Make one: cotune audit init"),
        (
            {"audits": ice("."), "strategy": "centralized"},
            r"there is none. Say which models .* roles: \[llm\]",
        ),
        ({"audits": "membership"}, "server of a run has none.*cotune audit --audits membership"),
        ({"audits": "canary", "strategy": "standalone"}, "in strategy 'standalone' it learns none"),
        ({"gates": {}}, r"gates: there are no audits that they could go by.*audits: \[likeness\]"),
        (
            {"gates": {"on_canary": "lower"}, "audits": "canary", "strategy": "fedavg"},
            "in strategy 'fedavg' no model teaches another one.*Set gates.on_canary to stop or off",
        ),
        (
            {
                "gates": {"on_canary": "lower"},
                "audits": ["canary", "likeness"],
                "strategy": "fedavg",
                "teach": {"teacher": ENDPOINT},
            },
            "Set gates.on_similarity and gates.on_canary to stop or off, or take an allocator",
        ),
    ],
)
def test_what_cannot_work_is_told_with_its_cure(changes, complaint):
    with pytest.raises(ConfigError, match=f"(?s){complaint}"):
        refuse(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"audits": [], "gates": None},
        {"audits": ["likeness", "homogenisation", "canary"], "gates": {}},
        {"audits": "likeness", "strategy": "fedavg", "allocator": "lada", "gates": {}},
        {
            "audits": "likeness",
            "strategy": "fedavg",
            "allocator": "everything",
            "teach": {"teacher": ENDPOINT},
            "gates": {},
        },
        {"audits": "rse", "auditing": {"judge": ENDPOINT}},
        {"audits": "canary", "strategy": "fedavg", "gates": {}},
        {"audits": "canary", "strategy": "centralized", "gates": {"on_canary": "off"}},
        {"audits": "likeness", "gates": {"on_identity": "stop"}},
        {"audits": "canary", "strategy": "step_by_step", "gates": {"on_canary": "lower"}},
    ],
)
def test_what_can_work_passes(changes):
    """A gate on what no audit measures is no mistake."""
    refuse(**changes)


def test_an_identity_file_that_is_there_passes(tmp_path, monkeypatch):
    (tmp_path / "identity.yaml").touch()
    refuse(audits=ice(tmp_path / "identity.yaml"))
    refuse(audits=ice(tmp_path / "identity.yaml", roles=["llm"]), strategy="centralized")
    monkeypatch.setenv("HOME", str(tmp_path))
    refuse(audits=ice("~/identity.yaml"))
    with pytest.raises(ConfigError, match=r"Set gates\.on_identity to stop"):
        refuse(audits=ice(tmp_path / "identity.yaml"), strategy="fedavg", gates={})


def test_a_strategy_says_what_a_gate_may_lower():
    """Who lets models teach each other must heed what the gates have left of it, and says so."""
    distils = {name for name in plugins.names("strategy") if getattr(_module(name), "DISTILS", False)}
    assert distils == {"fedcollm", "step_by_step"}
    shares = {name for name in plugins.names("strategy") if getattr(_module(name), "SHARES", True)}
    assert shares == set(plugins.names("strategy")) - {"standalone"}


def _module(name):
    return plugins.module("strategy", name)


def test_a_session_refuses_before_it_looks_for_a_model(tmp_path):
    """There is none of these names."""
    made = config.from_dict({**RAW, "audits": "rse"})
    with pytest.raises(ConfigError, match="audits: rse needs somebody"):
        build.session(made, tmp_path, lambda _: None)
