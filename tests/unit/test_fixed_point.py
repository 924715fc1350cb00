"""Floats to integers and back: sums never overflow, and err by no more than is stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotune.errors import ConfigError, DataError
from cotune.fixed_point import Encoded, Grid, Layout


def added(grid: Grid, parts: list[np.ndarray]) -> np.ndarray:
    """The sum modulo 2^bits, in Python integers, which cannot overflow by themselves."""
    columns = zip(*[grid.encode(part).tolist() for part in parts], strict=True)
    return np.array([sum(column) % 2**grid.bits for column in columns], f"<u{grid.bits // 8}")


@pytest.mark.parametrize(("bits", "clients"), [(16, 1), (16, 7), (16, 32767), (32, 3), (32, 1000), (64, 5)])
def test_all_clients_at_the_bound_do_not_overflow_and_one_more_would(bits, clients):
    grid = Grid(bits, 0.5, clients)
    for sign in (1, -1):
        one = int(grid.encode(np.array([sign * 0.5]))[0])
        total = np.array([one * clients % 2**bits], f"<u{bits // 8}")
        assert grid.decode(total)[0] == pytest.approx(sign * 0.5 * clients, rel=1e-12)
    assert clients * grid.levels <= 2 ** (bits - 1) - 1
    if bits != 64:  # there the largest float integer is the limit
        assert clients * (grid.levels + 1) > 2 ** (bits - 1) - 1  # the range is used up


def test_one_client_too_many_turns_the_sign():
    """Why the range must follow from the number of clients: 4 clients on a grid for 3 wrap around."""
    grid = Grid(16, 1.0, 3)
    one = int(grid.encode(np.array([1.0]))[0])  # 10922 = floor(32767 / 3)
    assert one == 10922
    assert grid.decode(np.array([4 * one % 65536], np.uint16))[0] < 0


def test_hand_computed():
    """7 clients, 16 bits: L = floor(32767 / 7) = 4681; 0.25 of a bound of 2 is rint(585.125) = 585."""
    grid = Grid(16, 2.0, 7)
    assert grid.levels == 4681
    assert grid.encode(np.array([0.25, -0.25, 2.0, 0.0])).tolist() == [585, 65536 - 585, 4681, 0]
    np.testing.assert_allclose(grid.decode(np.array([65536 - 585], np.uint16)), [-585 * 2 / 4681])


@given(st.sampled_from([16, 32]), st.integers(1, 20), st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_a_sum_errs_by_no_more_than_stated(bits, clients, bound, seed):
    grid, rng = Grid(bits, bound, clients), np.random.default_rng(seed)
    parts = [rng.uniform(-bound, bound, 50) for _ in range(clients)]
    found = grid.decode(added(grid, parts))
    assert np.abs(found - np.sum(parts, 0)).max() <= grid.error(clients)


@given(st.integers(0, 2**32))
def test_random_rounding_errs_by_less_than_a_step_and_depends_on_the_seed_only(seed):
    grid, values = Grid(16, 1.0, 10), np.random.default_rng(seed).uniform(-1, 1, 100)
    found = grid.encode(values, np.random.default_rng(seed))
    assert (found == grid.encode(values, np.random.default_rng(seed))).all()
    assert np.abs(grid.decode(found) - values).max() <= grid.error(1, is_random=True)


def test_random_rounding_is_right_on_average():
    """0.3 of a step, 40,000 times: the mean has a standard error of sqrt(0.21 / 40,000) = 0.0023."""
    grid = Grid(16, 1.0, 10)
    values = np.full(40_000, 0.3 * grid.step)
    mean = grid.decode(grid.encode(values, np.random.default_rng(5))).mean() / grid.step
    assert abs(mean - 0.3) < 4 * 0.0023
    assert not grid.encode(values).any()


def test_random_rounding_never_goes_beyond_the_bound():
    grid = Grid(32, 1.0, 1)  # 2^31 - 1 levels, where a float64 still has room for fractions
    rounded = grid.encode(np.ones(100_000), np.random.default_rng(0))
    assert rounded.max() == grid.levels


@pytest.mark.parametrize("value", [1.001, -1.001, np.inf, np.nan])
def test_what_lies_beyond_the_bound_is_refused(value):
    with pytest.raises(DataError, match="clip it first"):
        Grid(32, 1.0, 3).encode(np.array([0.0, value]))


def test_what_rounding_of_a_clipped_value_can_add_is_cut_off():
    grid = Grid(32, 1.0, 3)
    assert grid.encode(np.array([1 + 1e-7]))[0] == grid.levels


@pytest.mark.parametrize(
    "wrong", [(8, 1.0, 3), (32, 0.0, 3), (32, np.inf, 3), (32, 1.0, 0), (16, 1.0, 32768)]
)
def test_a_grid_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected|hold"):
        Grid(*wrong)


LAYOUT = Layout((("a", (2, 3)), ("b", (4,))), ("loss",), Grid(32, 1.0, 5), largest_weight=100.0)


def total_of(parts: list[Encoded]) -> Encoded:
    return Encoded(sum(p.words for p in parts), sum(p.extras for p in parts))


@given(st.integers(1, 5), st.integers(0, 2**32), st.booleans())
def test_the_mean_is_numpys_average_within_the_stated_error(clients, seed, is_random):
    layout = Layout(LAYOUT.shapes, LAYOUT.sums, LAYOUT.grid, 100.0, is_random)
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1, 100, clients)
    arrays = [{"a": rng.uniform(-1, 1, (2, 3)), "b": rng.uniform(-1, 1, 4)} for _ in weights]
    losses = rng.uniform(-5, 5, clients)
    coded = [layout.encode(*p, rng) for p in zip(arrays, weights, [{"loss": x} for x in losses], strict=True)]
    found = layout.decode(total_of(coded), clients)
    for name in "ab":
        expected = np.average([one[name] for one in arrays], axis=0, weights=weights)
        error = layout.error(found.weight, clients) + 2.0**-24  # float32
        assert np.abs(found.arrays[name] - expected).max() <= error
    assert found.sums["loss"] == pytest.approx(losses.sum(), abs=layout.extras.error(clients))
    assert found.weight == pytest.approx(weights.sum(), abs=layout.extras.error(clients))


def test_counts_are_summed_exactly():
    one = LAYOUT.encode({"a": np.zeros((2, 3)), "b": np.zeros(4)}, 37, {"loss": 123_456_789.0})
    found = LAYOUT.decode(total_of([one] * 5), 5)
    assert (found.weight, found.sums["loss"]) == (185, 617_283_945)


@pytest.mark.parametrize(
    ("weight", "arrays", "sums", "match"),
    [
        (101, {"a": np.zeros((2, 3)), "b": np.zeros(4)}, {"loss": 1.0}, "weight 101"),
        (0, {"a": np.zeros((2, 3)), "b": np.zeros(4)}, {"loss": 1.0}, "weight 0"),
        (1, {"a": np.zeros((3, 2)), "b": np.zeros(4)}, {"loss": 1.0}, "first difference"),
        (1, {"a": np.zeros((2, 3))}, {"loss": 1.0}, "first difference"),
        (1, {"a": np.zeros((2, 3)), "b": np.zeros(4)}, {}, "'loss'"),
        (1, {"a": np.zeros((2, 3)), "b": np.zeros(4)}, {"loss": 2e9}, "clip"),
    ],
)
def test_a_contribution_that_does_not_fit_is_refused(weight, arrays, sums, match):
    with pytest.raises(DataError, match=match):
        LAYOUT.encode(arrays, weight, sums)


def test_random_rounding_without_a_generator_is_refused():
    with pytest.raises(DataError, match="generator"):
        Layout((), (), Grid(16, 1.0, 2), 1.0, True).encode({}, 1.0, {})


def test_weights_that_add_up_to_nothing_are_refused():
    with pytest.raises(DataError, match="add up to"):
        LAYOUT.decode(Encoded(np.zeros(10, np.uint32), np.zeros(2, np.uint64)), 1)
