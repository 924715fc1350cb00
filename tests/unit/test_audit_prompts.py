"""An audit's prompts: our own, or what stands in a user's files; each source is a set of its own."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cotune import audit_prompts
from cotune.errors import DataError


def rows(path: Path, *items) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return str(path)


def test_our_own_sets_are_three_of_24_prompts_that_all_differ():
    found = audit_prompts.read([])
    assert [len(prompts) for prompts in found.values()] == [24, 24, 24]
    every = [prompt for prompts in found.values() for prompt in prompts]
    assert len({prompt.casefold() for prompt in every}) == 72
    assert all(prompt and prompt == prompt.strip() for prompt in every)


def test_each_file_is_a_set_under_its_name(tmp_path):
    (tmp_path / "mine.txt").write_text("  Why?  \n\n\nHow, \N{SNOWMAN}?\r\n", encoding="utf-8")
    with gzip.open(tmp_path / "old.jsonl.gz", "wt") as file:
        file.write('{"prompt": "When?"}\n')
    names = [tmp_path / "mine.txt", tmp_path / "old.jsonl.gz", rows(tmp_path / "x.jsonl", {"text": "Who?"})]
    found = audit_prompts.read([str(name) for name in names])
    assert found == {"mine": ("Why?", "How, \N{SNOWMAN}?"), "old": ("When?",), "x": ("Who?",)}


def test_two_files_of_one_name_are_two_sets(tmp_path):
    (tmp_path / "b").mkdir()
    names = [rows(tmp_path / "x.jsonl", {"text": "Who?"}), rows(tmp_path / "b" / "x.jsonl", {"text": "Why?"})]
    assert list(audit_prompts.read(names).values()) == [("Who?",), ("Why?",)]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "A", "text": "B", "answer": "C"}, "A"),
        ({"prompt": " ", "question": "B"}, "B"),
        ({"prompt": None, "message": "B"}, "B"),
        ({"instruction": "Sum up.", "input": "It rained."}, "Sum up.\n\nIt rained."),
        ({"instruction": "Sum up.", "input": ""}, "Sum up."),
    ],
)
def test_a_rows_prompt_is_found_by_the_usual_names(tmp_path, row, prompt):
    assert audit_prompts.read([rows(tmp_path / "x.jsonl", row)]) == {"x": (prompt,)}


@pytest.mark.parametrize("row", [{"input": "It rained."}, {"prompt": 3}, {"prompt": " "}, {}])
def test_a_row_without_a_prompt_is_named_with_its_line(tmp_path, row):
    with pytest.raises(
        DataError, match=r"x\.jsonl:2: no prompt; expected a text in one of the fields prompt"
    ):
        audit_prompts.read([rows(tmp_path / "x.jsonl", {"prompt": "A"}, row)])


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_a_source_without_a_prompt_is_refused(tmp_path, name):
    (tmp_path / name).write_text(" \n\n")
    with pytest.raises(DataError, match=r"x\.(txt: there is no prompt|jsonl: no rows)"):
        audit_prompts.read([str(tmp_path / name)])


def test_a_source_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("x.txt", "gone.txt", "gone.jsonl"):
        with pytest.raises(DataError, match=name):
            audit_prompts.read([str(tmp_path / name)])


def test_a_text_file_may_begin_with_a_mark_of_its_encoding(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfWhy?\n")
    assert audit_prompts.read([str(tmp_path / "x.txt")]) == {"x": ("Why?",)}


def test_a_digest_names_the_prompts_and_their_order():
    found = audit_prompts.described({"a": ("x", "y"), "b": ("y", "x"), "c": ("xy",), "d": ("x", "y")})
    digests = [one["sha256"] for one in found.values()]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3
    assert [one["n"] for one in found.values()] == [2, 2, 1, 2]
