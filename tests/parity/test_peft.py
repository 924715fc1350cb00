"""PEFT is the oracle: our folders load there with the same logits, a plain loop gives the same adapter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny
from cotune.models.causal_lm import CausalLM
from cotune.models.lora import LoraStack, load_peft, save_peft
from cotune.models.tune import TuneJob, lr_factor, plan_batches, tune

IDS = torch.arange(2, 42).view(2, 20)

# what PEFT and transformers have to settle between them
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def gpt2() -> CausalLM:
    """Its linear layers are Conv1D, whose weight is stored the other way round."""
    torch.manual_seed(5)
    sizes = {"vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    model = GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=0, eos_token_id=1, **sizes))
    return CausalLM(model, tiny.tokenizer(), "gpt2")


def our_logits(lm: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return lm.project(lm.hidden(IDS))


@pytest.mark.parametrize("targets", ["attention", "all-linear", ["q_proj", "down_proj"]])
def test_peft_loads_our_folder_with_the_same_logits(small, tmp_path, targets):
    lm = tiny.loaded(small / "slm")
    stack = LoraStack(lm, 4, 6, targets)
    adapter = tiny.random_adapter(stack)
    stack.load([adapter])
    save_peft(adapter, tmp_path, str(small / "slm"))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small / "slm"), str(tmp_path))
    with torch.no_grad():
        logits = theirs(IDS).logits
        with theirs.disable_adapter():
            assert not torch.allclose(logits, theirs(IDS).logits, atol=1e-2)
    torch.testing.assert_close(our_logits(lm), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_peft_loads_an_adapter_of_conv1d_layers(tmp_path, targets):
    lm = gpt2()
    stack = LoraStack(lm, 4, 6, targets)
    adapter = tiny.random_adapter(stack)
    stack.load([adapter])
    ours = our_logits(lm)
    save_peft(adapter, tmp_path, "gpt2")
    theirs = PeftModel.from_pretrained(gpt2().model, str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_we_load_a_folder_of_peft_with_the_same_logits(small, tmp_path, targets):
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(small / "slm"), config).eval()
    theirs.save_pretrained(str(tmp_path))
    lm = tiny.loaded(small / "slm")
    stack = LoraStack(lm, 4, 6, targets)
    stack.load([load_peft(tmp_path, lm.fingerprint)])
    with torch.no_grad():
        torch.testing.assert_close(our_logits(lm), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


def peft_loop(lm: CausalLM, start, examples, config, rng) -> dict[str, np.ndarray]:
    """An ordinary fine-tuning script: PEFT, AdamW, labels of -100 on prompt and padding, clipping."""
    lora = LoraConfig(
        r=start.rank, lora_alpha=start.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny.llama().double(), lora).double().train()
    weights = {name: torch.from_numpy(array.copy()) for name, array in start.arrays.items()}
    set_peft_model_state_dict(model, weights)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    batches = plan_batches(lm, examples, config, rng).batches
    for step, rows in enumerate(batches):
        length = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *[0] * (length - len(row.ids))] for row in rows])
        labels = torch.full_like(ids, -100)
        for r, row in enumerate(rows):
            labels[r, row.num_context : len(row.ids)] = ids[r, row.num_context : len(row.ids)]
        mask = torch.tensor([[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows])
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimiser.param_groups[0]["lr"] = config.lr * lr_factor(config, (step + 0.5) / len(batches))
        optimiser.step()
    return {n: p.detach().numpy() for n, p in get_peft_model_state_dict(model).items()}


def test_a_client_learns_what_a_plain_peft_loop_learns():
    lm = tiny.lm(dtype=torch.float64)
    stack = LoraStack(lm, 4, 8, "all-linear")
    config = tiny.tune_config(
        lr=5e-3, epochs=2.5, batch_size=3, schedule="cosine", warmup=0.2, weight_decay=0.1, clip=0.5
    )
    start, examples = tiny.random_adapter(stack), tiny.examples(8)
    [ours] = tune(lm, stack, [TuneJob(examples, start, np.random.default_rng(4))], config)
    theirs = peft_loop(lm, start, examples, config, np.random.default_rng(4))
    assert ours.steps == 3 + 3 + 2  # 8 rows in threes, twice, then 4 rows
    assert theirs.keys() == ours.adapter.arrays.keys()
    for name, array in ours.adapter.arrays.items():
        assert not np.allclose(array, start.arrays[name])
        # Llama's norms and rotary angles are float32 also in a float64 model
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-6)


def test_a_fresh_adapter_is_drawn_as_peft_draws_it():
    """A uniform in +-1/sqrt(in) with PEFT's spread, B zero."""
    lm = tiny.lm(hidden_size=64)
    ours = LoraStack(lm, 16, 16, ["q_proj"]).fresh(np.random.default_rng(0)).arrays
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj"], task_type="CAUSAL_LM")
    theirs = get_peft_model_state_dict(get_peft_model(tiny.llama(hidden_size=64), config))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        expected = theirs[name].numpy()
        assert array.shape == expected.shape
        assert np.abs(array).max() <= 1 / math.sqrt(64) if "lora_A" in name else not array.any()
        # 1024 draws of a uniform: the standard error of the spread is 2 %; four of them
        assert array.std() == pytest.approx(expected.std(), rel=0.08)
