"""Clipping keeps its norm, noise its deviation; what cannot be promised is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from cotune.errors import ConfigError, DataError
from cotune.fixed_point import Grid
from cotune.guarding import GuardParts, Sender, Total, Update
from cotune.guards.clip_noise import ClipNoise, Config, build, clipped
from cotune.privacy import check_grid, noise_for
from cotune.records import Round

SIZE = 20_000


def parts(**options: object) -> GuardParts:
    given = {"num_clients": 50, "cohort": 20, "minimum": 18, "num_rounds": 5, "is_masked": True}
    return GuardParts(**{**given, **options})


def guard(where: str = "distributed", **options: float) -> ClipNoise:
    return build(Config(**{"clip": 1.0, "noise_multiplier": 1.0, "where": where, **options}), parts())


def sender(client: str = "a", index: int = 1, secret: bytes = b"s" * 32) -> Sender:
    return Sender(client, Round(index, 5, 7, (client,)), secret)


def sent(how: ClipNoise, values: np.ndarray, who: Sender) -> np.ndarray:
    return how.outgoing(Update({"x": values.astype(np.float32)}), who)[0].arrays["x"].astype(np.float64)


def length(arrays: dict[str, np.ndarray]) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for array in arrays.values() for x in array.ravel()))


def assert_deviation(values: np.ndarray, expected: float) -> None:
    """Chi-square; two in a million would fail."""
    low, high = chi2.ppf([1e-6, 1 - 1e-6], values.size)
    assert low < float((values**2).sum()) / expected**2 < high


SCALES = st.floats(-30, 30)


@given(st.integers(1, 200), SCALES, st.floats(-20, 20), st.integers(0, 2**32))
def test_clipping_keeps_the_norm_and_the_direction(size, scale, clip, seed):
    rng, clip = np.random.default_rng(seed), 2.0**clip
    arrays = {
        "a": (rng.normal(size=(size, 2)) * 2.0**scale).astype(np.float32),
        "b": (rng.normal(size=size) * 2.0**scale).astype(np.float32),
    }
    found, before = clipped(arrays, clip), length(arrays)
    assert length(found) <= min(clip, before) * (1 + 1e-12)
    assert length(found) >= min(clip, before) * (1 - 1e-6)
    ratio = length(found) / before
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array * ratio, rtol=1e-6)
        assert found[name].dtype == np.float32


def test_hand_computed():
    """All arrays count together: (3, 4, 12) has length 13, and a clip of 6.5 halves it."""
    arrays = {"a": np.array([[3.0], [4.0]], np.float32), "b": np.array([12.0], np.float32)}
    found = clipped(arrays, 6.5)
    np.testing.assert_allclose(found["a"].ravel(), [1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [6.0], rtol=1e-6)
    assert (clipped(arrays, 13.0)["b"] == arrays["b"]).all()
    assert arrays["a"][0, 0] == 3.0


def test_an_update_of_nothing_is_left():
    assert not clipped({"a": np.zeros(3, np.float32)}, 1.0)["a"].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused(value):
    with pytest.raises(DataError, match="training diverged"):
        guard().outgoing(Update({"a": np.array([0.0, value], np.float32)}), sender())


def test_one_clients_noise_has_its_share():
    """20 asked, 2 of whom may stay away: 18 shares of 0.5 / sqrt(18) make 0.5."""
    how = guard(clip=0.5)
    assert how.shares == 18
    assert how.deviation == pytest.approx(0.5 / math.sqrt(18))
    assert_deviation(sent(how, np.zeros(SIZE), sender()), how.deviation)


def test_shares_add_up_to_the_stated_noise():
    how = guard(noise_multiplier=2.0)
    total = sum(sent(how, np.zeros(SIZE), sender(f"client-{i}")) for i in range(18))
    assert_deviation(total, 2.0)
    assert how.budget.present(18) == pytest.approx(2.0)


@pytest.mark.parametrize("replies", [9, 20])
def test_another_number_of_replies_has_the_noise_that_is_accounted(replies):
    how = guard()
    total = sum(sent(how, np.zeros(SIZE), sender(f"client-{i}")) for i in range(replies))
    assert_deviation(total, how.budget.present(replies))
    assert how.budget.present(replies) == pytest.approx(math.sqrt(replies / 18))


def test_shares_that_are_told_do_not_count():
    """Of 20, 2 may stay away and 4 tell: 14 shares; 18 replies bring 14 that nobody knows."""
    how = guard(corruption=0.2)
    assert how.shares == 14
    honest = sum(sent(how, np.zeros(SIZE), sender(f"client-{i}")) for i in range(14))
    assert_deviation(honest, 1.0)
    assert how.budget.present(18) == pytest.approx(1.0)
    assert how.budget.present(4) == 0


def test_a_share_that_is_a_whole_number_is_not_lost_to_rounding():
    """0.1 * 30 is 3.0000000000000004 in floats less one bit: exactly 3 may stay away."""
    assert build(Config(clip=1, noise_multiplier=1, where="distributed"), parts(cohort=30)).shares == 27
    options = Config(clip=1, noise_multiplier=1, where="distributed", dropout=0.29)
    assert build(options, parts(cohort=100)).shares == 71


def test_the_noise_is_beside_the_update_and_a_repeated_round_tells_nothing_new():
    how, update = guard(), np.linspace(-1, 1, SIZE) / 200
    first = sent(how, update, sender())
    assert_deviation(first - update, how.deviation)
    assert (sent(how, update, sender()) == first).all()


def test_noise_of_others_rounds_secrets_and_updates_is_unrelated():
    how, update = guard(), np.linspace(-1, 1, SIZE) / 200
    noise = sent(how, update, sender()) - update
    other = np.flip(update)
    others = [
        sent(how, update, sender("b")) - update,
        sent(how, update, sender(index=2)) - update,
        sent(how, update, sender(secret=b"t" * 32)) - update,
        sent(how, other, sender()) - other,  # a server that sends another adapter in a repeated round
    ]
    for one in others:
        assert_deviation(one, how.deviation)
        assert abs(np.corrcoef(noise, one)[0, 1]) < 5 / math.sqrt(SIZE)


def test_the_public_seed_does_not_take_noise_off():
    """Every generator that follows from the run's seed is known to all; none of them gives the noise."""
    round = sender().round
    noise = sent(guard(), np.zeros(SIZE), sender())
    for public in (round.rng("clip_noise", "a"), round.rng("a"), np.random.default_rng(7)):
        assert abs(np.corrcoef(noise, public.normal(size=SIZE))[0, 1]) < 5 / math.sqrt(SIZE)


