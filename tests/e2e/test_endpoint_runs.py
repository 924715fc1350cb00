"""Whole tiny runs whose paths come from a chat server on this machine; its model is never trained."""

from __future__ import annotations

import pytest
import yaml

import tiny
from chat_server import HANG_UP, answer, serving
from cotune import cli, config, report
from cotune.errors import ConfigError, RunError
from cotune.federation import Federation

pytest.importorskip("httpx2", reason="needs the extra `endpoint`: pip install 'cotune[endpoint]'")

pytestmark = pytest.mark.usefixtures("cache_folder")

TEACH = {"guard": False, "path_tokens": 12, "probe": 0, "beta": 1.0, "slm_lr": 1e-2}
KEY = "sk-very-secret-9"


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("COTUNE_TEST_KEY", KEY)


def options(url, guard=False, **teacher):
    asked = {"url": url, "model": "big", "api_key_env": "COTUNE_TEST_KEY", "max_retries": 0, **teacher}
    return {
        "strategy": "fedavg",
        "allocator": "everything",
        "teach": {**TEACH, "guard": guard, "teacher": asked},
    }


def right(prompt, nth):
    """A path to the answer that stands in the question."""
    lines = prompt.splitlines()
    letter = next(line[0] for line in lines[1:] if line[3:] and line[3:] in lines[0])
    return answer(prompt, content=f"It says so. Final answer: {letter}")


