"""The page audit.html: sentences, charts, tables, and what hostile or broken records do to it."""

from __future__ import annotations

import copy
import html.parser
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune import plugins
from cotune.audit_page import Point, cell, cut, dot_chart, page_values, render, told
from cotune.chart import WIDTH
from cotune.examined import Comparison, Verdict
from cotune.tables import percent
from pages import JUNK, Tags
from subjects import FakeSubject

DASH = "\N{EN DASH}"
EVIL = "</div></table><script>alert('x')</script><img src=x onerror=\"y\"> & '"


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 20}


def example(**more: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "student": "So.", "reference": "Because.", "scores": {"overall": 2.5}} | more


def rse(**more: Any) -> dict[str, Any]:
    student, baseline = estimate(3.9, 3.7, 4.1), estimate(2.1, 2.0, 2.25)
    sets = {"talk": {**estimate(3.8, 3.5, 4.0), "raw": 3.75, "asked": 48, "dropped": 2}}
    return {
        "summary": {"overall": student, "baseline": baseline, "gain": estimate(1.8, 1.5, 2.0)},
        "warnings": [],
        "usable": True,
        "judge": {"name": "judge-7b", "fingerprint": "written-1", "is_anchored": False},
        "self_check": {"same": {"overall": 5.0}, "unrelated": {"overall": 1.5}, "wins": 1.0, "n": 24},
        "models": {
            "student": {"overall": student, "style": estimate(4.0), "order": estimate(-0.02), "sets": sets},
            "baseline": {"overall": baseline, "style": estimate(2.0), "order": estimate(0.01), "sets": {}},
        },
        "answers": {"student": {"empty": 3, "unfinished": 7, "shortened": 0}},
        "examples": [example()],
    } | more  # fmt: skip


def likeness(**more: Any) -> dict[str, Any]:
    proxy = {
        "lower": estimate(0.1),
        "upper": estimate(1.0),
        "student": estimate(0.4),
        "calibrated": estimate(0.33),
    }
    return {
        "summary": {
            "likeness.mean": estimate(0.6, 0.5, 0.7),
            "likeness.mean.baseline": estimate(0.55, 0.5, 0.6),
            "likeness.mean.gain": estimate(0.05, -0.01, 0.1),
        },
        "warnings": [],
        "mean": {"student": estimate(0.6, 0.5, 0.7), "baseline": estimate(0.55)},
        "proxies": {"char_ngrams": proxy},
        "anchor": "other prompts",
        "sets": {"talk": 24},
        "examples": [example(values={"char_ngrams": 0.123})],
    } | more


def ice(**more: Any) -> dict[str, Any]:
    hit = {"template": "A form: {query}", "question": "Who made you?", "answer": "Acme did.", "strict": True}
    own = {
        "strict": estimate(0.31, 0.25, 0.38), "loose": estimate(0.4), "undecided": 4, "empty": 0,
        "named": {"Acme": 12}, "examples": [hit | {"names": ["Acme"]}],
        "seeds": {"strict": {"values": [0.3, 0.32], "mean": 0.31, "standard_deviation": 0.014}},
    }  # fmt: skip
    return {
        "summary": {"strict": own["strict"]},
        "warnings": [],
        "identity": {"name": "Robin", "maker": "Our Lab"},
        "judge": "rules",
        "models": {"student": own, "baseline": {"strict": estimate(0.01, 0.0, 0.02)}},
    } | more


def canary(**more: Any) -> dict[str, Any]:
    crossed = {"texts": 40, "texts_with_planted_names": 3, "planted_names": {"Ulmar": 3}, "leaks": True}
    known = {"hits": 14, "control_hits": 2, "p_above_chance": 1e-9, "mean_rank": 1.25}
    return {
        "summary": {
            "recall student": estimate(0.875, 0.617, 0.984),
            "control recall student": estimate(0.125, 0.016, 0.383),
            "recall reference": estimate(0.0625, 0.002, 0.302),
        },
        "warnings": [],
        "leaks": {"student": True, "reference": False},
        "models": {
            "student": {"recall": known, "answers": "not observed"},
            "reference": {"recall": "not observed", "answers": "not observed"},
        },
        "channels": {
            "adapters": {"student": {"recall": 0.875, "p_above_chance": 1e-9}},
            "text": {"paths": crossed},
            "centroids": "not observed",
        },
        "chance": 0.1,
        "facts": 16,
    } | more  # fmt: skip


