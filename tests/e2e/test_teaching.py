"""Whole tiny runs in which models teach each other: any allocator, both hosts, resuming, and what crosses."""

from __future__ import annotations

from dataclasses import replace

import pytest

import tiny
from cotune import allocation, build, config, plugins, pool_view, report, session
from cotune.allocation import NUM_KINDS
from cotune.data import Dataset
from cotune.errors import ConfigError, DataError
from cotune.lessons import Tutor
from cotune.models.learner import Learner
from cotune.pool_view import mean_losses
from cotune.pupils import Pupils
from cotune.records import adapter_digest
from cotune.strategies.fedavg import FedAvg

ALLOCATORS = plugins.names("allocator")
TEACH = {"guard": False, "path_tokens": 6, "probe": 2, "beta": 1.0, "slm_lr": 1e-2, "llm_lr": 1e-2}
ROLES = ("slm", "llm")


def few(small, rows=3):
    """Three public items of each source instead of six: most of the time goes into paths about them."""
    return [{**source, "public_rows": rows} for source in tiny.raw_config(small)["data"]["sources"]]


def lines(folder):
    return [line["teaching"] for line in report.read_rounds(folder) if line.get("teaching")]


def adapters(folder):
    return [tiny.adapter_bytes(folder, role) for role in ROLES]


