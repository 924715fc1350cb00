"""What selectors read from a model: features of every layer's last token, the shared basis, the cache."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

import tiny
from cotune.errors import ModelError
from cotune.models.embed import last_tokens, shared_basis
from cotune.models.lora import LoraStack
from cotune.models.reader import WIDE, Causal, Encoder, ModelReader
from cotune.models.vectors import Vectors
from cotune.scores import density
from cotune.selectors import fedhds

TEXTS = ("a fox", "an owl in the barn at night", "", "bee", "a fox", "elk " * 20)


def reader(lm=None, **more):
    lm = lm or tiny.lm()
    return ModelReader(Causal(lm, LoraStack(lm, 2, 4, "attention"), lm.fingerprint), tokens=64, **more)


def one_by_one(lm, text):
    """Hidden states as transformers gives them, of one text alone, and each layer standardised."""
    ids = lm.tokenizer(text)["input_ids"] or [lm.start_id]
    with torch.no_grad():
        out = lm.model(torch.tensor([ids]), output_hidden_states=True)
    raw = torch.stack([state[0, -1] for state in out.hidden_states])
    states = raw - raw.mean(-1, keepdim=True)
    return raw.flatten().numpy(), (states / states.std(-1, keepdim=True, correction=0)).flatten().numpy()


def test_batched_features_are_those_of_each_text_alone():
    lm = tiny.lm()
    found = reader(lm).features(TEXTS, None, 0)
    assert found.shape == (len(TEXTS), 3 * 32)
    np.testing.assert_allclose(found, [one_by_one(lm, text)[0] for text in TEXTS], atol=2e-4)
    standard = np.stack([one_by_one(lm, text)[1] for text in TEXTS])
    np.testing.assert_allclose(
        reader(lm).features(TEXTS, 16, 3), standard @ shared_basis(96, 16, 3), atol=2e-4
    )


def test_the_shared_basis_is_the_same_for_the_same_seed_and_keeps_scale():
    np.testing.assert_array_equal(shared_basis(96, 16, 3), shared_basis(96, 16, 3))
    assert not np.allclose(shared_basis(96, 16, 3), shared_basis(96, 16, 4))
    found = reader().features(TEXTS, 16, 3)
    assert 0.5 < found.std() < 2


def test_features_do_not_depend_on_the_batch():
    lm = tiny.lm()
    whole = reader(lm).features(TEXTS, 8, 0)
    np.testing.assert_allclose(whole[[1]], reader(lm).features(TEXTS[1:2], 8, 0), atol=1e-5)
    reverse = reader(lm).features(TEXTS[::-1], 8, 0)
    np.testing.assert_allclose(whole, reverse[::-1], atol=1e-5)


def test_a_mounted_adapter_is_read_with_and_taken_off(tmp_path):
    lm = tiny.lm()
    read = reader(lm, vectors=Vectors(tmp_path / "v.sqlite"))
    bare = read.features(TEXTS, 8, 0)
    read.mount(tiny.random_adapter(read.source.stack))
    assert not np.allclose(bare, read.features(TEXTS, 8, 0))
    read.mount(None)
    np.testing.assert_array_equal(bare, read.features(TEXTS, 8, 0))


def test_a_fresh_adapter_changes_nothing_and_is_read_from_the_cache(tmp_path):
    read = reader(vectors=Vectors(tmp_path / "v.sqlite"))
    bare = read.features(TEXTS, 8, 0)
    read.mount(read.source.stack.fresh(np.random.default_rng(0)))
    np.testing.assert_array_equal(bare, read.features(TEXTS, 8, 0))


def test_what_was_read_is_not_read_again(tmp_path):
    ticks: list[tuple[int, int]] = []
    vectors = Vectors(tmp_path / "v.sqlite")
    first = reader(vectors=vectors).features(TEXTS, 8, 0)
    other = reader(vectors=vectors, tick=lambda *at: ticks.append(at))
    np.testing.assert_array_equal(first, other.features(TEXTS, 8, 0))
    assert ticks == []
    other.features([*TEXTS, "a hen"], 8, 0)
    assert len(ticks) == 1
    other.features(TEXTS, 8, 1)
    assert len(ticks) > 1


def test_texts_read_together_have_the_same_bits_whatever_was_kept_before(tmp_path):
    lm, texts = tiny.lm(), [f"number {i} {'word ' * (i % 5)}" for i in range(12)]
    fresh = reader(lm).features(texts, 8, 0, together=True)
    vectors = Vectors(tmp_path / "v.sqlite", print)
    reader(lm, vectors=vectors).features(texts[:5], 8, 0)
    reader(lm, vectors=vectors).features(texts[3:8], 8, 0, together=True)
    for _ in range(2):  # read, then taken from the disk
        np.testing.assert_array_equal(reader(lm, vectors=vectors).features(texts, 8, 0, together=True), fresh)
    torn = Vectors(tmp_path / "torn.sqlite", print)
    passes = []

    def stop(done, total):
        passes.append(done)
        if len(passes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader(lm, vectors=torn, tick=stop).features(texts, 8, 0, together=True)
    np.testing.assert_array_equal(reader(lm, vectors=torn).features(texts, 8, 0, together=True), fresh)


def test_what_a_cache_key_covers(tmp_path):
    """Another type or another tokenizer over the same weights must not find these vectors."""
    vectors = Vectors(tmp_path / "v.sqlite")
    lm = tiny.lm()
    reader(lm, vectors=vectors).features(TEXTS, 8, 0)
    turned = type(lm)(tiny.llama(0), tiny.tokenizer(is_turned=True), lm.fingerprint)
    half = type(lm)(tiny.llama(0).to(torch.bfloat16), tiny.tokenizer(), lm.fingerprint)
    for other in (turned, half):
        ticks: list[tuple[int, int]] = []
        reader(other, vectors=vectors, tick=lambda *at, ticks=ticks: ticks.append(at)).features(TEXTS, 8, 0)
        assert ticks
    assert reader(turned).fingerprint != reader(lm).fingerprint


def test_another_model_has_other_keys(tmp_path):
    vectors = Vectors(tmp_path / "v.sqlite")
    one = reader(tiny.lm(0), vectors=vectors).features(TEXTS, 8, 0)
    assert not np.allclose(one, reader(tiny.lm(1), vectors=vectors).features(TEXTS, 8, 0))


def test_texts_longer_than_the_context_lose_their_start_and_are_counted():
    read = reader(tiny.lm(max_position_embeddings=16))
    long = "abcdefgh" * 10
    found = read.features([long, "ab"], None, 0)
    assert read.num_cut == 1
    np.testing.assert_allclose(
        found[0], reader(tiny.lm(max_position_embeddings=16)).features([long[-16:]], None, 0)[0]
    )


def test_nothing_to_read():
    assert reader().features([], 8, 0).shape == (0, 8)
    assert reader().tokenize([]) == []


def test_log_probabilities_sum_to_one_over_the_vocabulary():
    lm = tiny.lm()
    letters = [chr(code) for code in range(32, 127)]
    found = reader(lm).log_probs([("a fox", letter) for letter in letters])
    assert (found.counts == 1).all()
    assert 0 < np.exp(found.sums).sum() <= 1 + 1e-6


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=tiny.VOCAB, max_position_embeddings=24, **sizes)).eval()


def encoder_reader():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.model_max_length = 24
    return ModelReader(Encoder(bert(), tokenizer, "bert"), tokens=64)


def test_an_encoder_gives_unit_vectors_that_padding_does_not_touch():
    read, texts = encoder_reader(), ("a fox", "an owl", "bee " * 9)
    found = read.features(texts, None, 0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found[[0]], read.features(texts[:1], None, 0), atol=1e-5)
    assert read.num_cut == 1


def test_an_encoder_has_no_log_probabilities():
    with pytest.raises(ModelError, match="causal language model"):
        encoder_reader().log_probs([("a", "b")])


def test_a_frozen_model_takes_no_adapter():
    lm = tiny.lm()
    frozen = ModelReader(Causal(lm, None, "f"), tokens=64)
    frozen.mount(None)
    with pytest.raises(ModelError, match="frozen"):
        frozen.mount(tiny.random_adapter(LoraStack(lm, 2, 4, "attention")))


def test_hooks_are_taken_off_even_if_a_pass_fails(monkeypatch):
    lm = tiny.lm()
    monkeypatch.setattr(type(lm), "hidden", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(last_tokens(lm, ["a"], 64, is_raw=True))
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_vectors_survive_many_keys_and_a_second_opening(tmp_path):
    store = Vectors(tmp_path / "deep" / "v.sqlite")
    values = {str(i).encode(): np.full(3, i, np.float32) for i in range(1203)}
    store.put(values)
    store.put({b"7": np.zeros(3, np.float32)})
    found = Vectors(tmp_path / "deep" / "v.sqlite").get([*values, b"missing"])
    assert found.keys() == values.keys()
    assert found[b"7"].tolist() == [0, 0, 0]
    assert found[b"1202"].tolist() == [1202] * 3


def test_a_narrow_basis_is_the_beginning_of_a_wide_one():
    np.testing.assert_array_equal(shared_basis(96, 16, 3), shared_basis(96, 128, 3)[:, :16])
    wide = reader().features(TEXTS, WIDE, 3)
    np.testing.assert_array_equal(reader().features(TEXTS, 16, 3), wide[:, :16])


def test_one_reading_serves_every_width_up_to_the_widest(tmp_path):
    """FedHDS asks for 16 dimensions and density for 128, of the same seed: the texts are read once."""
    assert fedhds.Config().seed == density.Config().seed
    assert max(fedhds.Config().dimensions, density.Config().dimensions) <= WIDE
    ticks: list[tuple[int, int]] = []
    vectors = Vectors(tmp_path / "v.sqlite")
    read = reader(vectors=vectors, tick=lambda *at: ticks.append(at))
    few = read.features(TEXTS, 16, 0)
    num_passes = len(ticks)
    many = read.features(TEXTS, 128, 0)
    assert len(ticks) == num_passes
    assert (few.shape, many.shape) == ((len(TEXTS), 16), (len(TEXTS), 128))
    np.testing.assert_array_equal(few, many[:, :16])
    other = reader(vectors=Vectors(tmp_path / "other.sqlite"))  # another party, who asks the other way round
    np.testing.assert_array_equal(other.features(TEXTS, 128, 0), many)
    np.testing.assert_array_equal(other.features(TEXTS, 16, 0), few)
    wider = read.features(TEXTS, 200, 0)
    assert len(ticks) > num_passes
    np.testing.assert_allclose(wider[:, :16], few, atol=1e-5)
