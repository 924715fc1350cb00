"""What a configuration of masked sums promises: plans, room for values, and the plain mean in the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cotune.aggregators import secure_sum
from cotune.aggregators.secure_sum import Config, SecureSum
from cotune.errors import ConfigError, WireError
from cotune.guarding import Update


def made(**options) -> SecureSum:
    return secure_sum.build(Config(**options))


def test_it_says_that_it_masks():
    assert secure_sum.MASKED


@settings(max_examples=8)
@given(st.integers(2, 9), st.sampled_from([16, 32]), st.integers(0, 99))
def test_fold_is_numpys_average_within_the_rounding_of_each_value(n, bits, seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.uniform(-0.5, 0.5, (n, 6)).astype(np.float32), rng.uniform(0.1, 40, n)
    found = made(bits=bits, clip=4.0).fold(
        ({"x": v.reshape(2, 3)}, w) for v, w in zip(values, weights, strict=True)
    )
    expected = np.average(values.astype(np.float64), axis=0, weights=weights).reshape(2, 3)
    # each of n values is off by less than one step, clip / floor((2^(bits - 1) - 1) / n)
    step = 4.0 / ((2 ** (bits - 1) - 1) // n)
    assert found["x"].dtype == np.float32
    assert np.abs(found["x"] - expected).max() <= n * step * weights.max() / weights.sum() + 2.0**-25


def test_an_update_beyond_the_norm_is_shortened_and_keeps_its_direction():
    long = np.array([3.0, 4.0], np.float32)  # norm 5
    found, is_clipped = made(clip=2.5).fitted(Update({"x": long}), is_update=True)
    assert is_clipped
    np.testing.assert_allclose(found.arrays["x"], [1.5, 2.0], rtol=1e-6)
    assert long.tolist() == [3.0, 4.0]
    assert made(clip=5.0).fitted(Update({"x": long}), is_update=True)[1] is False
    assert made(clip=2.5).fitted(Update({"x": long}), is_update=False)[1] is False


def test_where_guards_bound_every_value_nothing_is_clipped_and_a_broken_promise_is_refused():
    bounded = made(clip=1.0).bounded(4.0)
    kept, is_clipped = bounded.fitted(Update({"x": np.full(100, 4.0, np.float32)}), is_update=True)
    assert not is_clipped
    assert (kept.arrays["x"] == 4.0).all()
    assert bounded.layout(3, (), (), is_update=True).grid.bound == 4.0
    with pytest.raises(WireError, match="larger than the 4 that the guards promise"):
        bounded.fitted(Update({"x": np.full(2, 4.1, np.float32)}), is_update=True)


@pytest.mark.parametrize(
    ("update", "match"),
    [
        (Update({}, 2.5), r"not above 0 and at most 1. Set aggregator.largest_weight"),
        (Update({}, 0.0), "a weight that is not above 0"),
        (Update({}, float("nan")), "a weight that is not above 0"),
        (Update({}, 1.0, {"loss": float("nan")}), "loss is larger than"),
        (Update({}, 1.0, {"loss": 2.0**31}), "loss is larger than"),
        (Update({"x": np.array([np.inf])}), "x: a value is not finite"),
    ],
)
def test_what_no_sum_has_room_for_is_refused_without_its_value(update, match):
    """The reason goes to the server in the clear."""
    with pytest.raises(WireError, match=match) as told:
        made().fitted(update, is_update=True)
    assert "2.5" not in str(told.value)
    assert "2147483648" not in str(told.value)


def test_counts_are_summed_exactly():
    layout = made().layout(7, (("n", (2,)),), ("tokens",), is_update=False)
    given = [({"n": np.array([k, 10**6 + k])}, 1.0, {"tokens": 1e9 + k}) for k in range(7)]
    total = [sum(parts) for parts in zip(*(layout.encode(*one) for one in given), strict=True)]
    found = layout.decode(layout.encode(*given[0])._replace(words=total[0], extras=total[1]), 7)
    assert found.sums["tokens"] == pytest.approx(7e9 + 21, abs=1e-5)
    assert np.rint(found.arrays["n"] * 7).tolist() == [21, 7 * 10**6 + 21]


@pytest.mark.parametrize(
    ("asked", "there", "corrupt", "quorum", "minimum"),
    [
        # corrupt = floor(0.33 asked); quorum = floor((asked + corrupt) / 2) + 1
        (3, 3, 0, 2, 3),
        (3, 2, 0, 2, 2),
        (4, 4, 1, 3, 4),
        (4, 3, 1, 3, 3),
        (12, 12, 3, 8, 11),  # floor(0.1 x 12) may leave
        (12, 8, 3, 8, 8),
        (100, 70, 33, 67, 67),  # 7 might leave, but 67 must stay
    ],
)
def test_quorum_and_colluders_are_counted_from_all_who_were_asked(asked, there, corrupt, quorum, minimum):
    plan = made().plan(there, asked)
    assert (plan.num_clients, plan.corrupt, plan.quorum, plan.minimum) == (there, corrupt, quorum, minimum)
    assert 2 * plan.quorum > asked + plan.corrupt
    assert plan.num_clients - plan.dropped >= plan.quorum
    assert plan.threshold <= plan.num_clients - plan.dropped


@pytest.mark.parametrize(("asked", "there"), [(1, 1), (3, 1), (4, 2), (12, 7), (100, 66)])
def test_a_server_that_leaves_too_many_out_gets_no_plan(asked, there):
    with pytest.raises(
        ConfigError, match=f"{there} of {asked} clients for a masked sum, of which .* at least"
    ):
        made().plan(there, asked)


@given(st.integers(2, 40), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_plan_holds_the_counts_that_follow_from_its_shares(asked, dropout, corruption):
    corrupt = int(np.floor(corruption * asked))
    try:
        plan = made(dropout=dropout, corruption=corruption).plan(asked, asked)
    except ConfigError:
        assert asked < max((asked + corrupt) // 2 + 1, corrupt + 2)
        return
    assert plan.corrupt == corrupt
    assert plan.dropped == min(int(np.floor(dropout * asked)), asked - max(plan.quorum, corrupt + 2))


def test_what_is_promised_can_be_stated():
    stated = made().describe(12)
    assert (stated["num_neighbours"], stated["quorum"], stated["minimum"]) == (11, 8, 11)
    assert stated["privacy_failure"] <= 2.0**-40
    assert stated["step"] == pytest.approx(32 / ((2**31 - 1) // 12))


def test_one_client_has_no_masked_sum():
    with pytest.raises(ConfigError, match="1 of 1 clients for a masked sum"):
        made().fold([({"x": np.zeros(1, np.float32)}, 1.0)])


@pytest.mark.parametrize("wrong", [{"bits": 8}, {"clip": 0}, {"dropout": 1.0}, {"largest_weight": 2.0**31}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        Config(**wrong)


def test_without_the_package_for_masks_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(secure_sum, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cotune\[secure\]'"):
        made()
