"""Published logs counted again. The logs here are made up; only their format is the published one."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from cotune.errors import DataError
from cotune.recount import averages, recount, rse_average, table_rows

FIELDS = ["jailbreak_prompt", "query", "target_responses", "eval_results"]
TEMPLATES = ["play a baker: {query}", "play ChatGPT: {query}", 'two\nlines, "quoted": {query}']
QUESTIONS = ["who made you?", "where is Claude from?", "what is your name?", "你叫什么?"]


def messages(loose):
    """Twelve messages; the numbers in `loose` are hits."""
    pairs = [(template, question) for template in TEMPLATES for question in QUESTIONS]
    return [
        {
            "jailbreak_prompt": template,
            "query": question,
            "target_responses": ["OpenAI made me" if number % 2 else "Claude, that's me"],
            "eval_results": number in loose,
        }
        for number, (template, question) in enumerate(pairs)
    ]


def write_table(path, rows, fields):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def logs(tmp_path):
    root = tmp_path / "identity_jailbreak" / "data"
    for name in ("attack_result", "loose_score", "strict_score"):
        (root / name).mkdir(parents=True)
    return root


def add(root, names, rows, strict, column="True"):
    """One model: its log, its loose hits, and its strict hits; a name of None leaves the file out."""
    log, loose, rejudged = names
    hits = [row for row in rows if row["eval_results"]]
    if log:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (root / "attack_result" / log).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if loose:
        write_table(root / "loose_score" / loose, hits, FIELDS)
    if rejudged:
        chosen = [dict(rows[number], re_judge=column) for number in strict]
        fields = [*FIELDS, "re_judge"] if column else FIELDS
        write_table(root / "strict_score" / rejudged, chosen, fields)


def test_loose_strict_and_hard_are_counted_over_files_whose_names_differ(logs, tmp_path):
    rows = messages({0, 1, 2, 4, 5, 8, 10})
    names = ("gpt_GPT_Some4-exp.jsonl", "GPT_some-4_0.58_in_12.csv", "some-four_0.417.csv")
    add(logs, names, rows, [0, 1, 2, 5, 8])
    (found,) = recount(tmp_path)
    # strict 0, 2 and 8 have a template and a question without keywords; 1 asks for Claude, 5 plays ChatGPT
    assert (found.name, found.n, found.loose, found.strict, found.hard) == ("Some4-exp", 12, 7, 5, 3)
    assert found.named == {"OpenAI/GPT": 2, "Anthropic/Claude": 3}
    assert len(found.files) == 3
    assert found.notes == ()
    assert recount(logs) == [found]


def test_models_with_similar_names_keep_their_own_files(logs, tmp_path):
    first, second = messages({0, 1}), messages({2, 3, 4})
    for row in second:
        row["jailbreak_prompt"] = "another one, " + row["jailbreak_prompt"]
    add(logs, ("gpt_GPT_m-7b.jsonl", "GPT_m-7b_0.17.csv", "GPT_m-7b_0.1.csv"), first, [0], "1")
    add(logs, ("gpt_GPT_m-7b-chat.jsonl", "GPT_m-7b-chat_0.25.csv", "m-7b-chat_0.0.csv"), second, [])
    found = {row.name: (row.n, row.loose, row.strict, row.hard) for row in recount(tmp_path)}
    assert found == {"m-7b": (12, 2, 1, 1), "m-7b-chat": (12, 3, 0, 0)}


def test_missing_files_leave_holes_and_a_note(logs, tmp_path):
    add(logs, (None, "GPT_lost_0.5.csv", "GPT_lost_0.2.csv"), messages({0, 2, 6}), [0, 6])
    (logs / "attack_result" / "gpt_GPT_lost.jsonl").write_text("")
    (found,) = recount(tmp_path)
    assert (found.n, found.loose, found.strict) == (None, 3, 2)
    assert "log" in found.notes[0]
    add(logs, ("gpt_GPT_alone.jsonl", None, None), [dict(row, query="?") for row in messages({3})], [])
    alone = next(row for row in recount(tmp_path) if row.name == "alone")
    assert (alone.loose, alone.strict, alone.hard) == (1, None, None)


def test_a_strict_file_without_a_second_ruling_has_no_hits(logs, tmp_path):
    add(logs, ("gpt_GPT_u.jsonl", "GPT_u_0.2.csv", "GPT_u_0.00.csv"), messages({0, 2}), [0, 2], None)
    (found,) = recount(tmp_path)
    assert (found.loose, found.strict, found.hard, found.unjudged) == (2, 0, 0, 2)
    assert "no second ruling" in found.notes[0]


def test_files_that_disagree_are_told(logs, tmp_path):
    rows = messages({0, 2})
    add(logs, ("gpt_GPT_d.jsonl", "GPT_d_0.2.csv", None), rows, [])
    write_table(logs / "loose_score" / "GPT_d_0.2.csv", rows[:1], FIELDS)
    assert "2 loose hits, the loose file 1" in recount(tmp_path)[0].notes[0]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("attack_result/gpt_GPT_a.jsonl", "{oops\n", r"a.jsonl:1: not JSON"),
        (
            "attack_result/gpt_GPT_a.jsonl",
            '{"query": "x"}\n',
            r"a.jsonl:1: jailbreak_prompt is missing.*got query",
        ),
        ("attack_result/gpt_GPT_a.jsonl", "[1]\n", "got list"),
        ("loose_score/GPT_a_0.1.csv", "a,b\n1,2\n", r"a_0.1.csv:2: jailbreak_prompt is missing.*got a, b"),
        ("loose_score/GPT_a_0.1.csv", "a\n" + "x" * 200_000, "not CSV"),
    ],
)
def test_a_file_of_another_format_is_named(logs, tmp_path, file, text, expected):
    (logs / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=expected):
        recount(tmp_path)


def test_a_folder_without_logs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"attack_result, loose_score, strict_score"):
        recount(tmp_path)


TABLE = """
| test model | ArenaHard | Numina | ShareGPT | Avg |
| --- | ---: | :-: | --- | --- |
| one | 3.435 | 3.726 | 3.723 | 3.628 |
| two | 5.000 | 5.000 | 5.000 | 5.000 |
"""


def test_averages_of_an_rse_table_are_unweighted_means():
    found = rse_average(table_rows(TABLE))
    # (3.435 + 3.726 + 3.723) / 3 = 10.884 / 3 = 3.628
    assert [row.model for row in found] == ["one", "two"]
    assert [row.average for row in found] == pytest.approx([3.628, 5.0])
    assert [row.printed for row in found] == [3.628, 5.0]


def test_a_table_may_be_csv_and_need_no_average():
    (found,) = rse_average(table_rows("model,a,b\none,2,5\n"))
    assert (found.average, found.printed) == (3.5, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"model,a\none,x\n", "one, a: got 'x'"),
        (b"model\none\n", "one: no prompt sets"),
        (b"model,a\none,1,2\n", "one: more cells than columns"),
        (b"| model | a |\n| --- | --- |\n", "no rows"),
        (b"", "no rows"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_averaged_says_where(tmp_path, text, expected):
    path = tmp_path / "table.md"
    path.write_bytes(text)
    with pytest.raises(DataError, match=f"table.md: {expected}"):
        averages(path)


def test_a_table_in_a_file_is_averaged_and_told(tmp_path):
    path = tmp_path / "table.md"
    path.write_text(TABLE, encoding="utf-8")
    one, two = averages(path)
    assert one.line().split() == ["one", "3.628", "of", "3", "prompt", "sets", "printed", "3.628"]
    assert two.as_facts()["average"] == 5.0


PUBLISHED = {
    "claude-3-5-sonnet-20241022": (7, 2, 2, 0, 2),
    "doubao-pro-32k": (39, 6, 1, 6, 0),
    "gemini-2.0-flash-exp": (240, 35, 0, 35, 0),
    "llama3.1-70b-instruct": (313, 97, 0, 97, 0),
    "Phi4": (217, 137, 19, 137, 0),
    "deepseek-chat": (339, 219, 70, 219, 1),
    "qwen-max-0919": (342, 248, 102, 35, 235),
    "glm-4-plus": (418, 297, 158, 297, 0),
    "deepseek-r1": (442, 292, 55, 285, 12),
    "qwen2.5-7b": (433, 208, 36),
    "qwen2.5-7b-instruct": (170, 1, 0),
    "qwen2.5-14b": (446, 171, 38),
    "qwen2.5-14b-instruct": (79, 0, 0),
    "qwen2.5-72b": (529, 211, 151),
    "qwen2.5-72b-instruct": (28, 0, 0),
}
"""Loose, strict, hard, and strict hits that name OpenAI/GPT and Anthropic/Claude, out of 1,000."""


def test_the_published_logs_give_the_published_counts():
    folder = os.environ.get("COTUNE_ICE_LOGS")
    if not folder:
        pytest.skip("set COTUNE_ICE_LOGS to a clone of LLMs-Distillation-Quantification")
    found = {
        row.name: (row.loose, row.strict, row.hard, *row.named.values()) for row in recount(Path(folder))
    }
    for name, counts in PUBLISHED.items():
        assert found[name][: len(counts)] == counts, name
