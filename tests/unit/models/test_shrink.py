import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import tiny
from cotune.errors import ModelError
from cotune.models import shrink as shrink_module
from cotune.models.causal_lm import CausalLM
from cotune.models.layers import LayerStack
from cotune.models.shrink import choose_layers, pack, shrink

pytestmark = pytest.mark.usefixtures("cache_folder")

TEXTS = [f"Question: what is {i} and {i}? Answer: it is {2 * i}." for i in range(5)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 258}


def build(family: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    grouped = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.2}
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    window = {"layer_types": kinds, "sliding_window": 8}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**grouped, tie_word_embeddings=True))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**grouped, **window, use_sliding_window=True))
    if family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**grouped, **window, head_dim=8))
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=258, n_embd=32, n_layer=4, n_head=4, initializer_range=0.2)
        )
    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, init_std=0.2))


FAMILIES = ("llama", "qwen2", "gemma3", "gpt2", "opt")


def wrap(model: torch.nn.Module) -> CausalLM:
    return CausalLM(model, tiny.tokenizer(), "tiny")


def save(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def silence_layers(model: LlamaForCausalLM, *layers: int) -> LlamaForCausalLM:
    """Layers that add nothing to what passes through them."""
    for layer in layers:
        torch.nn.init.zeros_(model.model.layers[layer].self_attn.o_proj.weight)
        torch.nn.init.zeros_(model.model.layers[layer].mlp.down_proj.weight)
    return model


def influences(lm: CausalLM, texts: list[str]) -> tuple[float, ...]:
    return choose_layers(lm, texts, remove=1, method="influence").influence


def test_influence_of_a_layer_that_does_nothing_is_zero():
    lm = wrap(silence_layers(build("llama"), 2))
    influence = influences(lm, TEXTS)
    assert len(influence) == 4
    assert influence[2] == pytest.approx(0.0, abs=1e-6)
    assert min(influence[0], influence[1], influence[3]) > 0.01


def test_influence_is_one_minus_the_mean_cosine_of_input_and_output():
    lm = wrap(build("llama"))
    ids = torch.tensor([lm.tokenizer("".join(TEXTS))["input_ids"][:64]])
    states = lm.model(ids, output_hidden_states=True).hidden_states
    cosine = torch.nn.functional.cosine_similarity(states[1][:, 1:], states[2][:, 1:], dim=-1).mean()
    lm.tokenizer = deepcopy(lm.tokenizer)  # the one of all tests keeps its own
    lm.tokenizer.eos_token = None
    assert influences(lm, ["".join(TEXTS)[:64]])[1] == pytest.approx(1 - float(cosine), abs=1e-6)


def test_influence_removes_the_layers_that_do_nothing():
    lm = wrap(silence_layers(build("llama"), 1, 2))
    choice = choose_layers(lm, TEXTS, remove=2, method="influence")
    assert choice.removed == (1, 2)
    assert choice.loss_after == pytest.approx(choice.loss_before, abs=1e-5)
    assert (choice.method, len(choice.influence)) == ("influence", 4)


def loss_without(lm: CausalLM, removed: tuple[int, ...]) -> float:
    return shrink_module._loss(lm, pack(lm, TEXTS), [layer for layer in range(4) if layer not in removed])


def test_greedy_takes_two_thirds_by_influence_and_the_rest_by_loss():
    lm = wrap(build("llama", seed=4))
    influence = influences(lm, TEXTS)
    best = min(range(4), key=lambda layer: loss_without(lm, (layer,)))
    assert choose_layers(lm, TEXTS, remove=1, method="greedy").removed == (best,)
    first = influence.index(min(influence))
    second = min(set(range(4)) - {first}, key=lambda layer: loss_without(lm, (first, layer)))
    choice = choose_layers(lm, TEXTS, remove=2, method="greedy")
    assert choice.removed == tuple(sorted((first, second)))


def test_leaving_layers_out_for_a_while_changes_nothing_afterwards():
    lm = wrap(build("gemma3"))
    stack = LayerStack(lm.model)
    ids = torch.tensor([lm.tokenizer(TEXTS[0])["input_ids"]])
    whole, kinds = lm.hidden(ids), list(lm.model.config.layer_types)
    with stack.only([0, 2, 3]):
        assert len(lm.model.model.layers) == lm.model.config.num_hidden_layers == 3
        assert lm.model.config.layer_types == [kinds[0], kinds[2], kinds[3]]
        assert not torch.equal(lm.hidden(ids), whole)
    assert torch.equal(lm.hidden(ids), whole)
    assert lm.model.config.layer_types == kinds


def test_loss_is_the_cross_entropy_that_transformers_computes():
    lm = wrap(build("llama"))
    lm.tokenizer = deepcopy(lm.tokenizer)
    lm.tokenizer.eos_token = None
    text = "a text of fewer than sixty-four bytes, all of them in one row"
    choice = choose_layers(lm, [text], remove=1)
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    assert choice.loss_before == pytest.approx(float(lm.model(ids, labels=ids).loss), abs=1e-5)
    assert math.isfinite(choice.loss_after)


@pytest.mark.parametrize("family", FAMILIES)
def test_student_is_an_ordinary_model_equal_to_the_teacher_without_those_layers(family, tmp_path):
    teacher = save(build(family), tmp_path / "teacher")
    student = shrink(teacher, tmp_path / "student", layers=2, texts=TEXTS)
    note = json.loads((student / "cotune.json").read_text())
    kept = [layer for layer in range(4) if layer not in note["removed"]]
    small, whole = (AutoModelForCausalLM.from_pretrained(p).eval() for p in (student, teacher))
    assert small.config.num_hidden_layers == 2
    assert small.num_parameters() < whole.num_parameters()
    ids = torch.tensor([tiny.tokenizer()(TEXTS[0])["input_ids"]])
    with torch.no_grad(), LayerStack(whole).only(kept):
        torch.testing.assert_close(small(ids).logits, whole(ids, use_cache=False).logits)
    assert (
        AutoTokenizer.from_pretrained(student)("hello")["input_ids"] == tiny.tokenizer()("hello")["input_ids"]
    )


def test_per_layer_entries_and_layer_numbers_follow_the_kept_layers(tmp_path):
    student = shrink(save(build("gemma3"), tmp_path / "teacher"), tmp_path / "student", layers=3, texts=TEXTS)
    removed = json.loads((student / "cotune.json").read_text())["removed"]
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    del kinds[removed[0]]
    model = AutoModelForCausalLM.from_pretrained(student)
    assert model.config.layer_types == kinds
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]


