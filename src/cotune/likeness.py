"""How alike two texts are, without a judge: each function gives 1 for equal texts, 0 for nothing in common.

All are symmetric. Two texts that are nothing but blanks are alike (1); one such and one other are not (0).
These are proxies under names of their own, never RSE (Lee et al. 2025, https://arxiv.org/abs/2501.12619, who
report a 2-gram overlap and BERTScore beside it).
"""

from __future__ import annotations

import lzma
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cotune.records import Array

if TYPE_CHECKING:
    Similarity = Callable[[str, str], float]

CHARACTERS, WORDS = 5, 2
"""Lengths of the n-grams."""
CLOSE = 0.01
"""Anchors nearer to each other than this are one: between them would be noise, a hundredfold."""

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+\S.*|\*\*[^*\n]+\*\*:?)[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


def plain(text: str) -> str:
    """The text in Unicode's composed form, with one blank for each run of blanks and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """Words and single punctuation marks in lower case; a Chinese or Japanese character is a word."""
    return _WORD.findall(plain(text).casefold())


def sentences(text: str) -> list[str]:
    """Parts that end with a sentence's mark or a line, without blanks around them; none of a blank text."""
    return [part for found in _SENTENCE_END.split(text) if (part := plain(found))]


def char_ngrams(a: str, b: str) -> float:
    """Dice of the multisets of 5 characters in a row, blanks folded, case kept: near to the letter."""
    return _dice(_grams(plain(a), CHARACTERS), _grams(plain(b), CHARACTERS))


def word_ngrams(a: str, b: str) -> float:
    """Dice of the multisets of 2 words in a row: the same turns of phrase."""
    return _dice(_grams(tuple(words(a)), WORDS), _grams(tuple(words(b)), WORDS))


def structure(a: str, b: str) -> float:
    """Mean likeness of two layouts, whatever the words say.

    Counts of paragraphs, list items, headings, code fences and sentences, and the mean number of words in a
    sentence, are compared by smaller / larger; the kinds of punctuation by what is common / what there is
    (Jaccard). What neither text has is no evidence and is left out.
    """
    if not (plain(a) and plain(b)):
        return float(plain(a) == plain(b))
    pairs = zip(_layout(a), _layout(b), strict=True)
    ratios = [min(pair) / max(pair) for pair in pairs if max(pair) > 0]
    marks, others = _marks(a), _marks(b)
    if marks | others:
        ratios.append(len(marks & others) / len(marks | others))
    return sum(ratios) / len(ratios)


def compression(a: str, b: str) -> float:
    """What two texts save when they are compressed together, over what the larger saves beside its copy.

    s(x, y) = C(x) + C(y) - C(xy), with C the bytes of LZMA above those of an empty text; the likeness is
    s(a, b) / max(s(a, a), s(b, b)), within [0, 1]: one minus the normalised compression distance (Cilibrasi
    and Vitanyi 2005) without the compressor's own loss, which makes equal texts exactly 1. The window of
    LZMA spans both texts; that of zlib ends at 32 KiB. Different texts too short to save anything: 0.
    """
    first, second = sorted(plain(text).encode("utf-8", "surrogatepass") for text in (a, b))
    if first == second:
        return 1.0
    packed = [_packed(first), _packed(second)]
    together = sum(packed) - _packed(first + second)
    own = max(2 * packed[0] - _packed(first * 2), 2 * packed[1] - _packed(second * 2))
    return min(1.0, max(0.0, together / own)) if own > 0 else 0.0


def embedding(a: Array, b: Array) -> float:
    """Cosine of two unit vectors [d], not below 0."""
    return min(1.0, max(0.0, float(np.dot(a.astype(np.float64), b))))


def embedding_f(a: Array, b: Array) -> float:
    """F of the nearest sentence of the other text, for unit vectors of the sentences, [m, d] and [n, d].

    Precision: mean over a's sentences of the cosine to the nearest one of b; recall: the other way round.
    Like BERTScore (Zhang et al. 2020, https://arxiv.org/abs/1904.09675, equations 1 to 3), over sentences
    instead of tokens. Cosines below 0 count as 0.
    """
    if not (len(a) and len(b)):
        return float(len(a) == len(b))
    cosines = np.clip(a.astype(np.float64) @ b.astype(np.float64).T, 0.0, 1.0)
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


PROXIES: Mapping[str, Similarity] = {
    "char_ngrams": char_ngrams,
    "word_ngrams": word_ngrams,
    "structure": structure,
    "compression": compression,
}
"""Those that need nothing but the texts."""


def calibrated(raw: Array, lower: Array, upper: Array) -> Array:
    """(raw - lower) / (upper - lower), element by element and not clipped; NaN where the anchors coincide.

    0: as alike as what has nothing to do with each other; 1: as alike as one model's answers and themselves.
    """
    span = np.asarray(upper - lower, np.float64)
    apart = np.abs(span) > CLOSE
    return np.where(apart, (raw - lower) / np.where(apart, span, 1.0), np.nan)


def strangers(sizes: Sequence[int], rng: np.random.Generator) -> list[int]:
    """For each prompt of some sets, counted through, another prompt to compare it with: a derangement.

    It is one of the same set; for a set of one prompt the next prompt of all, which for a single prompt is
    itself.
    """
    found: list[int] = []
    total = sum(sizes)
    for size in sizes:
        start = len(found)
        ring = rng.permutation(size)
        others = np.empty(size, np.int64)
        others[ring] = np.roll(ring, -1)
        found += [(start + 1) % total] if size == 1 else (start + others).tolist()
    return found


def _grams(items: Sequence[Hashable], length: int) -> Counter[Hashable]:
    """Runs of some items; all of them together if they are fewer, nothing of nothing."""
    if len(items) < length:
        return Counter([items] if items else [])
    return Counter(items[start : start + length] for start in range(len(items) - length + 1))


def _dice(a: Counter[Hashable], b: Counter[Hashable]) -> float:
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def _layout(text: str) -> tuple[float, ...]:
    parts = sentences(text)
    return (
        sum(bool(part.strip()) for part in _PARAGRAPH.split(text)),
        len(_ITEM.findall(text)),
        len(_HEADING.findall(text)),
        len(_FENCE.findall(text)),
        len(parts),
        len(plain(text).split()) / max(1, len(parts)),
    )


def _marks(text: str) -> set[str]:
    return {mark for mark in set(text) if unicodedata.category(mark)[0] in "PS"}


def _packed(text: bytes) -> int:
    """Bytes of LZMA's stream above those of an empty one, so that its frame is not taken for likeness."""
    return _stream(text) - _stream(b"")


def _stream(text: bytes) -> int:
    fast = {"mode": lzma.MODE_FAST, "mf": lzma.MF_HC4, "depth": 16, "pb": 0}
    chain = [{"id": lzma.FILTER_LZMA1, "dict_size": max(4096, len(text)), **fast}]
    return len(lzma.compress(text, lzma.FORMAT_RAW, filters=chain))
