import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tiny
from cotune.errors import ModelError
from cotune.models.causal_lm import load
from cotune.models.heal import Healing, divergence, heal
from cotune.models.shrink import shrink

TEXTS = [f"Question: what is {i} and {i}? Answer: it is {2 * i}." for i in range(8)]
QUICK = Healing(steps=6, rows=4, lr=3e-3)


def llama(vocab_size: int = 258) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=vocab_size, num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=True, **sizes
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def pair(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A teacher and the student cut from it."""
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))
    teacher = tmp_path / "teacher"
    llama().save_pretrained(teacher)
    tiny.tokenizer().save_pretrained(teacher)
    return teacher, shrink(teacher, tmp_path / "student", layers=2, texts=TEXTS)


def test_healing_brings_the_student_nearer_to_the_teacher(pair, tmp_path):
    teacher, student = pair
    out = heal(student, teacher, tmp_path / "out", texts=TEXTS, healing=QUICK)
    note = json.loads((out / "cotune.json").read_text())
    assert note["removed"]
    losses = note["healing"]["losses"]
    assert len(losses) == QUICK.steps
    assert losses[-1] < losses[0]


def test_healing_trains_the_layers_and_leaves_embedding_and_head_alone(pair, tmp_path):
    teacher, student = pair
    out = heal(student, teacher, tmp_path / "out", texts=TEXTS, healing=QUICK)
    before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (student, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers." in name}


def test_same_seed_gives_the_same_weights_and_another_seed_others(pair, tmp_path):
    teacher, student = pair
    healings = {"one": QUICK, "two": QUICK, "three": Healing(steps=6, rows=4, lr=3e-3, seed=1)}
    weights = {
        name: (
            heal(student, teacher, tmp_path / name, texts=TEXTS, healing=how) / "model.safetensors"
        ).read_bytes()
        for name, how in healings.items()
    }
    assert weights["one"] == weights["two"]
    assert weights["one"] != weights["three"]


def test_divergence_is_the_mean_kl_of_the_teacher_from_the_student(pair):
    teacher, student = (load(p, "x") for p in pair)
    ids = torch.randint(2, 258, (2, 9), generator=torch.Generator().manual_seed(0))
    p = teacher.model(ids).logits.double().log_softmax(-1)
    q = student.model(ids).logits.double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    assert float(divergence(student, teacher, ids)) == pytest.approx(float(expected), abs=1e-5)
    assert float(divergence(teacher, teacher, ids)) == pytest.approx(0.0, abs=1e-6)


def test_other_vocabularies_and_existing_folders_are_refused(pair, tmp_path):
    teacher, student = pair
    other = tmp_path / "other"
    llama(vocab_size=300).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    with pytest.raises(ModelError, match="different vocabularies"):
        heal(student, other, tmp_path / "out", texts=TEXTS, healing=QUICK)
    with pytest.raises(ModelError, match="exists already"):
        heal(student, teacher, student, texts=TEXTS, healing=QUICK)
