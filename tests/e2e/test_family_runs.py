"""Tiny runs in which clients hold different models: sums stay inside a family, text crosses."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny
from cotune import build, config, plugins, report, session, tables
from cotune.changes import family_changes
from cotune.host import KEPT_ADAPTER
from cotune.models.lora import load_peft
from cotune.protocols import Client
from cotune.records import Round
from cotune.shelf import Shelf

TEACH = {"guard": False, "path_tokens": 6, "probe": 2, "beta": 1.0, "slm_lr": 1e-2, "llm_lr": 1e-2}
NAMES = ("llm", "slm", "other")


@pytest.fixture(scope="session")
def other(small):
    """A model of another width, whose tokens have other numbers."""
    folder = small / "other"
    tiny.llama(5, 1, hidden_size=16, intermediate_size=24).save_pretrained(folder)
    tiny.tokenizer(is_turned=True).save_pretrained(folder)
    return folder


def group(model, clients=1):
    lora, tune = {"rank": 3, "alpha": 6, "targets": "attention"}, {"lr": 1e-2, "batch_size": 4, "warmup": 0.0}
    return [{"name": "other", "clients": clients, "model": str(model), "lora": lora, "tune": tune}]


def test_a_local_teacher_of_rationales_is_loaded_once_for_all_families(small, other, tmp_path):
    strategy = {"name": "step_by_step", "rationales": "teacher", "guard": False}
    made = config.from_dict(tiny.raw_config(small, strategy=strategy, families=group(other), rounds=1))
    notes = []
    session.run(build.session(made, tmp_path, lambda _: None, notes.append), tmp_path)
    assert sum(note.startswith("loading llm") for note in notes) == 1


def adapters(folder):
    return [tiny.adapter_bytes(folder, role) for role in NAMES]


def test_adapters_are_summed_inside_a_family_only(small, other, tmp_path):
    """The family of one client ends where that client's own tuning ends; the other is a mean of two."""
    ready = tiny.ready(small, tmp_path, rounds=1, strategy="fedavg", families=group(other))
    found = session.run(ready, tmp_path)
    clients = ready.federation.clients()
    now = Round(1, 1, 3, clients)
    for family, members in zip(ready.families, (clients[1:], clients[:1]), strict=True):
        assert family.clients == members
        learner = family.strategy.slm
        crew = [Client(client, ready.dataset.train(client), now) for client in members]
        alone = learner.tune_clients(crew, [learner.fresh(3)] * len(crew))
        saved = load_peft(tmp_path / "adapters" / family.name, learner.lm.fingerprint)
        for name, array in saved.arrays.items():
            mean = np.mean([one.adapter.arrays[name] for one in alone], axis=0)
            np.testing.assert_allclose(array, mean, atol=1e-6)
    assert {name: one["clients"] for name, one in found["families"].items()} == {"slm": 2, "other": 1}
    assert found["models"]["other"]["model"] == found["models"]["other"]["label"] == str(other)


def test_co_tuning_drops_the_divergence_where_vocabularies_differ(small, other, tmp_path):
    notes = []
    made = config.from_dict(tiny.raw_config(small, families=group(other)))
    session.run(build.session(made, tmp_path / "a", lambda _: None, notes.append), tmp_path / "a")
    losses = report.read_rounds(tmp_path / "a")[-1]["losses"]
    assert losses["distill_slm"] > 0
    assert not {"distill_slm other", "distill_llm other"} & losses.keys()
    assert losses["slm_public other"] > 0
    assert sum("has another vocabulary than the LLM" in note for note in notes) == 1
    tiny.run(small, tmp_path / "b", families=group(small / "slm"))
    losses = report.read_rounds(tmp_path / "b")[-1]["losses"]
    assert losses["distill_slm other"] > 0


def test_every_family_is_measured_with_its_own_model(small, other, tmp_path):
    found = tiny.run(small, tmp_path, families=group(other, 2))
    assert found["metrics"]["slm"]["multiple_choice"]["after"]["n"] == 12
    parts = found["families"]
    assert [len(parts[name]["metrics"]) for name in ("slm", "other")] == [1, 1]
    by_client = found["metrics"]["clients"]
    ours = [by_client[client]["multiple_choice"]["after"]["accuracy"] for client in sorted(by_client)[:2]]
    assert parts["other"]["metrics"]["multiple_choice"]["after"]["accuracy"] == pytest.approx(np.mean(ours))


@pytest.mark.parametrize("strategy", plugins.names("strategy"))
def test_every_strategy_runs_with_two_families(small, other, tmp_path, strategy):
    options = (
        {"name": strategy, "rationales": "teacher", "guard": False}
        if strategy == "step_by_step"
        else strategy
    )
    found = tiny.run(small, tmp_path, rounds=1, strategy=options, families=group(other))
    assert found["failures"] == 0
    assert all(np.isfinite(value) for value in report.read_rounds(tmp_path)[-1]["losses"].values())


