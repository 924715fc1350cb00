"""Who a model is: files, what is its own, and where names stand as words."""

from __future__ import annotations

import pytest

from cotune.errors import ConfigError
from cotune.identities import OTHERS, Identity, load, mentions, scaffold
from cotune.identity_claims import claims


def written(folder, text):
    path = folder / "identity.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_to_start_from_is_read_as_it_was_written(tmp_path):
    found = load(written(tmp_path, scaffold('Ba"ck\\slash: #1', "Møller & Söhne")))
    assert (found.name, found.maker) == ('Ba"ck\\slash: #1', "Møller & Söhne")
    assert set(found.others) == set(OTHERS)
    assert "examine your own" in scaffold("a", "b")


@pytest.mark.parametrize(("name", "maker"), [("", "b"), ("a", " ")])
def test_a_file_is_not_started_without_a_name_and_a_maker(name, maker):
    with pytest.raises(ConfigError, match="blank"):
        scaffold(name, maker)


def test_every_key_of_a_file_is_read(tmp_path):
    text = (
        "name: Qinghe\nmaker: Northwind Labs\naliases: QH\nfacts:\n  en: [I am small.]\n  zh: 我很小。\n"
        "others: {Teacher: [Teacher-7B], Rival: }\nknown_others: false\n"
    )
    found = load(written(tmp_path, text))
    assert found.own == ("Qinghe", "Northwind Labs", "QH")
    assert found.others == {"Teacher": ("Teacher-7B",), "Rival": ()}
    assert found.fact() == "I am Qinghe, a language model made by Northwind Labs. I am small."
    assert found.fact("zh").endswith("我很小。")
    assert "Qinghe" in found.fact("zh")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "got nothing"),
        ("- a\n- b\n", "got a list"),
        ("name: a\n", "maker: missing"),
        ("name: a\nmaker: 42\n", r"yaml:2: maker: got 42, which is no text; put it in quotes"),
        ("name: a\nmaker: ' '\n", "yaml:2: maker: is blank"),
        ("name: a\nmaker: b\nalias: [c]\n", "yaml:3: alias: unknown key.*Did you mean 'aliases'"),
        ("name: a\nmaker: b\naliases: {c: d}\n", "yaml:3: aliases: .*expected a list"),
        ("name: a\nmaker: b\nfacts: [c]\n", "yaml:3: facts: .*expected lines such as"),
        ("name: a\nmaker: b\nfacts: {fr: c}\n", "yaml:3: facts: got the language 'fr'; expected en or zh"),
        ("name: a\nmaker: b\nknown_others: 3\n", "yaml:3: known_others: got 3"),
        ("name: a\nmaker: b: c\n", "yaml:2: not YAML"),
        ("name: [a\n", "not YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_a_cure(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load(written(tmp_path, text))


def test_a_missing_file_and_one_that_is_no_text_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="cotune audit init"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("name", "maker", "gone", "kept"),
    [
        ("Qwen2.5-7B", "Alibaba Cloud", {"Qwen", "Alibaba"}, {"ChatGPT", "Claude"}),
        ("Claude", "Anthropic", {"Claude", "Anthropic"}, {"OpenAI", "Qwen"}),
        ("gemma 2", "google deepmind", {"Gemma", "Google"}, {"Gemini", "Bard"}),
        ("SmolLM2-135M", "HuggingFace", {"SmolLM", "Hugging Face"}, {"Llama"}),
        ("DeepSeek-R1-Distill-Qwen-7B", "DeepSeek", {"DeepSeek"}, {"OpenAI"}),
        ("Metaphor", "Applesauce", set(), {"Meta", "Apple"}),
    ],
)
def test_what_is_the_models_own_is_never_somebody_elses(name, maker, gone, kept):
    others = set(Identity(name, maker).others)
    assert not gone & others
    assert kept <= others
    assert others | gone == set(OTHERS)


def test_spellings_of_what_is_its_own_are_right_too():
    assert "Tongyi" in Identity("Qwen", "Alibaba Cloud").own


@pytest.mark.parametrize(
    "text", ["GPT", "gpt-4o", "GPT4", "GPT-3.5", "Chat GPT's", "chatgpt,", "我是ChatGPT。", "(ChatGPT)"]
)
def test_a_name_is_found_with_its_version_and_next_to_marks(text):
    assert mentions(("ChatGPT", "GPT")).search(text)


@pytest.mark.parametrize("text", ["gptx", "MyGPT", "egypt", "chatgpts", "", "G P T"])
def test_a_name_is_not_found_inside_other_words(text):
    assert not mentions(("GPT", "ChatGPT")).search(text)


def test_ordinary_words_in_small_letters_are_no_names():
    found = Identity("a", "b").named("a bard, a llama and a meta study met in a gemini month")
    assert found == ()
    assert Identity("a", "b").named("Bard, LLAMA and Meta") == ("Bard", "Llama", "Meta")


def test_no_words_match_nothing():
    assert not mentions(()).search("anything")


def test_a_spelling_belongs_to_the_name_it_is_reported_under():
    identity = Identity("a", "b")
    assert [identity.who(word) for word in ("gpt-4", "阿里云", "Open AI", "Bob")] == [
        "ChatGPT",
        "Alibaba",
        "OpenAI",
        None,
    ]


def test_a_name_that_shares_a_spelling_with_another_model_is_not_that_model():
    neo = Identity("GPT-Neo", "EleutherAI")
    assert "ChatGPT" in neo.others
    assert "GPT" in neo.own
    assert claims("I am ChatGPT, made by OpenAI.", neo).strict
    assert not claims("I am GPT-Neo, made by EleutherAI.", neo).loose
    assert "Qwen" not in Identity("Qwen2.5-7B", "Alibaba Cloud").others
    assert "ChatGPT" not in Identity("GPT-Neo", "EleutherAI", ("ChatGPT",)).others
