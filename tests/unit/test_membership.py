"""Membership inference: areas and rates as scikit-learn has them, calibration, and honest controls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from cotune import plugins
from cotune.audits import membership
from cotune.errors import ConfigError, DataError
from cotune.records import Example
from subjects import FakeSubject

RNG = np.random.default_rng(0)
HARD = {f"question {i:03d}": float(h) for i, h in enumerate(RNG.normal(3, 1, 400))}
"""How surprising each answer is to a model that has not seen it."""


def examples(start: int, stop: int, domain: Callable[[int], str] = lambda _: "one", pad: int = 0) -> Any:
    rows = range(start, stop)
    return tuple(
        Example(id=str(i), prompt=f"question {i:03d}", completion=" yes" + " so" * pad, domain=domain(i))
        for i in rows
    )


MEMBERS, OTHERS = examples(0, 200), examples(200, 400)


def remembering(drop: float, taught: str = "student") -> Any:
    """Log-probability of an answer; the taught role finds members less surprising by `drop`."""

    def log_prob(role: str, context: str, target: str) -> float:
        is_member = int(context.split()[1]) < 200
        return -len(target.split()) * (HARD[context] - drop * (role == taught and is_member))

    return log_prob


def subject(log_probs: Any, *roles: str, members: Any = MEMBERS, others: Any = OTHERS) -> FakeSubject:
    found = FakeSubject(dict.fromkeys(roles or ("student",), str), log_probs=log_probs)
    found.sides = {"members": members, "non_members": others}  # type: ignore[attr-defined]
    return found


def written(sides: Any, folder: Path) -> dict[str, str]:
    """The two files that the options name."""
    for name, side in sides.items():
        rows = [
            {"prompt": e.prompt, "completion": e.completion, "domain": e.domain, "id": e.id} for e in side
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in sides}


def observe(found: FakeSubject, **options: Any) -> Any:
    with TemporaryDirectory() as folder:
        files = written(getattr(found, "sides", {}), Path(folder))
        seen = plugins.load("audit", "membership", {"draws": 50, **files, **options}).observe(found)
    json.dumps(seen, allow_nan=False)
    return seen


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 0.5]), st.booleans())
def test_rates_are_those_on_sklearns_curve(seed, share, has_ties):
    rng = np.random.default_rng(seed)
    members, others = rng.normal(0.5, 1, 90), rng.normal(0, 1, rng.integers(3, 120))
    if has_ties:
        members, others = members.round(), others.round()
    truth = [1] * len(members) + [0] * len(others)
    curve = roc_curve(truth, np.concatenate([members, others]), drop_intermediate=False)
    expected = max(tpr for fpr, tpr in zip(curve[0], curve[1], strict=True) if fpr <= share + 1e-12)
    assert membership.true_positives(members, others, share) == pytest.approx(expected)


def test_the_areas_are_sklearns():
    seen = observe(subject(remembering(0.7), "student", "baseline"))
    truth = [1] * 200 + [0] * 200
    taught = [HARD[f"question {i:03d}"] - 0.7 * (i < 200) for i in range(400)]
    expected = roc_auc_score(truth, [-loss for loss in taught])
    found = seen["models"]["student"]["loss"]["auc"]
    assert found["value"] == pytest.approx(expected)
    assert found["low"] < found["value"] < found["high"]
    assert found["n"] == 400
    assert seen["summary"]["AUC student, loss"] == found


def test_calibration_sees_what_the_spread_of_losses_hides():
    models = observe(subject(remembering(0.2), "student", "baseline"))["models"]
    assert models["student"]["loss"]["auc"]["value"] < 0.65
    assert models["student"]["calibrated"]["auc"]["value"] == pytest.approx(1.0)
    assert models["student"]["calibrated"]["tpr at 1% fpr"]["value"] == 1.0
    assert set(models["baseline"]) == {"loss"}


def test_a_model_that_learned_nothing_is_at_one_half():
    seen = observe(subject(remembering(0.0), "student", "baseline"), draws=300)
    area = seen["models"]["student"]["loss"]["auc"]
    assert area["low"] < 0.5 < area["high"]
    assert seen["models"]["student"]["calibrated"]["auc"]["value"] == 0.5  # all ties
    assert seen["models"]["student"]["calibrated"]["tpr at 10% fpr"]["value"] == 0.0
    assert seen["warnings"] == []


def test_in_a_run_each_model_is_calibrated_by_itself_before():
    seen = observe(subject(remembering(0.2, "slm"), "llm", "llm before", "slm", "slm before"))
    assert set(seen["models"]["llm"]) == set(seen["models"]["slm"]) == {"loss", "calibrated"}
    assert seen["models"]["slm"]["calibrated"]["auc"]["value"] == pytest.approx(1.0)
    assert seen["models"]["llm"]["calibrated"]["auc"]["value"] == 0.5
    assert set(seen["models"]["slm before"]) == {"loss"}


def test_the_reference_is_not_calibrated_by_the_students_baseline():
    seen = observe(subject(remembering(0.2), "student", "reference", "baseline"))
    assert set(seen["models"]["reference"]) == {"loss"}


def test_loss_is_per_token():
    longer = examples(0, 200, pad=6)
    seen = observe(subject(remembering(0.0), members=longer))
    assert abs(seen["models"]["student"]["loss"]["auc"]["value"] - 0.5) < 0.08
    assert seen["controls"]["AUC by length alone"]["value"] == pytest.approx(1.0)
    assert "length alone tells members from non-members with AUC 1.00" in seen["warnings"][0]


def test_shorter_members_are_told_by_length_as_well():
    seen = observe(subject(remembering(0.0), others=examples(200, 400, pad=6)))
    assert seen["controls"]["AUC by length alone"]["value"] == pytest.approx(1.0)


def test_sets_of_other_domains_give_a_warning_and_alike_ones_none():
    apart = subject(remembering(0.0), members=examples(0, 200, lambda i: "a" if i % 4 else "b"))
    seen = observe(apart)
    assert seen["controls"]["AUC by domain alone"]["value"] > 0.95
    assert any("domain alone" in warning for warning in seen["warnings"])
    alike = [examples(*span, lambda i: f"d{i % 3}") for span in ((0, 200), (200, 400))]
    seen = observe(subject(remembering(0.0), members=alike[0], others=alike[1]))
    assert abs(seen["controls"]["AUC by domain alone"]["value"] - 0.5) < 0.08
    assert seen["warnings"] == []


def test_many_domains_of_one_example_each_are_no_difference():
    sides = [[f"{side}{i}" for i in range(80)] for side in "ab"]
    members, others = membership.domain_scores(*sides)
    assert set(members.tolist()) == set(others.tolist()) == {0.5}


def test_an_untaught_model_that_tells_them_apart_gives_a_warning():
    seen = observe(subject(remembering(2.0, "baseline"), "student", "baseline"))
    assert "baseline, which was not taught yet, tells members from non-members" in seen["warnings"][0]


def test_sides_are_of_equal_size_and_drawn_by_the_seed():
    asked = []

    def log_prob(_role: str, context: str, _target: str) -> float:
        asked.append(context)
        return -1.0

    first = observe(subject(log_prob, others=OTHERS[:60]), limit=100)
    assert first["examples"] == 60
    assert len(set(asked)) == 120
    before = list(asked)
    asked.clear()
    assert observe(subject(log_prob, others=OTHERS[:60]), limit=100) == first
    assert asked == before
    other = subject(log_prob, others=OTHERS[:60])
    other.seed = 1
    asked.clear()
    observe(other, limit=100)
    assert set(asked) != set(before)


def test_files_are_read_with_the_completion_as_it_stands(tmp_path):
    paths = []
    for name, side in (("members", MEMBERS[:60]), ("others", OTHERS[:60])):
        rows = [{"prompt": e.prompt, "completion": e.completion} for e in side]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = FakeSubject({"student": str}, log_probs=remembering(5.0))
    seen = observe(bare, members=str(paths[0]), non_members=str(paths[1]))
    assert seen["models"]["student"]["loss"]["auc"]["value"] > 0.95
    assert membership.read_file(str(paths[0]))[0].completion == " yes"


def test_without_examples_or_files_the_cure_is_named():
    with pytest.raises(ConfigError, match=r"membership.members: .* Name one: members: FILE"):
        observe(FakeSubject({"student": str}, log_probs=remembering(0.0)))


def test_a_file_of_other_rows_is_refused_with_its_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "answer": "a"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: field 'completion' is missing"):
        observe(subject(remembering(0.0)), members=str(path))


def test_an_example_on_both_sides_is_refused():
    with pytest.raises(DataError, match="3 of 200 non-members stand among the members too"):
        observe(subject(remembering(0.0), others=(*MEMBERS[:3], *OTHERS[3:])))


def test_a_side_without_examples_is_refused():
    with pytest.raises(DataError, match="200 members and 1 non-members; expected two or more"):
        observe(subject(remembering(0.0), others=OTHERS[:1]))


def test_what_has_no_loss_is_left_out_and_counted():
    known = remembering(0.5)

    def holey(role: str, context: str, target: str) -> float:
        return math.nan if context in ("question 003", "question 300") else known(role, context, target)

    seen = observe(subject(holey))
    assert seen["models"]["student"]["loss"]["auc"]["n"] == 398
    assert "student gave no loss for 2 of 400 examples" in seen["warnings"][0]


def test_endpoints_and_few_examples_are_said():
    seen = observe(subject(None, members=MEMBERS[:5]))
    assert seen["models"] == {"student": "not observed"}
    assert seen["summary"] == {}
    assert any("5 examples a side" in warning for warning in seen["warnings"])
    assert any("nothing was observed" in warning for warning in seen["warnings"])
