"""Log-likelihoods and accuracies against lm-evaluation-harness on a tiny random model.

Needs the `bench` extra. Checked with lm-eval 0.4.13.
"""

from __future__ import annotations

import importlib.util
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cotune.evaluate import choice_answers, summary
from cotune.models.causal_lm import CausalLM
from cotune.models.score import score_choices, score_pairs
from cotune.records import DELIMITER, Example

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install .[bench]"
    ),
    pytest.mark.filterwarnings("ignore"),  # what lm-eval warns of is not ours
]
CONTEXT = 96


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds-bos"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    """A random two-layer Llama over bytes; its tokenizer adds a BOS or does not."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if request.param:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CausalLM(LlamaForCausalLM(config), tokenizer, "tiny")


def their_sums(lm: CausalLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness: Any = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4, device="cpu")
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found: list[tuple[float, bool]] = harness.loglikelihood(asked, disable_tqdm=True)
    return found


def questions(num_examples: int) -> list[Example]:
    rng = random.Random(0)
    words = ["cell", "the sun", "\u4e16\u754c", "a", "caf\u00e9", "b c d", "the sun and the moon", "x"]
    found = []
    for number in range(num_examples):
        prompt = "Question: " + " ".join(rng.choices(words, k=rng.randint(1, 8))) + "\nAnswer:"
        choices = tuple(rng.choices(words, k=rng.randint(2, 5)))
        answer = rng.randrange(len(choices))
        found.append(
            Example(id=str(number), prompt=prompt, completion="", choices=choices, answer_idx=answer)
        )
    return found


PAIRS = [
    ("Question: where?\nAnswer:", " here"),
    ("", "no context"),
    ("trailing blanks  ", "x"),
    ("trailing newline\n", " x"),
    ("\u4e16\u754c \U0001f642", " caf\u00e9"),
    ("", "<s>nothing but the start token before"),
    ("<s>it begins with the start token", " and goes on"),
    ("longer than the context: " + "word " * 30, " target"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: repr(pair[0][:12]))
def test_pairs_have_their_sums(lm: CausalLM, pair: tuple[str, str]) -> None:
    ((value, is_greedy),) = their_sums(lm, [pair])
    ours = score_pairs(lm, [pair], tokens=100)
    assert ours.sums[0] == pytest.approx(value, abs=1e-4)
    assert bool(ours.is_greedy[0]) == is_greedy


def test_choices_have_their_sums_and_accuracies(lm: CausalLM) -> None:
    examples = questions(40)
    pairs = [(e.prompt, DELIMITER + choice) for e in examples for choice in e.choices]
    theirs = iter(value for value, _ in their_sums(lm, pairs))
    rows = [np.array([next(theirs) for _ in e.choices]) for e in examples]
    ours = score_choices(lm, examples, tokens=400)
    for mine, row in zip(ours, rows, strict=True):
        np.testing.assert_allclose(mine, row, atol=1e-4)
    found = summary(choice_answers(examples, ours), "choice")
    assert found == pytest.approx(their_metrics(examples, rows))


def their_metrics(examples: list[Example], rows: list[Any]) -> dict[str, float]:
    """What ConfigurableTask.process_results and the aggregation of lm-eval make of the sums."""
    from lm_eval.api.metrics import mean, mean_stderr

    acc, acc_norm = [], []
    for example, values in zip(examples, rows, strict=True):
        lengths = np.array([float(len(choice)) for choice in example.choices])
        acc.append(1.0 if np.argmax(values) == example.answer_idx else 0.0)
        acc_norm.append(1.0 if np.argmax(values / lengths) == example.answer_idx else 0.0)
    assert 0 < math.fsum(acc) < len(acc)
    return {
        "accuracy": mean(acc),
        "accuracy_norm": mean(acc_norm),
        "n": len(acc),
        "stderr": mean_stderr(acc),
    }
