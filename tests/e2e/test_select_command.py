"""`cotune select` and `cotune.select` on files: what is written and returned, and what bad input gets."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

import cotune
import tiny
from cotune import cli, coreset, readers
from cotune.errors import ConfigError, CotuneError, DataError, ModelError

INSTRUCTIONS = [
    {"instruction": f"say {word}", "output": f"{word} it is {'x' * (i % 7)}", "domain": word, "nr": i}
    for i, word in enumerate(["fox", "owl", "cat"] * 14)
]


ALL = {"name": "noise_floor", "at": -1e9}
"""A random model sees no sense in any answer."""


@pytest.fixture
def data(tmp_path):
    """Lines that no JSON writer would write just so."""
    lines = [json.dumps(row, separators=(" ,", ":  ")) for row in INSTRUCTIONS]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture
def ask(small, data, tmp_path):
    """The command; returns its exit code, its standard output and what went wrong."""

    def run(*options, out="out"):
        command = ["select", "--data", str(data), "--model", str(small / "slm"), "--out", str(tmp_path / out)]
        return CliRunner().invoke(cli.app, [*command, *options])

    return run


@pytest.mark.parametrize("method", ["fedhds", "feddqc", "density", "zip", "ask_llm", "random_subset,fedhds"])
def test_the_three_files(ask, data, tmp_path, method):
    more = ("--set", "floor=-1e9") if method == "feddqc" else ()  # a random model sees no sense
    done = ask(
        "--method", method, "--keep", "0.3", "--partition", "dirichlet:5", "--clients", "3", "--json", *more
    )
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert json.loads(done.stdout) == facts
    chosen = (tmp_path / "out" / "coreset.jsonl").read_bytes().splitlines()
    lines = data.read_bytes().splitlines()
    assert set(chosen) <= set(lines)
    assert facts["selected"] == len(chosen) == sum(row["selected"] for row in facts["clients"].values())
    assert 0 < facts["selected"] <= 0.3 * len(INSTRUCTIONS) + 3
    assert facts["total"] == len(INSTRUCTIONS)
    assert facts["peak_memory_bytes"] > 0
    assert facts["seconds"].keys() == {"reading", "choosing", "mapping"}
    assert 0 < facts["length"]["saved"] < facts["length"]["all"]
    page = (tmp_path / "out" / "map.html").read_text(encoding="utf-8")
    assert all(f"mine-{i}" in page or f"row-{i}" in page for i in range(len(INSTRUCTIONS)))


def test_from_python(small, data):
    found = cotune.select(data, "fedhds", model=str(small / "slm"), partition="by_key:domain")
    assert found.clients == ("cat", "fox", "owl")
    assert found.groups is not None
    assert len(found.groups) == len(found.owner) == len(INSTRUCTIONS)
    assert all(found.groups[row] >= 0 for row in found.indices)
    scored = cotune.select(data, [ALL], model=str(small / "slm"))
    assert scored.scores is not None
    assert np.isfinite(scored.scores).all()
    assert sorted(scored.indices) == list(range(len(INSTRUCTIONS)))


@pytest.mark.parametrize(
    ("method", "how", "expected"),
    [
        ("superfiltering", {}, ["gpt2"]),
        ("superfiltering", {"model": "mine"}, ["mine"]),
        ([{"name": "superfiltering", "model": "other"}], {"model": "mine"}, ["other"]),
        ("cherry", {}, ["smollm2-135m"]),
        ("cherry,superfiltering", {"model": "mine"}, ["mine"]),
        ("random_subset", {"model": "mine"}, []),
    ],
)
def test_a_named_model_wins_over_the_one_a_method_names_by_default(
    small, data, monkeypatch, method, how, expected
):
    asked: list[str] = []

    def resolve(name, **_):
        asked.append(name)
        return small / "slm"

    monkeypatch.setattr(readers.zoo, "resolve", resolve)
    cotune.select(data, method, keep=1.0, **how)
    assert asked == expected


def test_the_same_seed_gives_the_same_choice(small, data):
    how = {"model": str(small / "slm"), "partition": "iid:4", "keep": 0.2}
    one, two = (cotune.select(data, "random_subset", seed=3, **how) for _ in range(2))
    np.testing.assert_array_equal(one.indices, two.indices)
    other = cotune.select(data, "random_subset", seed=4, **how)
    assert sorted(one.indices) != sorted(other.indices)


def test_a_method_that_takes_no_share_says_what_does(small, data):
    with pytest.raises(ConfigError, match=r"noise_floor takes no share.*noise_floor,random_subset"):
        cotune.select(data, [ALL], model=str(small / "slm"), keep=0.1)
    found = cotune.select(data, [ALL, "random_subset"], model=str(small / "slm"), keep=0.1)
    assert len(found.indices) == round(0.1 * len(INSTRUCTIONS))


def test_a_field_of_the_rows_called_task_deals_by_that_field(tmp_path):
    rows = [{"instruction": f"say {i}", "output": "x", "task": ["a", "b"][i % 2]} for i in range(8)]
    path = tiny.write_rows(tmp_path / "kinds.jsonl", rows)
    found = cotune.select(path, "random_subset", partition="by_key:task", keep=1.0)
    assert found.clients == ("a", "b")
    assert found.owner.tolist() == [0, 1] * 4


@pytest.mark.parametrize("method", ["fedhds", "density", "zip", "random_subset"])
@pytest.mark.parametrize("number", [1, 2])
def test_tiny_and_identical_data(small, tmp_path, method, number):
    path = tiny.write_rows(tmp_path / "few.jsonl", [{"instruction": "a", "output": "b"}] * number)
    found = cotune.select(path, method, model=str(small / "slm"), keep=1.0)
    assert 1 <= len(found.indices) <= number


def test_long_examples_are_cut_and_counted(small, tmp_path):
    rows = [{"instruction": "a", "output": "b" * 900}, {"instruction": "c", "output": "d"}]
    found = cotune.select(tiny.write_rows(tmp_path / "long.jsonl", rows), "fedhds", model=str(small / "slm"))
    assert found.facts["cut"] == 1


def test_rows_without_an_answer(small, tmp_path):
    rows = [{"instruction": f"say {i}", "output": "" if i == 1 else "x"} for i in range(6)]
    path = tiny.write_rows(tmp_path / "open.jsonl", rows)
    with pytest.raises(DataError, match=r"1 examples have no answer .*density, random, zip"):
        cotune.select(path, "feddqc", model=str(small / "slm"))
    assert len(cotune.select(path, "zip", model=str(small / "slm"), keep=0.5).indices) == 3


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"method": "fedhd"}, ConfigError, "Did you mean 'fedhds'"),
        ({"method": "zip", "keep": 0.0}, ConfigError, "above 0 and at most 1"),
        ({"method": "zip", "keep": 1.5}, ConfigError, "above 0 and at most 1"),
        ({"method": [{"name": "fedhds", "min_grop": 3}]}, ConfigError, "Did you mean 'min_group'"),
        ({"method": "zip", "partition": "dirichlet:0:1"}, ConfigError, "dirichlet:200:0.5:task"),
        ({"method": "zip", "partition": "iid:99"}, CotuneError, "99"),
        ({"method": "zip", "partition": "by_key:wing"}, DataError, "wing"),
        ({"method": "fedhds", "model": "no/such/model"}, ModelError, "no/such/model"),
        ({"method": "zip", "task": "no_task"}, ConfigError, "no_task"),
    ],
)
def test_what_cannot_be_is_refused(small, data, how, kind, words):
    how = {"model": str(small / "slm"), **how}
    with pytest.raises(kind, match=words):
        cotune.select(data, **how)


def test_an_empty_file_and_a_malformed_row(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="no rows"):
        cotune.select(empty, "zip")
    with pytest.raises(DataError, match=r"bad.jsonl:2: .*instruction"):
        cotune.select(tiny.write_rows(tmp_path / "bad.jsonl", [INSTRUCTIONS[0], {"output": "x"}]), "zip")


def test_a_folder_in_use_is_left_alone(ask, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = ask("--method", "zip")
    assert isinstance(done.exception, ConfigError)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_features_that_are_not_finite_are_refused(small, data, monkeypatch):
    from cotune.models import embed

    standard = embed._standard
    monkeypatch.setattr(embed, "_standard", lambda states: standard(states) * np.nan)
    with pytest.raises(DataError, match="not finite"):
        cotune.select(data, [{"name": "fedhds", "seed": 99}], model=str(small / "slm"))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("fedhds", {"reading", "grouping", "counting tokens"}),
        ("zip", {"compressing"}),
        ("density", {"hashing"}),
    ],
)
def test_every_long_step_says_what_it_is_and_how_far(small, data, monkeypatch, tmp_path, method, expected):
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))  # so that there is something to read
    told = []
    asked = coreset.Question(str(data), [{"name": method}], model=str(small / "slm"), partition="iid:3")
    coreset.choose(asked, lambda _: None, lambda *at: told.append(at))
    assert expected | {"reading rows", "drawing"} <= {what for what, _, _ in told}
    for what in expected | {"drawing"}:
        shares = [done / total for said, done, total in told if said == what]
        assert shares == sorted(shares)
        assert shares[-1] == 1


def test_rows_come_out_byte_for_byte_even_of_a_pipe(tmp_path):
    raw = b'{"instruction" : "a", "output":"\\u00e9"}\r\n  {"output":"d" ,"instruction":"c"}  \n'
    ends = os.pipe()
    os.write(ends[1], raw)
    os.close(ends[1])
    cotune.select(f"/dev/fd/{ends[0]}", "random_subset", keep=1.0, out=tmp_path / "out")
    os.close(ends[0])
    chosen = (tmp_path / "out" / "coreset.jsonl").read_bytes()
    assert sorted(chosen.split(b"\n")) == sorted(raw.split(b"\n"))


def test_a_dirichlet_partition_with_nothing_to_mix_is_told(ask, tmp_path):
    split = ("--method", "random_subset", "--partition", "dirichlet:0.5:task", "--clients", "2")
    done = ask(*split)
    assert done.exit_code == 0
    said = " ".join(done.stderr.split())
    assert "deals by 'task', which is 'instruction' in all 42 rows" in said
    (note,) = json.loads((tmp_path / "out" / "selection.json").read_text())["notes"]
    assert "Name a field with several values" in note
    mixed = ask("--method", "random_subset", "--partition", "dirichlet:5", "--clients", "2", out="mixed")
    assert "deals by" not in mixed.stderr