def test_text_crosses_families(small, other, tmp_path):
    """The LLM learns from paths of clients of both, and clients of both learn from its."""
    tiny.run(small, tmp_path / "plain", rounds=1, families=group(other))
    tiny.run(small, tmp_path / "taught", rounds=1, families=group(other), allocator="everything", teach=TEACH)
    plain, taught = adapters(tmp_path / "plain"), adapters(tmp_path / "taught")
    assert all(one != two for one, two in zip(plain, taught, strict=True))
    for line in report.read_rounds(tmp_path / "taught")[1:]:
        teaching = line["teaching"]
        clients = line["cohort"]
        assert sorted(teaching["wanted"]) == sorted(teaching["asked"]) == clients
        assert teaching["slm"]["clients"] == len(clients) == 3
        assert teaching["slm_paths"]["paths"] == sum(len(rows) for rows in teaching["asked"].values())
        assert teaching["pool"] == 12
        assert teaching["llm_paths"]["paths"] == 12  # each item once, whoever wants it
        rows = [sample["row"] for sample in teaching["samples"]]
        assert len(rows) == len(set(rows)) == 3


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({}, marks=pytest.mark.real),
        pytest.param({"selector": "density"}, marks=pytest.mark.real),
        {"selector": "fedhds"},
        {"allocator": "random", "teach": TEACH},
    ],
)
def test_a_run_that_was_stopped_ends_alike(small, other, tmp_path, monkeypatch, extra):
    options = {"families": group(other, 2), "data__partition": {"name": "iid", "clients": 4}, **extra}
    tiny.run(small, tmp_path / "whole", **options)
    save, calls = session.checkpoint.save, []

    def stop(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*given)

    with monkeypatch.context() as patched:
        patched.setattr(session.checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(small, tmp_path / "torn", **options)
    assert len(report.read_rounds(tmp_path / "torn")) == 2
    tiny.run(small, tmp_path / "torn", **options)
    assert adapters(tmp_path / "whole") == adapters(tmp_path / "torn")


def test_each_family_chooses_among_its_own(small, other, tmp_path):
    """Features of two models cannot be compared, so no exchange of a selector holds clients of both."""
    ready = tiny.ready(
        small, tmp_path, families=group(other), selector={"name": "density", "keep": 0.5}, rounds=1
    )
    sent, transport = [], ready.federation.transport
    send = transport.send

    def watched(messages):
        sent.append((messages[0].action, {message.client for message in messages}))
        yield from send(messages)

    transport.send = watched
    found = session.run(ready, tmp_path)
    families = [set(family.clients) for family in ready.families]
    asked = [clients for action, clients in sent if action.startswith("select/")]
    assert asked
    assert all(clients in families for clients in asked)
    chosen = found["selection"]["clients"]
    assert {client: one["chosen"] for client, one in chosen.items()} == dict.fromkeys(chosen, 4)


def test_standalone_clients_keep_adapters_of_their_own_family(small, other, tmp_path):
    tiny.run(small, tmp_path, strategy="standalone", families=group(other), rounds=1)
    shelf = Shelf(tmp_path / "clients", "strategy")
    ranks = [
        shelf.adapter(path.name, KEPT_ADAPTER, 2).rank for path in sorted((tmp_path / "clients").iterdir())
    ]
    assert ranks == [3, 2, 2]


def test_json_lines_hold_family_losses(small, other, tmp_path):
    tiny.run(small, tmp_path, families=group(other), rounds=1)
    line = json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[-1])
    assert {"slm", "llm", "slm other", "llm other"} <= line["losses"].keys()


def test_page_and_table_tell_the_families_apart(small, other, tmp_path):
    found = tiny.run(small, tmp_path, families=group(other, 2), rounds=1)
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    page = report.render(tmp_path).read_text()
    assert "Clients hold different models" in page
    names = [row[0].strip() for row in tables.summary_rows(found)]
    assert names[-2:] == ["slm", "other"]
    plain = tiny.run(small, tmp_path / "plain", rounds=1)
    assert not family_changes(plain)
    one, two = family_changes(found)
    assert (one.clients, two.clients) == (1, 2)
    score = found["metrics"]["clients"]
    own = [score[client]["multiple_choice"]["after"]["accuracy"] for client in sorted(score)]
    assert one.after == pytest.approx(own[2])
    assert two.after == pytest.approx((own[0] + own[1]) / 2)
    assert two.gain == pytest.approx(two.after - two.before)


def test_a_family_of_which_nobody_was_drawn_is_told_and_stays_as_it_was(small, other, tmp_path):
    options = {"families": group(other), "cohort__fraction": 0.34, "rounds": 6, "strategy": "fedavg"}
    tiny.run(small, tmp_path, **options)
    lines = report.read_rounds(tmp_path)[1:]
    drawn = ["other" if line["cohort"] == ["client-1"] else "slm" for line in lines]
    assert set(drawn) == {"slm", "other"}
    idle = [line["idle_families"] for line in lines]
    assert idle == [["slm" if name == "other" else "other"] for name in drawn]
    assert not any(line.get("status") == "failed" for line in lines)


def test_of_each_family_somebody_is_measured(small, other, tmp_path):
    found = tiny.run(small, tmp_path, families=group(other), evaluate__clients=1, rounds=1)
    assert all(part["metrics"] for part in found["families"].values())
    assert sorted(found["metrics"]["clients"])[0] == "client-1"


def test_a_family_of_one_is_told(small, other, tmp_path):
    notes = []
    made = config.from_dict(tiny.raw_config(small, families=group(other), strategy="fedavg"))
    build.session(made, tmp_path, lambda _: None, notes.append)
    assert [note for note in notes if "has one client" in note] == [
        "family other has one client: what is summed over it is that client's own"
    ]
