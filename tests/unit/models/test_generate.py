"""Generated texts: order, determinism, stops and lengths."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedTokenizerFast

from cotune import evaluate as evaluation
from cotune.errors import DataError
from cotune.models import generate as generation
from cotune.models.causal_lm import CausalLM
from cotune.models.generate import _end_ids, _seed, generate, write
from cotune.models.lora import LoraStack
from cotune.records import Example, Sampling, Written

PROMPTS = ["A", "a much longer prompt than the others:", "", "blanks at the end  ", "caf\u00e9"]


def tiny(kind: Any = LlamaForCausalLM, **changes: Any) -> CausalLM:
    """A random two-layer Llama over bytes, or a Mistral that sees six tokens."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = kind.config_class(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        **({"sliding_window": 6, "num_key_value_heads": 2} if kind is MistralForCausalLM else {}),
        **changes,
    )
    return CausalLM(kind(config), tokenizer, "tiny")


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny()


def tokens_by_hand(lm: CausalLM, prompt: str, num_tokens: int) -> list[int]:
    """The likeliest token again and again: one prompt, no padding, no cache."""
    ids = lm.encode_pair(prompt.rstrip(), "")[0]
    start = len(ids)
    for _ in range(num_tokens):
        with torch.no_grad():
            token = int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in _end_ids(lm):
            break
        ids = [*ids, token]
    return ids[start:]


def greedy_by_hand(lm: CausalLM, prompt: str, num_tokens: int) -> str:
    return str(lm.tokenizer.decode(tokens_by_hand(lm, prompt, num_tokens), skip_special_tokens=True))


@pytest.mark.parametrize("tokens", [1, 80, 10_000])
def test_greedy_text_is_the_likeliest_token_again_and_again(lm: CausalLM, tokens: int) -> None:
    found = generate(lm, PROMPTS, tokens=tokens, sampling=Sampling(max_new_tokens=8))
    assert found == [greedy_by_hand(lm, prompt, 8) for prompt in PROMPTS]


def test_a_seed_gives_the_same_texts_and_another_seed_others(lm: CausalLM) -> None:
    how = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
    torch.manual_seed(1)
    first = generate(lm, PROMPTS, tokens=1000, sampling=how)
    torch.manual_seed(2)
    assert generate(lm, PROMPTS, tokens=1, sampling=how) == first
    assert generate(lm, PROMPTS, tokens=1000, sampling=Sampling(12, 1.0, seed=6)) != first


def test_a_sampled_text_depends_on_its_prompt_and_the_seed_alone(lm: CausalLM) -> None:
    """What is kept by prompt and seed must not depend on which other prompts were still missing."""
    how = Sampling(12, 1.5)
    found = generate(lm, ["again", *PROMPTS, "again"], tokens=1000, sampling=how)
    assert found[0] == found[-1] == generate(lm, ["again"], tokens=1000, sampling=how)[0]
    assert found[1:-1] == generate(lm, PROMPTS[::-1], tokens=1000, sampling=how)[::-1]
    draws = [generate(lm, ["again"], tokens=1000, sampling=Sampling(12, 1.5, seed=seed)) for seed in range(4)]
    assert len({text for (text,) in draws}) == 4


def test_samples_follow_the_distribution(lm: CausalLM) -> None:
    num_draws = 400
    ids = lm.encode_pair("A", "")[0]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    probability = torch.softmax(logits / 0.5, dim=-1)
    best = int(probability.argmax())
    draws = []
    for seed in range(num_draws):
        stream = torch.Generator().manual_seed(_seed(seed, "A"))
        waits = torch.empty(len(logits)).exponential_(generator=stream)
        draws.append(int((logits / 0.5 - waits.log()).argmax()) == best)
    expected = float(probability[best])
    error = (expected * (1 - expected) / num_draws) ** 0.5
    assert abs(np.mean(draws) - expected) < 4 * error
    first = generate(lm, ["A"], tokens=100, sampling=Sampling(1, 0.5, seed=3))[0]
    assert (first == greedy_by_hand(lm, "A", 1)) == draws[3]


def test_a_tiny_top_p_is_greedy(lm: CausalLM) -> None:
    how = Sampling(max_new_tokens=8, temperature=1.0, top_p=1e-6)
    assert generate(lm, PROMPTS, tokens=1000, sampling=how) == [greedy_by_hand(lm, p, 8) for p in PROMPTS]


