"""What `cotune deploy init` writes, what a party reads of it, and how its processes are kept running."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)
from cryptography.x509.verification import PolicyBuilder, Store

import tiny
from cotune import config, data, deploy, deploy_party, deploy_up, deployed, parties
from cotune.errors import ConfigError, DataError, RunError
from cotune.identity_keys import public_of
from cotune.records import Message

CLIENTS = ("client-1", "client-2", "client-3")


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The tiny configuration; its models are not touched."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "llm").mkdir()
    for kind in ("places", "colours"):
        tiny.write_rows(folder / f"{kind}.jsonl", tiny.rows(kind, 30))
    return config.from_dict(tiny.raw_config(folder))


@pytest.fixture(scope="module")
def folder(checked, tmp_path_factory):
    """A deployment; tests do not change it."""
    made = tmp_path_factory.mktemp("deployments") / "dep"
    deploy.init(checked, made, deploy.Address("trial.example", 9300))
    return made


def homes(folder):
    return {"server": folder / "server", **{name: folder / "clients" / name for name in CLIENTS}}


def examples_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_client_gets_its_own_examples_and_nobody_elses(checked, folder):
    dataset = data.load(checked.data, checked.seed)
    ids = {name: {example.id for example in dataset.train(name)} for name in CLIENTS}
    for name, home in homes(folder).items():
        text = "".join(path.read_text() for path in home.rglob("*.jsonl"))
        there = {client for client in CLIENTS for one in ids[client] if f'"id": "{one}"' in text}
        assert there == ({name} if name != "server" else set())
        assert len(examples_in(home / "public.jsonl")) == len(dataset.public) == 12


def test_a_client_reads_what_the_embedded_run_would_give_it(checked, folder):
    dataset = data.load(checked.data, checked.seed)
    for name in CLIENTS:
        own = parties.read_client(homes(folder)[name], name)
        assert own.clients == dataset.clients
        assert own.train(name) == dataset.train(name)
        assert own.held_out(name) == dataset.held_out(name)
        assert (own.public, dict(own.metrics)) == (dataset.public, dict(dataset.metrics))
        assert [own.num_train(other) for other in CLIENTS if other != name] == [0, 0]
        assert own.own_test is None


def test_the_server_reads_public_and_held_out_examples_and_sizes(checked, folder):
    dataset = data.load(checked.data, checked.seed)
    server = parties.read_server(homes(folder)["server"])
    assert (server.pool, server.public, server.test) == ((), dataset.public, dataset.test)
    assert [server.num_train(name) for name in CLIENTS] == [dataset.num_train(name) for name in CLIENTS]
    assert parties.read_server(homes(folder)["server"], {"client-2": 99}).num_train("client-2") == 99


def test_split_by_key_each_client_is_measured_on_its_own(tmp_path, checked):
    raw = checked.model_dump(mode="json")
    raw["data"]["partition"] = {"name": "by_key", "key": "domain"}
    made = config.from_dict(raw)
    dataset = data.load(made.data, made.seed)
    found = deploy.init(made, tmp_path / "dep")
    assert list(found["clients"]) == ["colours", "places"]
    for name, home in found["clients"].items():
        own = parties.read_client(tmp_path / "dep" / home, name)
        assert own.held_out(name) == dataset.held_out(name)
        assert {example.domain for each in own.held_out(name).values() for example in each} == {name}
        assert own.only([name]).clients == (name,)
    assert parties.read_server(tmp_path / "dep" / "server").own_test == {"colours": {}, "places": {}}


def test_what_is_secret_is_readable_by_its_owner_only(folder):
    secret = sorted(path for path in folder.rglob("*.key"))
    assert (
        len(secret) == 4 * 3 + 3 + 1
    )  # identity, secret and link of all; node of clients; TLS of the server
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for home in homes(folder).values():
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert os.access(home / "start.sh", os.X_OK)
    values = [path.read_bytes() for path in secret]
    assert len(set(values)) == len(values)


def test_the_certificate_is_that_of_the_server_and_its_authority_is_with_all(folder):
    authorities = {(home / "ca.crt").read_bytes() for home in homes(folder).values()}
    [authority] = authorities
    roots = Store([x509.load_pem_x509_certificate(authority)])
    leaf = x509.load_pem_x509_certificate((folder / "server/server.crt").read_bytes())
    for host in ("trial.example", "localhost"):
        PolicyBuilder().store(roots).build_server_verifier(x509.DNSName(host)).verify(leaf, [])
    with pytest.raises(x509.verification.VerificationError):
        PolicyBuilder().store(roots).build_server_verifier(x509.DNSName("other.example")).verify(leaf, [])
    key = load_pem_private_key((folder / "server/server.key").read_bytes(), None)
    assert key.public_key() == leaf.public_key()


def test_the_registry_holds_the_public_halves_of_everybodys_keys(folder):
    for name, home in homes(folder).items():
        party = parties.load(home)
        assert (party.name, party.is_server) == (name, name == "server")
        assert party.registry.clients == CLIENTS
        assert party.registry.identities[name] == public_of(party.identity)
        assert parties.own_secret(party)(name) == party.secret
        with pytest.raises(ConfigError, match="is not here"):
            parties.own_secret(party)("somebody")
        if not party.is_server:
            key = load_ssh_private_key((home / "node.key").read_bytes(), None)
            assert isinstance(key, EllipticCurvePrivateKey)
            assert load_pem_public_key(party.registry.nodes[name].encode()) == key.public_key()


def test_all_parties_and_the_app_have_the_same_configuration(checked, folder):
    files = [home / "run.yaml" for home in homes(folder).values()]
    files.append(folder / "server/app/cotune_run/run.yaml")
    assert {config.fingerprint(config.load(path)) for path in files} == {config.fingerprint(checked)}
    app = (folder / "server/app/pyproject.toml").read_text()
    assert f'fingerprint = "{config.fingerprint(checked)}"' in app
    assert (folder / "server/app/cotune_run/server_app.py").read_text().count("@app.main()") == 1


def test_the_page_for_people_names_every_folder_port_and_host(folder):
    text = (folder / "README.md").read_text()
    for word in ("`clients/client-2`: client-2", "9300", "trial.example", "90 days", "submit.sh"):
        assert word in text
    assert "@{" not in text


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_folder_in_use_is_refused_and_left_as_it_is(checked, tmp_path, kind):
    place = tmp_path / "dep"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="in use"):
        deploy.init(checked, place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_strategy_that_collects_examples_is_not_deployed(checked, tmp_path):
    made = config.from_dict({**checked.model_dump(mode="json"), "strategy": "centralized"})
    with pytest.raises(ConfigError, match="hand over their examples"):
        deploy.init(made, tmp_path / "dep")
    assert not (tmp_path / "dep").exists()


def own_data(folder, tmp_path, *rows):
    """A copy of a client's folder with other rows in it."""
    home = tmp_path / "own"
    subprocess.run(["cp", "-r", str(homes(folder)["client-1"]), str(home)], check=True)
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def test_a_client_may_bring_its_own_examples_in_either_form(folder, tmp_path):
    row = {"id": "a", "prompt": "Q: where?\nA:", "completion": " barn", "choices": ["barn", "lake"]}
    home = own_data(folder, tmp_path, {**row, "answer_idx": 0}, {"id": "b", "prompt": "p", "completion": "c"})
    first, second = parties.read_client(home, "client-1").train("client-1")
    assert (first.choices, first.answer_idx, second.completion) == (("barn", "lake"), 0, "c")
    [raw] = tiny.rows("places", 1)
    tiny.write_rows(home / "data.jsonl", [raw])
    [read] = parties.read_client(home, "client-1", ["multiple_choice"] * 2).train("client-1")
    assert raw["question"] in read.prompt
    assert read.completion == f" {raw['choices'][raw['answer_idx']]}"


