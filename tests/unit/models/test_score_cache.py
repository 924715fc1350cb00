"""Log-probabilities out of the file are those that were computed, and nothing is computed twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from cotune.models.reader import Causal, ModelReader
from cotune.models.score_cache import ScoreCache, Sums

PAIRS = [("Q: fox?\nA:", " barn"), ("Q: fox?\nA:", " lake"), ("", "x"), ("Q:", " \N{SNOWMAN}")]


class Computer:
    """Something that tells log-probabilities, and remembers what it was asked."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(self, pairs):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append(list(pairs))
        sums = [-(len(context) + 0.1 * len(target)) for context, target in pairs]
        return Sums(np.array(sums), np.array([len(target) for _, target in pairs]))

    @property
    def asked(self):
        return [pair for call in self.calls for pair in call]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "scores.sqlite"


def assert_same(one, other):
    assert one.sums.tolist() == other.sums.tolist()
    assert one.counts.tolist() == other.counts.tolist()
    assert (one.sums.dtype, one.counts.dtype) == (np.float64, np.int64)


def test_a_models_numbers_are_the_same_to_the_bit(path):
    lm = tiny.lm()
    reader = ModelReader(Causal(lm, None, lm.fingerprint), 4096)
    computed = reader.log_probs(PAIRS)
    assert_same(ScoreCache(path).log_probs("m", PAIRS, reader.log_probs), computed)
    assert_same(ScoreCache(path).log_probs("m", PAIRS, Computer(fails_at=0)), computed)


@given(
    asked=st.lists(st.lists(st.sampled_from([(c, t) for c in "abc" for t in ("x", "xy", "")]), max_size=9)),
)
def test_each_pair_is_computed_once_in_any_order_of_questions(tmp_path_factory, asked):
    computer = Computer()
    cache = ScoreCache(tmp_path_factory.mktemp("kept") / "scores.sqlite")
    for pairs in asked:
        assert_same(cache.log_probs("m", pairs, computer), Computer()(pairs))
    assert len(computer.asked) == len(set(computer.asked)) == len({pair for pairs in asked for pair in pairs})


def test_nothing_is_computed_for_no_pairs(path):
    found = ScoreCache(path).log_probs("m", [], Computer(fails_at=0))
    assert found.sums.shape == found.counts.shape == (0,)


def test_another_model_context_or_target_is_another_question(path):
    cache, computer = ScoreCache(path), Computer()
    for model in ("m", "n"):
        cache.log_probs(model, [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")], computer)
    assert len(computer.asked) == 8


def test_infinite_and_missing_numbers_are_kept_too(path):
    values = [-math.inf, math.nan, -0.0]
    given_ = Sums(np.array(values), np.array([3, 0, 2**40]))
    pairs = [("", str(n)) for n in range(3)]
    ScoreCache(path).log_probs("m", pairs, lambda _: given_)
    found = ScoreCache(path).log_probs("m", pairs, Computer(fails_at=0))
    np.testing.assert_array_equal(found.sums, values)
    assert math.copysign(1, found.sums[2]) == -1
    assert found.counts.tolist() == [3, 0, 2**40]


def test_what_was_computed_before_a_kill_is_kept(path, monkeypatch):
    """At most one batch is lost."""
    monkeypatch.setattr("cotune.models.score_cache._SOME", 4)
    pairs = [("a", str(n)) for n in range(11)]
    torn = Computer(fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        ScoreCache(path).log_probs("m", pairs, torn)
    rest = Computer()
    assert_same(ScoreCache(path).log_probs("m", pairs, rest), Computer()(pairs))
    assert torn.asked == pairs[:8]
    assert rest.asked == pairs[8:]


def test_a_file_that_is_no_cache_is_moved_aside_and_told(path):
    path.parent.mkdir()
    path.write_bytes(b"somebody else's" * 100)
    notes = []
    assert_same(ScoreCache(path, notes.append).log_probs("m", PAIRS, Computer()), Computer()(PAIRS))
    assert len(notes) == 1
    assert path.with_name("scores.sqlite.broken").read_bytes().startswith(b"somebody")