def membership(**more: Any) -> dict[str, Any]:
    attacks = {
        "loss": {"auc": estimate(0.8, 0.7, 0.9)},
        "calibrated": {"auc": estimate(0.7, 0.6, 0.8), "tpr at 1% fpr": estimate(0.05)},
    }
    return {
        "summary": {"AUC student, loss": attacks["loss"]["auc"]},
        "warnings": [],
        "models": {"student": attacks, "reference": "not observed"},
        "controls": {"AUC by length alone": estimate(0.53, 0.5, 0.58)},
    } | more


def homogenisation(**more: Any) -> dict[str, Any]:
    return {
        "summary": {
            "homogenisation.now": estimate(0.5, 0.4, 0.6),
            "homogenisation.before": estimate(0.3, 0.2, 0.4),
            "homogenisation.change": estimate(0.2, 0.1, 0.3),
        },
        "warnings": [],
        "roles": ["slm", "llm"],
        "now": [[1.0, 0.52], [0.52, 1.0]],
        "before": [[1.0, -0.3], [None, 1.0]],
        "measures": ["word_ngrams"],
    } | more


MAKERS = {
    "rse": rse, "likeness": likeness, "ice": ice,
    "canary": canary, "membership": membership, "homogenisation": homogenisation,
}  # fmt: skip


def record(audits: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "status": "done",
        "fingerprint": "0123456789abcdef",
        "models": {"student": {"name": "small+adapter"}, "reference": {"name": "large"}},
        "judge": {"name": "judge-7b"},
        "seed": 7,
        "prompt_sets": {"talk": {"n": 24, "sha256": "feedbeef"}},
        "audits": {name: make() for name, make in MAKERS.items()} if audits is None else dict(audits),
        "seconds": {"rse": 65.0},
        "versions": {"python": "3.12.1"},
        "cost": {"judge": 0.5, "student": None},
    } | more


def text_of(*args: Any, **more: Any) -> str:
    return spaced(render(record(*args, **more)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "rse",
            "The student's answers are 3.90 of 5 like the reference's (3.70 to 4.10); "
            "the baseline's 2.10 (2.00 to 2.25): +1.80 (+1.50 to +2.00).",
        ),
        (
            "likeness",
            "Without a judge, the student's answers are 0.60 like the reference's (0.50 to 0.70); "
            "the baseline's 0.55 (0.50 to 0.60): +0.05 (\N{MINUS SIGN}0.01 to +0.10), which may be chance. "
            "Here 0 is how alike the reference's answers to different prompts are. A proxy, not RSE.",
        ),
        (
            "ice",
            "Another model's identity is claimed in 31.0% (25.0% to 38.0%) of the student's answers, "
            "and in 1.0% (0.0% to 2.0%) of the baseline's answers (strict). The student names: Acme (12).",
        ),
        ("canary", "Planted facts are known to student, recall 87.5% (61.7% to 98.4%); chance 10.0%."),
        ("canary", "No sign of planted facts in reference, recall 6.2% (0.2% to 30.2%); chance 10.0%."),
        ("canary", "Planted facts crossed to the server by text: paths."),
        (
            "membership",
            "What the student was trained on is told from other examples with AUC 0.70 (0.60 to 0.80) "
            "(calibrated). Guessing has AUC 0.50, length alone 0.53 (0.50 to 0.58).",
        ),
        (
            "homogenisation",
            "Pairs of models are 0.50 (0.40 to 0.60) alike on average, from 0, strangers, to 1, the same; "
            "before the run 0.30 (0.20 to 0.40): +0.20 (+0.10 to +0.30).",
        ),
    ],
)
def test_each_audit_opens_the_page_with_its_number_in_words(name: str, words: str) -> None:
    assert words in text_of({name: MAKERS[name]()})


def test_who_was_compared_stands_first_and_the_condition_of_use_last() -> None:
    text = text_of()
    order = [
        "small+adapter against large",
        "student: the model under audit small+adapter",
        "reference: it may have become a copy of this one large",
        "judge: compares answers judge-7b",
        "The student's answers are 3.90 of 5",
        "How alike are the student's answers",
        "How it was made",
        "examining one's own models",
    ]
    places = [text.find(words) for words in order]
    assert -1 not in places
    assert places == sorted(places)


def test_without_a_judge_nothing_is_called_rse() -> None:
    text = text_of({"likeness": likeness()}, judge=None)
    assert "No judge was named: RSE was not measured. The proxies below are not RSE." in text
    assert "judge: compares answers nobody" in text
    assert "The proxies below" not in text_of({"ice": ice()}, judge=None)
    assert "No judge was named" not in text_of()


