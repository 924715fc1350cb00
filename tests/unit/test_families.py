"""Which clients hold which model, and what is said where that cannot be."""

from __future__ import annotations

import pytest

import tiny
from cotune import config as configs
from cotune import families
from cotune.errors import ConfigError
from cotune.protocols import State
from cotune.records import Adapter

CLIENTS = ("c0", "c1", "c2", "c3", "c4")


def members(folder, *wanted, minimum=1):
    groups = [{"name": name, "model": "m", "clients": clients} for name, clients in wanted]
    raw = tiny.raw_config(folder, families=groups, cohort__minimum=minimum)
    return families.members(configs.from_dict(raw), CLIENTS)


def test_names_go_first_then_counts_and_the_rest_holds_slm(small):
    found = members(small, ("two", 2), ("named", ["c1", "c4"]))
    assert found == {"slm": ("c3",), "two": ("c0", "c2"), "named": ("c1", "c4")}
    assert members(small) == {"slm": CLIENTS}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([("a", 5)], r"families\.0\.clients: 5 of 5 clients, but only 5 are left"),
        ([("a", 3), ("b", 2)], r"families\.1\.clients: 2 of 5 clients, but only 2 are left"),
        ([("a", ["c9"])], r"families\.0\.clients: there is no client 'c9'; expected one of 5 clients.*c0"),
        ([("a", ["c1"]), ("b", ["c1"])], r"families\.1\.clients: 'c1' is in family 'a' already"),
        ([("a", [])], r"families\.0\.clients: no clients"),
        ([("a", 1), ("a", 1)], r"families\.1\.name: 'a' is taken"),
        ([("llm", 1)], r"families\.0\.name: 'llm' is taken"),
        ([("a", list(CLIENTS))], r"nobody holds slm"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(small, wanted, said):
    with pytest.raises(ConfigError, match=said):
        members(small, *wanted)


def test_a_family_below_the_quorum_is_refused(small):
    with pytest.raises(ConfigError, match=r"family 'a' has 2 clients, cohort\.minimum is 3"):
        members(small, ("a", 2), minimum=3)
    assert members(small, minimum=9)["slm"] == CLIENTS  # one family: the round changes nothing, as ever


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"name": "Big One", "model": "m", "clients": 1}, r"families\.0\.name"),
        ({"name": "a", "clients": 1}, r"families\.0\.model: missing"),
        ({"name": "a", "model": "m"}, r"families\.0\.clients: missing"),
        ({"name": "a", "model": "m", "clients": 0}, r"families\.0\.clients"),
        ({"name": "a", "model": "m", "clients": 1, "modle": 2}, r"families\.0\.modle: unknown key.*model"),
    ],
)
def test_a_group_that_is_no_group_is_one_line(small, group, said):
    with pytest.raises(ConfigError, match=said):
        configs.from_dict(tiny.raw_config(small, families=[group]))


def test_a_family_sees_its_own_adapter_and_the_llm():
    one, two, three = (Adapter({}, name, 1, 1.0) for name in ("one", "two", "three"))
    state = State(one, two, {"other": three})
    assert state.of("slm") == State(one, two)
    assert state.of("other") == State(three, two)
    assert state.after("other", State(one, three)) == State(one, three, {"other": one})
    assert state.after("slm", State(three, one)) == State(three, one, {"other": three})
    assert list(state.adapters()) == ["slm", "llm", "other"]