def test_weight_is_one_and_only_the_count_of_clients_leaves():
    sums = {"clients": 1.0, "loss": 2.5, "tokens": 100.0}
    update = Update({"x": np.zeros(3, np.float32)}, 37.0, sums)
    found, kept = guard().outgoing(update, sender())
    assert (found.weight, found.sums, kept) == (1.0, {"clients": 1.0}, {})
    assert guard(losses=True).outgoing(update, sender())[0].sums == sums


def test_central_noise_is_on_the_mean_and_clients_add_none():
    how = guard("central", clip=0.5, noise_multiplier=3.0)
    update = np.linspace(-1, 1, SIZE) / 1000
    assert (sent(how, update, sender()) == update.astype(np.float32)).all()
    total = Total(Round(1, 5, 7, ()), 10, b"s" * 32)
    mean = {"x": update.astype(np.float32)}
    found = how.incoming(mean, total)["x"] - update
    assert_deviation(found, 3.0 * 0.5 / 10)
    assert (how.incoming(mean, total)["x"] - update == found).all()
    other = how.incoming(mean, Total(Round(2, 5, 7, ()), 10, b"s" * 32))["x"] - update
    assert abs(np.corrcoef(found, other)[0, 1]) < 5 / math.sqrt(SIZE)


def test_distributed_noise_is_not_added_twice():
    mean = {"x": np.arange(5, dtype=np.float32)}
    assert (guard().incoming(mean, Total(Round(1, 5, 7, ()), 10, b"s" * 32))["x"] == mean["x"]).all()


def test_what_leaves_keeps_within_the_bound_and_the_grid_takes_it():
    """The bound of a masked sum's grid: one value of the clipping norm, and noise at its largest."""
    how = guard()
    grid = Grid(32, how.bound, 20)
    check_grid(grid.step, how.deviation)
    spike = np.zeros(SIZE)
    spike[0] = 100.0
    for index in range(3):
        found = sent(how, spike, sender(index=index))
        assert np.abs(found).max() <= how.bound
        assert np.abs(grid.decode(grid.encode(found)) - found).max() <= grid.step
    assert how.bound == pytest.approx(1 + 9.5 / math.sqrt(18))
    assert guard("central").bound == 1.0


def test_distributed_noise_without_masks_is_refused():
    config = Config(clip=1, noise_multiplier=1, where="distributed")
    with pytest.raises(ConfigError, match=r"secure_sum, or where: central"):
        build(config, parts(is_masked=False))
    build(Config(clip=1, noise_multiplier=1), parts(is_masked=False))


def test_a_cohort_without_sure_shares_is_refused():
    config = Config(clip=1, noise_multiplier=1, where="distributed", dropout=0.5, corruption=0.5)
    with pytest.raises(ConfigError, match="10 may stay away and 10 tell"):
        build(config, parts())


def test_a_delta_that_allows_to_publish_a_client_is_refused():
    with pytest.raises(ConfigError, match="less than 1 / 50"):
        build(Config(clip=1, noise_multiplier=1, delta=0.02), parts())


def test_a_budget_that_no_round_fits_into_is_refused_with_noise_that_does():
    with pytest.raises(ConfigError, match=r"max_epsilon: 1; .* affords one round") as caught:
        build(Config(clip=1, noise_multiplier=0.5, max_epsilon=1), parts())
    words = str(caught.value).split()
    one = float(words[words.index("affords") - 1])
    assert one == pytest.approx(noise_for(1, 1e-5, 1), abs=0.001)
    build(Config(clip=1, noise_multiplier=one, max_epsilon=1), parts())


def test_the_cure_for_a_budget_reckons_with_the_fewest_replies():
    """9 of 18 shares have sqrt(1/2) of the noise, so the cure asks for sqrt(2) times as much."""
    config = {"clip": 1, "where": "distributed", "max_epsilon": 1}
    with pytest.raises(ConfigError) as caught:
        build(Config(noise_multiplier=0.5, **config), parts(minimum=9))
    words = str(caught.value).split()
    one = float(words[words.index("affords") - 1])
    assert one == pytest.approx(math.sqrt(2) * noise_for(1, 1e-5, 1), abs=0.001)
    build(Config(noise_multiplier=one, **config), parts(minimum=9))