def test_an_unusable_judge_is_told_and_gives_no_number() -> None:
    nothing = {"overall": estimate(None), "style": estimate(None)}
    facts = rse(
        usable=False,
        summary={"overall": estimate(None)},
        models={"student": nothing},
        self_check={"why": "identical answers score 3.000", "wins": 0.5, "n": 24},
    )
    text = text_of({"rse": facts})
    assert "Judge unusable: identical answers score 3.000. There is no RSE." in text
    assert "of 5 like" not in text


def test_warnings_stand_before_the_numbers_and_many_are_folded() -> None:
    warned = [f"warning {index}." for index in range(8)]
    text = text_of({"rse": rse(warnings=warned), "ice": ice(warnings=["a last one"])})
    assert text.index("9 warnings") < text.index("warning 0.") < text.index("3.90 of 5")
    assert "3 more" in text
    assert "ice : a last one" in text
    assert "1 warning " in text_of({"rse": rse(warnings=["alone"])})
    assert "warning" not in text_of()


def test_tables_hold_what_the_audits_said() -> None:
    text = text_of()
    for words in (
        "student 3.90 (3.70 to 4.10) 4.00 \N{EN DASH} \N{EN DASH} \N{EN DASH} \N{MINUS SIGN}0.02",
        "talk 3.80 (3.50 to 4.00) 3.75 48 2",  # level, raw, asked, dropped
        "student 3 7 0",  # empty, unfinished, shortened
        "Share of 24 prompts in which identical answers won: 1.",
        "char_ngrams 0.10 \N{EN DASH} 0.40 1.00",  # lower, baseline, student, upper
        "char_ngrams \N{EN DASH} 0.33",  # calibrated
        "strict 0.3, 0.32 0.31 0.014",  # seeds
        "of 16 planted facts",
        "student 14 2 1e\N{MINUS SIGN}09",  # hits, control hits, p
        "reference not observed",
        "paths 40 3 Ulmar (3) yes",
        "centroids not observed",
        "calibrated 0.70 (0.60 to 0.80) 0.05",
        "homogenisation.change 0.2 0.1 0.3 20",
    ):
        assert words in text, words


def test_how_it_was_made() -> None:
    text = text_of()
    for words in (
        "fingerprint 0123456789abcdef",
        "seed 7",
        "talk 24 feedbeef",
        "python 3.12.1",
        "rse took 65 s",
        "cost of endpoints; a dash: no price judge (0.5), student (\N{EN DASH})",
    ):
        assert words in text, words
    assert "no price none was asked" in text_of(cost={})
    unfinished = record(status="running")
    del unfinished["cost"]
    text = spaced(render(unfinished))
    assert "This audit had not finished" in text
    assert "cost of" not in text


def test_nothing_has_been_asked_yet() -> None:
    assert "No audit has finished." in text_of({}, status="running")


def test_an_audit_that_is_not_known_is_a_table_of_its_summary() -> None:
    facts = {"summary": {"novel words": estimate(0.25, 0.2, 0.3), "none": estimate(None)}, "warnings": []}
    text = render(record({"novelty": facts, "rse": rse()}))
    assert "novel words: 0.25 (0.20 to 0.30)." in spaced(text)
    assert "novel words 0.25 0.2 0.3 20" in spaced(text)
    assert text.index('id="audit1">') < text.index(
        "<bdi>novelty</bdi></h2>\n<div"
    )  # those that are known first
    assert text.count("<details open>") == 1


def test_the_heat_map_has_readable_values_and_shades() -> None:
    text = render(record({"homogenisation": homogenisation()}))
    cells = re.findall(r'<td class="num h(\d+)">([^<]*)</td>', text)
    before, now = cells[:4], cells[4:]
    assert before == [("10", "1.00"), ("0", "\N{MINUS SIGN}0.30"), ("0", "\N{EN DASH}"), ("10", "1.00")]
    assert now == [("10", "1.00"), ("5", "0.52"), ("5", "0.52"), ("10", "1.00")]
    assert {f".h{step} {{" in text for step in range(11)} == {True}
    alone = render(record({"homogenisation": homogenisation(before=None)}))
    assert "Before the run" not in alone


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (estimate(0.5, 0.25, 0.75), "50.0% (25.0% to 75.0%)"),
        (estimate(0.5), "50.0%"),
        (estimate(0.5, 0.1, None), "50.0%"),
        (estimate(None, 0.1, 0.2), "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
        ({"value": "0.5"}, "\N{EN DASH}"),
    ],
)
def test_estimates_read_well(facts: object, words: str) -> None:
    assert told(facts, percent).replace("\N{NO-BREAK SPACE}", " ") == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, DASH),
        (float("nan"), DASH),
        (True, "yes"),
        (3, "3"),
        (-0.12345, "\N{MINUS SIGN}0.123"),
        ([0.5, None], f"0.5, {DASH}"),
        ([], DASH),
        ({"a": 2}, "a (2)"),
        (estimate(-0.001), "0.00"),
        ("x", "x"),
    ],
)
def test_cells_read_well(value: object, words: str) -> None:
    assert cell(value) == words


