"""The report's section on teaching, and the samples that the server writes for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import allocation
from cotune.page import page_values
from cotune.records import Example, Written
from cotune.report import append_round, read_rounds, render, write_results
from cotune.teaching_page import CLIENT_SLOTS, LONG_PATH, Promise, teaching_values
from pages import JUNK, Tags

EVIL = "</div></details><script>alert('x')</script><img src=x onerror=\"y\"> & '"
NOTHING = dict.fromkeys(("scored", "u", "z", "uu", "zz", "uz"), 0.0)


def sums(scores: Sequence[float], gains: Sequence[float]) -> dict[str, float]:
    u, z = np.array(scores, float), np.array(gains, float)
    values = (len(u), u.sum(), z.sum(), (u * u).sum(), (z * z).sum(), (u * z).sum())
    return dict(zip(NOTHING, map(float, values), strict=True))


def sample(**more: Any) -> dict[str, Any]:
    return {
        "row": 4,
        "client": "c1",
        "question": "Question: 3 + 4?",
        "answer": "7",
        "llm_path": "Three, four more.\nFinal answer: 7",
        "llm_right": True,
        "slm_path": "Final answer: 8",
        "slm_right": False,
    } | more


def teaching(**more: Any) -> dict[str, Any]:
    return {
        "pool": 10,
        "wanted": {"c0": [0, 1, 2, 3], "c1": [0, 5]},
        "taught": {"c0": [0, 1, 2, 3], "c1": [0, 5]},
        "probe": {"c0": [9]},
        "asked": {"c0": [1], "c1": [0, 5, 6]},
        "llm_paths": {"paths": 40, "answered": 30, "right": 10, "cut": 3},
        "slm_paths": {"paths": 4, "answered": 3, "right": 1},
        "llm_lessons": 4,
        "payload_bytes": 2_000,
        "scrubbed": {"email": 2, "cut": 0},
        "slm": {"clients": 2.0, "pairs": 6.0, "loss": 3.0, **sums([1, 2, 3], [1, 2, 3])},
        "llm": {"pairs": 4, "loss": 2.0, **sums([1, 2, 3], [3, 2, 1])},
        "samples": [sample()],
    } | more


def endpoint(**more: Any) -> dict[str, Any]:
    used = {"model": "big-one", "answers": 40, "empty": 1, "estimated": 2, "tokens_in": 1_500}
    paths = {"asked": {"c0": [], "c1": []}, "slm_paths": {"paths": 0, "answered": 0, "right": 0}}
    taught = teaching(**paths, endpoint=used | {"tokens_out": 2_500, "cost": None} | more)
    return {key: value for key, value in taught.items() if key != "llm"}


def record(index: int, **more: Any) -> dict[str, Any]:
    return {
        "round": index,
        "teaching": teaching(**more),
        "traffic": {"up_bytes": 30_000, "down_bytes": 70_000},
    }


def values(*lines: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> dict[str, Any]:
    rounds = [{"round": index, "teaching": line} for index, line in enumerate(lines, start=1)]
    found = teaching_values(results or {}, rounds)
    assert found is not None
    return found


def test_rounds_that_taught_nobody_are_named_with_what_helps(tmp_path: Path) -> None:
    barren = teaching(llm_paths={"paths": 40, "answered": 9, "right": 1, "cut": 31}, slm={"pairs": 0.0})
    assert values(teaching())["barren"] == []
    [(index, said)] = values(teaching(), barren)["barren"]
    assert index == 2
    append_round(tmp_path, {"round": 1, "teaching": barren})
    write_results(tmp_path, {})
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    text = Tags(render(tmp_path).read_text(encoding="utf-8")).text
    assert f"Round 1: {said}." in text
    assert "31 were cut" in text


def page(folder: Path, rounds: Sequence[Mapping[str, Any]], results: Mapping[str, Any] | None = None) -> Tags:
    for one in rounds:
        append_round(folder, one)
    write_results(folder, results or {})
    (folder / "rounds.jsonl").touch()
    (folder / "config.yaml").write_text("seed: 1\n")
    return Tags(render(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("found", [{}, {"teaching": None}, {"teaching": {}}, {"teaching": "no"}])
def test_a_run_without_teaching_has_no_section(tmp_path: Path, found: dict[str, Any]) -> None:
    assert page_values({}, [{"round": 1, **found}], "")["teaching"] is None
    assert "Teaching" not in page(tmp_path, [{"round": 1, **found}]).text


def test_section_shows_shares_gains_paths_and_bytes(tmp_path: Path) -> None:
    text = page(tmp_path, [{"round": 0}, record(1), record(2)]).text
    for words in (
        "Teaching",
        "10 items",
        "SLMs learned from the LLM12 pairs of paths",
        "the LLM learned from SLMs8 pairs of paths",
        "4.0 kB2.0% of all traffic, 200 kB",
        "c0, round 1: 40%",
        "c1, round 2: 30%",
        "4 items were refused by every client in all rounds (40% of the pool): 4 and 6 to 8.",  # 9 measures
        "It was positive for the LLM in 0 of 2 rounds and for the SLMs in 2 of 2 rounds.",
        "1LLM32.00+2.00\N{MINUS SIGN}1.00",
        "2SLMs32.00+2.00+1.00",
        "1LLM4030 (75%)10 (25%)3",
        "2SLMs43 (75%)1 (25%)\N{EN DASH}",
        "round 1, paths, both ways: 2.0 kB",
        "before they were sent: e-mail addresses (4).",
        "round 1, item 4",
        "SLM of c1 wrong",
        "LLM right",
    ):
        assert words in text, words
    assert "not trained" not in text


@pytest.mark.parametrize(
    ("scores", "gains", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [9, 5, 1], -1.0),
        ([1, 2, 3, 4], [1, -1, -1, 1], 0.0),
        ([0, 1, 2, 4], [1, 0, 2, 3], 22 / (35 * 20) ** 0.5),
        ([1, 2, 2, 1], [1e3 + 1, 1e3 + 2, 1e3 + 2, 1e3 + 1], 1.0),
    ],
)
def test_correlation_is_pearsons(scores: list[float], gains: list[float], expected: float) -> None:
    found = Promise.of(sums(scores, gains))
    assert found is not None
    assert found.correlation == pytest.approx(expected, abs=1e-3)
    assert found.correlation == pytest.approx(np.corrcoef(scores, gains)[0, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "gains"),
    [([], []), ([1], [2]), ([0.1, 0.1, 0.1], [1, 2, 3]), ([1, 2, 3], [7, 7, 7]), ([0, 0], [0, 1])],
)
def test_undefined_correlation_is_a_dash(scores: list[float], gains: list[float]) -> None:
    line = teaching(slm=sums(scores, gains))
    [row] = [row for row in values(line)["promises"] if row["who"] == "SLMs"]
    assert row["correlation"] == "\N{EN DASH}"
    assert row["n"] == str(len(scores))
    assert (row["score"] == "\N{EN DASH}") == (not scores)


def test_sums_of_no_numbers_have_no_correlation() -> None:
    impossible = Promise.of({"scored": 2, "u": 3, "z": 3, "uu": 5, "zz": 5, "uz": 500})
    assert impossible is not None
    assert impossible.correlation is None
    assert Promise.of({"scored": 2, "u": 3, "z": 3, "uu": 5, "zz": 5}) is None


def test_allocators_without_scores_have_no_table_of_scores(tmp_path: Path) -> None:
    line = {"slm": {"pairs": 3, **NOTHING}, "llm": {"pairs": 2, **NOTHING}}
    text = page(tmp_path, [record(1, **line)]).text
    assert "No item that was learned from had a score" in text
    assert "mean score" not in text


@pytest.mark.parametrize(
    ("pool", "wanted", "words"),
    [
        (3, [[0, 1], [2]], "Each of the 3 items was wanted"),
        (3, [[0], [2]], "1 item was refused by every client in all rounds (33% of the pool): 1."),
        (
            40,
            [[0, 1]],
            "38 items were refused by every client in all rounds (95% of the pool): 2 to 13 and 26",
        ),
        (4, [[0, 99, -1, 1.0, True, None, "2", [3]]], "3 items were refused"),
        (3, [], ""),
        (0, [[1]], ""),
        (10**12, [[0]], "999,999,999,999 items"),
    ],
)
def test_items_that_nobody_wanted(pool: int, wanted: list[Any], words: str) -> None:
    lines = [teaching(pool=pool, wanted={"c": rows}, probe={}) for rows in wanted]
    lines = lines or [teaching(pool=pool, wanted={})]
    found = values(*lines)["refused"]
    assert bool(found) == bool(words)
    assert words in found


def test_many_clients_are_drawn_as_mean_and_range() -> None:
    few = {f"c{i}": list(range(i + 1)) for i in range(len(CLIENT_SLOTS))}
    many = {**few, "last": [0]}
    told = values(teaching(taught=few))["shares"][0]["svg"]
    assert "c5, round 1: 60%" in told
    drawn = values(teaching(taught=many))["shares"][0]["svg"]
    for words in ("highest, round 1: 60%", "mean, round 1: 31%", "lowest, round 1: 10%"):
        assert words in drawn, words
    assert "c5" not in drawn.replace('class="', "")


def test_a_client_that_sat_out_has_no_share() -> None:
    lines = [teaching(taught={"c0": [0]}), teaching(taught={"c1": [0, 1]})]
    drawn = values(*lines)["shares"][0]["svg"]
    assert "c0, round 1: 10%" in drawn
    assert "c0, round 2" not in drawn
    assert "c1, round 1" not in drawn


def test_long_names_are_cut_in_the_chart_and_told_in_full() -> None:
    chart = values(teaching(taught={"hospital-north": [1], "hospital-south": [2]}))["shares"][0]
    assert [name for name, _ in chart["legend"]] == ["hospital-north", "hospital-south"]
    assert "ho\u2026rth" in chart["svg"]
    assert values(teaching())["shares"][0]["legend"] == []


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ((None, None), "No price given, so what it cost is not known."),
        ((0.25, 1.0), "That cost 1.25, in the currency of its price."),
        ((0.004, 0.004), "That cost 0.008,"),
        ((0.5, None), "That cost at least 0.50,"),
        ((0, 0), "That cost 0.00,"),
    ],
)
def test_an_endpoint_is_told_plainly(tmp_path: Path, costs: tuple[Any, ...], words: str) -> None:
    rounds = [
        {"round": index, "teaching": endpoint(cost=cost, model="big-one")}
        for index, cost in enumerate(costs, start=1)
    ]
    text = page(tmp_path, rounds).text
    for sentence in (
        "The LLM was not trained: the teacher was big-one, behind an endpoint.",
        "It read 3,000 tokens and wrote 5,000 in 80 answers.",
        "2 of the answers had no text that can be used.",
        "The tokens of 4 answers are estimated.",
        "the LLM learned from SLMsnot trained",
        "No client was asked for a path.",
        words,
    ):
        assert sentence in text, sentence
    assert "Share of the pool on which a client teaches the LLM" not in text
    assert {row["who"] for row in values(endpoint())["paths"]} == {"LLM"}
    assert "before they were sent: e-mail" in text


def test_paths_that_were_too_long_to_be_learned_from_whole_are_told(tmp_path: Path) -> None:
    cut = record(1, slm={"pairs": 6.0, "cut": 1_200.0}, llm={"pairs": 4, "cut": 0})
    assert "when they were learned from: the SLMs 1,200." in page(tmp_path, [cut]).text
    assert values(teaching())["shortened"] == ""


def test_numbers_that_no_float_holds_are_none(tmp_path: Path) -> None:
    used = endpoint(tokens_in=10**400, cost=10**400)
    assert "It read an unknown number of tokens" in page(tmp_path, [{"round": 1, "teaching": used}]).text


def test_traffic_is_taken_from_the_results_where_they_have_it() -> None:
    results = {"traffic": {"up_bytes": 1_000, "down_bytes": 3_000}}
    sent = values(teaching(), results=results)["sent"]
    assert (sent["total"], sent["whole"], sent["share"]) == ("2.0 kB", "4.0 kB", "50%")
    assert values(teaching())["sent"]["whole"] == ""


@pytest.mark.parametrize(
    ("scrubbed", "words"),
    [
        ({}, "Nothing had to be replaced"),
        ({"email": 0}, "Nothing had to be replaced"),
        ({"own": 3}, "own (3)."),
    ],
)
def test_what_was_scrubbed(tmp_path: Path, scrubbed: dict[str, int], words: str) -> None:
    assert words in page(tmp_path, [record(1, scrubbed=scrubbed)]).text


def test_samples_are_of_the_first_and_the_last_round_that_has_some() -> None:
    lines = [teaching(samples=[sample(row=index)]) for index in range(4)]
    lines += [teaching(samples=[{"row": 9}]), teaching(samples="no")]
    assert [(one["round"], one["row"]) for one in values(*lines)["samples"]] == [(1, 0), (4, 3)]
    assert len(values(teaching())["samples"]) == 1


def test_long_paths_are_folded_and_verdicts_need_booleans(tmp_path: Path) -> None:
    long, short = "x" * (LONG_PATH + 1), "y" * LONG_PATH
    one = sample(llm_path=long, slm_path=short, llm_right="yes", slm_right=None)
    [shown] = values(teaching(samples=[one]))["samples"]
    assert [path["is_long"] for path in shown["paths"]] == [True, False]
    assert [path["is_right"] for path in shown["paths"]] == [None, None]
    found = page(tmp_path, [record(1, samples=[one])])
    assert found.tags.count("details") == 2  # the other holds the configuration
    assert "LLM right" not in found.text


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    texts = ("question", "answer", "llm_path", "slm_path", "client")
    line = endpoint(model=EVIL) | {
        "taught": {EVIL: [1]},
        "scrubbed": {EVIL: 1},
        "samples": [sample(**dict.fromkeys(texts, EVIL)), sample(llm_path=EVIL * 10)],
    }
    found = page(tmp_path, [{"round": 1, "teaching": line}])
    assert not {"img", "script"} & set(found.tags)
    assert found.text.count(EVIL) == len(texts) + 3 + 10


@pytest.mark.parametrize("missing", sorted({*teaching(), "endpoint"}))
@pytest.mark.parametrize("junk", [None, "no", 7, [1], {"a": 1}, -1.5, True])
def test_every_key_may_be_missing_or_strange(tmp_path: Path, missing: str, junk: Any) -> None:
    older = {key: value for key, value in endpoint().items() if key != missing}
    page(tmp_path, [{"round": 1, "teaching": older}, {"round": 2, "teaching": endpoint() | {missing: junk}}])


PARTS: dict[str, Any] = {
    "llm_paths": st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("paths", "answered", "right", "cut"), JUNK)
    ),
    "slm": st.fixed_dictionaries({}, optional=dict.fromkeys((*NOTHING, "pairs"), st.floats() | JUNK)),
    "endpoint": st.fixed_dictionaries({}, optional=dict.fromkeys(endpoint()["endpoint"], JUNK)),
    "samples": st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(sample(), JUNK)), max_size=2),
    "taught": st.dictionaries(st.text(max_size=3), JUNK, max_size=8),
}
LINE = st.fixed_dictionaries({}, optional=dict.fromkeys(endpoint(), JUNK) | PARTS)


def test_a_record_without_a_round_is_left_out() -> None:
    lines = [{"teaching": teaching()}, {"round": "2", "teaching": teaching()}, record(3)]
    assert {row["round"] for row in (teaching_values({}, lines) or {})["paths"]} == {3}
    assert teaching_values({}, lines[:2]) is None


@given(LINE | JUNK, LINE)
def test_any_json_is_tolerated(one: Any, other: dict[str, Any]) -> None:
    found = teaching_values(
        {}, [{"round": 1, "teaching": one}, {"teaching": one}, {"round": 3, "teaching": other}]
    )
    assert (found is None) == (not other and not (isinstance(one, dict) and one))


def pool_of(count: int) -> list[Example]:
    how = {"completion": " yes", "choices": ("yes", "no")}
    return [Example(id=str(i), prompt=f"Is {i} even?", answer_idx=i % 2, **how) for i in range(count)]


def wrote(*rows: int, text: str = "So.\nFinal answer: A") -> dict[int, Written]:
    return {row: Written(text, 1, 1, True) for row in rows}


def test_samples_prefer_items_that_both_wrote_about_and_different_clients() -> None:
    theirs = {"a": {5: "Final answer: B", 3: "no"}, "b": {5: "x", 2: "  ", 4: "Final answer: A"}}
    found = allocation._samples(wrote(1, 2, 3, 4, 5), theirs, pool_of(6))
    assert [(one["row"], one["client"]) for one in found] == [(5, "a"), (4, "b"), (3, "a")]
    first = found[0]
    assert (first["slm_path"], first["slm_right"], first["llm_right"]) == ("Final answer: B", True, False)
    assert first["question"] == "Question: Is 5 even?\nA. yes\nB. no"
    assert first["answer"] == "no"


def test_samples_of_a_teacher_alone_hold_no_client() -> None:
    found = allocation._samples(wrote(0, 1) | wrote(2, text=" ") | wrote(3, 4, 5), {}, pool_of(6))
    assert [one["row"] for one in found] == [0, 1, 3]
    assert all(one["client"] is None and "slm_path" not in one for one in found)


def test_samples_are_short_and_keep_the_answer_of_a_path() -> None:
    long = "word " * 1_000 + "\nFinal answer: A"
    [one] = allocation._samples(wrote(0, text=long), {}, pool_of(1))
    assert len(one["llm_path"]) <= allocation.SAMPLE_CHARS
    assert one["llm_path"].endswith("Final answer: A")
    assert one["llm_right"]


def test_what_the_server_records_is_what_the_page_shows(tmp_path: Path) -> None:
    found = allocation._samples(wrote(0), {"a": {0: EVIL}}, pool_of(1))
    text = page(tmp_path, [record(1, samples=found)]).text
    assert read_rounds(tmp_path)[0]["teaching"]["samples"] == found
    assert EVIL in text
    assert "SLM of a wrong" in text
