from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotune import data
from cotune.config import DataConfig
from cotune.errors import DataError


def rows(count: int, prefix: str = "q", **fields: Any) -> list[dict[str, Any]]:
    return [
        {"question": f"{prefix} {number}?", "choices": ["yes", "no"], "answer_idx": number % 2, **fields}
        for number in range(count)
    ]


def write(path: Path, content: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def load(partition: Mapping[str, Any], *sources: Mapping[str, Any], seed: int = 7) -> data.Dataset:
    full = [{"task": "multiple_choice", **source} for source in sources]
    return data.load(DataConfig.model_validate({"sources": full, "partition": partition}), seed)


IID = {"name": "iid", "clients": 3}


def prompts(dataset: data.Dataset) -> tuple[list[str], list[str], list[str]]:
    test = [example.prompt for examples in dataset.test.values() for example in examples]
    public = [example.prompt for example in dataset.public]
    private = [example.prompt for client in dataset.clients for example in dataset.train(client)]
    return test, public, private


@given(
    repeats=st.lists(st.integers(0, 30), min_size=30, max_size=60),
    test_rows=st.integers(0, 4),
    public_rows=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_no_prompt_stands_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory, repeats: list[int], test_rows: int, public_rows: int, seed: int
) -> None:
    numbers = [*repeats, *range(100, 120)]
    content = [{**row, "question": f"q {r}?"} for row, r in zip(rows(len(numbers)), numbers, strict=True)]
    source = {
        "data": write(tmp_path_factory.mktemp("rows") / "a.jsonl", content),
        "test_rows": test_rows,
        "public_rows": public_rows,
    }
    dataset = load({"name": "iid", "clients": 1}, source, seed=seed)
    test, public, private = prompts(dataset)
    assert len(test) == test_rows
    assert len(public) == public_rows
    assert not set(test) & set(public) | set(test) & set(private) | set(public) & set(private)
    assert len(test) + len(public) + len(private) + dataset.dropped["multiple_choice"] == len(numbers)


def test_the_split_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    source = {"data": write(tmp_path / "a.jsonl", rows(60)), "test_rows": 10, "public_rows": 10}
    first, again, other = (load(IID, source, seed=seed) for seed in (1, 1, 2))
    assert prompts(first) == prompts(again)
    assert prompts(first) != prompts(other)
    assert sorted(chain(*prompts(first))) == sorted(chain(*prompts(other)))


def test_a_second_source_does_not_change_the_split_of_the_first(tmp_path: Path) -> None:
    first = {"data": write(tmp_path / "a.jsonl", rows(40)), "test_rows": 5, "public_rows": 5}
    second = {
        "task": "arc_easy",
        "data": write(tmp_path / "b.jsonl", rows(40, "other")),
        "test_rows": 5,
    }
    alone, both = load(IID, first), load(IID, first, second)
    assert both.test["multiple_choice"] == alone.test["multiple_choice"]
    assert both.public == alone.public
    assert set(alone.pool) < set(both.pool)
    assert both.metrics == {"multiple_choice": "choice", "arc_easy": "choice"}


def test_clients_are_handles_with_names_counts_and_all_of_the_test_set(tmp_path: Path) -> None:
    dataset = load(IID, {"data": write(tmp_path / "a.jsonl", rows(17)), "test_rows": 3, "train_rows": 10})
    assert dataset.clients == ("client-1", "client-2", "client-3")
    assert sorted(dataset.num_train(client) for client in dataset.clients) == [3, 3, 4]
    assert all(len(dataset.train(client)) == dataset.num_train(client) for client in dataset.clients)
    assert dataset.held_out("client-2") == dataset.test
    assert dataset.public == ()


def test_rows_keep_their_own_id_or_are_numbered(tmp_path: Path) -> None:
    content = [{**row, "id": "mine"} if number == 1 else row for number, row in enumerate(rows(3))]
    examples = data.load_examples("multiple_choice", write(tmp_path / "a.jsonl", content))
    assert [example.id for example in examples] == ["multiple_choice-0", "mine", "multiple_choice-2"]


def test_two_files_without_ids_can_be_sources_of_one_task(tmp_path: Path) -> None:
    first = {"data": write(tmp_path / "a.jsonl", rows(6)), "test_rows": 1}
    second = {"data": write(tmp_path / "b.jsonl", rows(6, "other")), "test_rows": 2}
    dataset = load(IID, first, second)
    assert len({example.id for example in dataset.pool}) == 9
    assert len(dataset.test["multiple_choice"]) == 3


def test_held_out_rows_of_their_own_are_taken_whole_or_in_part(tmp_path: Path) -> None:
    source = {
        "data": write(tmp_path / "a.jsonl", rows(20)),
        "test_data": write(tmp_path / "t.jsonl", rows(12, "t") + rows(1)),
    }
    whole, part = load(IID, source), load(IID, {**source, "test_rows": 4})
    expected = [f"Question: t {number}?\nAnswer:" for number in range(12)] + ["Question: q 0?\nAnswer:"]
    assert prompts(whole)[0] == expected
    assert whole.dropped == {"multiple_choice": 1}  # q 0 is held out
    (note,) = whole.notes
    assert "left out 1 of multiple_choice: their text also stands in the held-out" in note
    assert len(whole.pool) == 19
    assert len(part.test["multiple_choice"]) == 4
    assert set(prompts(part)[0]) < set(expected)


def test_no_test_rows_can_be_asked_for_by_zero_only(tmp_path: Path) -> None:
    source = {"data": write(tmp_path / "a.jsonl", rows(6))}
    assert load(IID, {**source, "test_rows": 0}).test == {}
    with pytest.raises(DataError, match=r"data\.sources\.0\.test_rows: missing;.*Say how many to hold out"):
        load(IID, source)


def test_by_key_gives_every_client_its_own_held_out_rows(tmp_path: Path) -> None:
    sources = [
        {"data": write(tmp_path / f"{name}.jsonl", rows(12, name, domain=name)), "test_rows": size}
        for name, size in (("law", 4), ("food", 2), ("art", 0))
    ]
    dataset = load({"name": "by_key"}, *sources)
    assert dataset.clients == ("art", "food", "law")
    assert {example.domain for example in dataset.train("law")} == {"law"}
    assert {example.domain for example in dataset.held_out("law")["multiple_choice"]} == {"law"}
    assert len(dataset.held_out("food")["multiple_choice"]) == 2
    assert dataset.held_out("art") == {}
    assert len(dataset.test["multiple_choice"]) == 6


def test_by_key_takes_any_field_even_a_nested_one(tmp_path: Path) -> None:
    content = [{**row, "meta": {"part": number % 3}} for number, row in enumerate(rows(12))]
    source = {"data": write(tmp_path / "a.jsonl", content), "test_rows": 2}
    assert load({"name": "by_key", "key": "meta.part"}, source).clients == ("0", "1", "2")
    assert load({"name": "by_key", "key": "task"}, source).clients == ("multiple_choice",)


def test_a_row_without_the_key_is_refused(tmp_path: Path) -> None:
    content = [{**row, "ward": None if number == 4 else "b"} for number, row in enumerate(rows(6))]
    source = {"data": write(tmp_path / "a.jsonl", content), "test_rows": 2}
    with pytest.raises(DataError, match=r"a\.jsonl:5: field 'ward': got null.*data\.partition\.key"):
        load({"name": "by_key", "key": "ward"}, source)


def test_dirichlet_mixes_domains_over_clients(tmp_path: Path) -> None:
    sources = [
        {"data": write(tmp_path / f"{name}.jsonl", rows(60, name, domain=name)), "test_rows": 0}
        for name in ("law", "art")
    ]
    dataset = load({"name": "dirichlet", "clients": 4, "alpha": 1.0}, *sources)
    assert sorted(chain(*(dataset.train(c) for c in dataset.clients)), key=str) == sorted(
        dataset.pool, key=str
    )
    shares = [np.mean([e.domain == "law" for e in dataset.train(c)]) for c in dataset.clients]
    assert max(shares) - min(shares) > 0.2


def test_five_way_cuts_equal_parts_of_the_published_order(tmp_path: Path) -> None:
    source = {
        "data": write(tmp_path / "a.jsonl", rows(53)),
        "test_data": write(tmp_path / "t.jsonl", rows(3, "t")),
    }
    dataset = load({"name": "five_way"}, source)
    order = np.random.default_rng(123).permutation(53)  # as Dataset.shuffle(seed=123) of `datasets`
    expected = [[f"Question: q {number}?\nAnswer:" for number in part] for part in order[:50].reshape(5, 10)]
    assert [[example.prompt for example in dataset.train(c)] for c in dataset.clients] == expected[:4]
    assert [example.prompt for example in dataset.public] == expected[4]
    assert dataset.clients == load({"name": "five_way"}, source, seed=99).clients
    assert dataset.pool == load({"name": "five_way"}, source, seed=99).pool


def test_five_way_of_a_fraction_keeps_equal_parts(tmp_path: Path) -> None:
    source = {"data": write(tmp_path / "a.jsonl", rows(53)), "test_rows": 3, "train_rows": 21}
    dataset = load({"name": "five_way"}, source)
    assert [dataset.num_train(client) for client in dataset.clients] == [5, 5, 5, 5]
    assert len(dataset.public) == 5
    test, public, private = prompts(dataset)
    assert len({*test, *public, *private}) == 28


def test_five_way_drops_private_rows_that_repeat_public_ones(tmp_path: Path) -> None:
    source = {"data": write(tmp_path / "a.jsonl", rows(30) + rows(30)), "test_rows": 0}
    dataset = load({"name": "five_way"}, source)
    _, public, private = prompts(dataset)
    assert not set(public) & set(private)
    assert len(private) + len(public) + dataset.dropped["multiple_choice"] == 60


def test_five_way_refuses_public_rows_and_too_few_rows(tmp_path: Path) -> None:
    source = {"data": write(tmp_path / "a.jsonl", rows(10)), "test_rows": 0}
    with pytest.raises(DataError, match=r"public_rows is 2, but five_way .* Remove public_rows"):
        load({"name": "five_way"}, {**source, "public_rows": 2})
    with pytest.raises(DataError, match=r"10 rows .* do not make 21 equal parts.* Use fewer clients"):
        load({"name": "five_way", "clients": 20}, source)
    with pytest.raises(DataError, match=r"train_rows asks for 9 rows, 8 are left of 10.* Lower train_rows"):
        load({"name": "five_way"}, {**source, "train_rows": 9})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"test_rows": 21}, "test_rows asks for 21 rows, 20 are left of 20. Lower test_rows"),
        ({"test_rows": 5, "public_rows": 16}, "public_rows asks for 16 rows, 15 are left of 20. Lower"),
        ({"test_rows": 5, "public_rows": 5, "train_rows": 11}, "train_rows asks for 11 rows, 10 are left"),
        ({"test_rows": 15, "public_rows": 5}, "no rows are left for the clients. Lower test_rows"),
        ({"test_rows": 18}, "2 training rows cannot give each of 3 clients one"),
    ],
)
def test_more_rows_than_there_are_is_refused_with_numbers(
    tmp_path: Path, asked: Mapping[str, int], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        load(IID, {"data": write(tmp_path / "a.jsonl", rows(20)), **asked})


def test_a_shortage_tells_how_many_rows_repeat_held_out_text(tmp_path: Path) -> None:
    source = {
        "data": write(tmp_path / "a.jsonl", rows(20)),
        "test_data": write(tmp_path / "t.jsonl", rows(15)),
        "train_rows": 6,
    }
    with pytest.raises(DataError, match="5 are left of 20, 15 were left out because their text is held out"):
        load(IID, source)
    with pytest.raises(DataError, match="test_rows asks for 16 rows, the held-out data has 15"):
        load(IID, {**source, "test_rows": 16})


def test_repeated_ids_name_both_places(tmp_path: Path) -> None:
    content = rows(4)
    content[1]["id"] = content[3]["id"] = "same"
    with pytest.raises(DataError, match=r"a\.jsonl:4: field 'id': 'same' was already used at .*a\.jsonl:2"):
        load(IID, {"data": write(tmp_path / "a.jsonl", content), "test_rows": 0})


def test_one_file_as_data_and_test_data_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**row, "id": number} for number, row in enumerate(rows(9))])
    with pytest.raises(DataError, match=r"'0' was already used at .*Ids must be unique") as caught:
        load(IID, {"data": path, "test_data": path})
    assert str(caught.value).count("already used") == 5