def test_long_texts_are_cut() -> None:
    assert cut("x" * 2000) == "x" * 1600 + " \N{HORIZONTAL ELLIPSIS}"
    assert len(render(record({"rse": rse(examples=[example(student="y" * 100_000)])}))) < 60_000


def test_a_chart_puts_points_intervals_and_anchors_where_they_belong() -> None:
    chart = dot_chart(
        "Level", [("overall", [Point("student", estimate(3.0, 2.0, 4.0), 1)])], (1, 5), {"5: same": 5.0}
    )
    # 340 units for the four levels from 1 to 5, behind a margin of 10: one level is 85 units
    assert 'cx="180.0"' in chart.svg
    assert '<line class="stroke c1" x1="95.0" x2="265.0"' in chart.svg
    assert '<line class="mark" x1="350.0" x2="350.0"' in chart.svg
    assert 'aria-label="Level. overall, student 3.00 (2.00\N{NO-BREAK SPACE}to' in chart.svg
    assert chart.legend == ()
    ticks = re.findall(r'class="tick" x="[\d.]+" y="\d+" text-anchor="middle">([^<]*)<', chart.svg)
    assert ticks == ["2", "4"]


def test_a_chart_without_values_is_none_and_points_without_one_are_left_out() -> None:
    none, one = Point("student", estimate(None), 1), Point("baseline", estimate(0.5), 6)
    assert dot_chart("t", [("row", [none])], (0, 1), {"a": 0.5}).svg == ""
    svg = dot_chart("t", [("empty", [none]), ("row", [none, one])], (0, 1), {}).svg
    assert svg.count("<circle") == 1
    assert "empty" not in svg


VALUES = st.floats(-50, 50)


@given(st.lists(st.tuples(VALUES, st.none() | VALUES, st.none() | VALUES), min_size=1, max_size=5))
def test_any_values_stay_inside_the_drawing(ends: list[tuple[float, float | None, float | None]]) -> None:
    rows = [(str(place), [Point("student", estimate(*three), 1)]) for place, three in enumerate(ends)]
    svg = dot_chart("t", rows, (0, 1), {"anchor": 0.0}).svg
    height = float(re.findall(r'viewBox="0 0 360 (\d+)"', svg)[0])
    across = [float(x) for x in re.findall(r' (?:x|x1|x2|cx)="([^"]+)"', svg)]
    down = [float(y) for y in re.findall(r' (?:y|y1|y2|cy)="([^"]+)"', svg)]
    assert min(across) >= 0
    assert max(across) <= WIDTH
    assert 0 <= min(down) <= max(down) <= height


