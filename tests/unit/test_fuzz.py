"""A slice of `benchmarks/fuzz.py`: mutated messages are refused or right, and never crash anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cotune.errors import WireError

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_script", SCRIPTS / "fuzz.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPTS))  # it imports a script beside it
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(SCRIPTS))
    return made


def test_mutated_messages_are_refused_or_right(fuzz, tmp_path):
    found = fuzz.fuzz(480, 7, tmp_path, trace_every=60)
    assert found["wrong"] == []
    assert sum(found["ends"].values()) == 480
    for way in ("codec", "host", "gather", "secure"):  # each way has both ends, so neither is all it knows
        assert found["ends"][f"{way} refused"] > 25
        assert found["ends"][f"{way} accepted"] > 5
    assert found["traced_peak_bytes"] < 2_000_000


def test_every_message_that_mutations_begin_with_is_taken(fuzz, tmp_path):
    clients = fuzz.host(tmp_path)
    for message in fuzz.REQUESTS:
        fuzz.check_host(clients, fuzz.check_codec(fuzz.encode(message)))
    for message in fuzz.REPLIES[5:]:
        fuzz.check_secure(message)
    sent = [fuzz.encode(fuzz.replace(fuzz.REPLIES[0], client=name)) for name in fuzz.NAMES]
    assert fuzz.check_sum(sent, fuzz.NAMES) == 8


@pytest.mark.parametrize("check", ["of requests", "of replies"])
def test_it_notices_what_is_not_checked(fuzz, tmp_path, monkeypatch, check):
    from cotune import federation

    if check == "of requests":
        monkeypatch.setattr(fuzz, "check_requests", lambda *_: None)
    else:
        monkeypatch.setattr(federation, "check_reply", lambda *_: None)
    assert fuzz.fuzz(120, 7, tmp_path, trace_every=10**9)["wrong"]


@pytest.mark.parametrize("name", ["lists", "nested", "names"])
def test_what_is_large_only_in_memory_is_refused_before_it_is_parsed(fuzz, name, monkeypatch):
    from cotune import codec

    monkeypatch.setattr(fuzz, "SIZE", 1 << 16)
    monkeypatch.setattr(codec, "MAX_VALUES", 1 << 12)
    monkeypatch.setattr(codec.json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(WireError, match="marks of names and values"):
        codec.decode(fuzz.large(name))
