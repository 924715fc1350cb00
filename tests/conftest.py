"""What the whole suite shares: one folder with tiny models and rows, and quiet threads.

Nothing here imports torch at once: the process that hands out tests to others has no use for it.
"""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("few", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=20)
settings.register_profile("many", settings.get_profile("few"), max_examples=300)
settings.load_profile("few")  # each run draws others; `--hypothesis-profile many` draws more at once


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.json anew")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads wait for cores that other tests hold
    gc.collect()
    gc.freeze()  # the libraries stay; looking through them at every collection takes a twentieth of the time
    # pytest hangs two handlers on each logger that does not propagate, three times a test: torch has sixty
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a test reads with a tiny model is not kept where real features are; real models stay in reach."""
    if "small" in request.fixturenames:
        monkeypatch.setenv("COTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache of this test alone; nothing is in it, and it is not made yet."""
    monkeypatch.setenv("COTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llm`, `slm` and two files of rows; tests may write files of other names into it."""
    folder: Path = tmp_path_factory.mktemp("small")
    import tiny

    tiny.raw_config(folder)
    return folder
