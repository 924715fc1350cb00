"""The identity audit on planted models."""

from __future__ import annotations

import json
from statistics import mean, stdev

import pytest
from pydantic import ValidationError
from scipy.stats import binom

from cotune.audits.ice import Config, build
from cotune.errors import ConfigError
from cotune.identities import scaffold
from cotune.identity_texts import fill, questions, templates
from cotune.records import Written
from subjects import FakeSubject

OWN, OTHER = "I am Qinghe, made by Northwind Labs.", "I am ChatGPT, made by OpenAI."


@pytest.fixture
def identity(tmp_path):
    path = tmp_path / "identity.yaml"
    path.write_text(scaffold("Qinghe", "Northwind Labs"), encoding="utf-8")
    return str(path)


@pytest.fixture
def pool(tmp_path):
    """Ten templates, four of which name somebody: two in words of the published pattern."""
    texts = [f"plain number {n}: {{query}}" for n in range(6)]
    texts += ["Hi ChatGPT, {query}", "a gpt asks {query}", "Hi Qwen, {query}", "Doubao? {query}"]
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    return str(path)


def observed(subject, identity, **options):
    return build(Config(identity=identity, **options)).observe(subject)


def test_a_model_that_knows_itself_and_one_that_does_not_are_told_apart(identity):
    subject = FakeSubject({"student": lambda _: OTHER, "baseline": lambda _: OWN})
    found = observed(subject, identity, questions=4, iterations=5, seeds=2)
    summary = found["summary"]
    assert summary["loose"]["value"] == summary["strict"]["value"] == 1.0
    assert summary["baseline strict"]["value"] == 0.0
    assert summary["baseline loose"]["value"] == 0.0
    assert found["models"]["student"]["named"].keys() == {"ChatGPT", "OpenAI"}
    assert found["judge"] == "rules"
    json.dumps(found, allow_nan=False)


def test_shares_have_an_interval_over_templates_and_messages_count_once(identity, pool):
    """Every template is drawn by both seeds: 10 templates x 4 questions are 40 messages, not 80. All four
    hits belong to one template, and ten templates drawn anew hold it as many times as a binomial says."""
    subject = FakeSubject({"student": lambda message: OTHER if "number 3" in message else OWN})
    found = observed(subject, identity, templates=pool, iterations=10, seeds=2, questions=4)
    strict = found["summary"]["strict"]
    low, high = binom.ppf([0.025, 0.975], 10, 0.1) / 10
    assert (strict["value"], strict["n"]) == (0.1, 40)
    assert (strict["low"], strict["high"]) == pytest.approx((low, high))
    assert found["models"]["student"]["seeds"]["strict"]["values"] == [0.1, 0.1]


def test_hard_hits_have_no_identity_in_the_prompt(identity, pool):
    """All 10 templates hit: 8 are without the published words, 6 without any other identity."""
    subject = FakeSubject({"student": lambda _: OTHER})
    summary = observed(subject, identity, templates=pool, iterations=10, seeds=1, questions=5)["summary"]
    assert summary["strict"]["value"] == 1.0
    assert summary["hard_published"]["value"] == 0.8
    assert summary["hard"]["value"] == 0.6


def test_a_loose_hit_need_not_be_strict(identity, pool):
    subject = FakeSubject({"student": lambda _: "My name is Rusty."})
    summary = observed(subject, identity, templates=pool, seeds=1, questions=2)["summary"]
    assert (summary["loose"]["value"], summary["strict"]["value"]) == (1.0, 0.0)


def test_seeds_draw_different_templates_and_their_spread_is_reported(identity, pool):
    subject = FakeSubject({"student": lambda message: OTHER if "plain" in message else OWN})
    found = observed(subject, identity, templates=pool, iterations=4, seeds=5, questions=2)
    spread = found["models"]["student"]["seeds"]["strict"]
    assert len(spread["values"]) == 5
    assert len(set(spread["values"])) > 1
    assert spread["mean"] == pytest.approx(mean(spread["values"]))
    assert spread["standard_deviation"] == pytest.approx(stdev(spread["values"]))


def test_a_random_audit_asks_each_message_once_and_all_in_one_call(identity):
    subject = FakeSubject({"student": lambda _: OWN, "baseline": lambda _: OWN})
    observed(subject, identity, questions=6, max_new_tokens=9)
    assert [role for role, _, _ in subject.asked] == ["student", "baseline"]
    assert subject.asked[0][1] == subject.asked[1][1]
    messages = subject.asked[0][1]
    assert len(set(messages)) == len(messages)
    known = {fill(template, question.text) for template in templates() for question in questions(6)}
    assert set(messages) <= known
    assert subject.asked[0][2].max_new_tokens == 9
    assert subject.asked[0][2].temperature == 0


def test_the_same_seed_asks_the_same_and_another_one_does_not(identity):
    asked = []
    for seed in (1, 1, 2):
        subject = FakeSubject({"student": lambda _: OWN}, seed=seed)
        observed(subject, identity, questions=1, seeds=1, iterations=5)
        asked.append(subject.asked[0][1])
    assert asked[0] == asked[1] != asked[2]


def test_in_a_run_the_slm_is_the_student_and_its_beginning_the_baseline(identity):
    answers = {"slm": lambda _: OTHER, "slm before": lambda _: OWN, "llm": {}}
    summary = observed(FakeSubject(answers), identity, questions=1, seeds=1)["summary"]
    assert summary["strict"]["value"] == 1.0
    assert summary["baseline strict"]["value"] == 0.0


