"""`cotune audit`: whatever was answered once is not asked again, and no folder mixes two questions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny
from chat_server import HANG_UP, answer, serving
from cotune import audit, plugins
from cotune.audit import Question
from cotune.audits import canary
from cotune.config import RuntimeConfig
from cotune.endpoint_settings import EndpointSettings
from cotune.errors import ConfigError, DataError, ModelError, Paused
from cotune.models import causal_lm, generate, reader
from cotune.models.lora import LoraStack, save_peft
from cotune.records import silent

LIKENESS = {"name": "likeness", "limit": 2, "max_new_tokens": 4}
CANARY = {"name": "canary", "facts": 4, "seed": 7}
PROMPTS = ("Why?", "How?", "When is it?", "Who?")
PLAIN = "Question: {}\nAnswer:"


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cotune.subject.ENCODER", "./no-encoder")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("cotune.models.in_turn.gc", SimpleNamespace(collect=lambda: 0))  # a quarter second


@pytest.fixture
def asked(monkeypatch):
    """How often each prompt was written for and each pair was read, and which folders were loaded."""
    found = {"written": Counter(), "read": Counter(), "loaded": []}
    write, score, load = generate.write, reader.score_pairs, causal_lm.load

    def counting_write(lm, prompts, **how):
        found["written"].update((lm.fingerprint, prompt) for prompt in prompts)
        return write(lm, prompts, **how)

    def counting_score(lm, pairs, **how):
        found["read"].update((lm.fingerprint, *pair) for pair in pairs)
        return score(lm, pairs, **how)

    def counting_load(folder, *more, **how):
        found["loaded"].append(folder.name)
        return load(folder, *more, **how)

    monkeypatch.setattr(generate, "write", counting_write)
    monkeypatch.setattr(reader, "score_pairs", counting_score)
    monkeypatch.setattr(causal_lm, "load", counting_load)
    return found


@pytest.fixture(scope="module")
def tuned(small, tmp_path_factory):
    """An adapter of `slm`."""
    folder = tmp_path_factory.mktemp("tuned") / "slm"
    stack = LoraStack(tiny.loaded(small / "slm"), 2, 4, "attention")
    save_peft(tiny.random_adapter(stack, size=1.0), folder, str(small / "slm"))
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def question(small, prompts):
    def made(*audits, seed=7, force_judge=False, concurrency=2, **models):
        named = {"student": str(small / "slm"), "reference": str(small / "llm"), **models}
        named = {
            role: EndpointSettings(url=m[0], model=m[1], max_retries=0, concurrency=concurrency)
            if isinstance(m, tuple)
            else str(m)
            for role, m in named.items()
        }
        runtime = RuntimeConfig(device="cpu")
        return Question(named, audits or (LIKENESS,), (str(prompts),), seed, force_judge, runtime)

    return made


def run(question, out, notes=None):
    return audit.run(question, out, notes.append if notes is not None else lambda _: None, silent)


def kept(out):
    """What stands in audit.json, which must be JSON as the standard has it."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads((out / "audit.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_file_says_who_was_asked_what_and_what_they_said(question, small, tmp_path):
    found = run(question(), tmp_path / "out")
    assert found == kept(tmp_path / "out")
    assert found["status"] == "done"
    assert found["models"] == {
        role: {"name": str(small / m)} for role, m in (("student", "slm"), ("reference", "llm"))
    }
    assert found["prompt_sets"]["prompts"]["n"] == 4
    assert found["judge"] is None
    assert set(found["audits"]) == {"likeness"} == set(found["seconds"])
    assert found["audits"]["likeness"]["sets"] == {"prompts": 2}
    assert "likeness.mean" in found["audits"]["likeness"]["summary"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "question.json"}


def test_a_finished_audit_loads_nothing_when_it_is_asked_again(question, asked, tmp_path):
    first = run(question(), tmp_path / "out")
    for name in ("written", "loaded"):
        asked[name].clear()
    assert run(question(), tmp_path / "out") == first
    assert asked == {"written": Counter(), "read": Counter(), "loaded": []}