def kept(folder, name):
    """What stands on the shelves of all owners under a name."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob(f"{name}/*.msg")}


@pytest.mark.parametrize(
    "allocator",
    [  # two that need most of a view run here, the others in the tier of what takes minutes
        pytest.param(name, marks=() if name in ("lada", "loss_gap") else pytest.mark.real)
        for name in ALLOCATORS
    ],
)
def test_every_allocator_runs_with_both_hosts(small, tmp_path, allocator):
    options = {"allocator": allocator, "teach": TEACH, "data__sources": few(small)}
    found = tiny.run(small, tmp_path / "a", strategy="fedcollm", **options)
    rounds = lines(tmp_path / "a")
    assert len(rounds) == found["rounds"]
    for line in rounds:
        assert line["llm"]["pairs"] == line["llm_lessons"]
        assert all(0 <= row < line["pool"] for rows in line["wanted"].values() for row in rows)
    hosted = tiny.run(small, tmp_path / "b", rounds=1, strategy="fedavg", **options)
    assert {"llm", "slm"} <= hosted["metrics"].keys()


def test_lessons_change_both_models(small, tmp_path):
    options = {"rounds": 1, "data__sources": few(small)}
    tiny.run(small, tmp_path / "plain", **options)
    tiny.run(small, tmp_path / "taught", allocator="everything", teach=TEACH, **options)
    plain, taught = adapters(tmp_path / "plain"), adapters(tmp_path / "taught")
    assert all(one != other for one, other in zip(plain, taught, strict=True))


def test_without_a_lesson_it_is_the_plain_run_bit_for_bit(small, tmp_path):
    options = {"data__sources": few(small)}
    tiny.run(small, tmp_path / "plain", **options)
    for how in ({"epochs": 0}, {"guard": True}):
        out = tmp_path / "-".join(how)
        tiny.run(small, out, allocator="everything", teach={**TEACH, **how}, **options)
        assert adapters(tmp_path / "plain") == adapters(out)
    for line in lines(tmp_path / "guard"):  # random models end on no right answer
        assert line["llm_lessons"] == 0
        assert line["llm_paths"]["right"] == 0


def test_rationales_change_nothing_where_nobody_is_taught_and_nobody_tunes_on_them(small, tmp_path):
    sources = [
        {**source, "data": str(small / f"reasoned_{kind}.jsonl")}
        for source, kind in zip(few(small), ("places", "colours"), strict=True)
    ]
    options = {"rounds": 1, "data__sources": sources}
    tiny.run(small, tmp_path / "plain", **options)
    untaught = {**TEACH, "epochs": 0}
    for name, teach in (("off", {**untaught, "private_paths": False}), ("on", untaught)):
        tiny.run(small, tmp_path / name, allocator="everything", teach=teach, **options)
    plain, off, on = (adapters(tmp_path / name) for name in ("plain", "off", "on"))
    assert plain == off
    assert plain[1] != on[1]


def test_questions_with_other_numbers_of_choices_teach_side_by_side(small, tmp_path):
    """One client's labels are two, the others' three; the pool has both."""
    pairs = [
        {**row, "choices": row["choices"][:2], "answer_idx": row["answer_idx"] % 2}
        for row in tiny.rows("colours", 30)
    ]
    tiny.write_rows(tmp_path / "pairs.jsonl", pairs)
    places, colours = few(small)
    sources = [places, {**colours, "data": str(tmp_path / "pairs.jsonl")}]
    partition = {"name": "by_key", "key": "domain"}
    for allocator in ("lada", "loss_gap"):
        options = {"allocator": allocator, "teach": TEACH, "data__sources": sources}
        tiny.run(small, tmp_path / allocator, data__partition=partition, **options)
        assert any(line["slm"]["pairs"] for line in lines(tmp_path / allocator))


def test_a_run_stopped_in_the_middle_of_a_round_learns_the_same_filters(small, tmp_path, monkeypatch):
    reads_all = {"name": "lada", "alpha_reward": 0.5}
    options = {"allocator": reads_all, "teach": TEACH, "data__sources": few(small, rows=10)}
    tiny.run(small, tmp_path / "whole", **options)
    first, *later = lines(tmp_path / "whole")
    assert all(len(rows) == 2 for rows in first["probe"].values())  # the probe's way is the usual one
    for line in (first, *later):  # what is measured is not taught
        assert all(not set(first["probe"][client]) & set(rows) for client, rows in line["wanted"].items())
    teach, calls = Tutor.teach, []

    def stop(tutor, courses):
        calls.append(courses)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return teach(tutor, courses)

    with monkeypatch.context() as patched:
        patched.setattr(Tutor, "teach", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(small, tmp_path / "torn", **options)
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "empty"))  # what was kept there does not matter
    assert 0 < len(report.read_rounds(tmp_path / "torn")) < 3
    tiny.run(small, tmp_path / "torn", **options)
    assert adapters(tmp_path / "whole") == adapters(tmp_path / "torn")
    for name in ("clients", "server"):
        whole, torn = (kept(tmp_path / run / name, "memory") for run in ("whole", "torn"))
        assert len(whole) == 6
        assert whole == torn


def test_only_the_paths_that_were_asked_for_cross_scrubbed(small, tmp_path, monkeypatch):
    sent = []
    options = {"data__sources": few(small)}
    ready = tiny.ready(small, tmp_path, allocator="lada", teach={**TEACH, "scrub": [r"\S"]}, **options)
    transport = ready.federation.transport
    send = transport.send

    def watched(messages):
        for outcome, down, up in send(messages):
            sent.append((outcome, down, up))
            yield outcome, down, up

    monkeypatch.setattr(transport, "send", watched)
    session.run(ready, tmp_path)
    exchanged = "".join(path for m, _, _ in sent if "paths" in m.facts for path in m.facts["paths"])
    assert "[pattern]" in exchanged
    told = [outcome for outcome, _, _ in sent if outcome.action.startswith("teach/")]
    assert {message.action for message in told} == {"teach/choose", "teach/exchange", "teach/learn"}
    assert any(message.action == "teach/learn" and message.facts["sums"]["pairs"] for message in told)
    for message in told:
        assert not message.arrays  # no filter, no context
        if message.action == "teach/choose":
            assert set(message.facts) <= {"rows", "probe"}
        if message.action == "teach/exchange":
            line = lines(tmp_path)[message.round - 1]
            assert len(message.facts["paths"]) == len(line["asked"][message.client])
            assert not "".join(message.facts["paths"]).replace("[pattern]", "").strip()
        if message.action == "teach/learn":
            assert set(message.facts) == {"weight", "sums"}


def test_a_path_is_read_once_under_a_frozen_reference(small, tmp_path, monkeypatch):
    """Untuned, models write the same paths in every round: they are lessons again, but not read again."""
    read, seen = Tutor._read, []

    def noted(tutor, adapter, pairs):
        seen.extend((adapter_digest(adapter), pair.prompt, pair.preferred) for pair in pairs)
        return read(tutor, adapter, pairs)

    monkeypatch.setattr(Tutor, "_read", noted)
    teach = {**TEACH, "probe": 0, "slm_lr": 1e-12, "llm_lr": 1e-12}
    allocator = {"name": "random", "keep": 0.7}  # other lessons in each round, most of them known
    tiny.run(small, tmp_path, allocator=allocator, strategy="fedavg", teach=teach, slm__tune__lr=1e-12)
    lessons = sum(line[role]["pairs"] for line in lines(tmp_path) for role in ROLES)
    assert len(seen) == len(set(seen)) > 0
    assert len(seen) < 2 * lessons


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_probe_that_nobody_reads_is_told_and_the_filter_has_the_lessons_beta(small, tmp_path, alpha):
    notes, allocator = [], {"name": "lada", "alpha_reward": alpha}
    made = config.from_dict(tiny.raw_config(small, allocator=allocator, teach=TEACH, strategy="fedavg"))
    ready = build.session(made, tmp_path, lambda _: None, notes.append)
    assert sum("teach.probe: 2 items are measured and not taught" in note for note in notes) == (alpha == 1)
    hosts = ready.federation.transport.host.host_of.values()
    assert {host.pupil.allocator.rule.beta for host in hosts} == {TEACH["beta"]}


def test_items_that_a_client_is_measured_on_do_not_teach_it(small, tmp_path, monkeypatch):
    """In a run of one process there are none; a deployed client may bring some."""
    monkeypatch.setattr(Dataset, "measured", lambda _, client: {0, 1, 5} if client == "client-1" else set())
    options = {"rounds": 1, "data__sources": few(small, rows=10)}
    tiny.run(small, tmp_path, allocator="everything", teach=TEACH, **options)
    [line] = lines(tmp_path)
    for client, rows in line["wanted"].items():
        barred = {0, 1, 5} if client == "client-1" else set()
        probe = set(line["probe"].get(client, ()))
        assert set(rows) == set(range(20)) - barred - probe
        assert not probe & barred


@pytest.mark.parametrize("cap", [{}, {"path_tokens": 90, "max_chars": 64}])
def test_traffic_is_counted_as_in_the_paper(small, tmp_path, monkeypatch, cap):
    """Eight bytes for an item and the bytes of its path as it crosses, capped, for every one, either way."""
    options = {"rounds": 1, "data__sources": few(small)}
    ready = tiny.ready(small, tmp_path, allocator="random", teach={**TEACH, **cap}, **options)
    transport, paths = ready.federation.transport, []
    send = transport.send

    def watched(messages):
        paths.extend(p for m in messages for p in m.facts.get("told", {}).get("paths", []))
        for outcome, down, up in send(messages):
            paths.extend(outcome.facts.get("paths", []))
            yield outcome, down, up

    monkeypatch.setattr(transport, "send", watched)
    session.run(ready, tmp_path)
    [line] = lines(tmp_path)
    assert len(paths) > 8
    assert line["payload_bytes"] == sum(8 + len(path.encode()) for path in paths)
    assert line["slm_paths"]["paths"] == sum(map(len, line["asked"].values()))


def test_rationales_prepare_both_models_and_are_tuned_on(small, tmp_path):
    rows = [{**row, "rationale": f"It is {row['question']}."} for row in tiny.rows("places", 30)]
    source = {"task": "multiple_choice", "train_rows": 12, "public_rows": 6, "test_rows": 6}
    source["data"] = str(tiny.write_rows(small / "reasoned.jsonl", rows))
    found = {}
    ways = {"none": {}, "public": {"prepare": 1}, "own": {"private_paths": True}}
    ways |= {"llm": {"prepare": 1, "slm_prepare": 0}, "slm": {"slm_prepare": 1}}
    for name, how in ways.items():
        teach = {**TEACH, "epochs": 0, "private_paths": False, **how}
        options = {"rounds": 1, "data__sources": [source], "allocator": "random", "teach": teach}
        tiny.run(small, tmp_path / name, strategy="fedavg", **options)
        found[name] = adapters(tmp_path / name)
    assert all(one != other for one, other in zip(found["none"], found["public"], strict=True))
    assert found["none"][0] != found["own"][0]
    assert found["llm"] == [found["none"][0], found["public"][1]]
    assert found["slm"] == [found["public"][0], found["none"][1]]


@pytest.mark.parametrize(
    "facts",
    [
        {"rows": [0, 99]},
        {"rows": [1, 1]},
        {"rows": [0.5]},
        {"rows": [0], "losses": [10**400] * 6},
        {"rows": [0], "losses": [True] * 6},
        {"rows": [0], "losses": [0.5]},
        {"rows": [0]},
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_the_others_go_on(small, tmp_path, monkeypatch, facts):
    options = {"data__sources": few(small)}
    ready = tiny.ready(small, tmp_path, allocator="loss_gap", teach=TEACH, **options)
    transport = ready.federation.transport
    send, first = transport.send, ready.federation.clients()[0]

    def spoiled(messages):
        for outcome, down, up in send(messages):
            if outcome.action == "teach/choose" and outcome.client == first:
                outcome = replace(outcome, facts=facts)
            yield outcome, down, up

    monkeypatch.setattr(transport, "send", spoiled)
    found = session.run(replace(ready, num_rounds=1), tmp_path)
    assert found["failures"] == 1
    assert all(first not in line["wanted"] for line in lines(tmp_path))


def test_what_is_scrubbed_in_some_paths_and_not_in_others_is_counted(small, tmp_path, monkeypatch):
    texts = {0: "Ask ann@example.org.", 1: "It is so.", 2: "Ask bob@example.org or 0049 151 23456789."}
    monkeypatch.setattr(Pupils, "_write", lambda self, client, rows: {row: texts[row % 3] for row in rows})
    options = {"allocator": "everything", "teach": {**TEACH, "probe": 0}, "data__sources": few(small)}
    ready = tiny.ready(small, tmp_path, rounds=1, **options)
    session.run(ready, tmp_path)
    [line] = lines(tmp_path)
    times = line["pool"] // 3 * len(line["asked"])
    assert line["scrubbed"] == {"email": 2 * times, "phone": times}


@pytest.mark.parametrize("scrubbed", [{"email": 10**400}, {"email": 10**10}, {"email": True}, [1], "no"])
def test_what_a_client_says_it_scrubbed_is_not_believed_blindly(small, tmp_path, monkeypatch, scrubbed):
    options = {"allocator": "everything", "teach": TEACH, "data__sources": few(small), "rounds": 1}
    ready = tiny.ready(small, tmp_path, **options)
    transport = ready.federation.transport
    send = transport.send

    def spoiled(messages):
        for outcome, down, up in send(messages):
            if outcome.action == "teach/exchange":
                outcome = replace(outcome, facts={**outcome.facts, "scrubbed": scrubbed})
            yield outcome, down, up

    monkeypatch.setattr(transport, "send", spoiled)
    session.run(ready, tmp_path)
    [line] = lines(tmp_path)
    assert line["scrubbed"] == {}
    assert line["slm_paths"]["paths"] > 0


def test_of_a_client_s_many_kinds_of_scrubbed_passages_some_are_kept(small, tmp_path, monkeypatch):
    ready = tiny.ready(small, tmp_path, allocator="everything", teach=TEACH, rounds=1)
    send = ready.federation.transport.send

    def spoiled(messages):
        for outcome, down, up in send(messages):
            if outcome.action == "teach/exchange":
                counts = {f"kind {number}": 1 for number in range(1000)}
                outcome = replace(outcome, facts={**outcome.facts, "scrubbed": counts})
            yield outcome, down, up

    monkeypatch.setattr(ready.federation.transport, "send", spoiled)
    session.run(ready, tmp_path)
    [line] = lines(tmp_path)
    assert len(line["scrubbed"]) == NUM_KINDS


def test_what_gates_have_left_is_what_is_taught(small, tmp_path, monkeypatch):
    monkeypatch.setattr(allocation, "_left", lambda rows, state: list(rows[:1]))
    options = {"allocator": "everything", "teach": TEACH, "data__sources": few(small), "rounds": 1}
    tiny.run(small, tmp_path, strategy="fedavg", **options)
    [line] = lines(tmp_path)
    assert all(len(rows) == line["pool"] > 1 for rows in line["wanted"].values())
    assert line["taught"] == {client: rows[:1] for client, rows in line["wanted"].items()}
    assert line["slm"]["pairs"] <= len(line["taught"])


def test_a_pair_of_paths_counts_once_however_often_it_is_read(small, tmp_path):
    found = {}
    for epochs in (1, 2):
        teach = {**TEACH, "probe": 0, "epochs": epochs}
        options = {"allocator": "everything", "teach": teach, "data__sources": few(small), "rounds": 1}
        tiny.run(small, tmp_path / str(epochs), strategy="fedavg", **options)
        [found[epochs]] = lines(tmp_path / str(epochs))
    assert found[1]["slm"]["pairs"] == found[2]["slm"]["pairs"] > 0
    assert found[2]["llm"]["pairs"] == found[2]["llm_lessons"]
    assert found[2]["slm"]["tokens"] == 2 * found[1]["slm"]["tokens"]


def test_two_equal_models_find_no_gap_between_them(small, tmp_path, monkeypatch):
    """Losses are rounded where they cross; whoever compares must not take the rounding for a gap."""
    asked = []

    def heard(reader, pool):
        asked.append(len(pool))
        return mean_losses(reader, pool)

    monkeypatch.setattr(pool_view, "mean_losses", heard)
    model, teach = str(small / "slm"), {**TEACH, "epochs": 0}
    options = {"slm__model": model, "llm__model": model, "rounds": 1, "teach": teach}
    tiny.run(small, tmp_path / "run", strategy="fedavg", allocator="loss_gap", **options)
    [line] = lines(tmp_path / "run")
    assert line["wanted"]
    assert not any(line["wanted"].values())
    assert not any(line["asked"].values())
    assert len(asked) == 1 + len(line["wanted"])  # the server once for all clients, each client once


def test_rationales_do_not_change_what_a_client_weighs(small, tmp_path, monkeypatch):
    rows = [{**row, "rationale": f"It is {row['question']}."} for row in tiny.rows("places", 30)]
    places = few(small)[0]
    places["data"] = str(tiny.write_rows(small / "reasoned.jsonl", rows))
    weights = []

    def tuned(strategy, action, starts, clients):
        assert all(len(client.examples) == 2 * client.num_examples for client in clients)
        found = step(strategy, action, starts, clients)
        weights.append([reply.weight for reply in found])
        return found

    step = FedAvg.client_step
    monkeypatch.setattr(FedAvg, "client_step", tuned)
    tiny.run(
        small,
        tmp_path,
        rounds=1,
        strategy={"name": "fedavg", "weights": "examples"},
        data__sources=[places],
        allocator="random",
        teach={**TEACH, "epochs": 0},
    )
    assert weights
    assert sum(map(sum, weights)) == places["train_rows"]


@pytest.mark.parametrize(("private_paths", "expected"), [(True, 9), (False, 0)])
def test_the_reference_is_tuned_on_all_of_a_client_s_examples(
    small, tmp_path, monkeypatch, private_paths, expected
):
    """Those with a rationale as texts that reason, the others as they are."""
    rows = [{**row, "rationale": "So." if i % 4 else ""} for i, row in enumerate(tiny.rows("places", 30))]
    places = few(small)[0] | {"data": str(tiny.write_rows(small / "half.jsonl", rows))}
    teach = {**TEACH, "epochs": 0, "private_paths": private_paths}
    ready = tiny.ready(
        small, tmp_path, rounds=1, data__sources=[places], allocator="random", teach=teach, strategy="fedavg"
    )
    tuned, tune = [], Learner.tune

    def heard(learner, jobs):
        tuned.extend(jobs)
        return tune(learner, jobs)

    monkeypatch.setattr(Learner, "tune", heard)
    session.run(ready, tmp_path)
    references = tuned[: len(ready.federation.clients())]
    assert sum(len(job.examples) for job in references) == places["train_rows"]
    texts = [one.completion for job in references for one in job.examples]
    assert sum("So." in text for text in texts) == expected


def test_clients_must_tune_what_they_are_sent(small, tmp_path):
    with pytest.raises(ConfigError, match=r"strategy 'standalone' .* Take one of: fedavg, fedcollm"):
        tiny.ready(small, tmp_path, strategy="standalone", allocator="lada")


def test_there_must_be_public_examples(small, tmp_path):
    source = tiny.raw_config(small)["data"]["sources"][0]
    with pytest.raises(ConfigError, match="Set public_rows of a source above 0"):
        tiny.ready(small, tmp_path, data__sources=[{**source, "public_rows": 0}], allocator="lada")


def test_of_past_rounds_little_is_kept(small, tmp_path):
    tiny.run(small, tmp_path, rounds=5, allocator="lada", teach=TEACH, data__sources=few(small))
    for name in ("start", "chosen", "lessons"):
        rounds = {path.stem for path in kept(tmp_path / "clients", name)}
        assert rounds == {"000003", "000004", "000005"}
    for owners, name in (("clients", "trained"), ("clients", "memory"), ("server", "memory")):
        files = kept(tmp_path / owners, name)  # a round without lessons has none of them
        assert 0 < len(files) <= 3 * len({path.parent for path in files})


def test_a_task_whose_answers_are_paths_is_not_tuned_on_twice(small, tmp_path):
    rows = [
        {"question": row["question"], "answer": str(number), "rationale": f"It is {number}."}
        for number, row in enumerate(tiny.rows("places", 30))
    ]
    source = {"task": "short_answer", "train_rows": 12, "public_rows": 6, "test_rows": 6}
    source["data"] = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    options = {"rounds": 1, "data__sources": [source], "strategy": "fedavg"}
    tiny.run(small, tmp_path / "plain", **options)
    tiny.run(small, tmp_path / "on", allocator="everything", teach={**TEACH, "epochs": 0}, **options)
    assert tiny.adapter_bytes(tmp_path / "plain") == tiny.adapter_bytes(tmp_path / "on")


def test_a_private_example_with_more_choices_than_letters_is_tuned_on_as_it_is(small, tmp_path):
    choices = {"choices": [f"choice {i}" for i in range(27)], "answer_idx": 3, "rationale": "So it is."}
    rows = [{**row, "id": f"many{n}", **choices} for n, row in enumerate(tiny.rows("places", 30))]
    source = {"task": "multiple_choice", "train_rows": 12, "public_rows": 0, "test_rows": 6}
    source["data"] = str(tiny.write_rows(tmp_path / "many.jsonl", rows))
    sources = [*few(small), source]
    found = tiny.run(small, tmp_path, rounds=1, allocator="random", teach=TEACH, data__sources=sources)
    assert found["rounds"] == 1


def test_what_cannot_teach_is_told_before_anything_is_trained(small, tmp_path):
    def said(**changes):
        notes = []
        made = config.from_dict(tiny.raw_config(small, **changes))
        build.session(made, tmp_path, lambda _: None, notes.append)
        return " ".join(notes)

    taught = {"allocator": "random"}
    assert "teach.prepare: no public row has a rationale" in said(**taught, teach={"prepare": 1})
    assert "no public row" not in said(**taught)
    assert "questions lose their start" in said(**taught, teach={"path_tokens": 510})
    with pytest.raises(ConfigError, match=r"teach\.path_tokens: got 512; .* reads 512 tokens at most"):
        said(**taught, teach={"path_tokens": 512})
    short = {"teach": {"path_tokens": 30}, "slm__tune__max_length": 512}
    assert "learns from 40 tokens; " in said(**taught, **short, llm__tune__max_length=40)
    assert "learns from" not in said(**taught, **short, llm__tune__max_length=512)
    teacher = {"teacher": {"url": "http://127.0.0.1:9/v1", "model": "m"}}
    assert "teach: nothing of it is read" in said(teach={"prepare": 1})
    assert "teach: nothing of it is read" in said(strategy="fedavg", teach=teacher)
    assert "teach: nothing of it is read" in said(audits=["likeness"], teach=teacher)  # it has an LLM
    assert "nothing of it" not in said(
        strategy={"name": "step_by_step", "rationales": "teacher"}, teach=teacher
    )
    assert "nothing of it" not in said()
    places = tiny.rows("places", 30)
    many = [{**row, "choices": [f"choice {i}" for i in range(27)], "answer_idx": 3} for row in places]
    source = {"task": "multiple_choice", "train_rows": 12, "public_rows": 6, "test_rows": 6}
    source["data"] = str(tiny.write_rows(tmp_path / "many.jsonl", many))
    with pytest.raises(DataError, match="27 choices"):
        said(**taught, data__sources=[source])
