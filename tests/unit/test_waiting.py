"""What `cotune status` says: while a run goes on, after it died or is done, and where there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from cotune import waiting
from cotune.errors import ConfigError
from cotune.records import Event
from cotune.waiting import Waiting, describe, status, watched

RAW = {
    "seed": 3,
    "rounds": 3,
    "llm": {"model": "llm"},
    "slm": {"model": "slm"},
    "data": {"sources": [{"task": "multiple_choice"}], "partition": {"name": "iid", "clients": 3}},
    "strategy": "fedavg",
}
ASKED = Event(2, 3, "tune", 0, 1, {"asked": ["ann", "bob", "cat"], "deadline": 300.0})


def answered(client: str, phase: str = "gather") -> Event:
    return Event(2, 3, phase, 1, 3, {"client": client, "up_bytes": 9})


def failed(client: str, kind: str) -> Event:
    return Event(2, 3, "gather", 1, 3, {"client": client, "kind": kind, "note": f"{kind}: so it is"})


@pytest.fixture
def run(tmp_path):
    """A run's folder after round 1."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(RAW))
    (folder / "rounds.jsonl").write_text("".join(json.dumps({"round": n}) + "\n" for n in (0, 1)))
    for name in ("000000.ckpt", "000001.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"")
        os.utime(folder / "checkpoints" / name, (1000.0, 1000.0))
    return folder


def test_who_is_awaited_follows_from_events():
    seen = Waiting(100.0)
    assert seen.hear(ASKED, 110.0)
    seen.hear(Event(2, 3, "tune", 1, 9, {"tokens": 5}), 111.0)
    seen.hear(answered("bob"), 120.0)
    seen.hear(failed("cat", "late"), 130.0)
    facts = seen.facts(140.0)
    assert (facts["asked"], facts["answered"], facts["awaited"], facts["num_awaited"]) == (3, 1, ["ann"], 1)
    assert facts["failures"] == {"late": ["cat"]}
    assert facts["reasons"] == {"cat": "late: so it is"}
    assert (facts["round"], facts["num_rounds"], facts["phase"], facts["since"]) == (2, 3, "gather", 120.0)
    assert facts["deadline"] == 410.0
    seen.hear(answered("ann"), 150.0)
    assert seen.facts(151.0)["awaited"] == []
    assert seen.facts(151.0)["deadline"] is None


def test_a_new_exchange_asks_anew_and_a_new_round_forgets_failures():
    seen = Waiting(0.0)
    for event in (ASKED, failed("ann", "late"), failed("bob", "rejected")):
        seen.hear(event, 1.0)
    seen.hear(Event(2, 3, "evaluate", 0, 1, {"asked": ["ann", "cat"]}), 2.0)
    assert seen.awaited == ["ann", "cat"]
    assert seen.facts(2.0)["failures"] == {"rejected": ["bob"]}
    assert seen.facts(2.0)["deadline"] is None
    seen.hear(Event(3, 3, "evaluate", 0, 1, {"asked": ["ann"]}), 3.0)
    assert seen.facts(3.0)["failures"] == {}


def test_many_clients_are_counted_and_few_are_named():
    seen = Waiting(0.0)
    seen.hear(Event(1, 3, "tune", 0, 1, {"asked": [f"c{n:05d}" for n in range(10_000)]}), 0.0)
    facts = seen.facts(0.0)
    assert (len(facts["awaited"]), facts["num_awaited"]) == (waiting.NAMED, 10_000)
    assert len(json.dumps(facts)) < 2000
    said = describe({**facts, "folder": "r", "state": "running", "checkpoint": None}, 0.0)
    assert "c00019 and 9980 more; 0 of 10000 answered" in said


def test_only_what_begins_is_written_at_once():
    seen = Waiting(0.0)
    events = [ASKED, *[answered("ann"), Event(2, 3, "tune", 2, 9)] * 3, Event(2, 3, "co-tune", 1, 4)]
    assert [seen.hear(event, 0.0) for event in events] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
        True,
    ]


def test_a_run_that_goes_on_says_who_is_awaited(run):
    with watched(run, lambda: 1000.0) as hear:
        hear(ASKED)
        hear(answered("bob"))
        hear(failed("cat", "out-of-memory"))
        found = status(run)
    assert (found["state"], found["pid"], found["rounds_done"]) == ("running", os.getpid(), 1)
    assert found["checkpoint"] == {"round": 1, "at": 1000.0}
    assert describe({**found, **CALM, "awaited": ["ann"], "num_awaited": 1}, 1042.0).splitlines() == [
        f"{run}: running, process 7 on here, round 2 of 3, gather since 42 s",
        "awaited: ann; 1 of 3 answered; late in 4 min 18 s",
        "out-of-memory: cat",
        "last checkpoint: round 1, 42 s ago",
    ]


