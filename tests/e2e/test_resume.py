"""Runs that are killed, stopped, or short of disk go on to the same end as runs that are not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from cotune import build, cli, launch, report, session
from cotune.errors import ConfigError, Interrupted, RunError
from cotune.federation import Federation
from cotune.host import Hosts

ROUNDS = 3
KILLED = """
import os, signal, sys
from cotune import build, cli

made = build.session

def session(config, out, listener, *more):
    def hear(event):
        if (event.round, event.phase, event.done) == (2, "tune", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        listener(event)
    return made(config, out, hear, *more)

build.session = session
cli.main()
"""


def start(small: Path, out: Path, **changes):
    config = out.with_suffix(".yaml")
    config.write_text(tiny.write_config(small, rounds=ROUNDS, **changes).read_text())
    return launch.start(config, [], out, Console(stderr=True, quiet=True))


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of a run of a strategy that nothing stopped; made once each."""
    made: dict[str, Path] = {}

    def of(strategy: str = "fedcollm") -> Path:
        if strategy not in made:
            made[strategy] = tmp_path_factory.mktemp("whole") / strategy
            start(small, made[strategy], strategy=strategy)
        return made[strategy]

    return of


def hear_in(monkeypatch, round: int, phase: str, done: int, act: Callable[[], None]) -> None:
    """Every run from now on does this when it comes to a step of a round."""
    made = build.session

    def session(config, out, listener, *more):
        def hear(event):
            if (event.round, event.phase, event.done) == (round, phase, done):
                act()
            listener(event)

        return made(config, out, hear, *more)

    monkeypatch.setattr(build, "session", session)


def resume(out: Path):
    return launch.resume(out, Console(stderr=True, quiet=True))


def lines(out: Path):
    return [{k: v for k, v in r.items() if k not in ("seconds", "phases")} for r in report.read_rounds(out)]


def assert_same_end(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    for file in (one / "adapters").rglob("*.safetensors"):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()
    for file in (one / "clients").rglob(f"{ROUNDS:06d}.msg"):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()
    assert (other / "report.html").is_file()


def words(small: Path, out: Path) -> list[str]:
    """The command that `start` stands for."""
    config = out.with_suffix(".yaml")
    config.write_text(tiny.write_config(small, rounds=ROUNDS).read_text())
    return ["run", str(config), "--out", str(out)]


def test_a_process_killed_in_round_2_is_resumed_to_the_same_end(small, whole, tmp_path):
    out = tmp_path / "killed"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *words(small, out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [record["round"] for record in report.read_rounds(out)] == [0, 1]
    assert not (out / "results.json").exists()
    resume(out)
    assert_same_end(whole(), out)


def test_a_command_terminated_in_round_2_is_resumed_to_the_same_end(
    small, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "terminated"
    with monkeypatch.context() as patch:
        hear_in(patch, 2, "tune", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(sys, "argv", ["cotune", *words(small, out)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    printed, noted = capsys.readouterr()
    assert end.value.code == 130
    assert printed == ""
    assert noted.endswith(f"cotune: interrupted. Go on with: cotune resume {out}\n")
    assert "Traceback" not in noted
    assert [record["round"] for record in report.read_rounds(out)] == [0, 1]
    assert not (out / "results.json").exists()
    resume(out)
    assert_same_end(whole(), out)


class Stop(Exception):
    """Something that nobody expected."""


def stop_in(monkeypatch, round: int, done: int = 3) -> None:
    """Every run from now on ends in `round`, once all clients have done their work."""

    def stop():
        raise Stop("out of luck")

    hear_in(monkeypatch, round, "gather", done, stop)


@pytest.mark.parametrize(
    ("strategy", "round"),
    [
        pytest.param("standalone", 1, marks=pytest.mark.real),
        ("standalone", 2),
        pytest.param("standalone", 3, marks=pytest.mark.real),
        pytest.param("fedavg", 2, marks=pytest.mark.real),
        ("fedcollm", 3),
        pytest.param("step_by_step", 3, marks=pytest.mark.real),
    ],
)
def test_an_unexpected_failure_is_one_line_with_the_command_that_resumes(
    small, whole, tmp_path, monkeypatch, strategy, round
):
    """The clients have kept their adapters of the round that failed; they must not start from those."""
    with monkeypatch.context() as patch:
        stop_in(patch, round)
        with pytest.raises(RunError, match=f"Stop: out of luck .*cotune resume {tmp_path / 'torn'}"):
            start(small, tmp_path / "torn", strategy=strategy)
    assert "out of luck" in (tmp_path / "torn" / "error.log").read_text()
    resume(tmp_path / "torn")
    assert_same_end(whole(strategy), tmp_path / "torn")


@pytest.mark.parametrize("strategy", ["standalone", "fedcollm"])
def test_a_torn_newest_checkpoint_costs_one_round(small, whole, tmp_path, monkeypatch, strategy):
    with monkeypatch.context() as patch:
        stop_in(patch, 3)
        with pytest.raises(RunError):
            start(small, tmp_path / "torn", strategy=strategy)
    newest = tmp_path / "torn" / "checkpoints" / "000002.ckpt"
    newest.write_bytes(newest.read_bytes()[:100])
    resume(tmp_path / "torn")
    assert_same_end(whole(strategy), tmp_path / "torn")


def test_a_line_that_was_lost_after_its_checkpoint_is_written_again(small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, 2)
        with pytest.raises(RunError):
            start(small, tmp_path / "torn")
    path = tmp_path / "torn" / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-30])  # the line of round 1, torn
    resume(tmp_path / "torn")
    assert_same_end(whole(), tmp_path / "torn")


def test_partial_participation_resumes_with_what_each_client_kept(small, tmp_path, monkeypatch):
    changes = {
        "strategy": "standalone",
        "cohort__fraction": 0.5,
        "data__partition": {"name": "iid", "clients": 4},
    }
    start(small, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        stop_in(patch, 3, done=2)
        with pytest.raises(RunError):
            start(small, tmp_path / "torn", **changes)
    resume(tmp_path / "torn")
    assert_same_end(tmp_path / "whole", tmp_path / "torn")


def test_a_finished_run_is_resumed_without_work(small, tmp_path):
    first = start(small, tmp_path / "out")
    before = tiny.adapter_bytes(tmp_path / "out")
    again = resume(tmp_path / "out")
    assert again["metrics"] == first["metrics"]
    assert tiny.adapter_bytes(tmp_path / "out") == before
    assert len(report.read_rounds(tmp_path / "out")) == ROUNDS + 1


def test_another_configuration_in_the_folder_is_refused(small, tmp_path):
    out = tmp_path / "out"
    start(small, out, strategy="fedavg")
    path = out / "config.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    before = (out / "results.json").read_bytes()
    with pytest.raises(ConfigError, match="made by experiment"):
        resume(out)
    assert (out / "results.json").read_bytes() == before


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match=r"no run to resume, config\.yaml is missing"):
        resume(tmp_path)


def test_a_folder_in_use_is_not_touched(small, tmp_path):
    out = tmp_path / "out"
    start(small, out, strategy="fedavg")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"in use, it holds a run. Go on with it: cotune resume {out} "):
        start(small, out, strategy="fedavg")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def full(monkeypatch, part_of_name: str) -> None:
    """No room on the disk in round 2 for files with such a name."""
    good, begin, now = os.fsync, Federation.begin, []

    def noted(federation, round, state):
        now.append(round.index)
        begin(federation, round, state)

    def fsync(number):
        name = str(Path(f"/proc/self/fd/{number}").readlink())
        if now[-1:] == [2] and part_of_name in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        good(number)

    monkeypatch.setattr(Federation, "begin", noted)
    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("part_of_name", ["000002.ckpt.part", "round-000002"])
def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint(
    small, whole, tmp_path, monkeypatch, part_of_name
):
    """At the checkpoint, or at the record of a step before it."""
    out = tmp_path / "full"
    with monkeypatch.context() as patch:
        full(patch, part_of_name)
        with pytest.raises(RunError, match=f"No space left on device.*cotune resume {out}") as caught:
            start(small, out)
    assert caught.value.exit_code == 3
    assert sorted(path.name for path in (out / "checkpoints").glob("*.ckpt")) == [
        "000000.ckpt",
        "000001.ckpt",
    ]
    assert not list((out / "checkpoints").rglob("*.part"))
    resume(out)
    assert_same_end(whole(), out)


@pytest.mark.parametrize(
    ("verb", "again"), [("gather", ["evaluate"]), pytest.param("once", [], marks=pytest.mark.real)]
)
def test_what_clients_had_answered_is_not_asked_again(small, whole, tmp_path, monkeypatch, verb, again):
    """Stopped once the sum of round 2 was recorded, or once clients were measured, too."""
    out, asked = tmp_path / "torn", []
    last = {"gather": "tune", "once": "evaluate"}[verb]
    do, handle = getattr(Federation, verb), Hosts.handle

    def stop(federation, name, *rest):
        found = do(federation, name, *rest)
        if name == last and federation._round.index == 2:
            raise Stop("out of luck")
        return found

    def handled(hosts, messages):
        asked.append((messages[0].round, messages[0].action))
        return handle(hosts, messages)

    with monkeypatch.context() as patch:
        patch.setattr(Federation, verb, stop)
        with pytest.raises(RunError, match="out of luck"):
            start(small, out)
    monkeypatch.setattr(Hosts, "handle", handled)
    resume(out)
    assert [action for round, action in asked if round == 2] == again
    assert_same_end(whole(), out)
    assert not list((out / "checkpoints").glob("round-*"))


def test_two_processes_do_not_work_on_one_run(small, tmp_path, monkeypatch):
    out, said = tmp_path / "out", []

    def resume_too():
        with pytest.raises(ConfigError) as refused:
            resume(out)
        said.append(str(refused.value))

    hear_in(monkeypatch, 1, "tune", 1, resume_too)
    start(small, out, strategy="fedavg")
    assert said[0].startswith(f"{out}: process {os.getpid()} works on this run.")


def test_a_report_that_could_not_be_made_is_made_on_resume(small, tmp_path):
    start(small, tmp_path / "out", strategy="fedavg")
    (tmp_path / "out" / "report.html").unlink()
    resume(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_interruption_is_not_taken_for_a_failure_on_its_way(small, tmp_path, monkeypatch):
    """The live view swallows what goes wrong in it; a signal that arrives there must come through."""

    def hear(self, event, now):
        if event.round == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("cotune.progress.Progress.hear", hear)
    with pytest.raises(Interrupted, match="cotune resume"):
        start(small, tmp_path / "out", strategy="fedavg")


def test_a_stop_before_anything_is_saved_says_so_and_leaves_no_folder(small, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "run", lambda *_: None)
    monkeypatch.setattr(build, "session", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="before anything was saved"):
        start(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_can_be_moved_before_it_is_resumed(small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, 2)
        with pytest.raises(RunError):
            start(small, tmp_path / "here", strategy="standalone")
    shutil.move(tmp_path / "here", tmp_path / "there")
    resume(tmp_path / "there")
    assert_same_end(whole("standalone"), tmp_path / "there")
