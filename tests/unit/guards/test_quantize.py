"""Fewer bytes: what is sent is what is unpacked, nothing is lost for good, and no bytes are trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from cotune.codec import decode, encode
from cotune.errors import ConfigError, DataError, WireError
from cotune.fixed_point import Encoded, Grid, Layout
from cotune.guarding import GuardParts, Sender, Total, Update
from cotune.guards.quantize import UNSENT, Config, Quantize, build, bytes_per_value
from cotune.packing import Coding, norm
from cotune.records import Message, Round

ROUND = Round(1, 9, 5, ("a", "b"))
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
VECTORS = st.one_of(
    st.lists(FLOATS, max_size=70),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, 1e-45, 3e38, 1e-3]), max_size=70),
).map(lambda values: np.array(values, np.float32))
CONFIGS = st.builds(
    Config,
    bits=st.sampled_from([8, 4]),
    group=st.sampled_from([2, 7, 64]),
    keep=st.sampled_from([1, 0.3, 0.01]),
)
EACH = pytest.mark.parametrize("config", [Config(bits=b, keep=k) for b in (8, 4) for k in (1.0, 0.1, 0.01)])


def sender(memo=None, index: int = 1, client: str = "a") -> Sender:
    return Sender(client, Round(index, 9, 5, ("a", "b")), bytes(32), memo or {})


def parts(**changes) -> GuardParts:
    return GuardParts(**{"num_clients": 4, "cohort": 2, "minimum": 1, "num_rounds": 9, **changes})


def masked(keep: float = 0.25, bound: float = 1.0) -> Quantize:
    return build(Config(keep=keep), parts(is_masked=True, before=bound))


def sent_of(guard: Quantize, values, memo=None, index: int = 1):
    """What leaves of one array, and what is kept."""
    update, kept = guard.outgoing(Update({"x": np.asarray(values, np.float32)}), sender(memo, index))
    return update.arrays["x"], kept


def across(packed):
    """The arrays after they have crossed the wire."""
    return decode(encode(Message("a", 1, "tune", packed))).arrays


@given(VECTORS, CONFIGS, st.sampled_from([None, 1.0]))
def test_what_leaves_is_what_is_unpacked(values, config, bound):
    guard = build(config, parts(before=bound))
    whole = {"b": values[1:], "a": values[:1].reshape(1, -1), "none": np.zeros((0, 3), np.float32)}
    update, _ = guard.outgoing(Update(whole, 3.0, {"loss": 1.0}), sender())
    found = guard.unpack(across(guard.pack(update.arrays, ROUND)), ROUND, whole)
    assert list(found) == list(whole)
    for name, array in update.arrays.items():
        assert (found[name].dtype, found[name].shape) == (np.float32, whole[name].shape)
        assert found[name].tobytes() == array.tobytes()
    assert (update.weight, update.sums) == (3.0, {"loss": 1.0})


@pytest.mark.parametrize("shape", [(), (1,), (0,), (63,), (65,), (3, 43)])
@EACH
def test_any_shape_crosses(config, shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    update, _ = Quantize(config).outgoing(Update({"x": values}), sender())
    found = Quantize(config).unpack(across(Quantize(config).pack(update.arrays, ROUND)), ROUND, {"x": values})
    assert found["x"].shape == shape
    assert np.array_equal(found["x"], update.arrays["x"])


def test_an_update_without_arrays_crosses():
    update, _ = Quantize(Config()).outgoing(Update({}), sender())
    assert Quantize(Config()).unpack(Quantize(Config()).pack(update.arrays, ROUND), ROUND, {}) == {}


@given(VECTORS, st.sampled_from([8, 4]), st.sampled_from([2, 7, 64]))
def test_a_value_errs_by_half_a_step_of_its_group(values, bits, group):
    values = np.clip(values, -1e30, 1e30)
    sent, _ = sent_of(Quantize(Config(bits=bits, group=group)), values)
    for start in range(0, len(values), group):
        one = values[start : start + group].astype(np.float64)
        step = np.abs(one).max() / {8: 127, 4: 7}[bits]
        assert np.abs(one - sent[start : start + group]).max() <= step * 0.502 + 2.0**-92
    assert (np.abs(sent) <= np.abs(values).max(initial=0) * (1 + 2.0**-23)).all()


def test_integers_by_hand():
    """127 is the largest, so the scale is 1; at 4 bits 7 is; halves go to the even integer."""
    assert sent_of(Quantize(Config()), [127, -64, 0.4, 2.5])[0].tolist() == [127, -64, 0, 2]
    packed = Coding(4, 64).pack(np.array([7, -7, 3], np.float32))
    assert packed["scales"].tolist() == [1]
    assert packed["codes"].tolist() == [0x97, 0x03]  # -7 is 0b1001, in the upper half of the first byte


def test_the_largest_are_sent_and_the_rest_is_sent_later_by_hand():
    guard = Quantize(Config(keep=0.5))
    expected = [([127, 63], [127, 0], [0, 63]), ([10, 64], [0, 127], [10, 0]), ([117, 1], [127, 0], [0, 1])]
    memo = {}
    for index, (update, sent, kept) in enumerate(expected, 1):
        found, memo = sent_of(guard, update, memo, index)
        assert (found.tolist(), memo[UNSENT].tolist()) == (sent, kept)


@EACH
def test_what_is_not_sent_stays_bounded_and_nothing_is_lost(config):
    """Karimireddy et al. 2019, lemma 3: what is kept has a norm of at most 2 sqrt(1 - d) / d times that of an
    update, where 1 - d is the largest share of the squared norm that one round does not send."""
    rng, guard, size = np.random.default_rng(1), Quantize(config), 2_000
    total, arrived, memo, longest, left = np.zeros(size), np.zeros(size), {}, 0.0, 0.0
    for index in range(1, 40):
        update = rng.standard_normal(size).astype(np.float32) * rng.choice([1, 10], size)
        wanted = update + memo.get(UNSENT, 0)
        sent, memo = sent_of(guard, update, memo, index)
        left = max(left, float(np.square(memo[UNSENT]).sum() / np.square(wanted).sum()))
        longest = max(longest, norm(update))
        total, arrived = total + update, arrived + sent
    np.testing.assert_allclose(arrived + memo[UNSENT], total, rtol=0, atol=1e-3)
    assert left < 1 - 0.9 * config.keep**2
    assert norm(memo[UNSENT]) <= 2 * math.sqrt(left) / (1 - left) * longest


@pytest.mark.parametrize("config", [Config(bits=4), Config(bits=4, keep=0.1)])
def test_a_quadratic_is_solved_as_without_packing(config):
    """Four clients pull to their own optimum; the mean of their steps leads to the mean optimum."""
    rng, size = np.random.default_rng(3), 128
    optima = rng.standard_normal((4, size)) + 3
    pull = rng.uniform(0.3, 1, size)

    def far(guard: Quantize | None, keeps: bool = True) -> float:
        point, memos = np.zeros(size), [{} for _ in optima]
        for index in range(1, 300):
            steps = [(0.1 * pull * (optimum - point)).astype(np.float32) for optimum in optima]
            if guard:
                found = [sent_of(guard, step, memo, index) for step, memo in zip(steps, memos, strict=True)]
                steps, memos = [sent for sent, _ in found], [kept if keeps else {} for _, kept in found]
            point = point + np.mean(steps, axis=0)
        return norm(point - optima.mean(0)) / norm(optima.mean(0))

    assert far(None) < 1e-3
    assert far(Quantize(config)) < 0.04
    if config.keep < 1:
        assert far(Quantize(config), keeps=False) > 0.2


def test_bytes_are_as_stated_and_within_their_aims():
    assert bytes_per_value(Config(bits=8)) == 1 + 4 / 64 <= 1.07
    assert bytes_per_value(Config(bits=4)) == 0.5 + 4 / 64 <= 0.57
    assert bytes_per_value(Config(bits=8, keep=0.1)) == pytest.approx(0.1 + 0.4 / 64 + 1 / 8)
    assert bytes_per_value(Config(bits=4, keep=0.01)) == pytest.approx(0.005 + 0.04 / 64 + 0.04)


@EACH
def test_a_message_has_the_bytes_that_are_stated(config):
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    coding = Quantize(config).coding
    packed = coding.pack(coding.rounded(values))
    size = len(encode(Message("a", 1, "tune", packed))) - len(encode(Message("a", 1, "tune")))
    stated = bytes_per_value(config) * len(values)
    assert size <= stated + 310
    assert size >= 0.98 * stated


@given(VECTORS, VECTORS, CONFIGS)
def test_after_clipping_nothing_grows(values, older, config):
    """Whatever was kept, what leaves is neither longer than the update nor larger than the bound."""
    size = min(len(values), len(older))
    update = np.clip(values[:size], -0.5, 0.5)
    sent, _ = sent_of(build(config, parts(before=0.5)), update, {UNSENT: np.clip(older[:size], -1e6, 1e6)})
    assert math.fsum(float(x) ** 2 for x in sent) <= math.fsum(float(x) ** 2 for x in update)
    assert (np.abs(sent) <= 0.5 * (1 + 2.0**-23)).all()


def test_the_bound_is_that_of_the_guards_before():
    assert build(Config(), parts()).bound is None
    assert build(Config(), parts(before=0.5)).bound == 0.5


def test_the_server_half_changes_nothing():
    mean = {"x": np.ones(2, np.float32)}
    assert Quantize(Config()).incoming(mean, Total(ROUND, 2, bytes(32))) == mean


def test_what_is_not_finite_is_refused():
    with pytest.raises(WireError, match="diverged"):
        sent_of(Quantize(Config()), [1, np.inf])
    with pytest.raises(WireError, match="diverged"):
        sent_of(Quantize(Config()), [3e38], {UNSENT: np.array([3e38], np.float32)})


def test_what_another_run_kept_is_refused():
    with pytest.raises(DataError, match=r"kept 3 values .* update has 2: the folder is of another run"):
        sent_of(Quantize(Config()), [1, 2], {UNSENT: np.zeros(3, np.float32)})


def test_arguments_stay_as_they_are():
    values, memo = np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)
    sent_of(Quantize(Config(keep=0.5)), values, {UNSENT: memo})
    assert (values.tolist(), memo.tolist()) == ([1, 2, 3], [4, 5, 6])


KINDS = st.sampled_from([np.int8, np.uint8, np.float16, np.float32, np.uint32, np.int64, np.bool_])
ANY = KINDS.flatmap(
    lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=2, min_side=0))
)
NAMES = st.sampled_from(["codes", "scales", "bitmap", "indices", "values", "x"])


@given(
    st.sampled_from([(1.0, 8), (1.0, 4), (0.2, 8), (0.2, 4), (0.02, 8)]),
    st.dictionaries(NAMES, ANY, max_size=3),
    st.sets(NAMES, max_size=1),
    st.booleans(),
)
def test_any_arrays_are_refused_or_give_a_finite_vector(form, put, dropped, is_masked):
    guard = masked() if is_masked else Quantize(Config(bits=form[1], group=8, keep=form[0]))
    sent, _ = sent_of(guard, np.random.default_rng(0).standard_normal(100))
    packed = guard.pack({"x": sent}, ROUND)
    hostile = {name: array for name, array in {**packed, **put}.items() if name not in dropped}
    try:
        found = guard.unpack(hostile, ROUND, {"x": np.zeros((20, 5), np.float32)})
    except WireError:
        return
    assert (found["x"].shape, found["x"].dtype) == ((20, 5), np.float32)
    assert np.isfinite(found["x"]).all()


# ---- masked sums ----


def test_under_masks_everybody_sends_the_same_places_and_others_next_round():
    rng, guard = np.random.default_rng(0), masked()
    both = [{"x": rng.uniform(-1, 1, (10, 10)).astype(np.float32), "y": np.float32([0.5])} for _ in "ab"]
    found = [
        guard.outgoing(Update(one), sender(client=c))[0].arrays for one, c in zip(both, "ab", strict=True)
    ]
    packs = [guard.pack(one, ROUND) for one in found]
    assert [(list(one), one["values"].dtype, one["values"].shape) for one in packs] == [
        (["values"], np.float32, (26,))
    ] * 2
    added = guard.unpack({"values": packs[0]["values"] + packs[1]["values"]}, ROUND, both[0])
    for name in "xy":
        assert np.array_equal(added[name], found[0][name] + found[1][name])
    assert not np.array_equal(found[0]["x"] != 0, sent_of(guard, both[0]["x"], index=2)[0] != 0)


def test_places_are_those_with_the_smallest_raw_bits_of_the_round():
    sent, _ = sent_of(masked(0.3), np.ones(10))
    keys = ROUND.rng("quantize", "places").bit_generator.random_raw(10).tolist()
    assert np.flatnonzero(sent).tolist() == sorted(sorted(range(10), key=keys.__getitem__)[:3])


def test_under_masks_all_arrives_in_the_end():
    guard, memo = masked(), {}
    values = np.linspace(-0.01, 0.01, 50, dtype=np.float32)
    arrived = sent_of(guard, values, memo)[0]
    memo = sent_of(guard, values, memo)[1]
    for index in range(2, 60):
        sent, memo = sent_of(guard, np.zeros(50), memo, index)
        arrived = arrived + sent
    np.testing.assert_array_equal(arrived, values)
    assert not memo[UNSENT].any()


def test_under_masks_what_lies_beyond_the_bound_waits():
    guard = masked(0.999, bound=0.5)
    sent, memo = sent_of(guard, [0.25, -2.0])
    assert (sent.tolist(), memo[UNSENT].tolist()) == ([0.25, -0.5], [0, -1.5])


def test_a_masked_sum_of_16_bits_errs_by_no_more_than_it_states():
    guard, rng = masked(bound=1.0), np.random.default_rng(0)
    like = {"x": np.zeros(400, np.float32)}
    layout = Layout((("values", (100,)),), (), Grid(16, guard.bound, 5))
    sent, total = [], Encoded(np.zeros(100, np.uint16), np.zeros(1, np.uint64))
    for name in "abcde":
        update, _ = guard.outgoing(
            Update({"x": rng.uniform(-1, 1, 400).astype(np.float32)}), sender(client=name)
        )
        sent.append(update.arrays["x"])
        coded = layout.encode(guard.pack(update.arrays, ROUND), 1.0, {})
        total = Encoded(total.words + coded.words, total.extras + coded.extras)
    found = guard.unpack(layout.decode(total, 5).arrays, ROUND, like)["x"]
    assert np.abs(found - np.mean(sent, axis=0, dtype=np.float64)).max() <= layout.error(5, 5) + 2.0**-24
    assert np.count_nonzero(np.mean(sent, axis=0)) == 100


@pytest.mark.parametrize(
    "wrong",
    [{}, {"x": np.zeros(25, np.float32)}, {"values": np.zeros(24, np.float32)},
     {"values": np.zeros(25)}, {"values": np.full(25, np.nan, np.float32)},
     {"values": np.zeros(25, np.float32), "x": np.zeros(1, np.float32)}],
)  # fmt: skip
def test_under_masks_what_is_no_packed_mean_is_refused(wrong):
    with pytest.raises(WireError, match="packed"):
        masked().unpack(wrong, ROUND, {"x": np.zeros(100, np.float32)})


@pytest.mark.parametrize(
    ("keep", "before", "words"),
    [(0.1, None, "Put clip_noise before it"), (1.0, 1.0, r"Set keep below 1.*aggregator.bits: 16")],
)
def test_masked_sums_that_could_not_work_or_save_nothing_are_refused(keep, before, words):
    with pytest.raises(ConfigError, match=words):
        build(Config(keep=keep), parts(is_masked=True, before=before))
