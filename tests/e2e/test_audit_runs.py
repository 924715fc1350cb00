"""Whole tiny runs that are audited: what audits see, what gates do about it, and `cotune audit` itself."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

import pages
import tiny
from chat_server import answer, serving
from cotune import checkpoint, cli, identities, report, session
from cotune.audits.canary import NOT_OBSERVED
from cotune.errors import ConfigError, ModelError
from cotune.examined import BEFORE
from cotune.federation import Federation
from cotune.models import generate
from cotune.models.lora import LoraStack, save_peft
from cotune.records import Round, Written
from cotune.subject import ModelSubject

LIKENESS = {"name": "likeness", "limit": 2, "max_new_tokens": 4}
CANARY = {"name": "canary", "facts": 3}
BOTH = [LIKENESS, CANARY]
GATES = {"similarity": 1e-6, "min_gain": 1.0}
"""No gain is large enough to forgive the smallest growth."""
ROLES = ("slm", "llm")


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cotune.subject.ENCODER", "./no-encoder")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def answers(subject, role, messages, sampling):
    """A voice that can be compared on any machine: an SLM says what the LLM says once it was taught."""
    is_taught = role == "slm" and subject.fingerprint(role) != subject.fingerprint(role + BEFORE)
    voice = "the llm" if role.startswith("llm") or is_taught else "a small one"
    texts = [f"As {voice} I say of {message} this." for message in messages]
    return [Written(text, 1, 1, finished=True) for text in texts]


@pytest.fixture
def parrot(monkeypatch):
    monkeypatch.setattr(ModelSubject, "answers", answers)


LOWERED = {"rounds": 3, "audits": LIKENESS, "gates": GATES}


@pytest.fixture(scope="module")
def lowered(small, tmp_path_factory):
    """The folder of a run whose weight was lowered after each round."""
    folder = tmp_path_factory.mktemp("lowered") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelSubject, "answers", answers)
        patch.setattr("cotune.subject.ENCODER", "./no-encoder")
        assert tiny.run(small, folder, **LOWERED)["status"] == "done"
    return folder


@pytest.fixture
def cotune(monkeypatch, capsys):
    """Runs a command in this process: its exit code, and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cotune", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def adapters(folder):
    return [tiny.adapter_bytes(folder, role) for role in ROLES]


def told(folder):
    """What gates did, by round: round, gate, action, and what is left of distillation."""
    return [
        (line["round"], gate["gate"], gate["action"], line["distil"])
        for line in report.read_rounds(folder)
        for gate in line.get("gates", [])
    ]


