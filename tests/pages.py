"""Reads a written page as a browser would; and what may stand in the records that it is written from."""

from __future__ import annotations

import html.parser
from typing import Any

from hypothesis import strategies as st

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
"""Anything small that Python reads from JSON, so also NaN and infinity."""


class Tags(html.parser.HTMLParser):
    """Elements of a page and its text, as it is and with one blank between words.

    Fails on an element that is closed in the wrong place.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.data = ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(self.data.split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data
