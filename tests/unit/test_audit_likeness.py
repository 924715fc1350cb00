"""The audit `likeness`: anchors, calibration, comparison with a baseline, no encoder, empty answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cotune.audits import likeness
from cotune.cast import Cast, cast
from cotune.errors import ConfigError
from cotune.likeness import PROXIES, char_ngrams
from subjects import FakeSubject

STOCK = {
    "reference": ["river", "stone", "cloud", "bridge", "window", "garden", "letter", "winter", "candle"],
    "unrelated": ["engine", "copper", "signal", "vector", "margin", "socket", "thread", "packet", "buffer"],
}
SETS = {
    "stories": [f"Tell me story {number}, please." for number in range(20)],
    "facts": [f"What is fact {number}?" for number in range(7)],
}
ALL = [*SETS["stories"], *SETS["facts"]]


def writer(stock: str, seed: int = 0) -> Callable[[str], str]:
    """Three sentences of words of a stock, the same for the same message."""

    def write(message: str) -> str:
        draw = np.random.default_rng([seed, *message.encode()])
        return " ".join(" ".join(draw.choice(STOCK[stock], 6)) + "." for _ in range(3))

    return write


def mixed(share: float) -> Callable[[str], str]:
    """The reference's answer to a share of the prompts, an unrelated one to the others."""
    copies = set(ALL[: round(share * len(ALL))])
    reference, own = writer("reference"), writer("unrelated", seed=1)
    return lambda message: reference(message) if message in copies else own(message)


def subject(student: Callable[[str], str], **more: Any) -> FakeSubject:
    given = {"student": student, "reference": writer("reference"), **more.pop("others", {})}
    return FakeSubject(given, SETS, **more)


def observe(given: FakeSubject, **options: Any) -> dict[str, Any]:
    found = likeness.build(likeness.Config(**options)).observe(given)
    json.dumps(found, allow_nan=False)
    return dict(found)


def test_a_copy_of_the_reference_is_at_the_upper_anchor():
    found = observe(subject(writer("reference")))
    assert list(found["proxies"]) == [*PROXIES, "embedding_f"]
    for facts in found["proxies"].values():
        assert facts["student"] == facts["upper"]
        assert facts["upper"]["value"] == pytest.approx(1.0, abs=1e-6)
        assert facts["lower"]["value"] < facts["upper"]["value"] or facts["calibrated"]["value"] is None
    mean = found["summary"]["likeness.mean"]
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((1.0, 1.0, 1.0))
    assert mean["n"] == 27


def test_an_unrelated_student_is_at_the_lower_anchor():
    given = subject(writer("unrelated", seed=1), others={"unrelated": writer("unrelated", seed=2)})
    found = observe(given)
    assert found["anchor"] == "unrelated model"
    mean = found["summary"]["likeness.mean"]
    assert mean["low"] < 0.0 < mean["high"]
    assert mean["high"] - mean["low"] < 0.1


def test_without_an_unrelated_model_the_lower_anchor_is_other_prompts():
    found = observe(subject(writer("unrelated", seed=1)))
    assert found["anchor"] == "other prompts"
    assert found["cast"]["unrelated"] is None
    # same stock of words, other prompts: the anchor is above a student with another stock, not clipped at 0
    assert found["proxies"]["char_ngrams"]["calibrated"]["value"] < 0


def test_a_student_that_copies_more_is_more_alike():
    means = [
        observe(subject(mixed(share)))["summary"]["likeness.mean"]["value"] for share in (0, 0.3, 0.6, 1)
    ]
    assert means == sorted(means)
    assert means[3] == pytest.approx(1.0)


