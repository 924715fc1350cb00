"""What the whole suite shares: one folder with tiny models and rows, and quiet threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import tiny

torch.set_num_threads(1)
settings.register_profile("ci", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.json anew")


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a test reads with a tiny model is not kept where real features are; real models stay in reach."""
    if "small" in request.fixturenames:
        monkeypatch.setenv("COTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llm`, `slm` and two files of rows; tests may write files of other names into it."""
    folder: Path = tmp_path_factory.mktemp("small")
    tiny.raw_config(folder)
    return folder
