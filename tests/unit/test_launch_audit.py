"""What is typed after `cotune audit` becomes a question, and what was found becomes lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cotune import audit, launch_audit
from cotune.audit import Question
from cotune.endpoint_settings import EndpointSettings
from cotune.errors import ConfigError, Paused, RunError
from cotune.launch_audit import lines, model, specs


def test_a_model_is_a_name_or_an_endpoint_with_a_model_of_its_own():
    assert model("smollm2-135m+runs/a/adapters/slm", {}) == "smollm2-135m+runs/a/adapters/slm"
    assert model("http://localhost:8000/v1#org/big#2", {"concurrency": 3}) == EndpointSettings(
        url="http://localhost:8000/v1", model="org/big#2", concurrency=3
    )


@pytest.mark.parametrize(
    "text", ["http://localhost:8000/v1", "https://x/v1#", "http://#m", "http://x?key=sk-1"]
)
def test_an_address_without_a_model_is_refused_and_no_key_is_shown(text):
    with pytest.raises(ConfigError, match="Expected URL#MODEL") as caught:
        model(text, {})
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["likeness"]),
        ({"judge": "x"}, ["likeness", "rse"]),
        ({"identity": "me.yaml"}, ["likeness", "ice"]),
        ({"members": "a", "non_members": "b"}, ["likeness", "membership"]),
        (
            {"judge": "x", "identity": "y", "members": "z", "non_members": ""},
            ["likeness", "rse", "ice", "membership"],
        ),
    ],
)
def test_without_names_all_is_asked_that_can_be(given, names):
    assert [spec["name"] for spec in specs("", [], given)] == names


def test_names_and_options_are_put_together():
    given = {"identity": "me.yaml", "members": "a", "non_members": "b", "judge": "j"}
    found = specs(" canary, ice ,membership", ["canary.facts=32", "ice.seeds=1e1", "ice.mode=search"], given)
    assert found == [
        {"name": "canary", "facts": 32},
        {"name": "ice", "identity": "me.yaml", "seeds": 10, "mode": "search"},
        {"name": "membership", "members": "a", "non_members": "b"},
    ]
    assert specs("ice", ["ice.identity=other.yaml"], given)[0]["identity"] == "other.yaml"


@pytest.mark.parametrize("option", ["limit=3", "rse.limit=3", "likeness.limit", "=3", "", "likeness=3"])
def test_an_option_of_no_audit_that_is_asked_is_refused(option):
    with pytest.raises(
        ConfigError, match=r"expected AUDIT.OPTION=VALUE with one of likeness, e.g. --set likeness"
    ):
        specs("likeness", [option], {})


def test_a_line_a_number_and_where_the_page_is(tmp_path):
    def estimate(*values):
        return dict(zip(("value", "low", "high", "n"), values, strict=True))

    summary = {
        "overall": estimate(3.5, 3.25, 3.75, 72),
        "gain": estimate(0.5, None, None, 9),
        "x": estimate(*[None] * 4),
    }
    found = {"audits": {"rse": {"summary": summary, "warnings": ["two answers are empty"]}}}
    made = lines(found, tmp_path)
    assert len({line.index(word) for line, word in zip(made, ("3.5", "0.5", "none"), strict=False)}) == 1
    assert [" ".join(line.split()) for line in made] == [
        "rse overall 3.500 (3.250 to 3.750) n 72",
        "rse gain 0.500 n 9",
        "rse x none",
        "rse warning: two answers are empty",
        str(tmp_path / "audit.html"),
    ]


def test_an_endpoint_that_is_gone_is_told_with_the_way_on(tmp_path, monkeypatch):
    def pause(*_):
        raise Paused("the endpoint is gone")

    monkeypatch.setattr(audit, "run", pause)
    with pytest.raises(
        RunError, match=r"the endpoint is gone\. Go on with the same command: .*out keeps what"
    ):
        launch_audit.run(Question({}, ()), tmp_path / "out", Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()