def test_a_text_ends_before_a_stop_string(lm: CausalLM) -> None:
    whole = greedy_by_hand(lm, "A", 12)
    stop = whole[3:5]
    found = generate(lm, ["A", "B"], tokens=1000, sampling=Sampling(12, stop=(stop, "never said")))
    assert found[0] == whole.split(stop)[0]


def test_settings_that_came_with_the_model_do_not_interfere() -> None:
    lm = tiny()
    expected = generate(lm, PROMPTS, tokens=1000, sampling=Sampling(8))
    own = lm.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = True, 3.0, 5.0, 2
    assert generate(lm, PROMPTS, tokens=1000, sampling=Sampling(8)) == expected


def test_every_end_token_of_the_model_ends_a_text() -> None:
    lm = tiny()
    ids = lm.encode_pair("A", "")[0]
    with torch.no_grad():
        first = int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    lm.model.generation_config.eos_token_id = [1, first]
    assert generate(lm, ["A"], tokens=100, sampling=Sampling(8)) == [""]


def test_a_long_prompt_loses_its_start() -> None:
    lm = tiny(max_position_embeddings=16)
    how = Sampling(max_new_tokens=4)
    assert generate(lm, ["x" * 50 + "A short end"], tokens=100, sampling=how) == [
        greedy_by_hand(lm, "xA short end", 4)
    ]


