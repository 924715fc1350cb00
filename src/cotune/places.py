"""Where an example stands on a map: two directions out of the shared basis, or out of its words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from cotune import groups
from cotune.readers import Readers
from cotune.records import Progress, silent

Floats = npt.NDArray[np.float64]


def places(
    texts: Sequence[str], readers: Readers, seed: int, progress: Progress = silent
) -> tuple[Floats, npt.NDArray[np.int64], str]:
    """Places [texts, 2], groups [texts] for the colours (-1 for none), and a phrase that says whose they are.

    Features are used where a selector has read them already; nothing is read for the map alone.
    """
    tick = partial(progress, "drawing")
    tick(0, len(texts))
    points, whose = _points(texts, readers, seed)
    return _plane(points), groups.density_groups(points, 5, seed, tick)[0], whose


def _points(texts: Sequence[str], readers: Readers, seed: int) -> tuple[npt.NDArray[np.float32], str]:
    for name, reader in readers.loaded.items():
        if reader.basis is not None:
            return reader.features(texts, *reader.basis), f"shared basis of {name}"
    return _word_features(texts, seed), "words in common"


def _word_features(texts: Sequence[str], seed: int) -> npt.NDArray[np.float32]:
    """Latent semantic features, [texts, up to 16] (Deerwester et al. 1990)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    if not texts:
        return np.zeros((0, 2), np.float32)
    counts = HashingVectorizer(n_features=1 << 14, norm=None, alternate_sign=False).transform(texts)
    weighted = TfidfTransformer().fit_transform(counts)
    with np.errstate(invalid="ignore", divide="ignore"):  # a share of a variance of 0, which nobody asked for
        found: npt.NDArray[np.float32] = TruncatedSVD(16, random_state=seed).fit_transform(weighted)
    return found.astype(np.float32)


def _plane(points: npt.NDArray[np.float32]) -> Floats:
    """The two main directions, [n, 2] (PCA), far points drawn in so that near ones show."""
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64) if len(points) else points
    if len(points) < 2:
        return np.zeros((len(points), 2))
    _, _, directions = np.linalg.svd(centred.T @ centred)
    flat = centred @ directions[:2].T
    typical = np.median(np.abs(flat), axis=0)
    found: Floats = np.arcsinh(flat / np.where(typical > 0, typical, 1.0))
    return found
