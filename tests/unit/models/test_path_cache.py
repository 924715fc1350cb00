"""Texts on disk: written once, found by all they depend on, kept when a run is stopped."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest

import tiny
from cotune.errors import ConfigError, RunError
from cotune.models.generate import generate
from cotune.models.lora import LoraStack
from cotune.models.path_cache import CachedWriter, PathCache, path_key
from cotune.models.writer import LocalWriter
from cotune.records import Sampling, Written

HOW = Sampling(max_new_tokens=8)


def text_of(prompt: str) -> Written:
    return Written(f"so {prompt}", len(prompt), 3, True)


@dataclass
class Scribe:
    """Writes without a model, two texts at a time; `fails` is called before each pair."""

    fingerprint: str = "scribe"
    fails: Callable[[int], None] = lambda _: None
    asked: list[str] = field(default_factory=list)
    writes: Callable[[str], Written] = text_of

    def write(self, prompts, sampling, keep=None):
        found = []
        for start in range(0, len(prompts), 2):
            self.fails(start)
            some = prompts[start : start + 2]
            self.asked += some
            new = [self.writes(prompt) for prompt in some]
            keep(dict(enumerate(new, start)))
            found += new
        return found


PROMPTS = ["fox", "owl", "cat", "hen", "bee"]


@pytest.fixture
def cache(tmp_path):
    return PathCache(tmp_path / "paths.sqlite")


def test_what_was_written_is_not_written_again(cache):
    scribe, told = Scribe(), []
    ticks = []
    first = CachedWriter(scribe, cache, lambda *at: ticks.append(at)).write(PROMPTS[:3], HOW)
    assert first == [text_of(prompt) for prompt in PROMPTS[:3]]
    assert ticks == [("write", 0, 3), ("write", 2, 3), ("write", 3, 3)]
    found = CachedWriter(scribe, cache).write(PROMPTS, HOW, told.append)
    assert found == [text_of(prompt) for prompt in PROMPTS]
    assert scribe.asked == PROMPTS
    assert told == [{i: found[i] for i in range(3)}, {3: found[3], 4: found[4]}]


def test_where_a_batch_changes_texts_only_a_whole_list_is_found_again(cache):
    scribe = Scribe()
    writer = CachedWriter(scribe, cache, together=True)
    writer.write(PROMPTS[:3], HOW)
    assert writer.write(PROMPTS[:3], HOW) == [text_of(prompt) for prompt in PROMPTS[:3]]
    assert scribe.asked == PROMPTS[:3]

    def stop(start):
        if start:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedWriter(Scribe(fails=stop), cache, together=True).write(PROMPTS, HOW)
    ticks, told = [], []
    again = CachedWriter(scribe, cache, lambda *at: ticks.append(at), together=True)
    again.write(PROMPTS, HOW, told.append)
    assert scribe.asked == [*PROMPTS[:3], *PROMPTS]
    assert ticks[0] == ("write", 0, 5)
    assert ticks[-1] == ("write", 5, 5)
    assert sum(map(len, told)) == 5


def test_equal_prompts_are_asked_for_once(cache):
    scribe, told = Scribe(), []
    found = CachedWriter(scribe, cache).write(["fox", "owl", "fox"], HOW, told.append)
    assert [written.text for written in found] == ["so fox", "so owl", "so fox"]
    assert scribe.asked == ["fox", "owl"]
    assert told == [dict(enumerate(found))]


def test_nothing_is_asked_when_all_is_there(cache):
    CachedWriter(Scribe(), cache).write(PROMPTS, HOW)

    def refuse(_start):
        raise AssertionError

    assert len(CachedWriter(Scribe(fails=refuse), cache).write(PROMPTS, HOW)) == 5
    assert CachedWriter(Scribe(fails=refuse), cache).write([], HOW) == []


def stop(error):
    def fails(start):
        if start == 4:
            raise error

    return fails


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("endpoint x: gone"), ConfigError("no")])
def test_a_run_that_is_stopped_loses_no_text(cache, error):
    with pytest.raises(type(error)):
        CachedWriter(Scribe(fails=stop(error)), cache).write(PROMPTS, HOW)
    second = Scribe()
    assert len(CachedWriter(second, cache).write(PROMPTS, HOW)) == 5
    assert second.asked == PROMPTS[4:]


def test_a_failure_says_what_is_kept_and_how_to_go_on(cache):
    writer = CachedWriter(Scribe(fails=stop(RunError("endpoint x: gone"))), cache)
    with pytest.raises(RunError) as caught:
        writer.write(PROMPTS, HOW)
    assert str(caught.value).startswith(f"endpoint x: gone. 4 of 5 texts are kept in {cache.path}")
    assert "when the run goes on" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_empty_text_is_no_path_and_asked_for_again(cache):
    mute = Scribe(writes=lambda prompt: text_of(prompt) if prompt != "owl" else Written("", 3, 0, False))
    found = CachedWriter(mute, cache).write(PROMPTS, HOW)
    assert [written.text for written in found] == ["so fox", "", "so cat", "so hen", "so bee"]
    second = Scribe()
    assert CachedWriter(second, cache).write(PROMPTS, HOW)[1] == text_of("owl")
    assert second.asked == ["owl"]


DRAWN = Sampling(8, 0.7, 0.9, 1, ("x",))


@pytest.mark.parametrize(
    "other",
    [
        ("other", "fox", DRAWN),
        ("scribe", "fox ", DRAWN),
        ("scribe", "fox", replace(DRAWN, max_new_tokens=9)),
        ("scribe", "fox", replace(DRAWN, temperature=0.8)),
        ("scribe", "fox", replace(DRAWN, top_p=1.0)),
        ("scribe", "fox", replace(DRAWN, seed=2)),
        ("scribe", "fox", replace(DRAWN, stop=("x", "y"))),
        ("scribe", "fox", replace(DRAWN, stop=())),
    ],
)
def test_a_key_covers_all_that_a_text_depends_on(other):
    assert path_key(*other) != path_key("scribe", "fox", DRAWN)


def test_a_greedy_text_has_no_seed():
    greedy = replace(DRAWN, temperature=0.0)
    assert path_key("scribe", "fox", greedy) == path_key("scribe", "fox", replace(greedy, seed=9, top_p=1.0))
    assert path_key("scribe", "fox", greedy) != path_key("scribe", "fox", replace(greedy, stop=()))


def test_any_text_survives(cache):
    """Of one that is no Unicode, as JSON of a server can hold it, the half pair of surrogates becomes `?`."""
    odd = {b"1": Written("caf\u00e9 \x00 \ud800 \U0001f98a\n", 1, 2, False), b"2": Written("", 0, 0, True)}
    cache.put(odd)
    healed = replace(odd[b"1"], text="caf\u00e9 \x00 ? \U0001f98a\n")
    assert cache.get([b"1", b"2", b"3"]) == {**odd, b"1": healed}
    assert CachedWriter(Scribe(), cache).write(["\ud800"], HOW) == [text_of("\ud800")]


def test_a_value_that_nobody_wrote_is_not_there(cache):
    cache.put({b"1": text_of("fox")})
    with closing(sqlite3.connect(cache.path)) as file, file:
        file.executemany("INSERT INTO paths VALUES (?, ?)", [(b"2", b"{}"), (b"3", b"\xff"), (b"4", b"[1")])
    assert cache.get([b"1", b"2", b"3", b"4"]) == {b"1": text_of("fox")}


def test_a_broken_cache_is_told_and_the_texts_written_again(tmp_path):
    path, notes = tmp_path / "paths.sqlite", []
    CachedWriter(Scribe(), PathCache(path)).write(PROMPTS, HOW)
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000)
    scribe = Scribe()
    assert len(CachedWriter(scribe, PathCache(path, notes.append)).write(PROMPTS, HOW)) == 5
    assert scribe.asked == PROMPTS
    assert len(notes) == 1
    assert "moved to paths.sqlite.broken" in notes[0]


def test_a_local_model_is_not_asked_again_and_an_adapter_is_another_writer(cache, monkeypatch):
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    adapter, fresh = tiny.random_adapter(stack, size=2.0), stack.fresh(tiny.np.random.default_rng(0))
    bare, tuned = LocalWriter(lm, stack), LocalWriter(lm, stack, adapter)
    plain = CachedWriter(bare, cache).write(PROMPTS, HOW)
    assert [written.text for written in plain] == generate(lm, PROMPTS, tokens=100, sampling=HOW)
    assert CachedWriter(tuned, cache).write(PROMPTS, HOW) != plain
    assert CachedWriter(LocalWriter(lm), cache).write(PROMPTS, HOW) == plain
    monkeypatch.setattr(type(lm), "encode_pairs", lambda *_: 1 / 0)
    assert CachedWriter(LocalWriter(lm, stack, fresh), cache).write(PROMPTS, HOW) == plain
    with pytest.raises(ZeroDivisionError):
        CachedWriter(bare, cache).write(["new"], HOW)


def test_what_a_local_fingerprint_covers():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    turned = type(lm)(tiny.llama(0), tiny.tokenizer(is_turned=True), lm.fingerprint)
    half = type(lm)(tiny.llama(0).to(tiny.torch.bfloat16), tiny.tokenizer(), lm.fingerprint)
    adapters = [tiny.random_adapter(stack, seed) for seed in (1, 2)]
    writers = [
        LocalWriter(lm),
        LocalWriter(turned),
        LocalWriter(half),
        LocalWriter(tiny.lm(1)),
        LocalWriter(type(lm)(tiny.llama(0, max_position_embeddings=64), tiny.tokenizer(), lm.fingerprint)),
        *(LocalWriter(lm, stack, adapter) for adapter in adapters),
    ]
    assert len({writer.fingerprint for writer in writers}) == len(writers)
    fresh = stack.fresh(tiny.np.random.default_rng(0))
    assert LocalWriter(lm, stack, fresh).fingerprint == LocalWriter(lm, tokens=7).fingerprint
    assert LocalWriter(lm).fingerprint == writers[0].fingerprint


def test_a_local_writer_mounts_its_own_adapter():
    lm = tiny.lm()
    stack = LoraStack(lm, 2, 4, "attention")
    bare = LocalWriter(lm, stack)
    plain = bare.write(PROMPTS, HOW)
    stack.load([tiny.random_adapter(stack, size=2.0)])
    assert bare.write(PROMPTS, HOW) == plain