def test_values_are_unweighted_means_of_set_means_between_the_anchors():
    given = subject(mixed(0.5), others={"unrelated": writer("unrelated", seed=2)})
    found = observe(given)
    student, reference, other = mixed(0.5), writer("reference"), writer("unrelated", seed=2)

    def by_hand(first: Callable[[str], str], prompts: Sequence[str]) -> float:
        return sum(char_ngrams(first(prompt), reference(prompt)) for prompt in prompts) / len(prompts)

    raw = (by_hand(student, SETS["stories"]) + by_hand(student, SETS["facts"])) / 2
    lower = (by_hand(other, SETS["stories"]) + by_hand(other, SETS["facts"])) / 2
    facts = found["proxies"]["char_ngrams"]
    assert facts["student"]["value"] == pytest.approx(raw)
    assert facts["lower"]["value"] == pytest.approx(lower)
    assert facts["calibrated"]["value"] == pytest.approx((raw - lower) / (1 - lower))
    used = [one for one in found["proxies"].values() if one["calibrated"]["value"] is not None]
    raw, lower, upper = (sum(one[part]["value"] for one in used) for part in ("student", "lower", "upper"))
    assert found["summary"]["likeness.mean"]["value"] == pytest.approx((raw - lower) / (upper - lower))
    assert found["sets"] == {"stories": 20, "facts": 7}


def test_a_student_is_compared_with_what_it_was():
    given = subject(mixed(0.8), others={"baseline": mixed(0.1)})
    found = observe(given)
    for facts in [found["mean"], *found["proxies"].values()]:
        if facts["gain"]["value"]:
            assert facts["gain"]["value"] == pytest.approx(
                facts["student"]["value"] - facts["baseline"]["value"]
            )
    assert found["mean"]["gain"]["low"] > 0.3
    assert found["mean"]["gain_p"] < 0.002
    assert found["summary"]["likeness.mean.gain"] == found["mean"]["gain"]
    same = observe(subject(mixed(0.5), others={"baseline": mixed(0.5)}))
    assert (same["mean"]["gain"]["low"], same["mean"]["gain"]["high"]) == (0.0, 0.0)
    assert same["mean"]["gain_p"] == 1.0


def test_a_difference_by_chance_is_not_called_one():
    given = subject(writer("unrelated", seed=1), others={"baseline": writer("unrelated", seed=5)})
    found = observe(given)
    assert found["mean"]["gain"]["low"] < 0 < found["mean"]["gain"]["high"]
    assert found["mean"]["gain_p"] > 0.05


def test_without_a_baseline_nothing_is_said_of_one():
    found = observe(subject(mixed(0.5)))
    assert set(found["mean"]) == {"student"}
    assert not [name for name in found["summary"] if "baseline" in name or "gain" in name]


def test_without_an_encoder_the_embedding_is_left_out_with_a_warning():
    found = observe(subject(mixed(0.5), embed=False))
    assert list(found["proxies"]) == [*PROXIES]
    assert any("sentence encoder" in warning for warning in found["warnings"])
    assert not any("sentence encoder" in warning for warning in observe(subject(mixed(0.5)))["warnings"])


def test_anchors_that_coincide_give_no_calibrated_value():
    def always(_message: str) -> str:
        return "I cannot say."

    found = observe(FakeSubject({"student": writer("unrelated"), "reference": always}, SETS))
    assert all(facts["calibrated"]["value"] is None for facts in found["proxies"].values())
    assert found["summary"]["likeness.mean"] == {"value": None, "low": None, "high": None, "n": 27}
    assert any("anchors coincide" in warning for warning in found["warnings"])


def test_one_anchor_that_coincides_leaves_its_measure_out_of_the_mean():
    """All answers have one layout, so structure says nothing here."""
    found = observe(subject(mixed(0.5)))
    assert found["proxies"]["structure"]["calibrated"]["value"] is None
    assert any("structure" in warning for warning in found["warnings"])
    assert found["mean"]["student"]["value"] is not None


def test_answers_that_are_empty_are_counted():
    def silent(message: str) -> str:
        return "" if message in SETS["facts"][:3] else writer("reference")(message)

    found = observe(FakeSubject({"student": silent, "reference": silent}, SETS))
    assert sum("3 of 27 answers" in warning for warning in found["warnings"]) == 2
    nothing = observe(FakeSubject({"student": lambda _: "", "reference": lambda _: " "}, SETS))
    assert nothing["summary"]["likeness.mean"]["value"] is None
    assert nothing["proxies"]["embedding_f"]["student"]["value"] == 1.0