def test_an_adapter_takes_part() -> None:
    lm = tiny()
    plain = generate(lm, PROMPTS, tokens=1000, sampling=Sampling(8))
    stack = LoraStack(lm, 4, 8.0, "all-linear")
    adapter = stack.fresh(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    arrays = {n: rng.normal(0, 0.5, a.shape).astype(np.float32) for n, a in adapter.arrays.items()}
    stack.load([adapter.with_arrays(arrays)])
    tuned = generate(lm, PROMPTS, tokens=1000, sampling=Sampling(8))
    assert tuned == [greedy_by_hand(lm, prompt, 8) for prompt in PROMPTS]
    assert tuned != plain


def test_a_text_knows_its_tokens_and_whether_it_came_to_its_end(lm: CausalLM) -> None:
    """By hand: one token a byte, so the prompt has one a character, and eight new ones are the cap."""
    (cut,) = write(lm, ["A prompt"], tokens=1000, sampling=Sampling(8))
    assert (cut.tokens_in, cut.tokens_out, cut.finished) == (8, 8, False)
    whole = greedy_by_hand(lm, "A", 12)
    stopped, _ = write(lm, ["A", "B"], tokens=1000, sampling=Sampling(12, stop=(whole[3:5],)))
    assert (stopped.text, stopped.tokens_in, stopped.finished) == (whole.split(whole[3:5])[0], 1, True)
    ids = tokens_by_hand(lm, "A", 12)
    ends = [n for n in range(1, 13) if whole[3:5] in lm.tokenizer.decode(ids[:n])]
    assert stopped.tokens_out == ends[0]


def test_an_end_token_is_counted_and_not_shown() -> None:
    lm = tiny()
    first = greedy_by_hand(lm, "A", 1)
    lm.model.generation_config.eos_token_id = lm.tokenizer(first)["input_ids"]
    assert write(lm, ["A"], tokens=100, sampling=Sampling(8)) == [Written("", 1, 1, True)]


STARTS = ("fox", "an owl in a barn", "Q: a hen or a cow?")
MANY = [f"{start} {number}" for number in range(4) for start in STARTS]


@cache
def many_by_hand(kind: Any) -> list[list[int]]:
    """What a model writes after each of `MANY`, one prompt at a time, without padding, cache or batch."""
    lm = tiny(kind=kind)
    return [tokens_by_hand(lm, prompt, 24) for prompt in MANY]


def ending(kind: Any = LlamaForCausalLM) -> tuple[CausalLM, list[str]]:
    """A model that ends at some of the tokens it would write often, so that its texts have many lengths.

    And its texts after `MANY`, by hand: the likeliest tokens up to the first that ends it.
    """
    lm, tokens = tiny(kind=kind), many_by_hand(kind)
    counts = Counter(token for text in tokens for token in text[1:])
    firsts = {text[0] for text in tokens}
    lm.model.generation_config.eos_token_id = [t for t, _ in counts.most_common() if t not in firsts][:4]
    cut = [list(takewhile(lambda token: token not in _end_ids(lm), text)) for text in tokens]
    return lm, [str(lm.tokenizer.decode(text, skip_special_tokens=True)) for text in cut]


@pytest.mark.parametrize("share", [1, 8])
@pytest.mark.parametrize("kind", [LlamaForCausalLM, MistralForCausalLM], ids=["full", "window"])
def test_rows_that_leave_their_batch_change_no_text(
    share: int, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one prompt at a time. Texts outgrow the window of 6 tokens."""
    lm, expected = ending(kind)
    monkeypatch.setattr(generation, "_SHARE", share)
    sizes: list[int] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = write(lm, MANY, tokens=10_000, sampling=Sampling(24))
    assert len({written.tokens_out for written in found}) > 4
    assert sizes[0] == len(MANY)
    assert (min(sizes) < len(MANY)) == (share > 1)
    assert sorted(sizes, reverse=True) == sizes
    assert [written.text for written in found] == expected


def test_a_model_with_another_cache_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, expected = ending()
    monkeypatch.setattr(generation, "_selectable", lambda _cache: None)
    assert generate(lm, MANY, tokens=10_000, sampling=Sampling(24)) == expected


def test_texts_are_told_as_they_end() -> None:
    lm, _ = ending()
    told: list[dict[int, Written]] = []
    found = write(lm, MANY, tokens=600, sampling=Sampling(24), keep=told.append)
    assert len(told) > 4
    assert all(told)
    assert sorted(number for some in told for number in some) == list(range(len(MANY)))
    assert all(found[number] == written for some in told for number, written in some.items())


def test_a_sampled_text_does_not_depend_on_who_left() -> None:
    (lm, _), how = ending(), Sampling(24, 1.0, 0.95, seed=4)
    whole = write(lm, MANY, tokens=10_000, sampling=how)
    assert whole == [write(lm, [prompt], tokens=1, sampling=how)[0] for prompt in MANY]


def test_a_stop_string_that_is_longer_than_what_is_looked_at_is_found(lm: CausalLM) -> None:
    whole = greedy_by_hand(lm, "A", 40)
    stop = whole[10:30]
    assert generate(lm, ["A"], tokens=1000, sampling=Sampling(60, stop=(stop,))) == [whole.split(stop)[0]]


def test_nothing_in_nothing_out(lm: CausalLM) -> None:
    assert generate(lm, [], tokens=10) == []


def test_evaluation_by_choice() -> None:
    examples = [
        Example(id=name, prompt="?", completion="", choices=("a", "bbbb"), answer_idx=answer)
        for name, answer in (("x", 0), ("y", 1), ("z", 0))
    ]
    sums = [(-1.0, -2.0), (-1.0, -3.0), (-5.0, -4.0)]  # per character: -1 -0.5, -1 -0.75, -5 -1
    said = evaluation.choice_answers(examples, sums)
    assert evaluation.summary(said, "choice") == pytest.approx(
        {"accuracy": 1 / 3, "accuracy_norm": 1 / 3, "n": 3, "stderr": 1 / 3}
    )
    assert [(a.id, a.text, a.score, a.score_norm) for a in said] == [
        ("x", "a", 1.0, 0.0),
        ("y", "a", 0.0, 1.0),
        ("z", "bbbb", 0.0, 0.0),
    ]


def test_evaluation_of_a_model_by_choice_and_by_text(lm: CausalLM) -> None:
    said = greedy_by_hand(lm, "A", 8)
    how = Sampling(8)
    examples = [
        Example(id="same", prompt="A", completion=said, choices=("x", "y"), answer_idx=0),
        Example(id="other", prompt="B", completion="never said", choices=("x", "y"), answer_idx=1),
    ]
    found = evaluation.answers(lm, examples, "exact_match", tokens=100, sampling=how)
    assert evaluation.summary(found, "exact_match") == {"exact_match": 0.5, "n": 2, "stderr": 0.5}
    assert evaluation.evaluate(lm, examples, "rouge_l", tokens=100)["n"] == 2
    assert evaluation.evaluate(lm, examples, "choice", tokens=100).keys() == {
        "accuracy",
        "accuracy_norm",
        "n",
        "stderr",
    }
    assert evaluation.evaluate(lm, [], "choice", tokens=100)["accuracy"] is None


def test_an_answer_that_is_not_known_is_refused(lm: CausalLM) -> None:
    example = Example(id="q7", prompt="A", completion="", choices=("x", "y"))
    with pytest.raises(DataError, match="'q7': has no answer_idx"):
        evaluation.evaluate(lm, [example], "choice", tokens=100)
