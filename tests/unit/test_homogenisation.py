"""The audit `homogenisation`: who answers like whom, now and before."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cotune.audits import homogenisation
from cotune.errors import ConfigError
from subjects import FakeSubject

WORDS = [a + b for a in "bdfgklmnprst" for b in ("an", "er", "is", "ot", "ul")]
SETS = {"a": [f"Question {n}?" for n in range(16)], "b": [f"Task {n}." for n in range(5)]}
ALL = [*SETS["a"], *SETS["b"]]


def voice(own: int, shared: float = 0.0) -> Callable[[str], str]:
    """Twelve words; the first `shared` of them are those of everybody."""

    def write(message: str) -> str:
        common, alone = (
            np.random.default_rng([seed, *message.encode()]).choice(WORDS, 12) for seed in (0, own)
        )
        cut = round(12 * shared)
        return " ".join([*common[:cut], *alone[cut:]])

    return write


def observe(answers: dict[str, Callable[[str], str]], **more: Any) -> dict[str, Any]:
    found = homogenisation.build(homogenisation.Config()).observe(FakeSubject(answers, SETS, **more))
    json.dumps(found, allow_nan=False)
    return dict(found)


def test_the_matrix_is_symmetric_with_ones_and_sees_who_is_alike():
    found = observe({"llm": voice(1, 0.5), "slm": voice(2, 0.5), "far": voice(3), "twin": voice(2, 0.5)})
    now = np.array(found["now"])
    assert found["roles"] == ["llm", "slm", "far", "twin"]
    assert found["names"][0] == "model of llm"
    assert now == pytest.approx(now.T)
    assert np.diag(now) == pytest.approx(np.ones(4))
    assert now[1, 3] == pytest.approx(1.0)
    assert now[0, 1] == pytest.approx(now[0, 3])
    assert now[0, 1] > 0.25 > abs(now[0, 2])
    off = now[np.triu_indices(4, 1)]
    assert found["summary"]["homogenisation.now"]["value"] == pytest.approx(off.mean())
    assert found["summary"]["homogenisation.now"]["n"] == 21


def test_strangers_are_at_zero():
    found = observe({"llm": voice(1), "slm": voice(2)})["summary"]["homogenisation.now"]
    assert found["low"] < 0.0 < found["high"]
    assert found["high"] - found["low"] < 0.25


def test_without_a_past_there_is_no_change():
    found = observe({"llm": voice(1), "slm": voice(2)})
    assert (found["before"], found["change"]) == (None, None)
    assert list(found["summary"]) == ["homogenisation.now"]


def test_models_that_grew_alike_are_caught():
    past = {"llm before": voice(1), "slm before": voice(2), "b before": voice(3)}
    found = observe({"llm": voice(1, 0.6), "slm": voice(2, 0.6), "b": voice(3, 0.6), **past})
    assert found["roles"] == ["llm", "slm", "b"]
    before, now = np.array(found["before"]), np.array(found["now"])
    off = np.triu_indices(3, 1)
    assert found["change"]["value"] == pytest.approx((now[off] - before[off]).mean())
    assert found["change"]["low"] > 0.2
    assert found["change"] == found["summary"]["homogenisation.change"]
    assert found["summary"]["homogenisation.before"]["value"] == pytest.approx(before[off].mean())


def test_models_that_did_not_change_did_not_change():
    now = {"llm": voice(1, 0.3), "slm": voice(2, 0.3)}
    found = observe({**now, **{f"{role} before": write for role, write in now.items()}})
    assert found["now"] == found["before"]
    assert (found["change"]["low"], found["change"]["value"], found["change"]["high"]) == (0.0, 0.0, 0.0)


def test_only_models_with_a_past_are_compared_with_it():
    past = {"llm before": voice(1, 0.2), "slm before": voice(2, 0.2)}
    found = observe({"llm": voice(1, 0.2), "slm": voice(2, 0.2), "new": voice(3, 1.0), **past})
    assert found["before"][0][2] is None
    assert found["before"][2][2] == 1.0
    assert found["change"]["value"] == pytest.approx(0.0)  # `new` is in the matrix, not in the change
    alone = observe({"llm": voice(1), "slm": voice(2), "slm before": voice(2)})
    assert (alone["before"], alone["change"]) == (None, None)


def test_without_an_encoder_words_alone_are_compared():
    found = observe({"llm": voice(1, 0.5), "slm": voice(2, 0.5)}, embed=False)
    assert found["measures"] == ["word_ngrams"]
    assert any("sentence encoder" in warning for warning in found["warnings"])
    both = observe({"llm": voice(1, 0.5), "slm": voice(2, 0.5)})
    assert both["measures"] == ["word_ngrams", "embedding"]
    assert both["warnings"] == []
    assert both["now"] != found["now"]


def test_answers_that_never_differ_have_no_calibrated_likeness():
    found = observe({"llm": lambda _: "I cannot say that.", "slm": lambda _: "I cannot say that."})
    assert found["now"] == [[1.0, None], [None, 1.0]]
    assert found["summary"]["homogenisation.now"]["value"] is None
    assert any("anchors" in warning for warning in found["warnings"])


def test_empty_answers_are_counted_and_alike():
    found = observe(
        {
            "llm": lambda m: "" if m in ALL[:4] else voice(1)(m),
            "slm": lambda m: "" if m in ALL[:4] else voice(2)(m),
        }
    )
    assert sum("4 of 21 answers" in warning for warning in found["warnings"]) == 2
    silent = observe({"llm": lambda _: "", "slm": lambda _: " "})
    assert silent["summary"]["homogenisation.now"]["value"] is None


def test_each_model_is_asked_once_for_as_many_prompts_as_wanted():
    subject = FakeSubject({"llm": voice(1), "slm": voice(2)}, SETS)
    config = homogenisation.Config(limit=3, max_new_tokens=7)
    found = homogenisation.build(config).observe(subject)
    assert found["sets"] == {"a": 3, "b": 3}
    assert [(role, len(messages), how.max_new_tokens) for role, messages, how in subject.asked] == [
        ("llm", 6, 7),
        ("slm", 6, 7),
    ]
    assert subject.told[-1] == ("comparing models", 1, 1)


def test_one_model_cannot_be_compared():
    with pytest.raises(ConfigError, match="came slm; expected at least two models"):
        observe({"slm": voice(1), "slm before": voice(2)})


def test_the_seed_alone_decides():
    models = {"llm": voice(1, 0.5), "slm": voice(2, 0.5)}
    assert observe(models, seed=1) == observe(models, seed=1)
    assert observe(models, seed=1) != observe(models, seed=2)
