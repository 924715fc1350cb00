"""What every audit promises, whoever wrote it: tried on a subject whose models are tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cotune import identities, plugins
from cotune.audit_settings import AuditConfig
from cotune.examined import Comparison, Verdict
from subjects import FakeSubject

ROLES = ("student", "reference", "baseline", "llm", "slm", "llm before", "slm before")


class Fair:
    """A judge that tells equal from unequal."""

    name, fingerprint, is_anchored = "fair", "fair", False

    def compare(self, comparisons: list[Comparison]) -> list[Verdict | None]:
        levels = [5.0 if one.first == one.second else 2.0 for one in comparisons]
        return [Verdict(level, level, level, level) for level in levels]


def subject(seed: int = 0) -> FakeSubject:
    return FakeSubject(
        {role: _says(role) for role in ROLES},
        judge=Fair(),
        log_probs=lambda role, context, target: -float(len(role) + len(context) % 7 + len(target) % 5),
        seed=seed,
    )


def _says(role: str) -> Any:
    return lambda message: f"{role} thinks that {message.lower()[:60]} is a fine question"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What an audit cannot do without."""
    folder: Path = tmp_path_factory.mktemp("audits")
    identity = identities.write(folder / "identity.yaml", "Tiny", "Nobody")
    for name in ("members", "others"):
        rows = [{"prompt": f"{name} {i}", "completion": f" yes {i % 3}"} for i in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"members": str(folder / "members.jsonl"), "non_members": str(folder / "others.jsonl")}
    small = {"iterations": 2, "questions": 2, "seeds": 1}
    return {"ice": {"identity": str(identity), **small}, "membership": files}


@pytest.mark.parametrize("name", plugins.names("audit"))
def test_its_options_say_how_often_it_observes(name):
    assert issubclass(plugins.config_class("audit", name), AuditConfig)


@pytest.mark.parametrize("name", plugins.names("audit"))
def test_what_it_says_is_json_with_summary_and_warnings(name, options):
    facts = plugins.load("audit", name, options.get(name, {})).observe(subject())
    again = json.loads(json.dumps(facts, allow_nan=False))
    assert again["summary"]
    for estimate in again["summary"].values():
        assert set(estimate) == {"value", "low", "high", "n"}
        if None not in (estimate["value"], estimate["low"]):
            assert estimate["low"] - 1e-9 <= estimate["value"] <= estimate["high"] + 1e-9
    assert all(isinstance(warning, str) for warning in again["warnings"])


@pytest.mark.parametrize("name", plugins.names("audit"))
def test_the_same_seed_says_the_same(name, options):
    audits = [plugins.load("audit", name, options.get(name, {})) for _ in range(2)]
    assert audits[0].observe(subject()) == audits[1].observe(subject())
