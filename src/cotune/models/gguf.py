"""One GGUF file -> an ordinary transformers folder with float32 safetensors."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from cotune.errors import ModelError


def convert(gguf: Path, folder: Path) -> None:
    """Write config, safetensors and tokenizer of a GGUF file into `folder`; a minute or two, nothing printed.

    Raises:
        ModelError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with silence():
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{gguf.name}: transformers cannot read this GGUF file ({error})") from None
        # A model that came from GGUF refuses to be saved: its config says that it is quantised, which it is
        # no longer. So the tensors move, uncopied, into a model of the same config without that entry.
        config = copy.deepcopy(loaded.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(loaded.state_dict(), strict=True, assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")


def _forget_origin(file: Path) -> None:
    """Drop what only says how and where the tokenizer was loaded on this machine."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = {k: v for k, v in settings.items() if k not in {"is_local", "local_files_only", "name_or_path"}}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def silence() -> Iterator[None]:
    """Keep transformers' and the hub's progress bars, log lines and warnings off the terminal."""
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the hub client's too
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