def test_what_a_client_is_measured_on_is_left_out_and_told(folder, tmp_path):
    home = tmp_path / "own"
    subprocess.run(["cp", "-r", str(homes(folder)["client-1"]), str(home)], check=True)
    plain = parties.read_client(home, "client-1")
    assert (plain.notes, plain.measured("client-1")) == ((), frozenset())
    private, public = [(home / name).read_text().splitlines() for name in ("data.jsonl", "public.jsonl")]
    [task] = {json.loads(line)["task"] for line in (home / "held_out.jsonl").read_text().splitlines()[:1]}
    lines = [json.dumps({**json.loads(line), "task": task}) for line in (private[0], public[3])]
    (home / "held_out.jsonl").write_text("\n".join(lines) + "\n")
    found = parties.read_client(home, "client-1")
    assert found.train("client-1") == plain.train("client-1")[1:]
    assert found.public == plain.public  # the server counts in its rows
    assert found.measured("client-1") == {3}
    assert [note.split(" of its")[0] for note in found.notes] == ["data.jsonl: 1", "public.jsonl: 1"]
    (home / "data.jsonl").write_text(private[0] + "\n")
    with pytest.raises(DataError, match=r"all 1 examples also stand in held_out\.jsonl\. Take"):
        parties.read_client(home, "client-1")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "it is empty"),
        ([["a"]], "data.jsonl:1: list"),
        ([{"id": "a", "prompt": "p", "completion": "c", "label": 1}], "'label'"),
        ([{"id": "a", "completion": "c"}], "'prompt'"),
        ([{"id": 1, "prompt": "p", "completion": "c"}], "'id'"),
        ([{"id": "a", "prompt": "p", "completion": "c"}] * 2, "'a' is there twice"),
        ([{"id": "a", "prompt": "p", "completion": "c", "choices": ["c"], "answer_idx": 1}], "answer_idx 1"),
        ([{"id": "a", "prompt": "p", "completion": "c", "choices": "c"}], "choices"),
    ],
)
def test_rows_that_are_no_examples_are_refused_with_their_place(folder, tmp_path, rows, words):
    home = own_data(folder, tmp_path, *rows)
    with pytest.raises(DataError, match=r"data\.jsonl") as told:
        parties.read_client(home, "client-1")
    assert words in str(told.value)


