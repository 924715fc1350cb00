"""Every command as a person types it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from cotune import cli, launch, plugins, report
from cotune.models.lora import LoraStack, save_peft


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)


Command = Callable[..., Ended]


@pytest.fixture
def cotune(monkeypatch, capsys, tmp_path) -> Command:
    """Runs a command in this process through the entry point."""
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cotune", *map(str, words)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def config(small, tmp_path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(tiny.write_config(small).read_text())
    return path


def test_run_prints_one_json_document_and_writes_the_files(cotune, config, tmp_path):
    out = tmp_path / "out"
    ended = cotune("run", config, "--out", out, "--set", "rounds=1", "--set", "slm.tune.lr=1e-3", "--json")
    assert ended.code == 0
    assert ended.json() == json.loads((out / "results.json").read_text())
    assert ended.json()["rounds"] == 1
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert (written["rounds"], written["slm"]["tune"]["lr"]) == (1, 1e-3)
    names = {path.name for path in out.iterdir()}
    assert {"rounds.jsonl", "results.json", "report.html", "adapters", "checkpoints", "config.yaml"} <= names
    for role in ("llm", "slm"):
        assert (out / "adapters" / role / "adapter_config.json").is_file()
    assert "report.html" in ended.err.replace("\n", "")


def test_run_for_a_person_prints_a_summary(cotune, config, tmp_path):
    ended = cotune("run", config, "--out", tmp_path / "out", "--set", "rounds=1")
    assert ended.code == 0
    assert "multiple_choice" in ended.out
    assert "round" in ended.err


def test_run_takes_a_free_folder_under_runs(cotune, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my", "my-2"):
        assert cotune("run", config, "--set", "rounds=1", "--set", "strategy=fedavg").code == 0
        assert (tmp_path / "runs" / name / "results.json").is_file()


def test_resume_and_report_of_a_finished_run(cotune, config, tmp_path):
    out = tmp_path / "out"
    first = cotune("run", config, "--out", out, "--json").json()
    again = cotune("resume", out, "--json")
    assert (again.code, again.json()["metrics"]) == (0, first["metrics"])
    (out / "report.html").unlink()
    made = cotune("report", out, "--json")
    assert made.json()["report"] == str(out / "report.html")
    assert made.json()["metrics"] == first["metrics"]
    assert cotune("report", out).out.strip() == str(out / "report.html")
    assert (out / "report.html").is_file()


EVAL = ["eval", "--model", "SLM", "--task", "multiple_choice"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "gone.yaml"], "gone.yaml: cannot be read"),
        (["run", "CONFIG", "--set", "rouds=3"], "rouds: unknown key. Did you mean 'rounds'?"),
        (["run", "CONFIG", "--set", "rounds"], "expected path=value"),
        (["run", "CONFIG", "--set", "strategy=fedcolm"], "Did you mean 'fedcollm'?"),
        (["run", "CONFIG", "--set", "slm.model=./none"], "model './none': there is no such folder"),
        (["run", "CONFIG", "--set", "slm.model=smolm2-135m"], "Did you mean 'smollm2-135m'?"),
        (["run", "CONFIG", "--set", "slm.lora.targets=[nothing]"], "matches no layer"),
        (["run", "CONFIG", "--set", "runtime.device=cuda:9"], "runtime.device: 'cuda:9' is not usable here"),
        (["run", "CONFIG", "--set", "data.sources.0.data=gone.jsonl"], "gone.jsonl"),
        (["run", "CONFIG", "--set", "data.sources.0.task=nonsense"], "'nonsense' not found"),
        (["run", "CONFIG", "--set", "data.partition.clients=1000"], "1000 clients"),
        (["run", "CONFIG", "--set", "data.sources.0.train_rows=999"], "train_rows asks for 999 rows"),
        (["run"], "Missing argument 'CONFIG'. See --help."),
        (["run", "CONFIG", "--sett", "x=1"], "No such option"),
        (["rum"], "No such command 'rum'"),
        (["resume", "gone"], "gone: no run to resume"),
        (["report", "gone"], "gone"),
        (["compare", "CONFIG", "--strategies", "fedavg,fedcolm"], "Did you mean 'fedcollm'?"),
        (["compare", "CONFIG", "--strategies", "fedavg,fedavg"], "name each strategy once"),
        (["compare", "CONFIG", "--strategies", ","], "at least one"),
        (["compare", "CONFIG", "--seeds", "0"], "--seeds"),
        (["eval", "--model", "SLM", "--task", "multiple_choise"], "Did you mean 'multiple_choice'?"),
        (EVAL, "Name a JSONL file"),
        ([*EVAL, "--metric", "bleu"], "--metric: got bleu; task multiple_choice is scored by choice or path"),
        ([*EVAL, "--data", "ROWS", "--adapter", "gone"], "no readable PEFT"),
        ([*EVAL, "--data", "ROWS", "--adapter", "ODD"], "got IA3"),
        (["models", "pull", "smolm"], "smolm"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-1:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(
    cotune, config, small, tmp_path, monkeypatch, words, complaint
):
    monkeypatch.chdir(tmp_path)
    lm = tiny.loaded(small / "slm")
    save_peft(tiny.random_adapter(LoraStack(lm, 2, 4, "attention")), tmp_path / "odd", "x")
    odd = tmp_path / "odd" / "adapter_config.json"
    odd.write_text(odd.read_text().replace('"LORA"', '"IA3"'))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    places = {"CONFIG": config, "SLM": small / "slm", "ROWS": small / "places.jsonl", "ODD": tmp_path / "odd"}
    ended = cotune(*[places.get(word, word) for word in words])
    assert ended.code == 2
    assert ended.out == ""
    assert complaint in ended.err
    assert ended.err.count("cotune: ") == 1
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_other_vocabularies_are_refused_before_anything_is_written(cotune, config, tmp_path):
    tiny.write_model(tmp_path / "large", vocab_size=300)
    ended = cotune("run", config, "--out", tmp_path / "out", "--set", f"llm.model={tmp_path / 'large'}")
    assert ended.code == 2
    assert "300 and 258 logits" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_failure_is_exit_code_3_with_the_command_that_resumes(cotune, config, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no luck\nsecond line")

    monkeypatch.setattr("cotune.session.run", fail)
    out = tmp_path / "out"
    ended = cotune("run", config, "--out", out)
    assert ended.code == 3
    assert f"RuntimeError: no luck (details in {out}/error.log). Go on with: cotune resume {out}" in ended.err
    assert "second line" in (out / "error.log").read_text()


def test_malformed_rows_are_named_with_file_line_and_field(cotune, config, tmp_path):
    rows = tiny.rows("places", 30)
    rows[3]["answer_idx"] = 5
    path = tiny.write_rows(tmp_path / "bad.jsonl", rows)
    ended = cotune("run", config, "--set", f"data.sources.0.data={path}", "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(
        r"bad\.jsonl:4: field 'answer_idx': got 5; expected a whole number from 0 to 2", ended.err
    )


def test_eval_scores_a_model_with_and_without_an_adapter(cotune, small, tmp_path):
    words = [
        "eval",
        "--model",
        small / "slm",
        "--task",
        "multiple_choice",
        "--data",
        small / "places.jsonl",
        "--json",
    ]
    plain = cotune(*words)
    assert plain.code == 0
    assert {"accuracy", "accuracy_norm", "n", "seconds"} <= plain.json().keys()
    assert plain.json()["n"] == 30
    assert cotune(*words, "--limit", 7).json()["n"] == 7
    stack = LoraStack(tiny.loaded(small / "slm"), 4, 8, "all-linear")
    save_peft(tiny.random_adapter(stack, seed=2, size=1.0), tmp_path / "adapter", "x")
    adapted = cotune(*words, "--adapter", tmp_path / "adapter").json()
    assert (adapted["accuracy"], adapted["accuracy_norm"]) != (
        plain.json()["accuracy"],
        plain.json()["accuracy_norm"],
    )
    assert "accuracy" in cotune(*words[:-1]).out
    paths = cotune(*words, "--limit", 2, "--metric", "path_accuracy").json()
    assert (paths["path_accuracy"], paths["n"]) == (0.0, 2)


def test_eval_of_a_saved_run_gives_the_number_of_its_report(cotune, config, small, tmp_path):
    """All clients share the test rows; the file with those rows alone must score the same."""
    held = tiny.write_rows(
        tmp_path / "held.jsonl", [{**r, "id": f"h{r['id']}"} for r in tiny.rows("colours", 24)]
    )
    source = {
        "task": "multiple_choice",
        "data": str(small / "places.jsonl"),
        "public_rows": 4,
        "test_data": str(held),
    }
    found = cotune(
        "run", config, "--out", tmp_path / "out", "--set", f"data.sources={json.dumps([source])}", "--json"
    )
    assert found.code == 0
    for role in ("slm", "llm"):
        scored = cotune(
            "eval", "--model", small / role, "--adapter", tmp_path / "out" / "adapters" / role,
            "--task", "multiple_choice", "--data", held, "--json",
        ).json()  # fmt: skip
        after = found.json()["metrics"][role]["multiple_choice"]["after"]
        assert (scored["accuracy"], scored["n"]) == (pytest.approx(after["accuracy"]), after["n"])


def test_an_adapter_of_another_base_is_refused(cotune, small, tmp_path):
    stack = LoraStack(tiny.loaded(small / "llm"), 2, 4, "attention")
    save_peft(tiny.random_adapter(stack), tmp_path / "adapter", "x")
    ended = cotune(
        "eval", "--model", small / "slm", "--adapter", tmp_path / "adapter",
        "--task", "multiple_choice", "--data", small / "places.jsonl",
    )  # fmt: skip
    assert ended.code == 2
    assert "made for base" in ended.err


def test_compare_makes_both_tables_and_goes_on_where_it_stopped(cotune, config, tmp_path, monkeypatch):
    out = tmp_path / "both"
    words = [
        "compare",
        config,
        "--strategies",
        "fedavg,fedcollm",
        "--seeds",
        "2",
        "--out",
        out,
        "--set",
        "rounds=1",
    ]
    made = launch.run
    seen: list[str] = []

    def once(settings, folder, console):
        seen.append(folder.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return made(settings, folder, console)

    monkeypatch.setattr(launch, "run", once)
    stopped = cotune(*words)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.endswith("cotune: interrupted\n")
    assert not (out / "compare.json").exists()
    found = cotune(*words, "--json")
    assert found.code == 0
    assert seen == ["fedavg-3", "fedcollm-3", "fedavg-4", "fedavg-4", "fedcollm-4"]
    tables = found.json()
    assert tables == json.loads((out / "compare.json").read_text())
    assert tables["seeds"] == [3, 4]
    assert list(tables["slm"]) == ["zero_shot", "fedavg", "fedcollm"]
    assert list(tables["llm"]) == ["zero_shot", "fedcollm"]
    cell = tables["slm"]["fedavg"]["multiple_choice"]
    single = [json.loads((out / f"fedavg-{s}" / "results.json").read_text()) for s in (3, 4)]
    values = [one["metrics"]["slm"]["multiple_choice"]["after"]["accuracy"] for one in single]
    assert cell["values"] == values
    assert cell["mean"] == pytest.approx(sum(values) / 2)
    # spread of two values: |a - b| / sqrt 2
    assert cell["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    text = cotune(*words)
    assert text.code == 0
    assert "FedCoLLM" in text.out
    assert len(seen) == 5  # nothing is run again


def test_compare_teaches_where_clients_can_be_taught_and_tells_misfits_first(cotune, config, tmp_path):
    """So that a taught strategy can be compared with its baselines."""
    words = ["compare", config, "--strategies", "fedavg,standalone", "--seeds", "1", "--set", "rounds=1"]
    teach = ["--set", "allocator=everything", "--set", "teach.path_tokens=4"]
    done = cotune(*words, *teach, "--out", tmp_path / "both")
    assert done.code == 0, done.err
    taught, plain = (report.read_rounds(tmp_path / "both" / f"{n}-3") for n in ("fedavg", "standalone"))
    assert "teaching" in taught[1]
    assert "teaching" not in plain[1]
    words[3] = "fedavg,fedcollm"
    endpoint = ["--set", "teach.teacher={url: 'http://127.0.0.1:9/v1', model: m}"]
    refused = cotune(*words, *teach, *endpoint, "--out", tmp_path / "none")
    assert refused.code == 2
    assert "strategy 'fedcollm' trains the LLM" in refused.err
    assert not (tmp_path / "none").exists()


def test_compare_refuses_a_folder_of_another_configuration(cotune, config, tmp_path):
    out = tmp_path / "both"
    words = ["compare", config, "--strategies", "fedavg", "--seeds", "1", "--out", out]
    assert cotune(*words, "--set", "rounds=1").code == 0
    ended = cotune(*words, "--set", "rounds=2")
    assert ended.code == 2
    assert "holds a run of another configuration" in ended.err


def test_plugins_lists_every_plugin(cotune):
    found = cotune("plugins", "--json").json()
    assert found["strategy"].keys() == set(plugins.names("strategy"))
    text = cotune("plugins").out
    assert len(text.splitlines()) == sum(len(entries) for entries in found.values())
    assert re.search(r"^strategy +fedcollm +Clients tune SLM adapters", text, re.M)


def test_schema_is_one_json_document(cotune):
    for words in (["schema"], ["schema", "--json"]):
        assert cotune(*words).json()["properties"]["rounds"]["default"] == 5


def test_doctor_reports_and_its_exit_code_says_whether_all_is_well(cotune, monkeypatch):
    fine = cotune("doctor", "--json")
    assert fine.json()["ok"] == (fine.code == 0)
    assert {check["name"] for check in fine.json()["checks"]} >= {"python", "torch", "cache", "models"}
    monkeypatch.setattr("cotune.doctor.PACKAGES", ("no-such-package",))
    bad = cotune("doctor")
    assert bad.code == 2
    assert "FAIL no-such-package missing  -> pip install no-such-package" in bad.out
    assert cotune("doctor", "--json").json()["ok"] is False


def test_models_list_says_what_is_here(cotune):
    found = cotune("models", "list", "--json").json()
    assert "smollm2-135m" in [card["name"] for card in found]
    assert not any(card["present"] for card in found)
    assert "not here" in cotune("models", "list").out


@pytest.mark.parametrize("words", [[], ["run"], ["compare"], ["eval"], ["models"], ["models", "pull"]])
def test_help_is_printed_and_is_no_mistake(cotune, words):
    ended = cotune(*words, "--help")
    assert ended.code == 0
    assert "Usage" in ended.out


def test_help_and_schema_import_no_model_library():
    code = (
        "import sys; from cotune import cli\n"
        "sys.argv = ['cotune', {word!r}]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = {{'torch', 'transformers', 'peft', 'datasets'}} & sys.modules.keys()\n"
        "sys.exit(f'imported {{heavy}}' if heavy else 0)"
    )
    for word in ("--help", "schema", "plugins"):
        line = [sys.executable, "-c", code.format(word=word)]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr


def test_the_module_is_the_command():
    line = [sys.executable, "-m", "cotune", "schema"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(ended.stdout)["title"] == "Config"