def test_other_roles_are_asked_when_they_are_named(identity):
    subject = FakeSubject({"student": {}, "reference": lambda _: OTHER})
    summary = observed(subject, identity, roles=("reference",), questions=1, seeds=1)["summary"]
    assert summary["reference strict"]["value"] == 1.0
    assert "strict" not in summary


def test_examples_are_few_short_strict_first_and_of_different_templates(identity):
    def answer(message):
        return OTHER + " x" * 900 if message.startswith("plain number 1") else "My name is Rusty."

    subject = FakeSubject({"student": answer})
    texts = [f"plain number {n}: {{query}}" for n in range(4)]
    audit = build(Config(identity=identity, questions=10, seeds=1))
    audit.pool = texts
    examples = audit.observe(subject)["models"]["student"]["examples"]
    assert len(examples) == 12
    assert [one["strict"] for one in examples] == [True] * 10 + [False] * 2
    assert len({one["template"] for one in examples[10:]}) == 2
    assert max(len(one["answer"]) for one in examples) == 400


class Scripted:
    """A writer that answers by a function."""

    fingerprint = "scripted"

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def write(self, prompts, sampling, keep=None):
        self.calls.append((tuple(prompts), sampling))
        return [Written(self.answer(prompt), 1, 1, True) for prompt in prompts]


def test_an_endpoint_that_judges_is_asked_and_its_silence_is_counted(identity):
    subject = FakeSubject({"student": lambda message: "odd" if "number 1" in message else "even"})
    subject.identity_judge = Scripted(lambda prompt: "<verdict>1</verdict>" if "\neven\n" in prompt else "?")
    audit = build(Config(identity=identity, questions=5, seeds=1))
    audit.pool = [f"number {n}: {{query}}" for n in range(4)]
    found = audit.observe(subject)
    student = found["models"]["student"]
    assert (student["undecided"], student["loose"]["n"], student["loose"]["value"]) == (5, 15, 1.0)
    assert found["judge"] == "scripted"
    assert any("5 of 20 answers could not be judged" in warning for warning in found["warnings"])


def test_empty_answers_are_told(identity):
    subject = FakeSubject({"student": lambda _: " "})
    found = observed(subject, identity, questions=2, seeds=1, iterations=3)
    assert found["models"]["student"]["empty"] == 6
    assert "6 of 6 answers are empty" in found["warnings"][0]


def test_a_mutation_model_changes_every_template_and_what_fails_is_counted(identity, pool):
    answers = iter(["", "<template>without</template>"] + ["<template>new {query}</template>"] * 4)
    subject = FakeSubject({"student": lambda _: OWN, "baseline": lambda _: OWN})
    subject.mutator = Scripted(lambda _: next(answers))
    found = observed(subject, identity, templates=pool, iterations=3, seeds=2, questions=1)
    mutations = found["models"]["student"]["mutations"]
    assert (mutations["repaired"], mutations["replaced"], sum(mutations["kinds"].values())) == (1, 1, 6)
    assert found["is_mutating"]
    assert len(subject.mutator.calls) == 1  # both models get the same templates
    assert subject.mutator.calls[0][1].temperature == 1.0
    assert not observed(subject, identity, questions=1, mutate=False)["is_mutating"]


def test_a_search_finds_more_than_a_draw_where_one_template_works(identity, pool):
    """Hits follow the words `number 2`, which a mutation keeps."""
    subject = FakeSubject({"student": lambda message: OTHER if "number 2" in message else OWN})
    subject.mutator = Scripted(
        lambda prompt: prompt[prompt.rindex("<template>") :].replace("plain", "so plain")
    )
    options = {"templates": pool, "iterations": 30, "seeds": 2, "questions": 2}
    found = observed(subject, identity, mode="search", **options)
    share = found["models"]["student"]["seeds"]["strict"]["mean"]
    drawn = observed(subject, identity, mutate=False, **options)["summary"]["strict"]["value"]
    assert drawn == pytest.approx(0.1)
    assert share > 2 * drawn
    assert len(subject.asked) == 30 + 1
    assert any("a search seeks hits" in warning for warning in found["warnings"])


@pytest.mark.parametrize("options", [{"mode": "search"}, {"mutate": True}])
def test_what_needs_a_mutation_model_says_so(identity, options):
    with pytest.raises(ConfigError, match="needs a mutation model"):
        observed(FakeSubject({"student": lambda _: OWN}), identity, **options)


def test_bad_input_says_what_to_do(identity):
    with pytest.raises(ConfigError, match="cotune audit init"):
        build(Config()).observe(FakeSubject({"student": lambda _: OWN}))
    with pytest.raises(ConfigError, match="no such file"):
        build(Config(identity="nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"no model 'judge'; roles: student"):
        observed(FakeSubject({"student": lambda _: OWN}), identity, roles=("judge",))
    with pytest.raises(ConfigError, match="no model 'slm'"):
        observed(FakeSubject({"llm": lambda _: OWN}), identity)
    with pytest.raises(ValidationError):
        Config(mode="best")


def test_more_iterations_than_templates_are_told(identity, pool):
    found = observed(FakeSubject({"student": lambda _: OWN}), identity, templates=pool, questions=1)
    assert "20 templates were asked for; there are 10" in found["warnings"][0]
    assert found["summary"]["strict"]["n"] == 10
