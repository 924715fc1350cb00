"""Scores against a plain reference, and trees against rows."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from cotune.errors import DataError
from cotune.models import score
from cotune.models.causal_lm import CausalLM
from cotune.models.lora import LoraStack
from cotune.models.score import batches, context_length, score_choices, score_pairs, score_rows
from cotune.records import Example

TEXT = ["Question: which of the two is the better answer to the question? Answer: the other one, I think."]
VOCAB = 320


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges: any text has tokens, and some choices share their first ones."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    raw.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, initializer_range=0.2, **sizes, **changes)
    return LlamaForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    return GPT2LMHeadModel(config)


def gemma3() -> Gemma3ForCausalLM:
    """Its first layer sees a window of 16 tokens only."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        layer_types=layers,
        initializer_range=0.2,
        **sizes,
    )
    return Gemma3ForCausalLM(config)


def mamba() -> MambaForCausalLM:
    """Recurrent: knows neither masks nor positions."""
    torch.manual_seed(3)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, state_size=4, num_hidden_layers=2)
    return MambaForCausalLM(config)


def wrap(model: Any) -> CausalLM:
    return CausalLM(model, tokenizer(), "tiny")


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return wrap(llama())


@pytest.fixture(scope="module", params=[llama, gpt2, gemma3], ids=lambda build: build.__name__)
def any_lm(request: pytest.FixtureRequest) -> CausalLM:
    return wrap(request.param())


def question(prompt: str, *choices: str) -> Example:
    return Example(id="q1", prompt=prompt, completion="", choices=choices, answer_idx=0)


def reference(lm: CausalLM, context: str, target: str) -> float:
    """The definition, token by token, from the logits of the whole model in float64."""
    head, tail = lm.encode_pair(context, target)
    ids = [*head, *tail][-(context_length(lm) + 1) :]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    return sum(float(logs[len(ids) - 2 - i, tail[-1 - i]]) for i in range(len(tail)))


