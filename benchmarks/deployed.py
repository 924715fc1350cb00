"""A consortium on one machine: a SuperLink, three SuperNodes, TLS, masked sums, noise, and two crashes.

    python benchmarks/deployed.py --out benchmarks/results/deployed.json

It deploys the quickstart to three clients, kills a SuperNode in round 2 and the server in round 3, starts
it again, and checks that the run ends, that nothing stays alive, and that PEFT loads both adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cotune import config as configs
from cotune import deploy, report

ROOT = Path(__file__).parents[1]
PRIVATE = (
    "rounds=3",
    "data.partition={name: iid, clients: 3}",
    "aggregator={name: secure_sum, dropout: 0.34}",
    "guards=[{name: clip_noise, where: distributed, clip: 1.0, noise_multiplier: 1.0, dropout: 0.34}]",
)
UP = (sys.executable, "-m", "cotune", "deploy", "up")


def main() -> int:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="cotune-deployed-")) / "trial"
    config = configs.load(options.config, [*PRIVATE, *options.set])
    began = time.monotonic()
    deploy.init(config, folder, deploy.Address(port=_free_port(5)), print)
    told = _crash_and_go_on(folder)
    run = folder / "server" / "run"
    results = report.read_results(run)
    found = {
        "command": "python benchmarks/deployed.py",
        "seconds": round(time.monotonic() - began, 1),
        **told,
        "exit_code": 0,
        "rounds": [_line(record) for record in report.read_rounds(run)],
        "privacy": results["privacy"],
        "traffic": results["traffic"],
        "loaded_with_peft": [_loads(run, role, results) for role in ("slm", "llm")],
        "processes_left": _processes(folder),
    }
    assert results["status"] == "done", results["status"]
    assert not found["processes_left"]
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        shutil.copy(run / report.PAGE, options.out.with_suffix(".html"))
    shutil.rmtree(folder.parent)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], help="path=value")
    parser.add_argument("--out", type=Path, help="the numbers, and beside them the report")
    return parser.parse_args()


def _crash_and_go_on(folder: Path) -> dict[str, Any]:
    """The run with both crashes; what was killed, and when."""
    run, killed = folder / "server" / "run", []
    with subprocess.Popen([*UP, str(folder)], start_new_session=True) as first, _stopped_on_error(first):
        _until(first, lambda: _is_in(run, 2))
        killed.append(["client-2's SuperNode", 2, _kill(folder / "clients" / "client-2", "flower-supernode")])
        _until(first, lambda: _is_in(run, 3))
        for words in ("cotune.deployed start", "flower-superlink", "cotune.deployed serve"):
            killed.append([words, 3, _kill(folder / "server", words)])
        code = first.wait(300)
    assert code == 3, f"a run whose server was killed ended with code {code}; expected 3"
    subprocess.run([*UP, str(folder)], check=True)
    return {"killed": killed, "first_exit_code": code}


@contextmanager
def _stopped_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """What was started is stopped if something goes wrong here."""
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGINT)
        raise


def _is_in(run: Path, index: int) -> bool:
    """Whether a round has begun."""
    path = run / "status.json"
    try:
        return path.is_file() and json.loads(path.read_text())["round"] == index
    except (ValueError, KeyError):
        return False


def _until(process: subprocess.Popen[bytes], what: Any, seconds: float = 3600) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end, "too late"
        time.sleep(0.2)


def _processes(folder: Path, words: str = "") -> list[int]:
    """Ids of processes whose command line names a folder; Linux only."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        is_inside = any(f"{word}/".startswith(f"{folder}/") for word in argv)
        if is_inside and words in " ".join(argv):
            found.append(int(path.parent.name))
    return found


def _kill(folder: Path, words: str) -> int:
    hit = _processes(folder, words)
    assert hit, f"nothing to kill: {words}"
    for number in hit:
        os.kill(number, signal.SIGKILL)
    return len(hit)


def _free_port(room: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20_000, 60_000, 41):
        sockets = [socket.socket() for _ in range(room)]
        try:
            for place, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + place))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise RuntimeError("no free ports")


def _loads(run: Path, role: str, results: dict[str, Any]) -> str:
    """PEFT mounts the adapter on its base and gives finite logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from cotune.models import zoo

    folder = run / "adapters" / role
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(zoo.resolve(base))
    logits = PeftModel.from_pretrained(model, folder)(torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all()
    return f"{role}: {results['models'][role]['label']}"


def _line(record: dict[str, Any]) -> dict[str, Any]:
    kept = ("round", "status", "reason", "seconds")
    epsilon = (record.get("privacy") or {}).get("epsilon")
    return {**{name: record[name] for name in kept if name in record}, "epsilon": epsilon}


if __name__ == "__main__":
    sys.exit(main())