def test_an_audit_that_was_stopped_asks_nothing_twice(question, asked, tmp_path, monkeypatch):
    """Between two audits and in the middle of one; the end is that of one that nothing stopped."""
    both = question(LIKENESS, CANARY)
    whole = run(both, tmp_path / "whole")
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "another cache"))
    for counter in ("written", "read"):
        asked[counter].clear()
    write, score = generate.write, reader.score_pairs

    def stop(*_, **__):
        raise KeyboardInterrupt

    def writes_one_batch(lm, prompts, **how):
        found = write(lm, prompts, **how)
        monkeypatch.setattr(generate, "write", stop)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(generate, "write", writes_one_batch)
        with pytest.raises(KeyboardInterrupt):
            run(both, tmp_path / "out")
    monkeypatch.setattr(generate, "write", write)
    assert len(asked["written"]) == 2
    assert (kept(tmp_path / "out")["status"], kept(tmp_path / "out")["audits"]) == ("running", {})
    with monkeypatch.context() as patch:
        patch.setattr(reader, "score_pairs", stop)
        with pytest.raises(KeyboardInterrupt):
            run(both, tmp_path / "out")
    assert list(kept(tmp_path / "out")["audits"]) == ["likeness"]
    found = run(both, tmp_path / "out")
    assert found["audits"] == whole["audits"]
    assert found["status"] == "done"
    assert len(asked["written"]) == 4  # two prompts, two models
    assert set(asked["written"].values()) == set(asked["read"].values()) == {1}
    assert score is reader.score_pairs


def test_two_audits_that_ask_the_same_share_the_answers(question, asked, tmp_path):
    run(question(LIKENESS, {**LIKENESS, "name": "homogenisation"}), tmp_path / "out")
    assert len(asked["written"]) == 4
    assert set(asked["written"].values()) == {1}