def test_one_prompt_has_values_but_neither_intervals_nor_anchors():
    found = observe(FakeSubject({"student": mixed(1), "reference": writer("reference")}, {"one": ALL[:1]}))
    assert found["proxies"]["char_ngrams"]["student"] == {"value": 1.0, "low": None, "high": None, "n": 1}
    assert found["summary"]["likeness.mean"]["value"] is None


def test_the_limit_and_the_length_are_kept_and_each_model_is_asked_once():
    given = subject(mixed(0.5), others={"baseline": mixed(0.1)})
    found = observe(given, limit=5, max_new_tokens=9)
    assert found["sets"] == {"stories": 5, "facts": 5}
    assert [role for role, _, _ in given.asked] == ["reference", "student", "baseline"]
    for _, messages, sampling in given.asked:
        assert messages == (*SETS["stories"][:5], *SETS["facts"][:5])
        assert (sampling.max_new_tokens, sampling.temperature) == (9, 0.0)
    assert given.told[-1] == ("comparing answers", 10, 10)


def test_a_prompt_that_comes_twice_counts_once():
    given = FakeSubject({"student": mixed(1), "reference": writer("reference")}, {"s": [*ALL[:3], *ALL[:3]]})
    assert observe(given)["sets"] == {"s": 3}


def test_examples_are_the_ends_of_the_scale_and_are_cut():
    marked = writer("reference")
    given = subject(lambda m: marked(m) if m in ALL[:2] else "x" * 2000 + m + "<script>")
    kept = observe(given)["examples"]
    assert [one["prompt"] for one in kept[2:]] == ALL[:2] or [one["prompt"] for one in kept[2:]] == ALL[1::-1]
    assert all(one["values"]["char_ngrams"] == 1.0 for one in kept[2:])
    assert all(len(one["student"]) == 600 for one in kept[:2])
    assert set(kept[0]["values"]) == {*PROXIES, "embedding_f"}
    two = observe(FakeSubject({"student": mixed(1), "reference": marked}, {"s": ALL[:2]}))
    assert len(two["examples"]) == 2


def test_the_seed_alone_decides():
    assert observe(subject(mixed(0.5), seed=3)) == observe(subject(mixed(0.5), seed=3))
    assert observe(subject(mixed(0.5), seed=3)) != observe(subject(mixed(0.5), seed=4))


def test_in_a_run_the_slm_is_the_student_and_its_past_the_baseline():
    roles = dict.fromkeys(["llm", "slm", "llm before", "slm before", "b"], "some model")
    assert cast(roles) == Cast("slm", "llm", "slm before")
    assert cast({"llm": "x", "slm": "y", "unrelated": "z"}) == Cast("slm", "llm", None, "unrelated")
    both = {**roles, "student": "s", "reference": "r", "unrelated": "u"}
    assert cast(both) == Cast("student", "reference", None, "unrelated")
    run = {"llm": writer("reference"), "slm": mixed(0.9), "slm before": mixed(0.1)}
    found = observe(FakeSubject(run, SETS))
    assert found["mean"]["gain"]["low"] > 0.3
    assert found["cast"] == {
        "student": "slm",
        "reference": "llm",
        "baseline": "slm before",
        "unrelated": None,
    }


@pytest.mark.parametrize(
    ("roles", "part"),
    [
        (["reference"], "student"),
        (["student"], "reference"),
        (["slm"], "reference"),
        (["llm"], "student"),
        ([], "student"),
    ],
)
def test_a_missing_part_is_named_with_its_cure(roles, part):
    with pytest.raises(ConfigError, match=rf"no model to be the {part}.*--{part}") as caught:
        cast(dict.fromkeys(roles, "m"))
    assert (", ".join(roles) or "none") in str(caught.value)
