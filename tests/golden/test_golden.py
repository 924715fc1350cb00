"""One tiny run per strategy must stay what it was; `pytest --update-golden` writes it anew, to be reviewed.

Numbers are compared within the rounding of another machine's matrix products, bytes within that of a decimal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from cotune import plugins, report
from cotune.models.lora import load_peft

HERE = Path(__file__).parent


def measured(small: Path, out: Path, strategy: str) -> dict[str, Any]:
    results = tiny.run(small, out, strategy=strategy)
    lines = report.read_rounds(out)
    norms = {}
    for folder in sorted((out / "adapters").glob("*")):
        arrays = load_peft(folder, "").arrays
        norms[folder.name] = {name.split("model.layers.")[1]: size(a) for name, a in sorted(arrays.items())}
    return {
        "fingerprint_of_slm": results["models"].get("slm", {}).get("fingerprint"),
        "losses": [{k: round(v, 5) for k, v in line["losses"].items()} for line in lines],
        "traffic": [line["traffic"] for line in lines],
        "metrics": [line["metrics"] for line in lines],
        "norms": norms,
    }


def size(array: np.ndarray) -> float:
    return round(float(np.linalg.norm(array)), 5)


def assert_like(found: Any, golden: Any, path: str = "") -> None:
    if isinstance(golden, dict):
        assert found.keys() == golden.keys(), path
        for key in golden:
            assert_like(found[key], golden[key], f"{path}.{key}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), path
        for number, (one, other) in enumerate(zip(found, golden, strict=True)):
            assert_like(one, other, f"{path}[{number}]")
    elif path.endswith("bytes"):
        assert found == pytest.approx(golden, abs=100), path
    elif isinstance(golden, float):
        assert found == pytest.approx(golden, rel=2e-3, abs=2e-4), path
    else:
        assert found == golden, path


@pytest.mark.parametrize("strategy", plugins.names("strategy"))
def test_a_run_is_what_it_was(small, tmp_path, strategy, request):
    found = json.loads(json.dumps(measured(small, tmp_path / "out", strategy)))
    path = HERE / f"{strategy}.json"
    if request.config.getoption("--update-golden"):
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert path.is_file(), "make it with: pytest tests/golden --update-golden"
    assert_like(found, json.loads(path.read_text(encoding="utf-8")))
