"""Scores of data selection against what their authors publish, recomputed or run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
from cotune import plugins
from cotune.models.causal_lm import CausalLM
from cotune.models.score import Scores, score_pairs
from cotune.protocols import Client, Given, Pool, SelectorParts
from cotune.records import Adapter, Example, Round

LETTERS = list("abcdefghijklmnoprstuvwy")


@dataclass
class TinyReader:
    """A tiny real model."""

    lm: CausalLM
    tokens: int = 1000
    fingerprint: str = "tiny"

    def mount(self, adapter: Adapter | None) -> None:
        assert adapter is None

    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        return score_pairs(self.lm, pairs, tokens=self.tokens)

    def features(self, texts: Sequence[str], dimensions: int | None, seed: int) -> Any:
        raise NotImplementedError


def pool(number: int = 120, seed: int = 5) -> list[Example]:
    """Made-up words: some rows say much, some repeat themselves, some repeat others."""
    rng = np.random.default_rng(seed)
    known = ["".join(rng.choice(LETTERS, int(rng.integers(2, 8)))) for _ in range(150)]
    found = []
    for i in range(number):
        some = rng.choice(known, int(rng.integers(3, 40)))
        prompt, answer = " ".join(rng.choice(some, 12)), " ".join(rng.choice(some, int(rng.integers(5, 30))))
        found.append(Example(id=str(i), prompt=f"{i} {prompt}:", completion=f" {answer}."))
    return found


def scored(name: str, examples: Sequence[Example], reader: Any = None, **options: Any) -> Any:
    score = plugins.load("score", name, options)
    return score.score([Pool(tuple(examples), np.random.default_rng(0))], reader, {})[0]


OFFICIAL = [5, 74, 42, 66, 3, 80, 103, 77, 34, 75, 72, 6, 17, 68, 62, 28, 29, 58, 39, 64, 7, 26, 96, 44]


def test_zip_picks_in_the_order_of_the_published_code():
    """Made with USTC-StarTeam/ZIP at f77b0b5e2cc28414fc9d51f5d08bf34ad0353527.

    `ZIP.ZIP_select(rows, "out.json", budget=24, k1=40, k2=12, k3=6, n_jobs=1)`, where rows are the dicts
    {"prompt", "completion"} of `pool()`, in a subclass of dict whose `__missing__` returns "" (their code
    counts rows by "source"); OFFICIAL is the index in `pool()` of each row of out.json.
    """
    options = {"official": True, "text": "python", "k1": 40, "k2": 12, "k3": 6}
    found = scored("zip", pool(), keep=24 / 120, **options)
    assert np.argsort(-found)[:24].tolist() == OFFICIAL
    assert np.argsort(-scored("zip", pool(), keep=20 / 120, **options))[:20].tolist() == OFFICIAL[:20]


def part_loss(lm: CausalLM, text: str, target: str) -> float:
    """Mean loss of the last part of a text, as the authors mask it: what stands before it has label -100."""
    ids = lm.tokenizer(text, return_tensors="pt").input_ids
    labels = ids.clone()
    labels[0, : len(lm.tokenizer(text[: text.rfind(target)]).input_ids)] = -100
    with torch.no_grad():
        logits = lm.model(ids).logits[0]
    return float(F.cross_entropy(logits[:-1], labels[0, 1:], ignore_index=-100))


@pytest.fixture(scope="module")
def part_losses():
    """A model, rows, and of each row the losses of its answer after its prompt and alone."""
    lm, rows = tiny.lm(seed=3), pool(50)
    with_prompt = [part_loss(lm, row.prompt + row.completion, row.completion) for row in rows]
    alone = [part_loss(lm, "### Response:" + row.completion, row.completion) for row in rows]
    return lm, rows, np.array(with_prompt), np.array(alone)


@pytest.mark.parametrize("ratio", ["loss", "perplexity"])
@pytest.mark.parametrize("tokens", [1, 1000, 20_000])
def test_ifd_is_the_authors_ratio(part_losses, ratio, tokens):
    """The procedure of tianyi-lab/Cherry_LLM at 01fac8d2febb51dbd1501ec594a20e499b51fe7d, written anew."""
    lm, rows, with_prompt, alone = part_losses
    expected = with_prompt / alone if ratio == "loss" else np.exp(with_prompt) / np.exp(alone)
    found = scored("ifd", rows, TinyReader(lm, tokens), ratio=ratio, alone="### Response:")
    assert np.ptp(expected) > 0.01
    assert np.allclose(found, expected, atol=1e-4, rtol=0)


def test_ifd_by_perplexities_is_exp_of_minus_ira_and_no_prompt_gives_no_alignment():
    reader, rows = TinyReader(tiny.lm(seed=4)), pool(30)
    ira = scored("ira", rows, reader)
    assert np.allclose(scored("ifd", rows, reader), np.exp(-ira), atol=1e-6, rtol=0)
    bare = [Example(id=row.id, prompt="", completion=row.completion) for row in rows]
    assert np.allclose(scored("ira", bare, reader), 0, atol=1e-6)


def test_ask_llm_does_not_depend_on_the_order_of_the_data():
    reader, rows = TinyReader(tiny.lm(seed=4, max_position_embeddings=1024)), pool(12)
    found = scored("ask_llm", rows, reader)
    assert np.all((found > 0) & (found < 1))
    assert np.allclose(scored("ask_llm", rows[::-1], reader), found[::-1], rtol=1e-4)


def test_feddqc_trains_on_disjoint_stages_that_cover_what_its_filter_leaves():
    reader, rounds, rows = TinyReader(tiny.lm(seed=3)), 6, pool(40)
    selector = plugins.load("selector", "feddqc", {}, parts=SelectorParts(lambda _: reader, rounds))
    ira = scored("ira", rows, reader)
    used: list[int] = []
    by_round: dict[int, np.ndarray] = {}
    for index in range(1, rounds + 1):
        now = Round(index, rounds, 1, ("a",))
        if selector.is_due(now):
            person = Client("a", rows, now, used=dict(by_round))
            (reply,) = selector.client_step("pick", [Given(None, {})], [person])
            assert not set(reply.chosen) & set(used)
            assert reply.facts == {"selected": len(reply.chosen), "total": 40}
            used += reply.chosen
            by_round[index] = np.array(reply.chosen, np.int64)
    passed = np.flatnonzero(ira >= 0)
    assert 0 < len(passed) < 40
    assert used == passed[np.argsort(-ira[passed], kind="stable")].tolist()
