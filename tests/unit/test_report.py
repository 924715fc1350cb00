"""The run on disk, and the page and tables made of it."""

from __future__ import annotations

import html.parser
import io
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cotune.changes import headline
from cotune.chart import LABEL_GAP, Series, bar_chart, line_chart, spread, value_range
from cotune.errors import DataError, RunError
from cotune.page import client_table, loss_charts, page_values, time_spent
from cotune.report import append_round, read_results, read_rounds, render, write_results
from cotune.tables import (
    amount,
    compare_tables,
    compare_text,
    duration,
    summary_lines,
    summary_table,
)

EVIL = "<script>alert('x')</script> \"q\" & </pre></style>"


def score(accuracy: float, n: int = 40) -> dict[str, Any]:
    return {"accuracy": accuracy, "accuracy_norm": accuracy, "n": n}


def record(index: int, **more: Any) -> dict[str, Any]:
    metrics = {"llm": {"tomi": score(0.3 + 0.05 * index)}, "slm": {"tomi": score(0.2 + 0.1 * index)}}
    traffic = {"up_bytes": 1000, "down_bytes": 2000, "clear_bytes": 0, "gathered_bytes": 1000}
    return {
        "round": index,
        "seconds": 12.0,
        "phases": {"tune": 8.0, "co-tune": 2.0},
        "losses": {"slm": 1.0 / (index + 1), "llm": 2.0},
        "metrics": metrics,
        "traffic": traffic,
    } | more


def results(clients: int = 2, **more: Any) -> dict[str, Any]:
    per_client = {
        f"c{i}": {"tomi": {"before": score(0.2), "after": score(0.5 + 0.1 * (i % 2))}} for i in range(clients)
    }
    return {
        "fingerprint": "abc123",
        "strategy": "fedcollm",
        "seed": 7,
        "rounds": 2,
        "metrics": {
            "llm": {"tomi": {"before": score(0.3), "after": score(0.4)}},
            "slm": {"tomi": {"before": score(0.2), "after": score(0.55)}},
            "clients": per_client,
        },
        "gain": {"slm": {"mean": 0.35, "stderr": 0.05, "clients": clients}},
        "traffic": {"up_bytes": 2000, "down_bytes": 4000, "clear_bytes": 0, "gathered_bytes": 2000},
        "seconds": 24.0,
        "data": {"clients": {f"c{i}": {"train": 10 + i, "test": 40} for i in range(clients)}},
        "status": "done",
    } | more


def a_run(
    folder: Path, results_of_it: Mapping[str, Any], rounds: list[dict[str, Any]], config: str = "seed: 7\n"
) -> str:
    for one in rounds:
        append_round(folder, one)
    write_results(folder, results_of_it)
    (folder / "config.yaml").write_text(config)
    return render(folder).read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collects elements, and fails on one that is closed in the wrong place."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_rounds_come_back_as_they_were_written(tmp_path: Path) -> None:
    append_round(tmp_path, {"round": 0, "losses": {"slm": np.float32(0.5)}, "n": np.int64(3)})
    append_round(tmp_path, {"round": 1, "cohort": ("a", "b"), "losses": {"slm": math.nan, "llm": math.inf}})
    assert read_rounds(tmp_path) == [
        {"round": 0, "losses": {"slm": 0.5}, "n": 3},
        {"round": 1, "cohort": ["a", "b"], "losses": {"slm": None, "llm": None}},
    ]
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["round"] for line in lines] == [0, 1]