class Recorder(CausalLM):
    """Notes the shape of what is read, and may refuse or ignore a mask."""

    def __init__(self, model: Any, reaction: str = "obey") -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.reaction = reaction
        super().__init__(model, tokenizer(), "tiny")

    def hidden(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        self.shapes.append(tuple(ids.shape))
        if extra and self.reaction == "refuse":
            raise ValueError("only 2-D masks")
        return super().hidden(ids, **(extra if self.reaction == "obey" else {}))


PAIRS = [
    ("Question: where?\nAnswer:", " here"),
    ("", "no context"),
    ("trailing blanks  ", "x"),
    ("a much longer context, so that rows have to be padded: ", "caf\u00e9 \u4e16\u754c \U0001f642"),
    ("nothing asked", ""),
]


def test_sums_equal_the_definition(any_lm: CausalLM) -> None:
    scores = score_pairs(any_lm, PAIRS, tokens=64)
    expected = [reference(any_lm, *pair) for pair in PAIRS]
    np.testing.assert_allclose(scores.sums, expected, atol=1e-4)
    assert scores.counts.tolist() == [len(any_lm.encode_pair(*pair)[1]) for pair in PAIRS]
    assert scores.counts[-1] == 0
    assert scores.sums[-1] == 0
    assert scores.is_greedy[-1]
    assert scores.means[0] == scores.sums[0] / scores.counts[0]


def test_the_likeliest_token_is_greedy(lm: CausalLM) -> None:
    ids = lm.encode_pair("Answer:", "")[0]
    with torch.no_grad():
        best = int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    found = score._score(
        lm, [[score.Encoded((*ids, token), len(ids))] for token in (best, best ^ 1)], 64, None
    )
    assert found.is_greedy.tolist() == [True, False]


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_batches_do_not_matter(lm: CausalLM, tokens: int) -> None:
    alone = [score_pairs(lm, [pair], tokens=64).sums[0] for pair in PAIRS]
    np.testing.assert_allclose(score_pairs(lm, PAIRS, tokens=tokens).sums, alone, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_rows_of_tokens_score_like_their_texts(any_lm: CausalLM, tokens: int) -> None:
    pairs = [*PAIRS, *[("Question: where?\nAnswer:", text) for text in (" here", " there", " hereby")]]
    rows = [score.Encoded((*head, *tail), len(head)) for head, tail in any_lm.encode_pairs(pairs)]
    found, expected = (
        score_rows(any_lm, rows, tokens=tokens),
        score_pairs(any_lm, pairs, tokens=tokens),
    )
    np.testing.assert_allclose(found.sums, expected.sums, atol=1e-4)
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.is_greedy.tolist() == expected.is_greedy.tolist()


def test_rows_with_the_same_context_read_it_once() -> None:
    lm = Recorder(llama())
    score_pairs(lm, [("a b c", " d e"), ("a b c", " f g")], tokens=1000)  # tries a tree once
    lm.shapes.clear()
    head = tuple(range(10, 30))
    rows = [score.Encoded((*head, *tail), 20) for tail in ((1, 2, 3), (4, 5), (6,))]
    score_rows(lm, rows, tokens=1000)
    assert lm.shapes == [(1, 20 + 2 + 1)]  # the last token of a row is never read


def test_a_float64_model_scores_in_float64() -> None:
    lm = wrap(llama().double())
    assert abs(score_pairs(lm, PAIRS[:1], tokens=64).sums[0] - reference(lm, *PAIRS[0])) < 1e-12


def test_batches_keep_to_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 2, 30]
    found = list(batches(lengths, 10))
    assert found[0] == [6]  # too long for the budget, hence alone
    assert sorted(index for batch in found for index in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 10 for batch in found[1:])


CHOICES = [
    question("Question: which?\nAnswer:", "a", "b"),
    question("Question: which?\nAnswer:", "the", "the other", "the other one", "the"),
    question("", "yes", "no"),
    question("ends in blanks \n", "one", "\u0663", "\u4e16\u754c"),
    question("only", "choice"),
    question("Question: a longer one, beyond the window of a layer that sees little?\nAnswer:", "x y z", "x"),
]


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_choices_score_like_pairs(any_lm: CausalLM, tokens: int) -> None:
    found = score_choices(any_lm, CHOICES, tokens=tokens)
    for example, sums in zip(CHOICES, found, strict=True):
        expected = [reference(any_lm, example.prompt, " " + choice) for choice in example.choices]
        np.testing.assert_allclose(sums, expected, atol=1e-4)


def test_pairs_are_encoded_alike_alone_and_together(lm: CausalLM) -> None:
    pairs = [*PAIRS, PAIRS[0], ("<s>begun", " already"), ("", "<s>begun"), (" ", " ")]
    assert lm.encode_pairs(pairs) == [lm.encode_pair(*pair) for pair in pairs]
    assert lm.encode_pair("", "<s>begun")[0] == lm.encode_pair("", "x")[0] == [lm.start_id]
    assert lm.encode_pairs([]) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=3),
    choices=st.lists(st.text("abt \u00e9.", min_size=1, max_size=8), min_size=1, max_size=5),
    tokens=st.integers(1, 400),
)
def test_a_tree_scores_like_its_rows(
    lm: CausalLM, prompts: list[str], choices: list[str], tokens: int
) -> None:
    examples = [question(prompt, *choices) for prompt in prompts]
    pairs = [(prompt, " " + choice) for prompt in prompts for choice in choices]
    rows = score_pairs(lm, pairs, tokens=tokens).sums.reshape(len(prompts), -1)
    np.testing.assert_allclose(score_choices(lm, examples, tokens=tokens), rows, atol=1e-4)