def test_up_to_five_malformed_rows_are_reported_at_once(tmp_path: Path) -> None:
    content = rows(12)
    content[1]["answer_idx"] = 2
    del content[3]["question"]
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(DataError) as caught:
        data.load_examples("multiple_choice", path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:2: field 'answer_idx': got 2; expected a whole number from 0 to 1")
    assert lines[1].startswith(f"{path}:4: field 'question' is missing")
    assert len(lines) == 2
    with pytest.raises(DataError) as caught:
        data.load_examples("multiple_choice", write(tmp_path / "b.jsonl", [{"a": 1}] * 9))
    assert str(caught.value).count("is missing") == 5


def test_load_examples_reads_the_first_rows_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(5), {"broken": True}])
    examples = data.load_examples("multiple_choice", path, limit=2)
    assert [example.prompt for example in examples] == ["Question: q 0?\nAnswer:", "Question: q 1?\nAnswer:"]


def test_a_task_without_rows_of_its_own_asks_for_a_file() -> None:
    with pytest.raises(DataError, match="Name a JSONL file: --data FILE"):
        data.load_examples("multiple_choice")
    with pytest.raises(DataError, match=r"data\.sources\.0\.data: missing.*Name a JSONL file"):
        load(IID, {"test_rows": 1})


def test_a_module_that_is_no_task_is_refused() -> None:
    with pytest.raises(DataError, match=r"task json\.decoder: its module lacks SOURCE, .*example"):
        data.load_examples("json.decoder")