def test_clients_learn_from_it_and_the_llm_is_not_there(small, tmp_path):
    tiny.run(small, tmp_path / "plain", strategy="fedavg")
    with serving(right) as server:
        found = tiny.run(
            small, tmp_path / "taught", **options(server.url, guard=True, price_in=1.0, price_out=2.0)
        )
    assert tiny.adapter_bytes(tmp_path / "plain") != tiny.adapter_bytes(tmp_path / "taught")
    assert found["metrics"].keys() == {"slm", "clients"}
    assert "llm" not in found["models"]
    assert not (tmp_path / "taught" / "adapters" / "llm").exists()
    first, second = [line["teaching"] for line in report.read_rounds(tmp_path / "taught")[1:]]
    assert first["llm_paths"]["right"] == first["llm_paths"]["paths"] == 12
    assert first["endpoint"] == {
        "model": "big", "answers": 12, "empty": 0, "estimated": 0, "tokens_in": 84, "tokens_out": 36,
        "cost": pytest.approx((84 + 72) / 1e6),
    }  # fmt: skip
    assert second["endpoint"]["answers"] == 0  # its model does not change, so that its paths are kept
    assert first["asked"] == {client: [] for client in first["asked"]}
    assert first["llm_lessons"] == 0
    assert first["slm"]["pairs"] > 0
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    for path in (tmp_path / "taught").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def command(*words):
    """The exit code of a command in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["cotune", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


def test_a_server_that_goes_away_stops_the_run_and_it_resumes(small, tmp_path, capsys):
    with serving(right) as server:
        tiny.run(small, tmp_path / "whole", **options(server.url))
    path, out = tmp_path / "run.yaml", tmp_path / "torn"
    with serving(lambda prompt, nth: right(prompt, nth) if len(server.asked) < 5 else HANG_UP) as server:
        made = tiny.raw_config(small, **options(server.url, concurrency=1))
        path.write_text(yaml.safe_dump(made), encoding="utf-8")
        assert command("run", path, "--out", out) == 3
        said = " ".join(capsys.readouterr().err.split())
        assert "4 of 12 texts are kept" in said
        assert f"cotune resume {out}" in said
        assert "Traceback" not in said
        num_asked = sum(server.asked.values())
        server.script = right
        assert command("resume", out) == 0
        assert sum(server.asked.values()) == num_asked + 12 - 4
    spent = [line["teaching"]["endpoint"]["answers"] for line in report.read_rounds(out)[1:]]
    assert spent == [12, 0]  # the four of the try that failed count too
    assert tiny.adapter_bytes(tmp_path / "whole") == tiny.adapter_bytes(out)


NONSENSE = {
    "no text": (
        lambda p, n: answer(p, content=""),
        "none of its 12 texts ends on an answer, and 12 are empty",
    ),
    "no answer": (lambda p, n: answer(p, content="I like trains."), "none of its 12 texts ends on an answer"),
    "other JSON": (lambda p, n: (200, {"odd": []}), "HTTP 200 without an answer"),
    "an error": (lambda p, n: (200, {"error": {"code": "busy"}}), "HTTP 200, busy without an answer"),
    "a web page": (lambda p, n: (200, "<html>sign in</html>"), "HTTP 200 without an answer"),
}


@pytest.mark.parametrize(("script", "expected"), NONSENSE.values(), ids=NONSENSE)
def test_a_run_pauses_at_nonsense_and_resumes(small, tmp_path, capsys, script, expected):
    path, out = tmp_path / "run.yaml", tmp_path / "torn"
    with serving(script) as server:
        made = tiny.raw_config(small, **options(server.url, guard=True), rounds=1)
        path.write_text(yaml.safe_dump(made), encoding="utf-8")
        assert command("run", path, "--out", out) == 3
        said = " ".join(capsys.readouterr().err.split())
        assert expected in said
        assert "0 of 12 texts are kept" in said
        assert f"cotune resume {out}" in said
        server.script = right
        assert command("resume", out) == 0
    line = report.read_rounds(out)[1]["teaching"]
    assert line["llm_paths"]["right"] == 12
    assert line["slm"]["pairs"] > 0


@pytest.mark.parametrize(("content", "ends"), [("I like trains.", True), ("", False)])
def test_unguarded_any_text_makes_sense_and_none_does_not(small, tmp_path, content, ends):
    with serving(lambda prompt, nth: answer(prompt, content=content)) as server:
        try:
            found = tiny.run(small, tmp_path, rounds=1, **options(server.url))["status"]
        except RunError as error:
            found = str(error)
    assert (found == "done") == ends
    assert ends or "12 are empty" in found


def test_some_answers_without_a_text_teach_nobody(small, tmp_path):
    def script(prompt, nth):
        return right(prompt, nth) if "pig" in prompt else answer(prompt, content="")

    with serving(script) as server:
        tiny.run(small, tmp_path, rounds=1, **options(server.url))
    line = report.read_rounds(tmp_path)[1]["teaching"]
    paths = line["llm_paths"]
    assert 0 < paths["right"] == paths["answered"] == 12 - line["endpoint"]["empty"] < 12
    assert 0 < line["slm"]["pairs"] <= paths["right"] * len(line["wanted"])
    assert paths["cut"] == 0  # no longer path would help


def test_a_path_that_is_too_long_keeps_its_answer(small, tmp_path):
    def script(prompt, nth):
        said = right(prompt, nth)[1]["choices"][0]["message"]["content"]
        return answer(prompt, content="Reasons, and more of them. " * 99 + said)

    with serving(script) as server:
        tiny.run(small, tmp_path, rounds=1, **options(server.url, guard=True))
    line = report.read_rounds(tmp_path)[1]["teaching"]
    assert line["llm_paths"] == {"paths": 12, "answered": 12, "right": 12, "cut": 12}
    assert line["slm"]["pairs"] > 0
    assert line["payload_bytes"] <= sum(map(len, line["wanted"].values())) * 2008


def test_wrong_answers_teach_nobody_under_the_guard(small, tmp_path):
    tiny.run(small, tmp_path / "plain", rounds=1, strategy="fedavg")
    with serving(lambda prompt, nth: answer(prompt, content="Final answer: I like trains.")) as server:
        tiny.run(small, tmp_path / "taught", rounds=1, **options(server.url, guard=True))
    assert tiny.adapter_bytes(tmp_path / "plain") == tiny.adapter_bytes(tmp_path / "taught")
    line = report.read_rounds(tmp_path / "taught")[1]["teaching"]
    assert line["llm_paths"]["right"] == 0


def test_a_server_that_is_down_is_one_line(small, tmp_path):
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        tiny.run(small, tmp_path, **options("http://127.0.0.1:9/v1"))


def test_half_a_character_stops_nobody(small, tmp_path):
    """As a proxy sends it that counts in UTF-16 and cuts an emoji."""
    with serving(lambda prompt, nth: answer(prompt, content="It is \ud83d. Final answer: A")) as server:
        found = tiny.run(small, tmp_path, rounds=1, **options(server.url))
    assert found["status"] == "done"
    assert report.read_rounds(tmp_path)[1]["teaching"]["slm"]["pairs"] > 0


@pytest.mark.parametrize("allocator", ["everything", None])
@pytest.mark.parametrize(
    "secret",
    [
        {"url": f"http://me:{KEY}@localhost/v1"},
        {"url": f"http://localhost/v1?key={KEY}"},
        {"api_key_env": KEY},
    ],
)
def test_a_secret_in_the_settings_is_refused_before_anything_is_written(
    small, tmp_path, capsys, secret, allocator
):
    url = secret.get("url", "http://127.0.0.1:9/v1")
    asked = options(url, **{name: value for name, value in secret.items() if name != "url"})
    made = tiny.raw_config(small, **asked) | {"allocator": allocator}
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    assert command("run", path, "--out", out) == 2
    assert KEY not in capsys.readouterr().err
    assert not out.exists()


def test_a_refused_key_pauses_the_run(small, tmp_path, capsys):
    path, out = tmp_path / "run.yaml", tmp_path / "torn"
    with serving(lambda prompt, nth: (401, {})) as server:
        made = tiny.raw_config(small, rounds=1, **options(server.url))
        path.write_text(yaml.safe_dump(made), encoding="utf-8")
        assert command("run", path, "--out", out) == 3
        assert f"cotune resume {out}" in " ".join(capsys.readouterr().err.split())
        server.script = right
        assert command("resume", out) == 0


def test_step_by_step_asks_it_once_before_clients_train_and_tells_what_it_took(small, tmp_path):
    how = {"name": "step_by_step", "rationales": "teacher"}
    asked = options("http://127.0.0.1:9/v1") | {"strategy": how, "allocator": None}
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        tiny.run(small, tmp_path / "down", **asked)
    assert [line["round"] for line in report.read_rounds(tmp_path / "down")] == [0]
    with serving(right) as server:
        asked["teach"]["teacher"]["url"] = server.url
        found = tiny.run(small, tmp_path / "up", **asked)
    assert sum(server.asked.values()) == 12
    assert found["teacher"]["model"] == "big"
    assert (found["teacher"]["answers"], found["teacher"]["tokens_out"]) == (12, 36)
    (tmp_path / "up" / "config.yaml").write_text("seed: 3", encoding="utf-8")
    assert "written by big, 36 tokens in 12 answers" in report.render(tmp_path / "up").read_text("utf-8")


def test_who_wrote_rationales_is_known_after_a_resume(small, tmp_path, monkeypatch):
    """Also what it took, when every text was there already."""
    how = {"name": "step_by_step", "rationales": "teacher"}
    gather, calls = Federation.gather, []

    def stop(verbs, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return gather(verbs, *args)

    with serving(right) as server:
        asked = options(server.url, price_out=2.0) | {"strategy": how, "allocator": None}
        with monkeypatch.context() as patched:
            patched.setattr(Federation, "gather", stop)
            with pytest.raises(KeyboardInterrupt):
                tiny.run(small, tmp_path / "run", **asked)
        assert len(report.read_rounds(tmp_path / "run")) == 2
        found = tiny.run(small, tmp_path / "run", **asked)
    told = found["teacher"]
    assert (told["model"], told["answers"], told["tokens_out"]) == ("big", 12, 36)
    assert told["cost"] == pytest.approx(72e-6)


@pytest.mark.parametrize("guard", [True, False])
def test_rationales_without_an_answer_are_for_the_strategy_to_judge(small, tmp_path, guard):
    how = {"name": "step_by_step", "rationales": "teacher", "guard": guard}
    with serving(lambda prompt, nth: answer(prompt, content="I like trains.")) as server:
        asked = options(server.url, guard=not guard) | {"strategy": how, "allocator": None}
        try:
            said = tiny.run(small, tmp_path, rounds=1, **asked)["status"]
        except RunError as error:
            said = str(error)
    assert ("none of its 12 texts ends on an answer" in said) == guard
    assert guard or said == "done"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy": "fedcollm"}, "trains the LLM, and a model behind an endpoint cannot be trained"),
        ({"allocator": "loss_gap"}, "compares losses with the LLM's, and an endpoint tells none"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused(small, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        tiny.ready(small, tmp_path, **{**options("http://127.0.0.1:9/v1"), **change})


def test_patience_and_price_do_not_make_another_experiment(small):
    def digest(**teacher):
        made = tiny.raw_config(small, **options("http://127.0.0.1:9/v1", **teacher))
        return config.fingerprint(config.from_dict(made))

    plain = digest()
    assert digest(timeout_seconds=5.0, max_retries=9, concurrency=2, price_in=3.0) == plain
    assert digest(model="other") != plain