def test_a_runs_audits_stand_in_its_files_and_its_report(small, tmp_path, cotune):
    config = tiny.write_config(small, audits=[{**LIKENESS, "every": 2}, CANARY], gates={}, rounds=3)
    code, out, _ = cotune("run", config, "--out", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["status"] == "done"
    lines = report.read_rounds(tmp_path / "out")
    assert [list(line["audits"]) for line in lines] == [["likeness", "canary"], ["canary"]] + [
        ["likeness", "canary"]
    ] * 2
    first, *_, last = (line["audits"] for line in lines)
    assert first["likeness"]["cast"] == {
        "student": "slm", "reference": "llm", "baseline": "slm before", "unrelated": None,
    }  # fmt: skip
    summary = first["likeness"]["summary"]
    assert summary["likeness.mean.gain"]["value"] == 0  # nothing was taught yet
    assert set(last["canary"]["leaks"]) == {"llm", "slm", "llm before", "slm before"}
    assert last["canary"]["channels"]["text"] == NOT_OBSERVED
    assert last["canary"]["channels"]["adapters"].keys() == last["canary"]["leaks"].keys()
    assert all("metrics" in line and "audit" in line["phases"] for line in lines)
    page = pages.Tags((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "canary" in page.text.lower()
    assert "likeness" in page.text.lower()
    assert (tmp_path / "out" / "adapters" / "slm" / "adapter_model.safetensors").is_file()


def test_audits_change_nothing_but_what_they_plant(small, tmp_path):
    plain = tiny.run(small, tmp_path / "plain")
    watched = tiny.run(small, tmp_path / "watched", audits=LIKENESS, gates={"on_similarity": "off"})
    assert adapters(tmp_path / "plain") == adapters(tmp_path / "watched")
    assert plain["traffic"] == watched["traffic"]
    assert plain["metrics"] == watched["metrics"]


def test_one_client_holds_the_planted_facts_and_trains_on_them(small, tmp_path):
    notes = []
    made = tiny.config.from_dict(
        tiny.raw_config(small, audits={**CANARY, "client": "client-2", "repeats": 5})
    )
    ready = tiny.build.session(made, tmp_path, lambda _: None, notes.append)
    plain = tiny.ready(small, tmp_path / "plain")
    counts = [{client: d.num_train(client) for client in d.clients} for d in (ready.dataset, plain.dataset)]
    assert counts[0] == counts[1] | {"client-2": counts[1]["client-2"] + 15}
    assert ready.dataset.public == plain.dataset.public
    [note] = [n for n in notes if n.startswith("canary: ")]
    assert note.startswith("canary: 3 invented facts are planted with client client-2, 5 copies each")
    with pytest.raises(ConfigError, match="there is no client 'x'; expected one of client-1, client-2, cli"):
        tiny.ready(small, tmp_path / "x", audits={**CANARY, "client": "x"})


def test_what_crosses_in_the_clear_is_shown_to_the_leakage_audit(small, tmp_path):
    """Reasoning paths of clients, and centres of their groups beside the facts in the same basis."""
    tiny.run(
        small,
        tmp_path / "out",
        rounds=1,
        audits=CANARY,
        allocator="random",
        teach={"guard": False, "path_tokens": 4, "probe": 0},
        selector={"name": "fedhds", "min_group": 2, "model": "slm"},
    )
    before, after = (line["audits"]["canary"]["channels"] for line in report.read_rounds(tmp_path / "out"))
    assert before["text"] == before["centroids"] == NOT_OBSERVED
    [crossed] = after["text"].values()
    assert crossed["texts"] > 0
    assert crossed["leaks"] is False
    assert after["centroids"].keys() == {"fedhds"}
    assert after["centroids"]["fedhds"]["centroids"] > 0
    assert 0 < after["centroids"]["fedhds"]["p_nearer"] <= 1


@pytest.mark.usefixtures("parrot")
def test_growth_without_gain_halves_what_models_are_taught_of_each_other(small, tmp_path, lowered):
    tiny.run(small, tmp_path / "plain", rounds=3, audits=LIKENESS)
    assert told(lowered) == [(n, "similarity", "lower", 0.5**n) for n in (1, 2, 3)]
    assert told(tmp_path / "plain") == []
    plain, less = (report.read_rounds(folder) for folder in (tmp_path / "plain", lowered))
    assert plain[1]["losses"] == less[1]["losses"]  # the gate speaks after round 1
    assert plain[2]["losses"] != less[2]["losses"]
    assert adapters(tmp_path / "plain") != adapters(lowered)


@pytest.mark.parametrize("is_line_lost", [False, True])
@pytest.mark.usefixtures("parrot")
def test_a_lowered_weight_survives_a_stop(small, tmp_path, lowered, monkeypatch, is_line_lost):
    """Killed in round 2, or between the checkpoint of round 1 and its line in rounds.jsonl."""
    where = (report, "append_round") if is_line_lost else (Federation, "gather")
    calls, do = [], getattr(*where)

    def stop(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return do(*given)

    with monkeypatch.context() as patch:
        patch.setattr(*where, stop)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(small, tmp_path / "torn", **LOWERED)
    ready = tiny.ready(small, tmp_path / "torn", **LOWERED)
    assert checkpoint.latest(tmp_path / "torn" / "checkpoints", ready.fingerprint).state.distil == 0.5
    session.run(ready, tmp_path / "torn")
    assert adapters(lowered) == adapters(tmp_path / "torn")
    assert told(lowered) == told(tmp_path / "torn")


@pytest.mark.usefixtures("parrot")
def test_a_gate_can_end_a_run_which_then_does_not_go_on(small, tmp_path, cotune):
    config = tiny.write_config(small, rounds=4, audits=LIKENESS, gates={**GATES, "on_similarity": "stop"})
    out = tmp_path / "out"
    code, said, _ = cotune("run", config, "--out", out, "--json")
    results = json.loads(said)
    assert (code, results["status"], results["rounds"]) == (0, "stopped", 1)
    assert told_of_stop(out) == [(1, "stop")]
    before = adapters(out)
    page = pages.Tags((out / "report.html").read_text(encoding="utf-8"))
    assert "likeness grew from" in page.text
    code, said, _ = cotune("resume", out, "--json")
    assert (code, json.loads(said)["status"], json.loads(said)["rounds"]) == (0, "stopped", 1)
    assert [line["round"] for line in report.read_rounds(out)] == [0, 1]
    assert adapters(out) == before


def told_of_stop(out):
    return [(n, action) for n, _, action, _ in told(out)]


def test_a_leak_ends_a_run(small, tmp_path, monkeypatch):
    """Facts are made likely to every model that was trained, as an overfitted one has them."""
    read = ModelSubject.log_probs

    def knows(subject, role, pairs):
        found = read(subject, role, pairs)
        is_tuned = role == "slm" and subject.fingerprint(role) != subject.fingerprint(role + BEFORE)
        facts = {f.prompt + f.completion for f in ready_canaries(small)}
        sums = [0.0 if is_tuned and "".join(pair) in facts else -9.0 for pair in pairs]
        return replace(found, sums=np.array(sums))

    monkeypatch.setattr(ModelSubject, "log_probs", knows)
    found = tiny.run(small, tmp_path / "out", audits=CANARY, gates={"on_similarity": "off"})
    assert found["status"] == "stopped"
    [line] = [line for line in report.read_rounds(tmp_path / "out") if line.get("gates")]
    assert line["gates"][0]["reason"] == "planted facts leaked into slm (recall 1.00)"
    assert line["distil"] == 1.0


def ready_canaries(small):
    from cotune.audits import canary

    made = canary.build(canary.Config(facts=3))
    return made.canaries(tiny.raw_config(small)["seed"]).planted


def one_round(small, out, distil, **strategy):
    """Adapters after one round that begins with this share of distillation."""
    ready = tiny.ready(small, out, strategy=strategy)
    [family] = ready.families
    state = family.strategy.init(3).replace(distil=distil)
    found, _ = family.strategy.server_round(
        state, Round(1, 2, 3, ready.federation.clients()), ready.federation
    )
    assert found.distil == distil
    return {
        role: {name: array.tobytes() for name, array in adapter.arrays.items()}
        for role, adapter in found.adapters().items()
    }


@pytest.mark.parametrize(
    ("key", "full", "half"),
    [("fedcollm.distill_weight", 3.0, 1.5), ("step_by_step.weight", 0.5, 0.75)],
)
def test_a_lowered_share_is_exactly_that_share_of_the_weight(small, tmp_path, key, full, half):
    """Of FedCoLLM's divergence; of the rationale in Distilling Step-by-Step, the label's is the rest."""
    name, option = key.split(".")
    lowered = one_round(small, tmp_path / "a", 0.5, name=name, **{option: full})
    assert lowered == one_round(small, tmp_path / "b", 1.0, name=name, **{option: half})
    assert lowered != one_round(small, tmp_path / "c", 1.0, name=name, **{option: full})


@pytest.mark.usefixtures("parrot")
def test_of_allocated_items_the_best_share_is_taught(small, tmp_path):
    """To each client apart: a path that is held back from one does not come because another one has it."""
    teach = {"guard": False, "path_tokens": 12, "temperature": 1.0}  # no two paths are alike
    sources = [{**source, "public_rows": 3} for source in tiny.raw_config(small)["data"]["sources"]]
    lada = {"name": "lada", "least": 0.5, "epochs": 1}
    options = {"allocator": lada, "teach": teach, "data__sources": sources, "audits": LIKENESS}
    tiny.run(small, tmp_path / "plain", **options)
    tiny.run(small, tmp_path / "out", **options, gates=GATES)
    plain, lowered = (
        [line["teaching"] for line in report.read_rounds(tmp_path / name)[1:]] for name in ("plain", "out")
    )
    assert plain[0] == lowered[0]
    assert plain[1]["wanted"] == lowered[1]["wanted"]

    def left(rows):
        return rows[: math.ceil(len(rows) / 2)]

    assert lowered[1]["asked"] == {client: left(rows) for client, rows in plain[1]["asked"].items()}
    assert lowered[1]["slm"]["pairs"] == sum(len(left(rows)) for rows in plain[1]["wanted"].values())
    rows = {row for key in ("wanted", "asked") for rows in plain[1][key].values() for row in left(rows)}
    assert lowered[1]["llm_paths"]["paths"] == len(rows)
    assert 0 < lowered[1]["slm"]["pairs"] < plain[1]["slm"]["pairs"]


def test_the_llm_behind_an_endpoint_is_the_reference(small, tmp_path):
    """Its answers are compared; it cannot be read, and may not judge."""
    with serving() as server:
        teacher = {"url": server.url, "model": "big", "max_retries": 0}
        options = {
            "strategy": "fedavg",
            "allocator": "everything",
            "rounds": 1,
            "teach": {"guard": False, "path_tokens": 4, "probe": 0, "teacher": teacher},
            "audits": [LIKENESS, CANARY],
        }
        tiny.run(small, tmp_path / "out", **options)
        last = report.read_rounds(tmp_path / "out")[-1]["audits"]
        assert last["likeness"]["cast"]["reference"] == "llm"
        assert last["likeness"]["examples"][0]["reference"].startswith("so ")
        assert last["canary"]["models"]["llm"]["leaks"] is None
        with pytest.raises(ConfigError, match="is the llm itself"):
            tiny.ready(small, tmp_path / "x", **options, auditing={"judge": teacher})


def test_helpers_of_a_run_are_found_before_anything_is_trained(small, tmp_path):
    def refused(error, complaint, **auditing):
        with pytest.raises(error, match=complaint):
            tiny.ready(small, tmp_path, audits=LIKENESS, auditing=auditing)

    refused(ConfigError, "is the slm itself.*auditing.force_judge", judge=str(small / "slm"))
    refused(ModelError, "there is no such folder", judge="./gone")
    refused(ModelError, "there is no such folder", unrelated="./gone")
    refused(ConfigError, "COTUNE_NONE is not set", mutator={
        "url": "http://localhost:1/v1", "model": "m", "api_key_env": "COTUNE_NONE",
    })  # fmt: skip
    forced = {"judge": str(small / "slm"), "force_judge": True}
    assert tiny.ready(small, tmp_path, audits=LIKENESS, auditing=forced).observing


def wise(prompt, nth):
    """5 for equal answers, 2 for others."""
    first, second = (prompt.split(f"ANSWER {name} BEGINS\n")[1].split("\n[")[0] for name in "AB")
    level = 5 if first == second else 2
    return answer(prompt, content=json.dumps(dict.fromkeys(("style", "logic", "content", "overall"), level)))


def test_a_run_with_a_judge_and_an_unrelated_model(small, tmp_path):
    tiny.write_model(tmp_path / "third", seed=5)
    (tmp_path / "mine.txt").write_text("Why?\nHow?", encoding="utf-8")
    rse = {"name": "rse", "max_new_tokens": 2, "bootstrap": 10}
    with serving(wise) as server:
        auditing = {
            "judge": {"url": server.url, "model": "wise"},
            "unrelated": str(tmp_path / "third"),
            "prompts": [str(tmp_path / "mine.txt")],
        }
        tiny.run(small, tmp_path / "out", rounds=1, audits=rse, auditing=auditing, gates={})
        assert set(server.asked.values()) == {1}  # equal comparisons too, in all observations
    found = report.read_rounds(tmp_path / "out")[-1]["audits"]["rse"]
    assert found["judge"]["name"] == f"wise at {server.url}"
    assert found["models"].keys() == {"slm", "slm before", "unrelated"}
    assert found["sets"] == {"mine": 2}
    assert found["usable"]


@pytest.fixture
def tuned(small, tmp_path):
    stack = LoraStack(tiny.loaded(small / "slm"), 2, 4, "attention")
    save_peft(tiny.random_adapter(stack, size=1.0), tmp_path / "tuned", str(small / "slm"))
    return tmp_path / "tuned"


def words(small, student, out, *more):
    options = ("--set", "likeness.limit=1", "--set", "likeness.max_new_tokens=2")
    return ("audit", "--student", student, "--reference", small / "llm", "--out", out, *options, *more)


def test_cotune_audit_prints_one_document_writes_both_files_and_goes_on(
    small, tmp_path, tuned, cotune, monkeypatch
):
    out = tmp_path / "out"
    line = words(small, tuned, out, "--baseline", "untuned")
    write, calls = generate.write, []

    def stop(*given, **how):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*given, **how)

    monkeypatch.setattr(generate, "write", stop)
    code, said, err = cotune(*line, "--json")
    assert (code, said) == (130, "")
    assert err.endswith("cotune: interrupted\n")
    code, said, err = cotune(*line, "--json")
    assert code == 0, err
    assert json.loads(said) == json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert json.loads(said)["models"].keys() == {"student", "reference", "baseline"}
    assert len(calls) == 4  # the one that was stopped is asked again
    assert pages.Tags((out / "audit.html").read_text(encoding="utf-8")).text
    code, said, _ = cotune(*line)
    assert code == 0
    assert said.split()[:2] == ["likeness", "likeness.mean"]
    assert said.splitlines()[-1] == str(out / "audit.html")
    assert len(calls) == 4


IDENTITY = identities.scaffold("Pebble", "Stonework")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--student SLM --reference LLM", "--out: name a folder to write to"),
        ("--reference LLM --out OUT", "--student: a model is missing"),
        ("--student SLM --out OUT", "--reference: a model is missing"),
        ("--student ./gone --reference LLM --out OUT", "model './gone': there is no such folder"),
        ("--student SLM --reference http://localhost:1/v1 --out OUT", "Expected URL#MODEL"),
        ("--student SLM --reference LLM --baseline untuned --out OUT", "the student has no adapter"),
        ("--student SLM --reference LLM --judge SLM --out OUT", "is the student itself"),
        ("--student SLM --reference LLM --audits rse --out OUT", "nobody judges"),
        ("--student SLM --reference LLM --audits ice --out OUT", "--identity"),
        ("--student SLM --reference LLM --audits likenes --out OUT", "Did you mean 'likeness'?"),
        ("--student SLM --reference LLM --identity gone.yaml --out OUT", "gone.yaml"),
        ("--student SLM --reference LLM --prompts gone.txt --out OUT", "gone.txt"),
        ("--student SLM --reference LLM --set likeness.limt=3 --out OUT", "Did you mean 'limit'?"),
        ("--student SLM --reference LLM --set rse.limit=3 --out OUT", "expected AUDIT.OPTION=VALUE"),
        ("--student SLM --reference LLM --set likeness.limit=0 --out OUT", "greater than 0, got 0"),
        ("--student SLM --reference LLM --concurrency 0 --out OUT", "--concurrency"),
        ("--student SLM --reference LLM --out FULL", "in use, it holds something else"),
        ("recount gone", "gone"),
        ("init --name Pebble", "Missing option '--maker'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(small, tmp_path, monkeypatch, cotune, line, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    places = {"SLM": small / "slm", "LLM": small / "llm", "OUT": "out", "FULL": "full"}
    code, out, err = cotune("audit", *(places.get(word, word) for word in line.split()))
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("cotune: ") == 1
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_is_gone_is_exit_code_3_with_how_to_go_on(small, tmp_path, monkeypatch, cotune):
    monkeypatch.setattr("cotune.models.endpoint.LONGEST_WAIT", 0.0)
    with serving() as server:
        url = server.url
    code, out, err = cotune(*words(small, f"{url}#big", tmp_path / "out"))
    assert (code, out) == (3, "")
    said = " ".join(err.split())
    assert f"Go on with the same command: {tmp_path / 'out'} keeps what was answered" in said
    assert (tmp_path / "out" / "question.json").is_file()


@pytest.mark.parametrize("words", [["audit"], ["audit", "init"], ["audit", "recount"]])
def test_help_is_printed(cotune, words):
    code, out, _ = cotune(*words, "--help")
    assert code == 0
    assert "Usage" in out
