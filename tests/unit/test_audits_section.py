"""The report's section on audits and gates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import gates
from cotune.audit_settings import GatesConfig
from cotune.audits_section import HEADLINES, WARNINGS_AT_MOST, audits_values
from cotune.page import page_values
from cotune.report import append_round, render, write_results
from pages import JUNK, Tags

EVIL = "</li></section><script>alert('x')</script><img src=x onerror=\"y\"> & '"
REASON = "rse overall grew from 2.000 to 3.000"


def estimate(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": 20}


def audit(*warnings: str, **summary: float | None) -> dict[str, Any]:
    return {"summary": {name: estimate(value) for name, value in summary.items()}, "warnings": list(warnings)}


def gate(action: str = "lower", **more: Any) -> dict[str, Any]:
    return {"gate": "similarity", "action": action, "reason": REASON, "numbers": {}} | more


def line(index: int, audits: Any = None, **more: Any) -> dict[str, Any]:
    return {"round": index, **({} if audits is None else {"audits": audits}), **more}


def values(*lines: Mapping[str, Any]) -> dict[str, Any]:
    found = audits_values(lines)
    assert found is not None
    return found


def charts(*lines: Mapping[str, Any]) -> dict[str, str]:
    return {title: str(svg) for title, svg in values(*lines)["charts"]}


def page(folder: Path, rounds: Sequence[Mapping[str, Any]], **results: Any) -> Tags:
    for one in rounds:
        append_round(folder, one)
    write_results(folder, results)
    (folder / "rounds.jsonl").touch()
    (folder / "config.yaml").write_text("seed: 1\n")
    return Tags(render(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("found", [{}, {"audits": None}, {"audits": {}}, {"audits": "no"}, {"gates": []}])
def test_a_run_without_audits_has_no_section(tmp_path: Path, found: dict[str, Any]) -> None:
    assert page_values({}, [{"round": 1, **found}], "")["audits"] is None
    assert "Audits and gates" not in page(tmp_path, [{"round": 1, **found}]).text


def test_each_headline_number_is_a_line_over_the_rounds_that_were_audited() -> None:
    told = {
        "rse": "overall",
        "likeness": "likeness.mean",
        "ice": "strict",
        "homogenisation": "homogenisation.now",
    }
    drawn = charts(
        *(line(index, {name: audit(**{key: value}) for name, key in told.items()})
          for index, value in ((0, 0.25), (4, 0.5))),
        line(5),
    )  # fmt: skip
    assert list(drawn) == [HEADLINES[name].title for name in told]
    for name, words in (
        ("rse", "SLMs from 0.25 at round 0 to 0.50 at round 4"),
        ("likeness", "SLMs from 0.25 at round 0 to 0.50 at round 4"),
        ("ice", "SLMs from 25.0% at round 0 to 50.0% at round 4"),
        ("homogenisation", "mean from 0.25 at round 0 to 0.50 at round 4"),
    ):
        assert words in drawn[HEADLINES[name].title], name


def test_the_axis_of_rse_reaches_from_1_to_5() -> None:
    drawn = charts(line(0, {"rse": audit(overall=2.9)}), line(1, {"rse": audit(overall=3.1)}))
    ticks = re.findall(r'text-anchor="end">([^<]*)<', drawn[HEADLINES["rse"].title])
    assert ticks == ["1.00", "2.00", "3.00", "4.00", "5.00"]


def test_each_model_that_is_taught_has_its_recall_beside_chance() -> None:
    summary = {
        "recall slm": 0.25, "recall llm": 0.5, "recall slm before": 0.75, "recall unrelated": 0.8,
        "recall hospital-north": 0.9, "control recall slm": 0.05, "exact match slm": 1.0,
    }  # fmt: skip
    drawn = charts(line(2, {"canary": audit(**summary) | {"chance": 0.1}}))[HEADLINES["canary"].title]
    spoken = re.findall(r'aria-label="([^"]*)"', drawn)[0]
    assert spoken == (
        "Recall of planted facts. SLMs 25% at round 2; LLM 50% at round 2; "
        "ho\N{HORIZONTAL ELLIPSIS}rth 90% at round 2; chance 10% at round 2."
    )


def test_membership_is_told_by_the_calibrated_attack() -> None:
    summary = {"AUC slm, loss": 0.9, "AUC slm, calibrated": 0.7, "AUC slm before, loss": 0.5}
    drawn = charts(line(0, {"membership": audit(**summary)}))[HEADLINES["membership"].title]
    assert "SLMs 0.70 at round 0" in drawn
    assert "0.90" not in drawn


def test_more_families_than_colours_are_left_out_of_the_chart() -> None:
    summary = {f"recall f{index}": 0.1 * index for index in range(6)}
    drawn = charts(line(0, {"canary": audit(**summary)}))[HEADLINES["canary"].title]
    assert [f"f{index}" in drawn for index in range(6)] == [True] * 3 + [False] * 3


def test_who_answers_like_whom_is_shown_before_and_after(tmp_path: Path) -> None:
    def found(now: Any) -> dict[str, Any]:
        matrices = {"roles": ["llm", "slm"], "before": [[1.0, 0.25], [0.25, 1.0]], "now": now}
        return {"homogenisation": audit(**{"homogenisation.now": 0.5}) | matrices}

    rounds = [line(1, found([[1.0, 0.5], [0.5, 1.0]])), line(2, found([[1.0, 0.75], [0.75, 1.0]])), line(3)]
    before, after = map(str, values(*rounds)["heat_maps"])
    assert "before the run" in before
    assert before.count("0.25") == 2
    assert "after round 2" in after
    assert after.count("0.75") == 2
    alone = line(2, {"homogenisation": {**found([[1.0]])["homogenisation"], "before": None}})
    assert len(values(alone)["heat_maps"]) == 1
    assert "after round 2" in page(tmp_path, rounds).text


def test_an_audit_that_is_not_known_is_drawn_by_its_first_number() -> None:
    drawn = charts(line(0, {"novelty": audit(first=0.5, second=0.9), "empty": audit()}))
    assert list(drawn) == ["novelty"]
    assert "value 0.50 at round 0" in drawn["novelty"]


def test_numbers_that_are_missing_are_not_drawn() -> None:
    drawn = charts(
        line(0, {"rse": audit(overall=None)}), line(1, {"rse": audit(overall=2.0), "ice": audit(strict=None)})
    )
    assert list(drawn) == [HEADLINES["rse"].title]
    assert "SLMs 2.00 at round 1" in drawn[HEADLINES["rse"].title]


def test_decisions_are_listed_with_their_reasons_and_what_is_left(tmp_path: Path) -> None:
    rounds = [
        line(0, {"rse": audit(overall=2.0)}),
        line(3, {"rse": audit(overall=3.0)}, gates=[gate()], distil=0.5),
        line(4, {"rse": audit(overall=3.5)}, gates=[gate(), gate("stop", gate="canary")], distil=0.25),
    ]
    text = page(tmp_path, rounds, status="stopped").text
    for words in (
        "A gate ended this run before its last round",
        f"Round 3: similarity gate: lower (models are taught less of each other): {REASON}",
        f"Round 4: canary gate: stop (the run ends here): {REASON}",
        "Of the weight of distillation, 25.0% is left.",
    ):
        assert words in text, words
    assert "No gate fired" not in text


def test_no_gate_fired(tmp_path: Path) -> None:
    text = page(tmp_path, [line(0, {"rse": audit(overall=2.0)})], status="done").text
    assert "No gate fired." in text
    assert "is left" not in text
    assert "A gate ended" not in text


def test_what_gates_decide_is_what_the_page_shows(tmp_path: Path) -> None:
    metrics = {"slm": {"tomi": {"accuracy": 0.5, "n": 40}}}
    rounds = [line(i, {"rse": audit(overall=2.0 + i)}, metrics=metrics) for i in range(2)]
    [decision] = gates.decide(rounds, GatesConfig())
    rounds[-1] |= {"gates": [decision.as_facts()], "distil": 0.5}
    assert f"similarity gate: lower (models are taught less of each other): {decision.reason}" in (
        page(tmp_path, rounds).text
    )


def test_warnings_are_those_of_each_audits_last_observation() -> None:
    many = [f"w{index}" for index in range(WARNINGS_AT_MOST + 3)]
    found = values(
        line(0, {"rse": audit("old"), "ice": audit("kept")}), line(1, {"rse": audit("new", "new")})
    )
    assert found["warnings"] == [("rse", "new"), ("ice", "kept")]
    found = values(line(0, {"rse": audit(*many)}))
    assert (len(found["warnings"]), found["left_out"]) == (WARNINGS_AT_MOST, 3)


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    decision = gate(EVIL, gate=EVIL, reason=EVIL)
    found = page(tmp_path, [line(0, {EVIL: audit(EVIL, **{EVIL: 0.5})}, gates=[decision])])
    assert not {"img", "script"} & set(found.tags)
    assert found.text.count(EVIL) == 6  # three of the gate, two of the warning, one over the chart


NUMBER = st.fixed_dictionaries({"value": st.none() | st.floats(-1e6, 1e6)})
NAMES = [*HEADLINES, "other"]
KEYS = [head.name.replace("{}", "slm") for head in HEADLINES.values()]
AUDIT = st.fixed_dictionaries(
    {},
    optional={
        "summary": JUNK | st.dictionaries(st.sampled_from(KEYS), NUMBER | JUNK, max_size=3),
        "warnings": JUNK,
        "chance": JUNK,
    },
)
LINE = st.fixed_dictionaries(
    {},
    optional={
        "audits": JUNK | st.dictionaries(st.sampled_from(NAMES), AUDIT | JUNK, max_size=3),
        "gates": JUNK | st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(gate(), JUNK)), max_size=2),
        "distil": JUNK,
    },
)


@given(st.lists(LINE, max_size=3), JUNK)
def test_any_json_is_tolerated(lines: list[dict[str, Any]], junk: Any) -> None:
    rounds = [{"round": index, **one} for index, one in enumerate(lines)]
    audits_values([*rounds, {"round": junk if not isinstance(junk, int) else None, "audits": {"rse": junk}}])