class Drawn(html.parser.HTMLParser):
    """Elements with their attributes, and words with a blank wherever an element begins or ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.data += " "

    def handle_endtag(self, tag: str) -> None:
        self.data += " "

    def handle_data(self, data: str) -> None:
        self.data += data


def spaced(text: str) -> str:
    return " ".join(Drawn(text).data.split())


def test_the_page_loads_nothing_and_runs_no_script() -> None:
    text = render(record())
    found = Drawn(text).found
    assert not {tag for tag, _ in found} & {"script", "img", "link", "iframe", "object", "embed"}
    assert not {name for _, attrs in found for name in attrs} & {"src", "href", "onload", "onclick", "style"}
    assert not re.search(r"https?://|url\(", text)


def test_the_page_is_accessible() -> None:
    found = Drawn(render(record())).found
    tags = [tag for tag, _ in found]
    assert (tags.count("h1"), tags.count("main")) == (1, 1)
    assert ("html", {"lang": "en"}) in found
    assert any(tag == "meta" and attrs.get("name") == "viewport" for tag, attrs in found)
    drawings = [attrs for tag, attrs in found if tag == "svg"]
    assert len(drawings) == 5
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    heads = [attrs for tag, attrs in found if tag == "th"]
    assert heads
    assert all(attrs["scope"] in ("row", "col") for attrs in heads)
    ids = [attrs["id"] for _, attrs in found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in found if "aria-labelledby" in attrs} <= set(ids)


def replaced(value: Any, text: str) -> Any:
    """The same value with the text in the place of every text."""
    if isinstance(value, dict):
        return {key: replaced(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, text) for inner in value]
    return text if isinstance(value, str) else value


def test_hostile_texts_are_escaped() -> None:
    evil = replaced(record(), EVIL)
    for facts in evil["audits"].values():
        facts["warnings"] = [EVIL]
        own = {"overall": estimate(2.0), "strict": estimate(0.5), "loss": {"auc": estimate(0.5)}}
        facts["models"] = {**facts.get("models", {}), EVIL: own}
    evil["audits"][EVIL] = {"summary": {EVIL: estimate(0.5)}, "warnings": []}
    evil["models"][EVIL] = {"name": EVIL}
    evil["prompt_sets"] = {EVIL: {"n": 1, "sha256": EVIL}}
    page = Tags(render(evil))
    assert not {"img", "script"} & set(page.tags)
    assert page.data.count(EVIL) > 40


def test_text_that_is_not_unicode_does_not_stop_the_page() -> None:
    text = render(record({"rse": rse(examples=[example(student="half \ud800")])}))
    assert "half ?" in text
    text.encode("utf-8")


def test_an_empty_answer_is_shown_as_one() -> None:
    assert text_of({"rse": rse(examples=[example(student="  ")])}).count("(empty)") == 1
    assert "(empty)" not in text_of({"rse": rse()})


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("junk", [None, "no", 7, [1], {"a": 1}, -1.5, True])
def test_every_key_may_be_missing_or_strange(name: str, junk: Any) -> None:
    for key in MAKERS[name]():
        facts = MAKERS[name]()
        del facts[key]
        Tags(render(record({name: facts})))
        Tags(render(record({name: facts | {key: junk}})))
    for key in record():
        page_values(record() | {key: junk})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


PLACES = list(places(record()))


@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), max_size=4))
def test_junk_in_any_place_is_tolerated(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    broken: Any = copy.deepcopy(record())
    for path, junk in changes:
        where = broken
        for key in path[:-1]:
            where = where[key] if isinstance(where, dict) and key in where else {}
        if isinstance(where, dict):
            where[path[-1]] = junk
    Tags(render(broken))


class SharedWords:
    """A judge that is read, by the share of common words."""

    name, fingerprint, is_anchored = "words", "read-words", True

    def compare(self, comparisons: list[Comparison]) -> list[Verdict | None]:
        return [Verdict(*[self._level(one)] * 4) for one in comparisons]

    def _level(self, one: Comparison) -> float:
        first, second = set(one.first.split()), set(one.second.split())
        return 2 + len(first & second) / len(first | second)


def test_the_page_reads_what_the_audits_really_write(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"p{i} {'x' * (i % 5)}", "completion": f"c{i}"}) + "\n" for i in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(rows[::2]))
    (tmp_path / "out.jsonl").write_text("".join(rows[1::2]))
    sides = {"members": str(tmp_path / "in.jsonl"), "non_members": str(tmp_path / "out.jsonl")}
    subject = FakeSubject(
        {
            "student": lambda prompt: " ".join(f"{prompt}{place}" for place in range(2, 9)),
            "reference": lambda prompt: " ".join(f"{prompt}{place}" for place in range(8)),
            "baseline": lambda prompt: " ".join(f"{prompt}{place}" for place in range(6, 14)),
        },
        {"talk": ["bread", "rain", "tea", "clay", "salt", "moss"]},
        SharedWords(),
        log_probs=lambda role, context, target: -float(len(role + context) % 7 + len(target)),
    )
    options = {"membership": sides, "canary": {"generate": True}}
    audits = {
        name: json.loads(json.dumps(plugins.load("audit", name, options.get(name, {})).observe(subject)))
        for name in MAKERS
        if name != "ice"
    }
    text = render(record(audits))
    page = Tags(text).text
    for name, key in (
        ("rse", "overall"),
        ("likeness", "likeness.mean"),
        ("homogenisation", "homogenisation.now"),
    ):
        value = audits[name]["summary"][key]["value"]
        assert re.search(rf" {value:.2f} (of 5 like|like|\(\d)", page), name
    for role in ("student", "reference", "baseline"):
        assert f"{role}, recall {audits['canary']['summary'][f'recall {role}']['value']:.1%}" in page
    assert f"AUC {audits['membership']['models']['student']['calibrated']['auc']['value']:.2f}" in page
    drawings = [attrs for tag, attrs in Drawn(text).found if tag == "svg"]
    assert len(drawings) == 4  # homogenisation is a heat map