@pytest.mark.parametrize("change", ["seed", "option", "audit", "model", "prompts", "adapter", "rows"])
def test_a_folder_of_another_question_is_refused_and_stays(question, prompts, tuned, tmp_path, change):
    """Also if the files that it names hold something else by now."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in tuned.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": " x"}) + "\n" for p in PROMPTS))
    others = tmp_path / "others.jsonl"
    others.write_text(rows.read_text().replace("?", "!"))
    member = {"name": "membership", "members": str(rows), "non_members": str(others), "draws": 10}
    first = question(member, student=adapter)
    run(first, tmp_path / "out")
    before = (tmp_path / "out" / "audit.json").read_bytes()
    assert run(first, tmp_path / "out")["status"] == "done"
    then = {
        "seed": lambda: question(member, student=adapter, seed=8),
        "option": lambda: question({**member, "draws": 11}, student=adapter),
        "audit": lambda: question(member, CANARY, student=adapter),
        "model": lambda: question(member, student=adapter, unrelated=question().models["reference"]),
        "prompts": lambda: prompts.write_text("Why?\nNever?") and first,
        "adapter": lambda: (adapter / "adapter_model.safetensors").write_bytes(_other(adapter)) and first,
        "rows": lambda: (
            rows.write_text(rows.read_text() + '{"prompt": "More?", "completion": " y"}\n') and first
        ),
    }[change]()
    with pytest.raises(ConfigError, match=r"in use, it holds another audit.* Give the name of a new folder"):
        run(then, tmp_path / "out")
    assert (tmp_path / "out" / "audit.json").read_bytes() == before


def _other(adapter: Path) -> bytes:
    raw = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    raw[-1] ^= 1
    return bytes(raw)


def test_a_folder_of_something_else_is_refused_and_an_empty_one_is_taken(question, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "question.json").write_text("[]")
    for name in ("full", "file", "odd"):
        with pytest.raises(ConfigError, match="in use, it holds something else"):
            run(question(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert run(question(), tmp_path / "empty")["status"] == "done"


@pytest.mark.parametrize("text", ["[]", "{}", "no json", '{"audits": []}', ""])
def test_a_result_that_somebody_changed_is_no_traceback(question, tmp_path, text):
    run(question(), tmp_path / "out")
    (tmp_path / "out" / "audit.json").write_text(text)
    with pytest.raises(DataError, match=r"audit\.json: not what an audit has written"):
        run(question(), tmp_path / "out")


def test_how_patiently_and_where_it_runs_is_no_other_question(question, tmp_path):
    with serving() as server:
        end = (server.url, "big")
        first = run(question(student=end), tmp_path / "out")
        assert run(question(student=end, concurrency=9, force_judge=True), tmp_path / "out") == first
        with pytest.raises(ConfigError, match="another audit"):
            run(question(student=(server.url, "other")), tmp_path / "out")


def test_the_untuned_student_is_the_baseline(question, small, tuned, tmp_path):
    named = run(question(student=tuned, baseline=small / "slm"), tmp_path / "named")
    untuned = run(question(student=tuned, baseline="untuned"), tmp_path / "untuned")
    assert untuned["audits"] == named["audits"]
    assert untuned["models"]["baseline"] == {"name": f"{tuned}, without its adapter"}
    facts = untuned["audits"]["likeness"]
    bare = run(question(), tmp_path / "bare")["audits"]["likeness"]
    assert facts["mean"]["baseline"]["value"] == bare["mean"]["student"]["value"]
    assert "likeness.mean.gain" in facts["summary"]
    same = run(question(student=f"{small / 'slm'}+{tuned}", baseline="untuned"), tmp_path / "same")
    assert same["audits"] == untuned["audits"]


def test_a_student_without_an_adapter_has_no_untuned_self(question, tmp_path):
    for student in ({}, {"student": ("http://localhost:1/v1", "m")}):
        with pytest.raises(
            ConfigError, match=r"the student has no adapter\. Give the baseline's model by name"
        ):
            run(question(baseline="untuned", **student), tmp_path / "out")
    assert not (tmp_path / "out").exists()


RSE = {"name": "rse", "limit": 2, "max_new_tokens": 4, "bootstrap": 10}


@pytest.mark.parametrize("role", ["student", "reference", "unrelated"])
def test_a_judge_that_is_under_test_is_refused_unless_it_is_forced(question, small, tuned, tmp_path, role):
    """Also where only the adapter differs."""
    tiny.write_model(tmp_path / "third", seed=3)
    models = {"student": tmp_path / "third", "reference": tmp_path / "third", "unrelated": tmp_path / "third"}
    models |= {role: tuned, "judge": small / "slm"}
    with pytest.raises(ConfigError, match=rf"is the {role} itself.*--force-judge"):
        run(question(RSE, **models), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if role == "student":
        found = run(question(RSE, force_judge=True, **models), tmp_path / "out")
        assert found["judge"] == {"name": str(small / "slm")}
        assert found["audits"]["rse"]["judge"]["is_anchored"]


def test_an_endpoint_that_is_under_test_may_not_judge(question, tmp_path):
    end = "http://localhost:1/v1"
    with pytest.raises(ConfigError, match="'m at http://localhost:1/v1/' is the student itself"):
        run(question(RSE, student=(end, "m"), judge=(f"{end}/", "m")), tmp_path / "out")


def test_a_judge_behind_an_endpoint_gives_levels(question, tmp_path):
    """It reads both orders of every pair; equal ones once."""

    def script(prompt, nth):
        level = (
            5
            if prompt.split("ANSWER A BEGINS\n")[1].split("\n[")[0] in prompt.split("ANSWER B BEGINS\n")[1]
            else 2
        )
        scores = dict.fromkeys(("style", "logic", "content", "overall"), level)
        return answer(prompt, content=f"Compared. {json.dumps(scores)}")

    with serving(script) as server:
        found = run(question(RSE, judge=(server.url, "wise")), tmp_path / "out")
        assert set(server.asked.values()) == {1}
    assert found["judge"]["name"] == f"wise at {server.url}"
    assert found["audits"]["rse"]["usable"]
    assert found["audits"]["rse"]["summary"]["overall"]["value"] == 2.0
    assert found["cost"] == {"judge": None}


def test_an_endpoint_is_a_student_that_is_asked_once_and_never_read(question, tmp_path):
    """What needs likelihoods says that it has none, and asks the reference all the same."""
    member = {"name": "membership", "draws": 10}
    for name, mark in (("members", "a"), ("non_members", "b")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": f"{mark}{n}", "completion": " x"}) + "\n" for n in range(4))
        )
        member[name] = str(path)
    with serving() as server:
        found = run(question(LIKENESS, CANARY, member, student=(server.url, "big")), tmp_path / "out")
        assert server.asked == Counter(PROMPTS[:2])  # as they are: the endpoint has its own template
    assert found["models"]["student"] == {"name": f"big at {server.url}"}
    leak = found["audits"]["canary"]
    assert leak["models"]["student"] == {
        "recall": canary.NOT_OBSERVED,
        "answers": canary.NOT_OBSERVED,
        "leaks": None,
    }
    assert leak["leaks"].keys() == {"reference"}
    assert "canary: student gave no likelihoods and was not asked" in leak["warnings"][0]
    assert found["audits"]["membership"]["models"]["student"] == canary.NOT_OBSERVED
    assert "AUC reference, loss" in found["audits"]["membership"]["summary"]
    examples = found["audits"]["likeness"]["examples"]
    assert {example["student"] for example in examples} == {f"so {prompt}" for prompt in PROMPTS[:2]}
    made = audit.subject(question(student=(server.url, "big")), lambda _: None, silent)
    with pytest.raises(ConfigError, match="student: an endpoint tells no likelihoods of given texts"):
        made.log_probs("student", [("a", "b")])


def test_an_endpoint_that_fails_pauses_the_audit_and_is_asked_for_the_rest_alone(question, tmp_path):
    price = {"price_in": 1e6, "price_out": 0.0}

    def asks(url):
        made = question({**LIKENESS, "limit": 4}, student=(url, "big"), concurrency=1)
        models = {**made.models, "student": made.models["student"].model_copy(update=price)}
        return Question(models, made.audits, made.prompts, runtime=made.runtime)

    bad = {PROMPTS[2]: HANG_UP}
    with serving(lambda prompt, nth: bad.get(prompt) or answer(prompt)) as server:
        with pytest.raises(Paused, match="2 of 4 texts are kept"):
            run(asks(server.url), tmp_path / "out")
        assert kept(tmp_path / "out")["cost"] == {"student": 14.0}  # two answers of 7 tokens read
        bad.clear()
        found = run(asks(server.url), tmp_path / "out")
        assert server.asked == Counter(PROMPTS) + Counter([PROMPTS[2]])
    assert found["status"] == "done"
    assert found["cost"] == {"student": 28.0}


@pytest.mark.parametrize(
    ("audits", "models", "complaint"),
    [
        ((LIKENESS,), {"student": None}, "--student: a model is missing"),
        ((LIKENESS,), {"reference": None}, "--reference: a model is missing"),
        ((), {}, "--audits: name at least one"),
        ((LIKENESS, LIKENESS), {}, "--audits: likeness is there twice"),
        (({"name": "likenes"},), {}, "Did you mean 'likeness'?"),
        (({**LIKENESS, "limt": 3},), {}, "likeness.limt: unknown key. Did you mean 'limit'?"),
        ((LIKENESS, RSE), {}, "--audits rse: nobody judges."),
        ((LIKENESS, {"name": "ice"}), {}, "--audits ice: name a file with --identity. cotune audit init"),
        (({"name": "ice", "identity": "gone.yaml"},), {}, "gone.yaml"),
        (({"name": "membership"},), {}, "--audits membership: name a file with --members."),
        (({"name": "membership", "members": "x"},), {}, "name a file with --non-members."),
        ((LIKENESS,), {"student": "./gone"}, "model './gone': there is no such folder"),
        ((LIKENESS,), {"unrelated": "./gone"}, "model './gone': there is no such folder"),
        ((LIKENESS,), {"judge": "./gone"}, "model './gone': there is no such folder"),
        ((LIKENESS,), {"student": "x+gone"}, "'gone' holds no adapter_config.json"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_before_anything_is_loaded(
    question, asked, tmp_path, audits, models, complaint
):
    made = question(**{role: name for role, name in models.items() if name})
    named = {role: m for role, m in made.models.items() if models.get(role, "") is not None}
    with pytest.raises((ConfigError, ModelError), match=complaint.replace("?", r"\?").replace(".", r"\.")):
        run(Question(named, audits, made.prompts, runtime=made.runtime), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not asked["loaded"]


@pytest.fixture
def odd_audit(tmp_path, monkeypatch):
    """An audit from outside the package that says what is no JSON."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").touch()
    (tmp_path / "outside" / "odd.py").write_text(
        "from cotune.audit_settings import AuditConfig as Config\n"
        "import numpy as np\n"
        "class Odd:\n"
        "    def observe(self, subject):\n"
        "        n = float('nan')\n"
        "        x = {'value': n, 'low': -np.inf, 'high': np.float32(2), 'n': np.int64(1)}\n"
        "        return {'summary': {'x': x},\n"
        "                'warnings': (), 'html': '<script>\\u2028'}\n"
        "build = lambda config: Odd()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "outside.odd"


def test_what_is_no_number_is_null(question, odd_audit, tmp_path):
    found = run(question({"name": odd_audit}), tmp_path / "out")
    assert found == kept(tmp_path / "out")
    assert found["audits"][odd_audit] == {
        "summary": {"x": {"value": None, "low": None, "high": 2.0, "n": 1}},
        "warnings": [],
        "html": "<script>\u2028",
    }


def test_a_write_that_fails_leaves_what_was_there(question, tmp_path, monkeypatch):
    run(question(LIKENESS), tmp_path / "one")
    load, replace = plugins.load, Path.replace
    both = question(LIKENESS, CANARY)

    def full(path, target):
        if Path(target).name == "audit.json" and "canary" in path.read_text():
            raise OSError(28, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            run(both, tmp_path / "out")
    assert list(kept(tmp_path / "out")["audits"]) == ["likeness"]
    assert list(run(both, tmp_path / "out")["audits"]) == ["likeness", "canary"]
    assert load is plugins.load


def test_without_an_encoder_it_is_said_once(question):
    notes = []
    made = audit.subject(question(), notes.append, silent)
    assert made.embed(["a"]) is None
    assert made.embed(["b"]) is None
    assert len([note for note in notes if note.startswith("no sentence encoder: ")]) == 1


def test_a_role_that_nobody_plays_is_named(question):
    made = audit.subject(question(), lambda _: None, silent)
    with pytest.raises(
        ConfigError, match=r"no model in the role 'teacher'; there are \['student', 'reference'\]"
    ):
        made.log_probs("teacher", [("a", "b")])
