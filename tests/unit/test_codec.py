"""Messages survive the wire bit for bit; anything else is refused and never crashes."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cotune import codec
from cotune.codec import decode, encode
from cotune.errors import WireError
from cotune.records import Message

DTYPES = [np.float32, np.float16, np.float64, np.int64, np.int32, np.uint8, np.bool_]
TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
# safetensors keeps one name for itself
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10).filter(
    lambda name: name != "__metadata__"
)
MESSAGES = st.builds(
    Message,
    client=TEXT,
    round=st.integers(0, 10**6),
    action=TEXT,
    arrays=st.dictionaries(NAMES, ARRAYS, max_size=3),
    facts=st.dictionaries(TEXT, JSON, max_size=3),
)


def assert_equal(one: Message, other: Message) -> None:
    assert (one.client, one.round, one.action) == (other.client, other.round, other.action)
    assert one.facts == other.facts
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert other.arrays[name].dtype == array.dtype
        assert other.arrays[name].shape == array.shape
        assert other.arrays[name].tobytes() == array.tobytes()


@given(MESSAGES)
@settings(max_examples=150)
def test_decoding_gives_back_what_was_encoded(message):
    assert_equal(message, decode(encode(message)))


@pytest.mark.parametrize(
    "array",
    [
        np.float32(1.5).reshape(()),
        np.zeros((0, 3), np.float32),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.float32)[::-2],
        np.array([1.0, np.nan, np.inf, -0.0], np.float32),
        np.arange(3, dtype=">f4"),
    ],
    ids=["0-d", "empty", "transposed", "strided", "not finite", "big-endian"],
)
def test_unusual_arrays_survive(array):
    found = decode(encode(Message("c", 1, "tune", {"x": array}))).arrays["x"]
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_equal_messages_have_equal_bytes():
    arrays = {"b": np.ones(3, np.float32), "a": np.zeros(2, np.float32)}
    assert encode(Message("c", 1, "t", arrays)) == encode(
        Message("c", 1, "t", dict(reversed(arrays.items())))
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", object()])
def test_facts_that_are_not_json_are_refused(value):
    with pytest.raises(WireError, match=r"'tune' of 'ann' cannot be encoded"):
        encode(Message("ann", 1, "tune", facts={"value": value}))


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None])], ids=["text", "objects"])
def test_arrays_that_are_not_numbers_are_refused(array):
    with pytest.raises(WireError, match="cannot be encoded"):
        encode(Message("ann", 1, "tune", {"x": array}))


def test_too_large_a_message_names_its_largest_array(monkeypatch):
    monkeypatch.setattr(codec, "MAX_BYTES", 1000)
    arrays = {"small": np.zeros(10, np.float32), "large": np.zeros(400, np.float32)}
    with pytest.raises(WireError, match=r"limit 1,000; largest: 'large'.*Lower lora.rank"):
        encode(Message("c", 1, "tune", arrays))


def test_too_large_a_message_is_refused_when_it_comes(monkeypatch):
    data = encode(Message("c", 1, "tune", {"x": np.zeros(400, np.float32)}))
    monkeypatch.setattr(codec, "MAX_BYTES", 1000)
    with pytest.raises(WireError, match="expected 8 to 1,000"):
        decode(data)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_are_refused(data):
    with pytest.raises(WireError):
        decode(data)


WHOLE = encode(
    Message("ann", 2, "tune", {"x": np.arange(6, dtype=np.float32)}, {"weight": 1.0, "s": [1, "é"]})
)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=500)
def test_mutated_bytes_give_a_message_or_a_refusal(changes):
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    try:
        found = decode(bytes(data))
    except WireError:
        return
    assert isinstance(found, Message)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_torn_message_is_refused(end):
    with pytest.raises(WireError):
        decode(WHOLE[:end])


@pytest.mark.parametrize("claimed", [2**63, 2**40, 10_000])
def test_a_head_that_claims_too_much_costs_no_memory(claimed):
    tracemalloc.start()
    with pytest.raises(WireError, match="claims"):
        decode(struct.pack("<Q", claimed) + WHOLE[8:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_an_array_that_claims_too_much_costs_no_memory():
    head = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    body = struct.pack("<Q", len(head)) + head + b"\0" * 16
    text = json.dumps({"client": "c", "round": 1, "action": "t", "facts": {}}).encode()
    with pytest.raises(WireError, match="cannot be decoded"):
        decode(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ({"client": 3, "round": 1, "action": "t", "facts": {}}, "client must be str, got int"),
        ({"client": "c", "round": True, "action": "t", "facts": {}}, "round must be int, got bool"),
        ({"client": "c", "round": 1, "action": "t", "facts": []}, "facts must be dict, got list"),
        ({"client": "c", "round": 1, "action": "t"}, "must have exactly"),
        ({"client": "c", "round": 1, "action": "t", "facts": {}, "more": 1}, "must have exactly"),
        ([], "must have exactly"),
    ],
)
def test_a_head_of_another_form_is_refused(head, complaint):
    text = json.dumps(head).encode()
    (length,) = struct.unpack_from("<Q", WHOLE)
    with pytest.raises(WireError, match=complaint):
        decode(struct.pack("<Q", len(text)) + text + WHOLE[8 + length :])


def test_deeply_nested_facts_are_refused():
    text = b'{"client":"c","round":1,"action":"t","facts":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    with pytest.raises(WireError):
        decode(struct.pack("<Q", len(text)) + text + WHOLE)


def test_a_text_takes_the_bytes_that_utf_8_gives_it():
    """So that what is sent can be foretold from the texts; half a pair of surrogates is text to JSON, too."""
    plain, odd = (len(encode(Message("a", 1, "b", {}, {"text": text}))) for text in ("", "ö→日\ud800" * 50))
    assert odd - plain == 50 * (2 + 3 + 3 + 3)
    message = Message("a", 1, "b", {}, {"text": "ö\ud800"})
    assert decode(encode(message)) == message


def framed(head: bytes, table: bytes = b"{}", body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(head)) + head + struct.pack("<Q", len(table)) + table + body


HEAD = b'{"client":"c","round":1,"action":"t","facts":{"x":%s}}'


def test_the_frame_of_these_tests_is_what_the_codec_reads():
    assert decode(framed(HEAD % b"[1,2.5]")).facts == {"x": [1, 2.5]}


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (HEAD % b"1e999", "1e999 is too large for a number"),
        (HEAD % b"-1e999", "too large"),
        (HEAD % b"NaN", "NaN is not allowed"),
        (HEAD % b'{"a":1,"a":2}', "a name stands twice"),
        (b'{"client":"b",' + (HEAD % b"1")[1:], "a name stands twice"),
        ((HEAD % b"1").decode().encode("utf-16-le"), "cannot be decoded"),
        ((HEAD % b"1").decode().encode("utf-32"), "cannot be decoded"),
        ((HEAD % b"1").decode().encode("utf-8-sig"), "cannot be decoded"),
        (HEAD % (b"[" * 70 + b"]" * 70), "nested more than 64 deep"),
        (HEAD % (b"1" * 5000), "cannot be decoded"),
    ],
    ids=["inf", "-inf", "nan", "name", "field", "utf-16", "utf-32", "mark", "depth", "digits"],
)
def test_a_head_that_another_reader_would_read_otherwise_is_refused(head, complaint):
    with pytest.raises(WireError, match=complaint) as error:
        decode(framed(head))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("row", "body"),
    [
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, bytes(8)),
        ({"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}, b"\1\2"),
        ({"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}, bytes(2)),
        ({"dtype": "F32", "shape": [2**64 - 1, 0], "data_offsets": [0, 0]}, b""),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}, b""),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, bytes(8)),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, bytes(8)),
        ({"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}, b""),
    ],
    ids=["complex", "truth of 2", "bfloat16", "huge and empty", "negative", "more", "gap", "overflow"],
)
def test_a_table_of_arrays_that_lies_is_refused(row, body):
    with pytest.raises(WireError, match="cannot be decoded"):
        decode(framed(HEAD % b"1", json.dumps({"a": row}).encode(), body))


def test_what_would_be_refused_when_it_comes_is_refused_when_it_is_sent(monkeypatch):
    deep: list[object] = []
    for _ in range(70):
        deep = [deep]
    endless: list[object] = []
    endless.append(endless)
    refused = {
        "nested more than 64 deep": {"x": deep},
        "Circular reference": {"x": endless},
        "marks of names and values, limit 100": {"x": [0] * 200},
        "head of .* bytes, limit 1,000": {"x": "a" * 2000},
    }
    monkeypatch.setattr(codec, "MAX_VALUES", 100)
    monkeypatch.setattr(codec, "MAX_JSON", 1000)
    for complaint, facts in refused.items():
        with pytest.raises(WireError, match=complaint):
            encode(Message("c", 1, "t", {}, facts))
    with pytest.raises(WireError, match="complex64 is no type of real numbers"):
        encode(Message("c", 1, "t", {"x": np.zeros(2, np.complex64)}))
    monkeypatch.setattr(codec, "MAX_HEADER", 50)
    with pytest.raises(WireError, match="names and shapes of arrays claim"):
        encode(Message("c", 1, "t", {"x": np.zeros(2)}))


def test_many_values_in_few_bytes_cost_no_memory(monkeypatch):
    """An empty list takes three bytes here and sixty there."""
    monkeypatch.setattr(codec, "MAX_VALUES", 1 << 10)
    data = framed(HEAD % (b"[" + b"[]," * 200_000 + b"0]"))
    tracemalloc.start()
    with pytest.raises(WireError, match="marks of names and values"):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(data)
