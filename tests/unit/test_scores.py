"""Scores: what they mean, that they are local or additive, and that ZIP looks for new text."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import answer_loss, plugins
from cotune.protocols import Pool, Stage
from cotune.records import Example
from cotune.scores import density
from cotune.scores import zip as zipped
from subjects import FakeLogProbs

ALL = plugins.names("score")


class FakeReader:
    """Log-probabilities and features that are plain functions of the text."""

    fingerprint = "fake"

    def mount(self, adapter: Any) -> None:
        pass

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> FakeLogProbs:
        rates = [0.5 + len(set(context) & set(target)) / 4 for context, target in pairs]
        counts = np.array([len(target) for _, target in pairs], np.int64)
        return FakeLogProbs(-counts / np.array(rates), counts)

    def features(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Any:
        found = [
            np.random.default_rng([seed, *text.encode()]).standard_normal(dimensions or 8) for text in texts
        ]
        return np.array(found, np.float32)


class Points(FakeReader):
    """Features are given, by the number that is the text."""

    def __init__(self, points: Any) -> None:
        self.points = points

    def features(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Any:
        return self.points[[int(text) for text in texts]].astype(np.float32)


def example(number: int, prompt: str = "q", completion: str = "a") -> Example:
    return Example(id=str(number), prompt=prompt, completion=completion)


def pool(examples: Sequence[Example], seed: int = 0) -> Pool:
    return Pool(tuple(examples), np.random.default_rng(seed))


def points_pool(rows: Sequence[int]) -> Pool:
    return pool([example(row, str(row), "") for row in rows])


def texts(number: int, words: int = 30, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    known = ["".join(rng.choice(list("etaoinshrdlu"), 5)) for _ in range(400)]
    return [example(i, " ".join(rng.choice(known, words)), f" {i}") for i in range(number)]


def ranks(values: Any) -> Any:
    return np.argsort(np.argsort(values))


def spearman(left: Any, right: Any) -> float:
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def score_of(name: str, examples: Sequence[Example], reader: Any = None, **options: Any) -> Any:
    score = plugins.load("score", name, options)
    return one_score(score, pool(examples), reader or FakeReader())


def one_score(score: Any, mine: Pool, reader: Any) -> Any:
    return score.score([mine], reader, score.share([mine], reader)[0])[0]


@pytest.mark.parametrize("name", ALL)
def test_a_score_gives_one_number_for_each_example_of_each_pool(name):
    assert {"completion", "log_probs", "features"} >= plugins.module("score", name).NEEDS
    score, rows = plugins.load("score", name, {}), texts(9)
    parts = [rows[:4], [], rows[4:]]
    reader = FakeReader()
    shared = score.share([pool(part) for part in parts], reader)
    assert len(shared) == 3
    total = {key: sum(one[key] for one in shared) for key in score.template()}
    for key, zeros in score.template().items():
        assert not zeros.any()
        assert all((one[key].shape, one[key].dtype) == (zeros.shape, zeros.dtype) for one in shared)
    found = [score.score([pool(part) for part in parts], reader, total) for _ in range(2)]
    assert [len(one) for one in found[0]] == [4, 0, 5]
    assert all(one.dtype == np.float64 for one in found[0])
    assert all(np.array_equal(a, b) for a, b in np.array(found, object).T)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("random", "zip")])
def test_a_score_of_an_example_does_not_depend_on_its_place(name):
    rows = texts(12)
    order = np.random.default_rng(1).permutation(12)
    straight, turned = score_of(name, rows), score_of(name, [rows[i] for i in order])
    assert np.allclose(turned, straight[order], rtol=1e-9)


@given(
    sums=st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)), min_size=1), length=st.integers(1, 40)
)
def test_ifd_by_perplexities_is_exp_of_minus_ira(sums, length):
    given_sum, alone_sum = np.array(sums).T
    counts = np.full(len(sums), length)
    loss = answer_loss.AnswerLoss(given_sum, counts, alone_sum, counts)
    mean = answer_loss.ira(loss, "mean")
    assert np.allclose(answer_loss.ifd(loss, "perplexity"), np.exp(-mean), rtol=1e-6)
    assert np.allclose(answer_loss.ira(loss, "sum"), mean * length)
    assert np.allclose(answer_loss.ifd(loss, "loss"), given_sum / alone_sum)


def test_an_answer_without_tokens_has_no_ira_and_no_ifd():
    loss = answer_loss.AnswerLoss(*[np.zeros(2), np.array([0, 3])] * 2)
    for found in (
        answer_loss.ira(loss, "mean"),
        answer_loss.ira(loss, "sum"),
        answer_loss.ifd(loss, "perplexity"),
    ):
        assert np.isnan(found).tolist() == [True, False]
    assert np.isnan(answer_loss.ifd(loss, "loss")).all()


def test_the_text_before_a_lone_answer_is_an_option_and_an_empty_prompt_gives_no_alignment():
    rows = [example(0, "", "abc"), example(1, "abc", "abc"), example(2, "xyz", "abc")]
    aligned = score_of("ira", rows)
    assert aligned[0] == aligned[2] == 0
    assert aligned[1] > 0
    assert score_of("ira", rows, alone="abc")[1] == 0
    assert np.allclose(score_of("ifd", rows), np.exp(-aligned), rtol=1e-6)


def test_perplexity_can_put_either_end_first():
    rows = texts(5)
    assert np.array_equal(score_of("perplexity", rows), -score_of("perplexity", rows, first="low"))


class YesReader(FakeReader):
    """Gives `yes` 0.3 as one token and ` Yes` 0.2, everything else needs two tokens; `no` has 0.1."""

    chances: ClassVar = {"yes": (0.3, 1), " Yes": (0.2, 1), "no": (0.1, 1)}

    def log_probs(self, pairs):
        found = [self.chances.get(target, (0.4, 2)) for _, target in pairs]
        return FakeLogProbs(np.log([p for p, _ in found]), np.array([n for _, n in found]))


class PiecesReader(YesReader):
    chances: ClassVar = {"yes": (0.3, 2), "Yes": (0.2, 2), " yes": (0.0625, 3), " Yes": (0.0625, 3)}


def test_ask_llm_adds_up_the_variants_of_yes_that_are_one_token():
    assert np.allclose(score_of("ask_llm", [example(0)], YesReader()), 0.5)
    assert np.allclose(score_of("ask_llm", [example(0)], YesReader(), normalise=True), 0.5 / 0.6)
    assert np.allclose(score_of("ask_llm", [example(0)], PiecesReader()), 0.625)


@given(number=st.integers(0, 12), normalise=st.booleans())
def test_ask_llm_is_a_probability(number, normalise):
    found = score_of("ask_llm", texts(number), normalise=normalise)
    assert np.all((found >= 0) & (found <= 1))


def clusters(sizes: Sequence[int], spread: float = 0.35, dimensions: int = 16, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(sizes), dimensions))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    parts = []
    for centre, size in zip(centres, sizes, strict=True):
        noise = rng.standard_normal((size, dimensions)) / np.sqrt(dimensions)
        parts.append(centre + spread * noise)
    return np.concatenate(parts)


@given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=5), seed=st.integers(0, 5))
def test_the_sum_of_sketches_is_the_sketch_of_all(cuts, seed):
    reader = Points(clusters([30, 20, 10], seed=seed))
    score = plugins.load("score", "density", {"tables": 4, "buckets": 32})
    owners = np.split(np.arange(60), sorted(cuts))
    parts = score.share([points_pool(rows) for rows in owners], reader)
    whole = score.share([points_pool(range(60))], reader)[0]["counts"]
    assert np.array_equal(sum(part["counts"] for part in parts), whole)
    assert np.array_equal(whole.sum(axis=1), np.full(len(whole), 60))
    shared = {"counts": whole}
    apart = score.score([points_pool(rows) for rows in owners], reader, shared)
    assert np.array_equal(np.concatenate(apart), score.score([points_pool(range(60))], reader, shared)[0])


def test_a_sketch_of_more_points_than_are_hashed_at_once_is_the_sum_of_its_parts():
    number = 2 * density.BLOCK + 7
    reader = Points(clusters([number], dimensions=3))
    score = plugins.load("score", "density", {"tables": 2, "buckets": 16})
    whole = score.share([points_pool(range(number))], reader)[0]["counts"]
    parts = score.share([points_pool(rows) for rows in np.array_split(np.arange(number), 20)], reader)
    assert np.array_equal(whole, sum(part["counts"] for part in parts))
    scores = one_score(score, points_pool(range(number)), reader)
    assert scores.shape == (number,)
    assert np.isfinite(scores).all()


def test_the_memory_of_a_sketch_does_not_grow_with_the_tables_of_every_example():
    """10,000 examples in 512 tables would be 41 MB, and several times that while they are counted."""
    mine, reader = points_pool(range(10_000)), Points(np.random.default_rng(0).standard_normal((10_000, 4)))
    score = plugins.load("score", "density", {})
    tracemalloc.start()
    try:
        score.score([mine], reader, score.share([mine], reader)[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_sketch_ranks_points_as_the_exact_kernel_does(scale):
    points = clusters([400, 250, 150, 100, 60, 40])
    points = np.hstack([scale * points, np.full((1000, 1), 1 - scale)])  # many features point one way
    mine, reader = points_pool(range(1000)), Points(points)
    exact = one_score(plugins.load("score", "density", {"method": "exact"}), mine, reader)
    sketched = one_score(plugins.load("score", "density", {}), mine, reader)
    assert spearman(exact, sketched) > 0.9
    assert np.all((sketched > 0) & (sketched <= 1))


def test_the_exact_density_is_the_mean_of_the_kernel():
    points = np.random.default_rng(0).standard_normal((700, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    assert np.allclose(density.exact(points, 0.5), np.exp(-apart / 0.5).mean(axis=1))
    width = np.median(apart[np.triu_indices(700, 1)])
    assert np.allclose(density.exact(points, None), np.exp(-apart / width).mean(axis=1))


def test_a_fixed_bandwidth_gives_nearly_the_value_of_the_exact_kernel():
    mine, reader = points_pool(range(300)), Points(clusters([200, 100]))
    options = {"bandwidth": 0.5, "buckets": 4096, "tables": 400}
    exact = one_score(plugins.load("score", "density", {**options, "method": "exact"}), mine, reader)
    sketched = one_score(plugins.load("score", "density", options), mine, reader)
    assert np.abs(exact - sketched).max() < 0.06


@pytest.mark.parametrize("options", [{}, {"method": "exact"}, {"method": "exact", "exact_up_to": 100}])
def test_inverse_propensity_on_density_levels_a_mixture_of_nine_to_one(options):
    mine, reader = points_pool(range(1000)), Points(clusters([900, 100], 0.1, seed=3))
    found = one_score(plugins.load("score", "density", options), mine, reader)
    policy = plugins.load("policy", "inverse_propensity", {"keep": 0.02})
    chosen = [policy.choose(found, Stage(1, 1, np.random.default_rng(seed))) for seed in range(40)]
    assert 0.4 < np.mean(np.concatenate(chosen) >= 900) < 0.6


def test_points_that_are_not_finite_or_all_equal_do_no_harm():
    points = np.ones((20, 3))
    points[4, 1] = np.nan
    for options in ({}, {"method": "exact"}):
        found = one_score(plugins.load("score", "density", options), points_pool(range(20)), Points(points))
        assert np.flatnonzero(np.isnan(found)).tolist() == [4]
        assert np.allclose(np.delete(found, 4), 1.0)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=30), st.sampled_from(["json", "python"]))
def test_a_stream_tells_the_same_ratio_as_compressing_everything_at_once(parts, text):
    form, stream = zipped.FORMS[text], zipped.Stream(zipped.FORMS[text])
    for number, part in enumerate(parts):
        whole = form.start + form.between.join(parts[: number + 1]) + form.end
        assert stream.ratio(part) == len(whole) / len(zlib.compress(whole, 9))
        stream.add(part)


def packed(examples: Sequence[Example]) -> float:
    whole = b"\n".join(zipped.serialise(one, "json") for one in examples)
    return len(whole) / len(zlib.compress(whole, 9))


def picked(examples: Sequence[Example], budget: int, **options: Any) -> list[int]:
    found = score_of("zip", examples, keep=budget / len(examples), **options)
    assert sorted(found) == list(range(1, len(examples) + 1))
    return np.argsort(-found)[:budget].tolist()


@pytest.mark.parametrize("official", [False, True])
def test_zip_finds_a_set_that_compresses_worse_than_any_random_one(official):
    rng = np.random.default_rng(0)
    few = [example(i, " ".join(rng.choice(["one", "two", "three"], 30))) for i in range(150)]
    rows = [*texts(150), *few]
    best = packed([rows[i] for i in picked(rows, 40, official=official)])
    for seed in range(20):
        drawn = np.random.default_rng(seed).choice(len(rows), 40, replace=False)
        assert best <= packed([rows[i] for i in drawn])


@given(copies=st.lists(st.integers(1, 6), min_size=2, max_size=12), seed=st.integers(0, 9))
def test_zip_takes_no_copy_before_every_text_is_taken_once(copies, seed):
    kinds = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(copies)), copies))
    distinct = texts(len(copies), seed=seed)
    order = picked([distinct[kind] for kind in kinds], len(kinds))
    assert sorted(kinds[order[: len(copies)]]) == list(range(len(copies)))


@given(number=st.integers(1, 40), share=st.floats(0.01, 1), official=st.booleans(), k3=st.integers(1, 7))
def test_zip_orders_every_row_once_whatever_the_sizes(number, share, official, k3):
    config = zipped.Config(keep=share, official=official, k1=9, k2=3, k3=k3)
    rows = [zipped.serialise(one, config.text) for one in texts(number, words=5)]
    budget = max(1, round(share * number))
    order = zipped.ordered(rows, budget, config)
    assert sorted(order) == list(range(number))
    longer = zipped.ordered(rows, number, config)
    assert longer[:budget].tolist() == order[:budget].tolist()  # a budget is cut off, not overshot


def test_zip_scales_its_stages_to_the_budget():
    assert zipped.sizes(zipped.Config(), 225) == (550, 22, 11)
    assert zipped.sizes(zipped.Config(), 7) == (50, 2, 1)
    assert zipped.sizes(zipped.Config(), 10_000) == (5000, 200, 100)
    assert zipped.sizes(zipped.Config(k1=10, k2=2, k3=5), 100) == (10, 5, 5)


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("zip", {"keep": 0.5}, {"compressing"}),
        ("density", {}, {"hashing", "comparing"}),
        ("density", {"method": "exact"}, {"comparing"}),
    ],
)
def test_a_long_score_tells_how_far_it_is_among_all_pools(monkeypatch, name, options, what):
    monkeypatch.setattr(density, "BLOCK", 4)
    told: list[tuple[str, int, int]] = []
    score, rows = plugins.load("score", name, options), texts(30)
    quiet, reader = [pool(rows[:12]), pool([]), pool(rows[12:])], FakeReader()
    pools = [replace(each, progress=lambda *at: told.append(at)) for each in quiet]
    shares = score.share(pools, reader)
    total = {key: sum(share[key] for share in shares) for key in score.template()}
    found = score.score(pools, reader, total)
    assert {said for said, _, _ in told} == what
    for one in what:
        done = [at for said, at, of in told if said == one and of == 30]
        assert len(done) > 4
        assert done == sorted(done)
        assert done[-1] == 30
    silent = score.score(quiet, reader, total)
    assert all(np.array_equal(a, b) for a, b in zip(found, silent, strict=True))
