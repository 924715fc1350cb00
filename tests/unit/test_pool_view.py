"""What a party sees of the public pool, and what it makes of a message."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.pool_view import losses_of, mean_losses, rows_of, texts_of, told_losses
from cotune.records import Example


def test_losses_do_not_depend_on_how_many_tokens_an_answer_is_cut_into():
    pool = [Example(id=str(i), prompt="p", completion=text) for i, text in enumerate((" abc", " ab", ""))]
    sums = np.array([-8.0, -6.0, 0.0])
    coarse, fine = (
        mean_losses(
            SimpleNamespace(log_probs=lambda _, n=n: SimpleNamespace(sums=sums, counts=np.array(n))), pool
        )
        for n in ([1, 1, 0], [4, 3, 0])
    )
    np.testing.assert_array_equal(coarse, fine)
    np.testing.assert_array_equal(coarse, [2.0, 2.0, np.nan])
    assert told_losses(coarse) == [2.0, 2.0, None]
    np.testing.assert_array_equal(losses_of({"losses": told_losses(coarse)}, 3), coarse)


@given(sums=st.lists(st.floats(-1e5, 0), min_size=1, max_size=20))
def test_losses_that_crossed_are_the_losses_that_did_not(sums):
    pool = [Example(id=str(i), prompt="p", completion=" abcdef") for i in range(len(sums))]
    read = SimpleNamespace(sums=np.array(sums), counts=np.ones(len(sums)))
    own = mean_losses(SimpleNamespace(log_probs=lambda _: read), pool)
    np.testing.assert_array_equal(
        losses_of(json.loads(json.dumps({"losses": told_losses(own)})), len(sums)), own
    )


@pytest.mark.parametrize("losses", [None, "12", [1.0], [1, "2", 3], [1, True, 3], [1, 10**400, 3]])
def test_losses_that_are_none_are_refused(losses):
    with pytest.raises(ValueError, match="losses"):
        losses_of({"losses": losses}, 3)


@pytest.mark.parametrize("rows", [None, "12", [1, 1], [-1], [3], [True], [1.0]])
def test_rows_that_are_none_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        rows_of({"rows": rows}, "rows", 3)


@pytest.mark.parametrize("texts", [None, ["a"], ["a", 1], ["a", "b" * 9]])
def test_texts_that_were_not_asked_for_are_refused(texts):
    with pytest.raises(ValueError, match="paths"):
        texts_of({"paths": texts}, "paths", 2, 8)
