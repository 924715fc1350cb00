"""Presets are recipes: which score, which policies, in which order; and mistakes in nested options."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cotune import plugins
from cotune.protocols import SelectorParts
from cotune.scored import Recipe, Scored

RECIPES = {
    "everything": Recipe("random"),
    "random_subset": Recipe("random", policies=(("top_k", {"keep": 0.1}),)),
    "noise_floor": Recipe("ira", policies=(("floor", {"at": 0.0}),)),
    "feddqc": Recipe(
        "ira",
        {"per": "mean"},
        (("top_k", {"keep": 1.0}), ("floor", {"at": 0.0}), ("staged", {"stages": 3})),
    ),
    "cherry": Recipe(
        "ifd", {"ratio": "loss", "alone": "### Response:"}, (("cut_at_one", {}), ("top_k", {"keep": 0.05}))
    ),
    "superfiltering": Recipe(
        "ifd", {"ratio": "perplexity"}, (("cut_at_one", {}), ("top_k", {"keep": 0.05})), model="gpt2"
    ),
    "ask_llm": Recipe("ask_llm", {"task": "following instructions"}, (("top_k", {"keep": 0.1}),)),
    "density": Recipe("density", {"method": "sketch"}, (("inverse_propensity", {"keep": 0.1}),)),
    "zip": Recipe("zip", {"keep": 0.1, "official": False, "text": "json"}, (("top_k", {"keep": 0.1}),)),
}


def no_model(name: str) -> Any:
    raise AssertionError(f"{name} was loaded before anything is read")


def selector(name: str, **options: Any) -> Scored:
    return plugins.load("selector", name, options, parts=SelectorParts(no_model, 5))


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_is_its_papers_recipe(name):
    assert selector(name).recipe == RECIPES[name]


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("everything", "noise_floor")])
def test_keep_is_an_option_with_one_meaning(name):
    found = selector(name, keep=0.25).recipe
    assert 0.25 in [options.get("keep") for _, options in found.policies]
    for wrong in (0, 1.1, -1):
        with pytest.raises(ValidationError):
            selector(name, keep=wrong)


def test_the_official_zip_compresses_the_official_text():
    assert selector("zip", official=True).recipe.options == {"keep": 0.1, "official": True, "text": "python"}


def test_the_free_combination_equals_the_preset_it_spells_out():
    found = selector(
        "scored",
        score={"name": "ifd", "ratio": "loss", "alone": "### Response:"},
        policies=["cut_at_one", {"name": "top_k", "keep": 0.05}],
        every=2,
        model="frozen",
    ).recipe
    assert (found.score, found.every, found.model) == ("ifd", 2, "frozen")
    assert found.options == {"ratio": "loss", "alone": "### Response:"}
    assert found.policies == (("cut_at_one", {}), ("top_k", {"keep": 0.05, "end": "high"}))


@pytest.mark.parametrize("score", plugins.names("score"))
@pytest.mark.parametrize("policy", plugins.names("policy"))
def test_every_score_goes_with_every_policy(score, policy):
    assert selector("scored", score=score, policies=[policy]).recipe.score == score


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "idf"}, r"score: 'idf' not found; expected one of: ask_llm.*Did you mean 'ifd'"),
        ({"score": {"name": "ifd", "ratoi": "loss"}}, r"ifd.ratoi: unknown key.*Did you mean 'ratio'"),
        ({"score": {"name": "ifd", "ratio": "x"}}, r"ifd.ratio: input should be .*got 'x'"),
        ({"policies": [{"name": "top_k", "keep": 7}]}, r"top_k.keep: .*less than or equal to 1, got 7"),
        ({"policies": [{"name": "top"}]}, r"policy: 'top' not found"),
        ({"policies": [{"keep": 1}]}, r"name"),
        ({"policies": []}, r"at least 1 item"),
        ({"score": 3}, r"score"),
    ],
)
def test_a_mistake_in_a_nested_option_is_named(options, message):
    with pytest.raises(ValidationError, match=message):
        plugins.config_class("selector", "scored")(**options)
