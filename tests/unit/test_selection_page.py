"""The report's section on data selection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.page import page_values
from cotune.report import append_round, render, write_results
from cotune.selection_page import COLLAPSE_ABOVE, Share, round_ranges, selection_values
from pages import JUNK, Tags

EVIL = "</script><img src=x onerror=\"alert('x')\"> & \u2028 '"


def selection(clients: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "selectors": ["noise_floor", "fedhds"],
        "clients": {f"c{i}": {"total": 200, "chosen": 3 * i} for i in range(clients)},
        "total": 200 * clients,
        "chosen": sum(3 * i for i in range(clients)),
        "sat_out": 2,
        "seconds": 12.0,
        "seconds_tuning": 30.0,
        "epoch_seconds": 100.0,
        "saved_seconds": 240.0,
        "ask_bytes": 5_200,
        "gather_bytes": 0,
        "crossed": [
            {"action": "propose", "verb": "ask", "what": "centroids and group numbers", "bytes": 5_200}
        ],
        "num_clients": clients,
        "cut": 0,
        "notes": ["Centroids carry noise."],
    } | more


def record(index: int, **more: Any) -> dict[str, Any]:
    one = {"renewed": index == 1, "chosen": 9, "total": 600, "sat_out": ["c0"], "seconds": 6.0}
    return {"round": index, "seconds": 20.0, "selection": one | more}


def values(chosen: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    found = selection_values({"selection": chosen}, rounds)
    assert found is not None
    return found


def page(folder: Path, results: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    for one in rounds:
        append_round(folder, one)
    write_results(folder, results)
    (folder / "rounds.jsonl").touch()
    (folder / "config.yaml").write_text("seed: 1\n")
    return render(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("results", [{}, {"selection": None}, {"selection": {}}, {"selection": "no"}])
def test_a_run_without_a_selector_has_no_section(tmp_path: Path, results: dict[str, Any]) -> None:
    assert page_values(results, [], "")["selection"] is None
    assert "Data selection" not in page(tmp_path, results, [])


def test_section_shows_share_cost_and_what_crossed(tmp_path: Path) -> None:
    text = Tags(page(tmp_path, {"selection": selection()}, [record(0, renewed=False), record(1)])).text
    for words in (
        "Data selection",
        "1.5%",
        "9 of 600 examples, chosen by noise_floor, then fedhds",
        "Choosing took 12 s, training on the chosen examples 30 s.",
        "One pass over all the data of these clients would take about 100 s.",
        "It saved about 4 min 00 s of training: 20 times what it cost.",
        "Chosen anew in round 1; the rounds after it used the same examples.",
        "2 times a client had no chosen example and sat the round out (1 different client).",
        "centroids and group numbers",
        "in the clear, one by one",
        "5.2 kB",
        "Centroids carry noise.",
        "A client used between 0% and 3.0% of its examples",
        "1 of 3 used none.",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("seconds", "epoch", "is_due"), [(12, 100, False), (100, 100, False), (101, 100, True), (12, None, False)]
)
def test_warning_stands_only_where_choosing_cost_more_than_an_epoch(
    tmp_path: Path, seconds: float, epoch: float | None, is_due: bool
) -> None:
    chosen = selection(seconds=seconds, epoch_seconds=epoch)
    assert bool(values(chosen)["warning"]) == is_due
    assert ("longer than one pass" in page(tmp_path, {"selection": chosen}, [])) == is_due


def test_warning_has_both_numbers() -> None:
    warning = values(selection(seconds=700.0, epoch_seconds=300.0))["warning"]
    assert "11 min 40 s" in warning
    assert "5 min 00 s" in warning


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (None, "not known"),
        (0.0, "saved no training time"),
        (-5.0, "saved no training time"),
        (6.0, "6.0 s less than it cost"),
        (30.0, "2.5 times what it cost"),
        (12_000.0, "1,000 times what it cost"),
    ],
)
def test_cost_against_saving(saved: float | None, words: str) -> None:
    assert words in values(selection(saved_seconds=saved))["costs"][-1]


def test_hostile_names_and_notes_are_escaped(tmp_path: Path) -> None:
    chosen = selection(
        clients=0,
        selectors=[EVIL],
        notes=[EVIL],
        crossed=[{"action": EVIL, "verb": EVIL, "what": EVIL, "bytes": EVIL}],
    )
    chosen["clients"] = {EVIL: {"total": 3, "chosen": 1}}
    tags = Tags(page(tmp_path, {"selection": chosen}, [record(0, sat_out=[EVIL])]))
    assert not {"img", "script"} & set(tags.tags)
    assert tags.data.count(EVIL) == 6


def test_many_clients_are_collapsed(tmp_path: Path) -> None:
    few, many = selection(COLLAPSE_ABOVE), selection(COLLAPSE_ABOVE + 1)
    assert not values(few)["is_collapsed"]
    assert values(many)["is_collapsed"]
    assert f"Share of each client ({COLLAPSE_ABOVE + 1})" in page(tmp_path, {"selection": many}, [])


def test_at_most_a_thousand_clients_are_listed(tmp_path: Path) -> None:
    assert len(values(selection(1003))["rows"]) == 1000
    for name, chosen in (("old", selection(1003)), ("new", selection(1000, num_clients=1003))):
        (tmp_path / name).mkdir()
        text = Tags(page(tmp_path / name, {"selection": chosen}, [])).text
        for words in (
            "Share of each client (first 1,000 of 1,003 clients)",
            "These are the first 1,000 of 1,003 clients; rounds.jsonl has them all.",
            "Of the first 1,000 of 1,003 clients, each used between 0% and",
        ):
            assert words in text, words
    assert values(selection(1000, num_clients=1000))["listed"] == ""


@pytest.mark.parametrize(
    ("cut", "words"), [(0, ""), (None, ""), (1, "1 example was longer than"), (1200, "1,200 examples were")]
)
def test_examples_longer_than_the_model_reads_are_told(tmp_path: Path, cut: int | None, words: str) -> None:
    found = values(selection(cut=cut))["cut"]
    assert bool(found) == bool(words)
    assert words in found
    assert found in Tags(page(tmp_path, {"selection": selection(cut=cut)}, [])).text


def test_nothing_crossed_is_said() -> None:
    alone = selection(ask_bytes=0, crossed=[])
    assert values(alone)["nothing_crossed"]
    assert not values({**alone, "ask_bytes": None})["nothing_crossed"]


@pytest.mark.parametrize("missing", sorted(selection()))
def test_every_key_may_be_missing(tmp_path: Path, missing: str) -> None:
    older = {key: value for key, value in selection().items() if key != missing}
    Tags(page(tmp_path, {"selection": older}, [{"round": 0}]))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(selection(), JUNK)), JUNK)
def test_any_json_is_tolerated(chosen: dict[str, Any], one: Any) -> None:
    found = selection_values({"selection": chosen}, [{"round": 0, "selection": one}, {"selection": one}])
    assert (found is None) == (not chosen)


@pytest.mark.parametrize(
    ("renewed", "words"),
    [
        ([True, True, True], "Chosen anew in each of 3 rounds (0 to 2)."),
        ([True, False, True], "Chosen anew in rounds 0 and 2; the other rounds used what was chosen last."),
        ([False, False, False], "No round on record chose anew."),
        ([True], "Chosen anew in round 0."),
        ([], ""),
    ],
)
def test_rounds_that_chose_anew(renewed: list[bool], words: str) -> None:
    rounds = [record(i, renewed=one) for i, one in enumerate(renewed)]
    assert values(selection(), rounds)["rounds"] == words


@given(st.lists(st.integers(0, 40)))
def test_round_ranges_name_every_round_once(indices: list[int]) -> None:
    named: list[int] = []
    for part in round_ranges(indices).replace(" and ", ", ").split(", "):
        ends = [int(end) for end in part.split(" to ")] if part else []
        named += range(ends[0], ends[-1] + 1) if ends else []
    assert named == sorted(set(indices))


def test_bar_is_drawn_to_the_largest_share() -> None:
    assert 'width="112.0"' in Share("c", 3, 100, 0.03).picture
    assert 'width="56.0"' in Share("c", 3, 200, 0.03).picture
    assert Share("c", 0, 0, 0.0).picture == ""
    assert 'width="0.0"' in Share("c", 0, 5, 0.0).picture


def test_shares_far_below_a_percent_are_not_called_zero() -> None:
    assert values(selection(chosen=2, total=15_000))["share"] == "0.01%"
    assert values(selection(chosen=0))["share"] == "0%"
    assert json.dumps(values(selection())["costs"])