def test_a_damaged_folder_is_refused_with_the_cure(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"party\.json"):
        parties.load(tmp_path)
    home = own_data(folder, tmp_path, {})
    (home / "identity.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        parties.load(home)
    (home / "identity.key").chmod(0o600)
    (home / "secret.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes; expected 32"):
        parties.load(home)
    (home / "registry.json").write_text('{"nodes": {}, "identities": {"server": "00"}}')
    with pytest.raises(ConfigError, match=r"registry\.json"):
        parties.load(home)


def test_a_client_says_how_many_examples_it_has_without_loading_a_model(checked, folder):
    home = homes(folder)["client-2"]
    found = deployed._Client(parties.load(home), checked).handle(Message("client-2", 0, "hello", {}, {}))
    dataset = data.load(checked.data, checked.seed)
    assert found.facts == {"examples": dataset.num_train("client-2")}
    assert deployed._sizes({"a": found, "b": Message("b", 0, "hello", {}, {"examples": "many"})}) == {
        "a": found.facts["examples"]
    }


def test_a_run_of_another_fingerprint_is_refused_and_its_end_is_told(folder, tmp_path):
    home = tmp_path / "server"
    subprocess.run(["cp", "-r", str(homes(folder)["server"]), str(home)], check=True)
    (home / "logs").mkdir()
    context = SimpleNamespace(run_config={"config": "run.yaml", "fingerprint": "f" * 16})
    with pytest.raises(ConfigError, match="ffffffffffffffff"):
        deployed.serve(None, context, home)
    outcome = deploy_party.read_outcome(home / "outcome.json")
    assert (outcome["state"], outcome["exit_code"]) == ("failed", 2)


def test_the_processes_of_a_party_take_no_code_from_elsewhere_and_check_who_they_talk_to(folder):
    server, client = (deploy_party.commands(parties.load(homes(folder)[n])) for n in ("server", "client-1"))
    link, node = " ".join(server[0].words), " ".join(client[0].words)
    for words in (link, node):
        assert "--isolation process" in words
        assert "--superexec-auth-secret-file" in words
        assert "--insecure" not in words
    assert "--enable-supernode-auth" in link
    assert "--host 0.0.0.0 --port 9300" in link
    assert "--root-certificates" in node
    assert "--superlink trial.example:9300" in node
    assert 'client="client-1"' in node
    ports = {parties.load(homes(folder)[name]).settings["runtime_port"] for name in CLIENTS}
    assert ports == {9301, 9302, 9303}
    assert deploy_party.environment(folder)["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.fixture
def asleep(monkeypatch):
    """A party whose processes only sleep, and are started again at once."""
    sleep = (sys.executable, "-c", "import time; time.sleep(60)")
    made = {"stays": True}
    monkeypatch.setattr(deploy_party, "PAUSE", 0.05)
    monkeypatch.setattr(
        deploy_party,
        "commands",
        lambda _: (
            deploy_party.Command("one", sleep, made["stays"]),
            deploy_party.Command("federation", sleep),
        ),
    )
    return made


@pytest.mark.usefixtures("asleep")
def test_a_process_that_dies_is_started_again_and_all_are_stopped_by_their_ids(folder):
    processes = deploy_party.Processes(parties.load(homes(folder)["client-3"]))
    assert processes.tend() is None
    first = {name: process.pid for name, process in processes.running.items()}
    os.kill(first["one"], signal.SIGKILL)
    processes.running["one"].wait()
    assert processes.tend() is None
    time.sleep(0.1)
    processes.tend()
    second = {name: process.pid for name, process in processes.running.items()}
    assert second["one"] != first["one"]
    assert second["federation"] == first["federation"]
    running = list(processes.running.values())
    processes.stop()
    assert all(process.returncode == -signal.SIGTERM for process in running)


def test_one_that_may_not_be_started_again_ends_the_party(folder, asleep):
    asleep["stays"] = False
    processes = deploy_party.Processes(parties.load(homes(folder)["client-3"]))
    processes.tend()
    processes.running["one"].kill()
    processes.running["one"].wait()
    assert processes.tend() == "one"
    processes.stop()


@pytest.mark.usefixtures("asleep")
def test_a_federation_that_is_killed_in_a_run_leaves_word_of_it(folder, tmp_path):
    party = parties.load(homes(folder)["client-3"])
    moved = parties.Party(party.name, tmp_path, party.settings, party.registry, party.identity, party.secret)
    processes = deploy_party.Processes(moved)
    processes.tend()
    deploy_party.write_outcome(tmp_path / "outcome.json", deploy_party.RUNNING)
    processes.running["federation"].kill()
    processes.running["federation"].wait()
    processes.tend()
    processes.stop()
    assert deploy_party.read_outcome(tmp_path / "outcome.json") == {
        "state": "failed",
        "exit_code": 3,
        "message": "its process ended (signal 9)",
    }


def test_up_refuses_what_is_no_deployment_and_a_port_in_use(folder, tmp_path):
    with pytest.raises(ConfigError, match="cotune deploy init"):
        deploy_up.up(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        party = parties.load(homes(folder)["server"])
        settings = {**party.settings, "port": taken.getsockname()[1]}
        here = parties.Party("server", party.folder, settings, party.registry, party.identity, party.secret)
        with pytest.raises(ConfigError, match="in use, perhaps by this deployment"):
            deploy_up._refuse_taken(here)


def test_following_passes_on_whole_lines_and_the_end(folder, tmp_path):
    party = parties.load(homes(folder)["server"])
    (tmp_path / "server").mkdir()
    here = parties.Party(
        "server", tmp_path / "server", party.settings, party.registry, party.identity, party.secret
    )
    log, notes = tmp_path / "run.log", []
    log.write_text("of an earlier run\nround 1\nrou")

    def write():
        time.sleep(0.2)
        with log.open("a") as file:
            file.write("nd 2\n")
        deploy_party.write_outcome(here.folder / "outcome.json", {"state": "done", "results": "there"})

    writer = threading.Thread(target=write)
    writer.start()
    quiet = SimpleNamespace(poll=lambda: None)
    found = deploy_up._follow(here, {"server": quiet}, (log, len("of an earlier run\n")), notes.append)
    writer.join()
    assert (str(found), notes) == ("there", ["round 1", "round 2"])
    for outcome, kind, words in (
        ({"state": "failed", "exit_code": 2, "message": "no such model"}, ConfigError, "no such model"),
        (
            {"state": "failed", "exit_code": 3, "message": "x. Go on with: cotune resume y"},
            RunError,
            "deploy up",
        ),
    ):
        deploy_party.write_outcome(here.folder / "outcome.json", outcome)
        with pytest.raises(kind, match=words):
            deploy_up._follow(here, {"server": quiet}, (log, 0), notes.append)
    (here.folder / "outcome.json").unlink()
    with pytest.raises(RunError, match="the server ended"):
        deploy_up._follow(here, {"server": SimpleNamespace(poll=lambda: 1)}, (log, 0), notes.append)


def test_files_of_examples_come_back_as_they_were(tmp_path):
    made = tiny.examples(4)
    odd = tiny.examples(1, seed=1)[0]
    odd = replace(odd, id="odd", prompt="half \ud800 pair\u2028and a line", rationale="because")
    parties.write_examples(tmp_path / "x.jsonl", {"": (*made, odd)})
    told = replace(odd, prompt=odd.prompt.replace("\ud800", "?"))  # which no tokenizer reads
    assert parties.read_examples(tmp_path / "x.jsonl") == (*made, told)