def test_ten_thousand_clients_cost_little(tmp_path: Path) -> None:
    source = {"data": write(tmp_path / "a.jsonl", rows(12_000)), "test_rows": 100}
    started = time.process_time()
    dataset = load({"name": "iid", "clients": 10_000}, source)
    assert time.process_time() - started < 1.0
    assert len(dataset.clients) == 10_000
    assert min(dataset.num_train(client) for client in dataset.clients) == 1
    owned = {part.base.nbytes if part.base is not None else part.nbytes for part in dataset.parts.values()}
    assert owned == {11_900 * 8}  # views of one array


KINDS = [
    {"instruction": f"do {i}", "output": "x", "category": ["sum", "qa", "chat"][i % 3]} for i in range(30)
]


def kinds(tmp_path: Path, **source: Any) -> data.Dataset:
    path = write(tmp_path / "kinds.jsonl", KINDS)
    return load(IID, {"task": "instruction", "data": path, **source})


def test_rows_of_one_kind_are_held_out(tmp_path: Path) -> None:
    found = kinds(tmp_path, held_out=" category = sum ")
    test, public, private = prompts(found)
    assert len(test) == 10
    assert len(private) == 20
    assert not public
    assert {int(e.id.rpartition("-")[2]) % 3 for e in found.test["instruction"]} == {0}
    assert {int(e.id.rpartition("-")[2]) % 3 for e in found.pool} == {1, 2}
    some = kinds(tmp_path, held_out="category=sum", test_rows=4, public_rows=5)
    assert {e.id for e in some.test["instruction"]} < {e.id for e in found.test["instruction"]}
    assert [len(part) for part in prompts(some)] == [4, 5, 15]


