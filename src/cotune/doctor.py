"""What this machine has, and the first thing that is wrong with it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cotune.errors import CotuneError

PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "pydantic", "gguf")
NEEDED_GIB = 3.0
"""Disk for the quickstart's model, its student and a run."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `cure` is empty when all is well."""

    name: str
    found: str
    cure: str = ""

    @property
    def is_fine(self) -> bool:
        """Nothing to do."""
        return not self.cure

    def line(self) -> str:
        """For people."""
        mark = "ok  " if self.is_fine else "FAIL"
        return f"{mark} {self.name:<14} {self.found}" + (f"  -> {self.cure}" if self.cure else "")

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "ok": self.is_fine}


def examine() -> list[Check]:
    """All checks, cheap ones first; none of them uses the network."""
    return [_python(), *[_package(name) for name in PACKAGES], _device(), _cache(), *_models()]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", found, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer")


def _package(name: str) -> Check:
    try:
        return Check(name, version(name))
    except PackageNotFoundError:
        return Check(name, "missing", f"pip install {name}")


def _device() -> Check:
    try:
        import torch

        from cotune.models.causal_lm import pick_device
    except ImportError as error:
        return Check("device", "torch cannot be imported", str(error))
    place = pick_device("auto")
    cores = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return Check("device", cores if place.type == "cpu" else f"{place}, bfloat16; {cores}")


def _cache() -> Check:
    from cotune.wheels import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        return Check("cache", str(folder), "not writable; set COTUNE_CACHE to a folder that is")
    free = shutil.disk_usage(folder).free / 2**30
    cure = "" if free >= NEEDED_GIB else f"free {NEEDED_GIB:.0f} GiB, or set COTUNE_CACHE to a larger disk"
    return Check("cache", f"{folder}, {free:.1f} GiB free", cure)


def _models() -> list[Check]:
    from cotune.models import zoo

    try:
        cards = zoo.cached()
    except CotuneError as error:
        return [Check("models", "unreadable", str(error))]
    here = [card.name for card in cards if card.present]
    return [Check("models", ", ".join(here) or "none yet; they are fetched when a run needs them")]