CALM = {"pid": 7, "host": "here", "failures": {"out-of-memory": ["cat"]}}


def test_what_is_not_written_at_once_is_written_soon(run, monkeypatch):
    monkeypatch.setattr(waiting, "EVERY_SECONDS", 0.02)
    with watched(run) as hear:
        hear(ASKED)
        hear(answered("bob"))  # a phase of its own begins
        hear(answered("ann"))
        limit = time.monotonic() + 5
        while status(run)["awaited"] != ["cat"] and time.monotonic() < limit:
            time.sleep(0.01)
        assert status(run)["awaited"] == ["cat"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from cotune.records import Event
from cotune.waiting import watched

with watched(Path(sys.argv[1])) as hear:
    hear(Event(2, 3, "tune", 0, 1, {"asked": ["ann"]}))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_process_that_was_killed_is_gone_and_nobody_else_works_on_its_run_before(run):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        assert status(run)["state"] == "running"
        with pytest.raises(ConfigError, match=f"process {child.pid} works on this run.*cotune status {run}"):
            watched(run).__enter__()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    found = status(run)
    assert (found["state"], found["pid"]) == ("stopped", child.pid)
    said = describe(found).splitlines()
    assert said[0].startswith(f"{run}: stopped in round 2 of 3, tune: process {child.pid} on ")
    assert said[0].endswith(" is gone")
    assert said[-1] == f"go on with: cotune resume {run}"
    with watched(run):
        assert status(run)["state"] == "running"


def test_what_ended_a_run_is_told(run):
    def work(error: BaseException) -> None:
        with watched(run) as hear:
            hear(ASKED)
            raise error

    with pytest.raises(RuntimeError):
        work(RuntimeError("out of luck\nmore"))
    assert f"{run}: stopped in round 2 of 3, tune: RuntimeError: out of luck\n" in describe(status(run))
    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())
    assert status(run)["ended"] == "interrupted"


def test_a_run_that_is_done_needs_nothing(run):
    (run / "results.json").write_text(json.dumps({"rounds": 3, "status": "done"}))
    (run / "rounds.jsonl").write_text("".join(json.dumps({"round": n}) + "\n" for n in range(4)))
    found = status(run)
    assert describe(found) == f"{run}: done, 3 of 3 rounds\nsee: {run}/report.html"
    (run / "results.json").write_text(json.dumps({"rounds": 1, "status": "stopped"}))
    assert status(run)["state"] == "done"
    (run / "results.json").write_text(json.dumps({"rounds": 2, "status": "done"}))  # rounds were added since
    assert status(run)["state"] == "stopped"


def test_a_run_without_a_status_file_is_told_from_its_other_files(run):
    assert describe(status(run), 1005.0).splitlines() == [
        f"{run}: stopped",
        "last checkpoint: round 1, 5.0 s ago",
        f"go on with: cotune resume {run}",
    ]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_torn_status_file_is_no_file(run, text):
    (run / "status.json").write_text(text)
    assert describe(status(run), 1005.0).startswith(f"{run}: stopped\n")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"no run here, config\.yaml is missing. Name the folder"):
            status(folder)


def test_nothing_is_written_before_there_is_a_run(tmp_path):
    folder = tmp_path / "later"
    with watched(folder) as hear:
        hear(ASKED)
        assert not folder.exists()
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(RAW))
        hear(answered("ann"))
        assert status(folder)["awaited"] == ["bob", "cat"]


def test_a_status_that_cannot_be_written_does_not_end_a_run(run, monkeypatch):
    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    with watched(run) as hear:
        monkeypatch.setattr(os, "fsync", full)
        hear(ASKED)
    assert not (run / "status.json").exists()


def test_a_clock_that_was_set_back_shows_no_negative_time(run):
    with watched(run, lambda: 5000.0) as hear:
        hear(ASKED)
        said = describe(status(run), 10.0)
    assert "-" not in said.replace(str(run), "").replace("co-tune", "").replace(waiting.platform.node(), "")
    assert "tune since 0.0 s" in said


def test_control_characters_of_a_client_do_not_reach_the_terminal(run):
    with watched(run) as hear:
        hear(Event(2, 3, "tune", 0, 1, {"asked": ["a\x1b[2J\nb"]}))
        assert "awaited: a [2J b; 0 of 1 answered" in describe(status(run))