def test_held_out_rows_go_before_those_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cotune.tasks import instruction

    monkeypatch.setattr(instruction, "SOURCE", write(tmp_path / "kinds.jsonl", KINDS))
    monkeypatch.setattr(instruction, "TEST_SOURCE", "nowhere.jsonl")
    found = load(IID, {"task": "instruction", "held_out": "category=qa"})
    assert len(found.test["instruction"]) == 10


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"held_out": "category"}, r"sources\.0\.held_out: got 'category'; expected KEY=VALUE"),
        ({"held_out": "=sum"}, r"sources\.0\.held_out: got '=sum'; expected KEY=VALUE"),
        (
            {"held_out": "category=summ"},
            r"no row has 'summ'; expected one of 'chat', 'qa', 'sum'\. Did you mean",
        ),
        ({"held_out": "kind=sum"}, r"kinds\.jsonl:1: field 'kind': got null; .*because held_out names this"),
        ({"held_out": "task=instruction"}, r"no rows are left for the clients.*held_out"),
        (
            {"held_out": "category=sum", "test_rows": 11},
            r"test_rows asks for 11 rows, the held-out data has 10",
        ),
        ({"held_out": "category=sum", "test_data": "x.jsonl"}, r"both held_out .* and test_data .*x\.jsonl"),
    ],
)
def test_what_cannot_be_held_out_is_refused(tmp_path: Path, source: Mapping[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        kinds(tmp_path, **source)


def test_a_dirichlet_partition_with_nothing_to_mix_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "kinds.jsonl", KINDS)
    source = {"task": "instruction", "data": path, "test_rows": 0}
    (note,) = load({"name": "dirichlet", "clients": 2, "key": "task"}, source).notes
    assert "deals by 'task', which is 'instruction' in all 30 rows" in note
    assert "Name a field with several values" in note
    assert load({"name": "dirichlet", "clients": 2, "key": "category"}, source).notes == ()
    assert load({"name": "dirichlet", "clients": 1, "key": "task"}, source).notes == ()
    assert load(IID, source).notes == ()


def test_further_examples_go_to_one_client_and_change_no_other(tmp_path: Path) -> None:
    before = load(IID, {"data": write(tmp_path / "a.jsonl", rows(40)), "test_rows": 4, "public_rows": 4})
    more = [replace(before.public[0], id=f"new-{number}", prompt=f"new {number}") for number in range(3)]
    after = before.with_more("client-2", more)
    assert after.train("client-2") == (*before.train("client-2"), *more)
    assert after.num_train("client-2") == before.num_train("client-2") + 3
    for client in ("client-1", "client-3"):
        assert after.train(client) == before.train(client)
    assert (after.public, after.test, after.clients) == (before.public, before.test, before.clients)
    assert len(after.with_more("client-2", more[:1]).train("client-2")) == after.num_train("client-2") + 1
    assert before.num_train("client-2") == len(before.train("client-2"))  # values in, values out


def test_a_source_may_have_its_choices_scored_by_what_paths_end_on(tmp_path: Path) -> None:
    first = {"data": write(tmp_path / "a.jsonl", rows(30)), "test_rows": 5, "train_rows": 5}
    second = {"data": write(tmp_path / "b.jsonl", rows(30, "r")), "test_rows": 5, "train_rows": 5}
    assert load(IID, {**first, "metric": "path_accuracy"}).metrics == {"multiple_choice": "path_accuracy"}
    assert load(IID, {**first, "metric": "choice"}).metrics == {"multiple_choice": "choice"}
    with pytest.raises(DataError, match=r"sources\.1\.metric: got choice; another source .* same `metric`"):
        load(IID, {**first, "metric": "path_accuracy"}, second)


def test_a_task_without_choices_is_scored_in_its_own_way_alone(tmp_path: Path) -> None:
    content = [{"question": f"{number} + 1?", "answer": number + 1} for number in range(20)]
    source = {"task": "gsm8k", "data": write(tmp_path / "a.jsonl", content), "test_rows": 5}
    assert load(IID, {**source, "metric": "path_accuracy"}).metrics == {"gsm8k": "path_accuracy"}
    with pytest.raises(
        DataError, match=r"0\.metric: got choice; task gsm8k is scored by path_accuracy alone"
    ):
        load(IID, {**source, "metric": "choice"})