def test_tied_weights_stay_tied_and_generation_works(tmp_path):
    student = shrink(save(build("llama"), tmp_path / "teacher"), tmp_path / "student", layers=2, texts=TEXTS)
    model = AutoModelForCausalLM.from_pretrained(student)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=1).shape[1] > 3


def test_same_teacher_and_texts_give_the_same_student(tmp_path):
    teacher = save(build("llama"), tmp_path / "teacher")
    one, two = (shrink(teacher, tmp_path / name, layers=2, texts=TEXTS) for name in ("one", "two"))
    for file in ("model.safetensors", "config.json", "cotune.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


@pytest.mark.parametrize("layers", [0, -1, 4, 9])
def test_impossible_numbers_of_layers_are_refused(layers, tmp_path):
    teacher = save(build("llama"), tmp_path / "teacher")
    with pytest.raises(ModelError, match=rf"layers={layers}: expected 1 to 3"):
        shrink(teacher, tmp_path / "student", layers=layers, texts=TEXTS)
    assert not (tmp_path / "student").exists()


def test_existing_folder_is_not_written_over(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        shrink(tmp_path / "teacher", tmp_path / "student", layers=2, texts=TEXTS)


def test_no_texts_and_impossible_measurements_are_refused():
    lm = wrap(build("llama"))
    with pytest.raises(ModelError, match="too few"):
        choose_layers(lm, [], remove=1)
    with pytest.raises(ModelError, match="expected 1 to 3"):
        choose_layers(lm, TEXTS, remove=4)


def test_failed_write_leaves_nothing_behind(tmp_path):
    teacher = save(build("llama"), tmp_path / "teacher")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        shrink(teacher, tmp_path / "file" / "student", layers=2, texts=TEXTS)


def test_model_without_a_list_of_layers_is_refused():
    model = build("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="no list of 7 decoder layers"):
        LayerStack(model)


def test_shrinking_prints_nothing(tmp_path, capsys):
    teacher = save(build("llama"), tmp_path / "teacher")
    capsys.readouterr()
    shrink(teacher, tmp_path / "student", layers=2, texts=TEXTS)
    assert capsys.readouterr() == ("", "")