def test_no_rounds_file_is_no_rounds(tmp_path: Path) -> None:
    assert read_rounds(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_append(tmp_path: Path, cut: int) -> None:
    append_round(tmp_path, {"round": 0})
    append_round(tmp_path, {"round": 1, "x": "yyyy"})
    path = tmp_path / "rounds.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    whole = cut == 1  # only the newline is gone: the record itself is complete
    assert [r["round"] for r in read_rounds(tmp_path)] == ([0, 1] if whole else [0])
    append_round(tmp_path, {"round": 2})
    assert [r["round"] for r in read_rounds(tmp_path)] == ([0, 1, 2] if whole else [0, 2])


def test_a_last_line_of_zero_bytes_is_left_out(tmp_path: Path) -> None:
    append_round(tmp_path, {"round": 0})
    with (tmp_path / "rounds.jsonl").open("ab") as file:
        file.write(b"\0" * 40)
    assert [r["round"] for r in read_rounds(tmp_path)] == [0]
    append_round(tmp_path, {"round": 1})
    assert [r["round"] for r in read_rounds(tmp_path)] == [0, 1]


def test_a_resumed_run_replaces_its_round_and_all_later_ones(tmp_path: Path) -> None:
    for index in (0, 1, 2, 3):
        append_round(tmp_path, {"round": index, "try": 1})
    append_round(tmp_path, {"round": 2, "try": 2})
    assert [(r["round"], r["try"]) for r in read_rounds(tmp_path)] == [(0, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"round": "1"}', '{"round": true}'])
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rounds.jsonl").write_text(f'{{"round": 0}}\n{line}\n{{"round": 1}}\n')
    with pytest.raises(DataError, match=r"rounds.jsonl, line 2: expected a JSON object"):
        read_rounds(tmp_path)


def test_a_round_that_cannot_be_written_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").mkdir()
    with pytest.raises(RunError, match="cotune resume"):
        append_round(tmp_path, {"round": 0})


def test_results_are_replaced_whole_and_leave_no_temporary_file(tmp_path: Path) -> None:
    write_results(tmp_path, {"seed": 1})
    write_results(tmp_path, {"seed": 2, "x": math.nan, "name": "\ud800"})
    assert read_results(tmp_path) == {"seed": 2, "x": None, "name": "\ud800"}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_results_that_cannot_be_written_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, {"seed": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_results(tmp_path, {"seed": 2})
    assert read_results(tmp_path) == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_is_no_run_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rounds.jsonl, results.json, config.yaml.*cotune run CONFIG"):
        render(tmp_path)
    append_round(tmp_path, {"round": 0})
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(DataError, match=r"needs results.json, config.yaml.*cotune resume"):
        render(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", "\0"])
def test_malformed_results_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results.json: expected one JSON object"):
        read_results(tmp_path)


def test_the_page_states_before_after_gain_and_error(tmp_path: Path) -> None:
    page = Page(a_run(tmp_path, results(), [record(0), record(1), record(2)]))
    text = " ".join(page.text.split())
    assert "20.0% \u2192 55.0%" in text  # SLMs: mean over clients of 0.2 and of (0.5 + 0.6) / 2
    assert "30.0% \u2192 40.0%" in text
    assert "+35.0 points accuracy" in text
    assert "Standard error 5.0 points over 2 clients: the gain is more than twice that" in text
    assert "Nothing on this page comes from the network" in text
    assert "cotune run config.yaml" in text


def test_the_page_loads_nothing_and_runs_no_script(tmp_path: Path) -> None:
    text = a_run(tmp_path, results(), [record(0), record(1)])
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed"}
    assert not {name for _, attrs in page.tags for name in attrs} & {
        "src",
        "href",
        "onload",
        "onclick",
        "style",
    }
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text


def test_the_page_is_accessible(tmp_path: Path) -> None:
    page = Page(a_run(tmp_path, results(), [record(0), record(1)]))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attrs.get("name") == "viewport" for tag, attrs in page.tags)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert drawings
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in drawings)
    assert any("LLM from 30% at round 0 to 35% at round 1" in (a.get("aria-label") or "") for a in drawings)
    named = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= named


def test_every_text_of_a_model_a_client_or_the_config_is_escaped(tmp_path: Path) -> None:
    example = dict.fromkeys(("client", "task", "prompt", "right", "before", "after"), EVIL) | {
        "choices": [EVIL, "b"]
    }
    evil_scores = {EVIL: {"before": score(0.1), "after": score(0.2)}, "other": {"before": score(0.1)}}
    evil = results(
        strategy=EVIL,
        fingerprint=EVIL,
        status="interrupted",
        metrics={"llm": evil_scores, "slm": evil_scores, "clients": {EVIL: evil_scores}},
        examples=[example],
        versions={EVIL: EVIL},
        device=EVIL,
        data={"clients": {EVIL: {"train": 3, "test": EVIL}}, "public": EVIL},
    )
    failure = {"client": EVIL, "round": 1, "kind": EVIL, "reason": EVIL}
    rounds = [record(0, metrics={"llm": {EVIL: score(0.1), "b": score(0.3)}})]
    rounds.append(record(1, failures=[failure], phases={EVIL: 3.0, "tune": 1.0}))
    text = a_run(tmp_path, evil, rounds, config=f"# {EVIL}\n")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in text
    assert text.count("</style>") == 1
    assert page.text.count(EVIL) >= 12


def test_text_that_is_not_unicode_does_not_stop_the_page(tmp_path: Path) -> None:
    example = {
        "prompt": "a lone surrogate \ud800",
        "choices": ["\u202edrawkcab"],
        "right": 0,
        "before": 0,
        "after": 5,
    }
    text = a_run(tmp_path, results(examples=[example], strategy="d\u00e9j\u00e0 vu"), [record(0)])
    assert "a lone surrogate ?" in text
    assert "d\u00e9j\u00e0 vu" in text


def test_an_answer_is_shown_from_its_index_or_as_text() -> None:
    example = {"choices": ["box", "bag"], "right": 1, "before": "box", "after": "bag", "prompt": "p"}
    [shown] = page_values({"examples": [example]}, [], "")["examples"]
    assert (shown["right"], shown["was_right"], shown["is_right"]) == ("bag", False, True)


@pytest.mark.parametrize(
    ("of_run", "rounds"),
    [
        ({}, []),
        ({}, [{"round": 0}]),
        (
            {"metrics": {}},
            [{"round": 0, "metrics": {}, "losses": {}, "phases": {}, "traffic": {}, "failures": []}],
        ),
        ({"metrics": None, "gain": None, "data": None, "versions": None}, [{"round": 3, "metrics": None}]),
        (results(1), [record(1)]),
        (results(3), [record(0), record(7, status="failed")]),
    ],
)
def test_any_part_may_be_missing(
    tmp_path: Path, of_run: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    (tmp_path / "rounds.jsonl").touch()
    Page(a_run(tmp_path, of_run, rounds))
    assert summary_lines(of_run)


def test_a_run_without_an_llm_shows_none(tmp_path: Path) -> None:
    of_run = results()
    del of_run["metrics"]["llm"]
    page = Page(
        a_run(tmp_path, of_run, [record(0, metrics={"slm": {"tomi": score(0.2)}}, losses={"slm": 1.0})])
    )
    assert "LLM" not in page.text.replace("LLM and SLM teach each other", "")


def test_a_skipped_round_and_failures_are_told(tmp_path: Path) -> None:
    failure = {"client": "food", "round": 1, "kind": "late", "reason": "no reply within 30 s"}
    page = Page(a_run(tmp_path, results(), [record(0), record(1, status="failed", failures=[failure])]))
    assert "No usable reply in round 1" in page.text
    assert "no reply within 30 s" in page.text


def test_many_clients_are_collapsed_and_the_extremes_stay_in_sight(tmp_path: Path) -> None:
    page = Page(a_run(tmp_path, results(200), [record(0), record(1)]))
    assert "All clients (200)" in page.text
    table = client_table(results(200))
    assert [len(rows) for _, rows in table["extremes"]] == [5, 5]
    assert table["summary"].startswith("All 200 clients became better; median gain")
    many = client_table(results(1500))
    assert (len(many["rows"]), many["left_out"]) == (1000, 500)


def test_time_that_no_phase_accounts_for_is_other() -> None:
    spent = time_spent({}, [record(1)])  # 12 s, of which 8 + 2 have a name
    assert [(p["name"], p["seconds"]) for p in spent["legend"]] == [
        ("tune", "8.0 s"),
        ("co-tune", "2.0 s"),
        ("other", "2.0 s"),
    ]


def test_phases_beyond_the_palette_are_other() -> None:
    phases = {f"p{i}": float(i) for i in range(1, 11)}
    spent = time_spent({}, [{"round": 1, "phases": phases}])
    assert [p["name"] for p in spent["legend"]] == [*(f"p{i}" for i in range(4, 11)), "other"]
    assert spent["legend"][-1]["seconds"] == "6.0 s"  # 1 + 2 + 3


def test_headline_works_out_a_gain_that_the_run_does_not_state() -> None:
    of_run = results(2)
    del of_run["gain"]
    change = headline(of_run, "slm")
    assert change is not None
    assert change.gain == pytest.approx(0.35)  # gains 0.3 and 0.4
    assert change.stderr == pytest.approx(0.05)  # sd 0.0707 / sqrt 2
    assert headline({}, "llm") is None


def test_a_line_breaks_at_a_loss_that_is_not_finite() -> None:
    rounds = [record(i, losses={"slm": None if i == 2 else 1.0 + i}) for i in range(5)]
    [(_, svg)] = loss_charts(rounds)
    assert svg.count("<polyline") == 2
    bridged = line_chart("t", range(5), [Series("a", 0, [1.0, 2.0, math.nan, 3.0, 4.0])], str, bridge=True)
    assert bridged.count("<polyline") == 1
    assert "nan" not in bridged


def test_charts_of_nothing_are_empty() -> None:
    assert line_chart("t", [], [], str, bridge=True) == ""
    assert line_chart("t", [1, 2], [Series("a", 0, [None, math.nan])], str, bridge=True) == ""
    assert bar_chart("t", [], [], str) == ""
    assert bar_chart("t", [1], [Series("a", 0, [0.0])], str) == ""


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8))
def test_any_values_stay_inside_the_drawing(values: list[float]) -> None:
    low, high, ticks = value_range(min(values), max(values))
    slack = 1e-6 * (max(values) - min(values)) + 1e-9
    assert low <= min(values) + slack
    assert high >= max(values) - slack
    assert 2 <= len(ticks) <= 8
    svg = line_chart("t", range(len(values)), [Series("a", 0, values)], str, bridge=True)
    assert "nan" not in svg
    assert "inf" not in svg


@given(st.lists(st.floats(12, 178), min_size=1, max_size=6))
def test_labels_never_overlap(positions: list[float]) -> None:
    placed = sorted(spread(positions))
    assert all(b - a >= LABEL_GAP - 1e-6 for a, b in itertools.pairwise(placed))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999 bytes"), (1200, "1.2 kB"), (250_000_000, "250 MB"), (None, "-")]
)
def test_amounts_read_well(value: float | None, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (119.6, "2 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_well(value: float, text: str) -> None:
    assert duration(value) == text


def test_the_summary_has_a_line_a_model() -> None:
    lines = summary_lines(results())
    assert lines[0] == "fedcollm, 2 rounds, seed 7, 24 s"
    assert lines[1].split() == ["accuracy", "task", "before", "after", "gain", "standard", "error"]
    assert lines[2].split() == ["LLM", "(server)", "tomi", "30.0%", "40.0%", "+10.0"]
    assert lines[3].startswith("SLMs (clients)  tomi   20.0%  55.0%  +35.0  5.0 over 2 clients")
    assert lines[4] == "up 2.0 kB, down 4.0 kB; replies: 2.0 kB as sums, 0 in the clear"
    assert "\x1b" not in "".join(summary_lines(results(strategy="\x1b[31m[bold]x")))


def shown(renderable: Any, width: int = 100) -> str:
    file = io.StringIO()
    Console(width=width, file=file).print(renderable)
    return file.getvalue()


def test_the_summary_table_shows_markup_as_text() -> None:
    text = shown(summary_table(results(strategy="[bold]x[/bold]")))
    assert "[bold]x[/bold]" in text
    assert "+35.0" in text


def comparison(seeds: list[int]) -> dict[str, Any]:
    spread_of = 0.012 if len(seeds) > 1 else None

    def row(a: float) -> dict[str, Any]:
        return {t: {"mean": a, "spread": spread_of, "n": 40} for t in ("tomi", "food", "mean")}

    return {
        "seeds": seeds,
        "tasks": ["tomi", "food"],
        "llm": {"fedcollm": row(0.5), "zero_shot": row(0.9), "centralized": row(0.6)},
        "slm": {"own_method": row(0.3), "fedavg": row(0.4), "standalone": {}, "zero_shot": row(0.1)},
    }


def test_a_comparison_keeps_the_papers_order() -> None:
    server, clients, caption = compare_text(comparison([7, 8, 9])).split("\n\n")
    lines = [line.split() for line in server.splitlines()]
    assert lines[1] == ["method", "tomi", "food", "mean"]
    assert lines[2] == ["zero-shot", *["90.0", "+/-", "1.2"] * 3]
    assert lines[3] == ["centralized", *["60.0", "+/-", "1.2"] * 3]
    names = [line.split()[0] for line in clients.splitlines()[1:]]
    assert names == ["method", "zero-shot", "FedAvg", "own_method"]
    assert caption == "Accuracy in percent, mean and standard deviation over 3 seeds (7, 8, 9)."


def test_compare_with_one_seed_has_no_spread() -> None:
    text = compare_text(comparison([7]))
    assert "+/-" not in text
    assert "one seed (7): no spread" in text
    assert text.splitlines()[0] == "Server LLM"


def test_compare_tables_are_one_a_model() -> None:
    first, second = compare_tables(comparison([7, 8]))
    assert "Server LLM" in shown(first)
    assert "own_method" in shown(second)
    assert compare_tables({"llm": {}, "slm": {}}) == ()
