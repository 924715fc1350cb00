"""Questions and templates: ours, and those of a user's file or package."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from cotune.errors import ConfigError, DataError
from cotune.identities import Identity
from cotune.identity_texts import fill, has_slot, misleads, questions, templates


def test_there_are_25_questions_in_each_of_two_languages_on_five_themes():
    found = questions()
    assert Counter(question.language for question in found) == {"en": 25, "zh": 25}
    assert set(Counter(question.theme for question in found).values()) == {10}
    assert len({question.text for question in found}) == 50
    for question in found:
        assert ("\u4e00" <= question.text[0] <= "\u9fff") == (question.language == "zh")


def test_the_first_ten_questions_cover_all_themes_and_languages():
    found = questions(10)
    assert len({(question.theme, question.language) for question in found}) == 10


def test_no_question_names_anybody():
    identity = Identity("nobody", "no one")
    assert not any(misleads(q.text) or identity.named(q.text) for q in questions())


def test_our_templates_have_a_slot_and_few_name_an_identity():
    found = templates()
    assert len(found) == len(set(found)) >= 24
    assert all(template.count("{query}") == 1 for template in found)
    identity = Identity("nobody", "no one")
    assert 3 <= sum(bool(identity.named(template)) for template in found) <= 8


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Say {query} now {x} {{}}", "Say Q now {x} {{}}"),
        ("[INSERT PROMPT HERE]!", "Q!"),
        ("{query} and {query}", "Q and Q"),
        ("no slot\n", "no slot\n\nQ"),
        ("  ", "Q"),
    ],
)
def test_a_slot_is_filled_and_other_braces_stay(template, expected):
    assert fill(template, "Q") == expected


def test_a_question_may_hold_the_text_of_a_slot():
    assert fill("a {query} b", "[INSERT PROMPT HERE] {query}") == "a [INSERT PROMPT HERE] {query} b"
    assert has_slot("x {query}")
    assert not has_slot("{ query }")


ROWS = ["first {query}", "second, with a comma: {query}", "third\nof two lines [INSERT PROMPT HERE]"]


def test_one_list_is_read_from_every_kind_of_file(tmp_path):
    quoted = [json.dumps(text)[1:-1].replace("\\n", "\n") for text in ROWS]
    contents = {
        "a.jsonl": "".join(json.dumps({"prompt": text}) + "\n\n" for text in ROWS),
        "b.jsonl": "".join(json.dumps(text) + "\n" for text in [*ROWS, ROWS[0]]),
        "c.json": json.dumps(ROWS),
        "d.json": json.dumps({"templates": [{"id": 1, "Text": text} for text in ROWS]}),
        "e.csv": "id,Instruction\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(quoted)),
        "f.csv": "\ufefftemplate\n" + "".join(f'"{text}"\n' for text in quoted),
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert templates(str(tmp_path / name)) == ROWS, name
    (tmp_path / "g.txt").write_text("one {query}\n\n two \n", encoding="utf-8")
    assert templates(str(tmp_path / "g.txt")) == ["one {query}", "two"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.csv",
            "id,words\n1,hello\n",
            r"a.csv:2: expected a text in a column text or template.*row has id, words",
        ),
        ("a.jsonl", '{"text": "ok"}\n{"text": 3}\n', r"a.jsonl:2: expected a text"),
        ("a.jsonl", '{"text": "ok"}\n{oops\n', r"a.jsonl:2: not JSON"),
        ("a.json", '["ok", 4]', r"a.json\[1\]: expected a text.*got 4"),
        ("a.json", "7", "expected a list"),
        ("a.json", "[]", "holds none"),
        ("a.txt", "\n \n", "holds none"),
        ("a.csv", "text\n" + "x" * 200_000 + "\n", "no CSV"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=expected):
        templates(str(tmp_path / name))


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        templates(str(tmp_path / "none.csv"))
    with pytest.raises(ConfigError, match=r"ends on \.jsonl"):
        templates(str(tmp_path / "all.xlsx"))
    (tmp_path / "a.txt").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="UTF-8"):
        templates(str(tmp_path / "a.txt"))


def test_templates_come_out_of_a_package_whose_code_is_not_run(tmp_path, monkeypatch):
    package = tmp_path / "prompt_pack_of_a_test"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package was run')\n")
    (package / "data" / "all.txt").write_text("one {query}\n")
    (tmp_path / "secret.txt").write_text("outside\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert templates("package:prompt_pack_of_a_test/data/all.txt") == ["one {query}"]
    assert "prompt_pack_of_a_test" not in sys.modules
    with pytest.raises(ConfigError, match="outside of the package"):
        templates("package:prompt_pack_of_a_test/../secret.txt")
    with pytest.raises(ConfigError, match="no such file"):
        templates("package:prompt_pack_of_a_test/none.txt")


@pytest.mark.parametrize("source", ["package:none_of_that_name/a.txt", "package:json", "package:a b/c.txt"])
def test_a_package_that_cannot_be_is_refused(source):
    with pytest.raises(ConfigError, match=r"no package|expected package:NAME/PATH"):
        templates(source)
