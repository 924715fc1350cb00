"""The real 135M model on real questions: `make test-real`. Fetches model and data that are not cached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_resume import KILLED
from transformers import AutoModelForCausalLM

from cotune import config, data, fleet, report
from cotune.models import zoo
from cotune.models.lora import load_peft

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ROWS = [f"data.sources.{i}.{kind}_rows=8" for i in range(4) for kind in ("train", "public", "test")]


def cotune(*words: str, code: int = 0, program: tuple[str, ...] = ("-m", "cotune")) -> str:
    done = subprocess.run([sys.executable, *program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def sets(values: list[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """A run that nothing stopped, and one that was killed in round 2 and resumed."""
    folder = tmp_path_factory.mktemp("real")
    words = ["run", str(QUICKSTART), *sets(ROWS), "--out"]
    cotune(*words, str(folder / "whole"))
    cotune(*words, str(folder / "killed"), code=-9, program=("-c", KILLED))
    cotune("resume", str(folder / "killed"))
    return folder / "whole", folder / "killed"


@pytest.mark.parametrize("role", ["slm", "llm"])
def test_a_killed_run_ends_with_the_same_adapter_bytes(runs, role):
    whole, killed = (run / "adapters" / role / "adapter_model.safetensors" for run in runs)
    assert whole.read_bytes() == killed.read_bytes()


def test_a_killed_run_reports_the_same_numbers(runs):
    whole, killed = (report.read_results(run) for run in runs)
    for name in ("fingerprint", "metrics", "gain", "traffic", "rounds"):
        assert whole[name] == killed[name]


@pytest.mark.parametrize("role", ["slm", "llm"])
def test_peft_gives_the_logits_that_cotune_gives(runs, role):
    folder = runs[0] / "adapters" / role
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    settings = config.load(runs[0] / "config.yaml")
    dataset = data.load(settings.data, settings.seed)
    around = (settings.runtime, dataset.public, lambda _: None)
    learner = fleet.learner(role, getattr(settings, role), lambda _: lambda *_: None, around)
    ids = torch.tensor([learner.lm.tokenizer("Where was the apple at the beginning?")["input_ids"]])
    place = base if Path(base).is_dir() else zoo.resolve(base)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place), folder)
    learner.stack.load([load_peft(folder, learner.lm.fingerprint)])
    with torch.no_grad():
        ours = learner.lm.project(learner.lm.hidden(ids)[0])
        assert torch.allclose(ours, theirs(input_ids=ids).logits[0], atol=1e-3)
        with theirs.disable_adapter():
            assert not torch.allclose(ours, theirs(input_ids=ids).logits[0], atol=1e-1)
