"""The map of examples: what is in the page is what was given, and none of it can become markup."""

from __future__ import annotations

import html.parser
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cotune.errors import DataError
from cotune.map import SIDE, TEXT_AT_LEAST, TEXT_AT_MOST, Map, counts, embedded, page_data, render, scaled

EVIL = "</script><img src=x onerror=\"alert('x')\"> <!-- <script> ]]> & \u2028 \u2029 \x00 \"'`"
TEXTS = st.text(alphabet=st.characters(exclude_categories=()), max_size=40)


def a_map(count: int = 6, **more: Any) -> Map:
    places = np.random.default_rng(0).normal(size=(count, 2))
    parts: dict[str, Any] = {
        "places": places,
        "groups": np.arange(count) % 3 - 1,
        "chosen": np.arange(count) % 2 == 0,
        "texts": [f"text {i}" for i in range(count)],
        "clients": [f"c{i % 2}" for i in range(count)],
        "ids": [f"id{i}" for i in range(count)],
        "title": "Examples",
        "facts": [("method", "fedhds")],
    }
    return Map(**parts | more)


class Page(html.parser.HTMLParser):
    """The elements of a page, and the text of its data element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        else:
            self.words += data

    @property
    def data(self) -> dict[str, Any]:
        (attributes, text), _ = self.scripts
        assert attributes == {"type": "application/json", "id": "data"}
        value = json.loads(text)
        assert isinstance(value, dict)
        return value


def test_data_in_the_page_are_those_given() -> None:
    given_map = a_map(7)
    data = Page(render(given_map)).data
    assert data["texts"] == list(given_map.texts)
    assert data["ids"] == list(given_map.ids)
    assert [data["clients"][i] for i in data["client"]] == list(given_map.clients)
    assert data["groups"] == given_map.groups.tolist()
    assert data["chosen"] == np.flatnonzero(given_map.chosen).tolist()
    places = np.array(data["places"]).reshape(-1, 2) / SIDE
    span = np.ptp(given_map.places, axis=0).max()
    np.testing.assert_allclose(
        places * span, given_map.places - given_map.places.min(axis=0), atol=2e-6 * span
    )


def test_hostile_text_stays_text() -> None:
    harmless, hostile = (
        Page(render(a_map(3, texts=[t] * 3, clients=[t] * 3, ids=[t] * 3, title=t, facts=[(t, t)])))
        for t in ("plain", EVIL)
    )
    assert hostile.tags == harmless.tags
    assert "img" not in hostile.tags
    assert hostile.data["texts"] == hostile.data["ids"] == [EVIL] * 3
    assert hostile.data["clients"] == [EVIL]


@given(
    st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3))
)
def test_embedded_json_comes_back_and_cannot_end_its_element(value: Any) -> None:
    text = embedded(value)
    assert not set(text) & set("<>&\u2028\u2029")
    text.encode()
    # two halves of one character side by side come back as that character
    assert embedded(json.loads(text)) == embedded(json.loads(json.dumps(value)))


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_text_comes_back(texts: list[str]) -> None:
    data = Page(render(a_map(len(texts), texts=texts, clients=texts))).data
    assert data["texts"] == texts
    assert [data["clients"][i] for i in data["client"]] == texts


def test_script_shows_data_as_text_only() -> None:
    page = Page(render(a_map()))
    _, (attributes, script) = page.scripts
    nonce = attributes["nonce"]
    assert f"script-src 'nonce-{nonce}'" in render(a_map())
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http"):
        assert word not in script
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", render(a_map()))


def test_fifteen_thousand_points_stay_small_and_fast() -> None:
    count = 15_000
    big = a_map(count, texts=[f"{i:06d} " + "word " * 100 for i in range(count)])
    start = time.perf_counter()
    page = render(big)
    assert time.perf_counter() - start < 3
    assert len(page.encode()) < 8_000_000
    data = Page(page).data
    assert data["cut"] == TEXT_AT_MOST
    assert {len(text) for text in data["texts"]} == {TEXT_AT_MOST}


@pytest.mark.parametrize("letter", ["\u6f22", "<"])
def test_texts_that_take_many_bytes_are_cut_shorter(letter: str) -> None:
    page = render(a_map(15_000, texts=[letter * 400] * 15_000))
    assert len(page.encode()) < 8_000_000
    assert TEXT_AT_LEAST <= Page(page).data["cut"] < TEXT_AT_MOST


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_place_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    places = np.zeros((6, 2))
    places[4, 1] = bad
    with pytest.raises(DataError, match=r"row 4 .*'id4'"):
        render(a_map(places=places))


@pytest.mark.parametrize(
    "part", [{"texts": ["one"]}, {"groups": np.zeros(7, int)}, {"places": np.zeros((6, 3))}, {"clients": []}]
)
def test_parts_that_do_not_fit_together_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=rf"{next(iter(part))}|shape"):
        render(a_map(**part))


@pytest.mark.parametrize("count", [0, 1])
def test_no_example_and_one_example(count: int) -> None:
    page = Page(render(a_map(count)))
    assert len(page.data["places"]) == 2 * count
    assert ("There are no examples" in page.words) == (count == 0)


def test_no_example_may_come_as_an_empty_list_of_places() -> None:
    assert Page(render(a_map(0, places=np.zeros(0)))).data["places"] == []


def test_identical_places_stand_in_the_middle() -> None:
    assert set(page_data(a_map(9, places=np.full((9, 2), -3.5)))["places"]) == {SIDE // 2}


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.just(2)),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_any_finite_places_fit_the_map(places: np.ndarray[Any, Any]) -> None:
    numbers = scaled(places)
    assert numbers.min() >= 0
    assert numbers.max() <= SIDE
    assert np.ptp(numbers, axis=0).max() in (0, SIDE)


def test_scaling_keeps_shapes() -> None:
    numbers = scaled(np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]], dtype=np.float32))
    assert numbers.tolist() == [[0, 0], [SIDE, 0], [0, SIDE // 4]]


def test_counts_in_words() -> None:
    page = Page(render(a_map(6)))
    assert "3 of 6 examples chosen (50%), from 1 of 2 clients and 2 of 2 groups." in page.words
    assert "The chosen examples (3)" in page.words
    assert counts(a_map(6))["ungrouped"] == 2


def test_a_long_list_of_chosen_examples_says_how_many_it_shows() -> None:
    page = Page(render(a_map(1500, chosen=np.ones(1500, bool))))
    assert "The first 200 of 1,500 chosen examples" in page.words


def test_rendering_is_pure() -> None:
    assert render(a_map()) == render(a_map())