def test_a_prompt_is_read_once_and_one_token_choices_cost_nothing() -> None:
    lm = Recorder(llama())
    score_choices(lm, [question("warm", "up", "it")], tokens=1000)
    lm.shapes.clear()
    example = question("Question: which?\nAnswer:", "a", "b", "I")
    num_prompt = len(lm.encode_pair(example.prompt, "")[0])
    longer = sum(len(lm.encode_pair(example.prompt, " " + c)[1]) - 1 for c in example.choices)
    found = score_choices(lm, [example], tokens=1000)
    assert len(lm.shapes) == 1
    assert lm.shapes[0][0] == 1
    assert lm.shapes[0][1] <= num_prompt + longer
    equal = question(example.prompt, "a", "a", "a")
    lm.shapes.clear()
    assert score_choices(lm, [equal], tokens=1000)[0] == pytest.approx([found[0][0]] * 3, abs=1e-5)
    assert lm.shapes[0][1] == num_prompt + len(lm.encode_pair(equal.prompt, " a")[1]) - 1


@pytest.mark.parametrize("reaction", ["ignore", "refuse"])
def test_a_model_without_trees_is_read_row_by_row(reaction: str) -> None:
    lm = Recorder(llama(), reaction)
    found = score_choices(lm, CHOICES, tokens=200)
    assert found == [
        pytest.approx(sums, abs=1e-4) for sums in score_choices(wrap(llama()), CHOICES, tokens=200)
    ]
    asked = len(lm.shapes)
    score_choices(lm, CHOICES[:1], tokens=200)
    assert len(lm.shapes) == asked + 1  # the verdict is remembered


@pytest.mark.filterwarnings("ignore")
def test_a_recurrent_model_is_read_row_by_row() -> None:
    lm = wrap(mamba())
    found = score_choices(lm, CHOICES, tokens=200)
    for example, sums in zip(CHOICES, found, strict=True):
        expected = [reference(lm, example.prompt, " " + choice) for choice in example.choices]
        np.testing.assert_allclose(sums, expected, atol=1e-4)


def test_an_adapter_takes_part() -> None:
    lm = wrap(llama())
    plain = score_choices(lm, CHOICES, tokens=100)
    stack = LoraStack(lm, 4, 8.0, "all-linear")
    adapter = stack.fresh(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    arrays = {n: rng.normal(0, 0.2, a.shape).astype(np.float32) for n, a in adapter.arrays.items()}
    stack.load([adapter.with_arrays(arrays)])
    tuned = score_choices(lm, CHOICES, tokens=100)
    assert np.abs(np.array(tuned[0]) - plain[0]).max() > 0.01
    for example, sums in zip(CHOICES, tuned, strict=True):
        expected = [reference(lm, example.prompt, " " + choice) for choice in example.choices]
        np.testing.assert_allclose(sums, expected, atol=1e-4)
    stack.load([])
    assert score_choices(lm, CHOICES, tokens=100) == plain


def test_a_long_prompt_loses_its_start() -> None:
    lm = wrap(llama(max_position_embeddings=24))
    example = question("word " * 40 + "Answer:", "a", "a longer choice", "b")
    expected = [reference(lm, example.prompt, " " + choice) for choice in example.choices]
    np.testing.assert_allclose(score_choices(lm, [example], tokens=100)[0], expected, atol=1e-4)


def test_a_target_longer_than_the_context_loses_its_end() -> None:
    lm = wrap(llama(max_position_embeddings=8))
    scores = score_pairs(lm, [("context", "x?" * 20)], tokens=100)
    assert scores.counts.tolist() == [8]


def test_nothing_in_nothing_out(lm: CausalLM) -> None:
    assert score_choices(lm, [], tokens=10) == []
    assert score_pairs(lm, [], tokens=10).sums.shape == (0,)


def test_an_empty_choice_is_refused(lm: CausalLM) -> None:
    with pytest.raises(DataError, match=r"'q1': choice 1 is ''"):
        score_choices(lm, [question("Which?", "a", "")], tokens=10)


def test_an_example_without_choices_is_refused(lm: CausalLM) -> None:
    with pytest.raises(DataError, match="'q1': has no choices"):
        score_choices(lm, [dataclasses.replace(question("Which?", "a"), choices=())], tokens=10)


def test_progress_ends_with_everything_done(lm: CausalLM) -> None:
    seen: list[tuple[int, int]] = []
    score_pairs(lm, PAIRS, tokens=60, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 1
    assert seen[-1] == (5, 5)
