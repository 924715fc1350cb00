from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from cotune.errors import ModelError
from cotune.models.gguf import convert

WIDTH, INNER, LAYERS, HEADS = 32, 64, 2, 4


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A two-layer Llama with tied weights and a byte-level tokenizer; returns its tensors."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_down": (WIDTH, INNER)}
        block |= {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        block |= {f"ffn_{part}": (INNER, WIDTH) for part in ("gate", "up")}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    tensors = {f"{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_converted_folder_is_an_ordinary_model_with_the_same_numbers(tmp_path, capsys):
    tensors = write_gguf(tmp_path / "weights.gguf")
    out = tmp_path / "model"
    out.mkdir()
    convert(tmp_path / "weights.gguf", out)
    assert capsys.readouterr() == ("", "")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert not hasattr(model.config, "quantization_config")
    assert model.config.num_hidden_layers == LAYERS
    assert model.dtype == torch.float32
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight.detach().numpy(), tensors["token_embd.weight"]
    )
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(down, tensors["blk.1.ffn_down.weight"])
    assert tokenizer.decode(tokenizer("abba")["input_ids"]) == "abba"
    assert len(tokenizer("ab")["input_ids"]) == 1


def test_converted_folder_knows_nothing_of_this_machine(tmp_path):
    write_gguf(tmp_path / "weights.gguf")
    out = tmp_path / "model"
    out.mkdir()
    convert(tmp_path / "weights.gguf", out)
    for file in out.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert '"is_local"' not in text
        assert '"local_files_only"' not in text


def test_file_that_is_no_gguf_is_a_model_error(tmp_path):
    (tmp_path / "weights.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"weights\.gguf: transformers cannot read"):
        convert(tmp_path / "weights.gguf", tmp_path)
