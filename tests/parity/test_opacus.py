"""Gradients of private tuning against opacus' on the same batch, stored by `opacus_gradients.py`."""

from __future__ import annotations

import json

import numpy as np
import opacus_gradients as case
import pytest

from cotune.models.dp_sgd import clipped_sums
from cotune.models.lora import LoraStack

KNOWN = json.loads(case.FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("clip", case.CLIPS)
def test_clipped_sums_are_those_of_opacus(clip):
    lm = case.model()
    stack = LoraStack(lm, case.RANK, case.ALPHA, "all-linear")
    stack.load([case.adapter(stack)])
    ours = clipped_sums(lm, stack, [case.rows()], [clip]).sums[0].numpy()
    theirs = np.concatenate([KNOWN["sums"][str(clip)][name] for name in stack.names()])
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_the_bounds_cut_every_example_some_and_none():
    norms = np.array(KNOWN["norms"])
    assert [int((norms > clip).sum()) for clip in case.CLIPS] == [5, 3, 0]
