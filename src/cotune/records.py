"""The values that travel through cotune: examples, adapters, messages, rounds, signals, events.

Every record is frozen. Nothing here knows a model library; arrays are NumPy, and the tensors inside a
`Signal` are only named, never imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Array = npt.NDArray[Any]
else:
    Array = Any  # numpy is imported where it is used, so that the command line starts fast
Facts = Mapping[str, Any]
"""JSON values: str, int, float, bool, None, lists and string-keyed dicts of them."""

Metric = Literal["choice", "rouge_l", "exact_match", "path_accuracy"]
"""How a task is scored: by the likeliest choice, by written text, or by the answer a path ends on."""

DELIMITER = " "
"""Stands between a prompt and a choice, as `target_delimiter` does in lm-evaluation-harness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training item: the unit that is selected, trained on and audited.

    `completion` is the exact text that follows `prompt`. A multiple-choice example also lists `choices`
    (bare texts, scored as `DELIMITER + choice`) and the index of the right one.
    """

    id: str
    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    answer_idx: int | None = None
    rationale: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Named LoRA arrays of one base model, under the names PEFT gives them.

    `arrays` maps e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` to a float32 array
    [rank, in] (`lora_A`) or [out, rank] (`lora_B`). `base` is the fingerprint of the frozen base.
    """

    arrays: Mapping[str, Array]
    base: str
    rank: int
    alpha: float

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays.values())

    @property
    def is_neutral(self) -> bool:
        """Whether every B is zero, so that the model writes what it writes without an adapter."""
        return not any(array.any() for name, array in self.arrays.items() if "lora_B" in name)

    def with_arrays(self, arrays: Mapping[str, Array]) -> Adapter:
        """The same adapter with other values."""
        return Adapter(arrays, self.base, self.rank, self.alpha)

    def __sub__(self, other: Adapter) -> Adapter:
        """Array by array difference (an update)."""
        return self.with_arrays({name: self.arrays[name] - other.arrays[name] for name in self.arrays})


@dataclass(frozen=True, slots=True)
class Message:
    """The only thing that crosses the wire, in either direction."""

    client: str
    round: int
    action: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A client that gave no usable reply, and why. `kind` is late, crashed, rejected or out-of-memory."""

    client: str
    round: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Round:
    """One server iteration, numbered from 1; the only source of randomness in a step."""

    index: int
    num_rounds: int
    seed: int
    cohort: tuple[str, ...]

    @property
    def span(self) -> tuple[float, float]:
        """Where this round starts and ends, as shares of the run."""
        return (self.index - 1) / self.num_rounds, self.index / self.num_rounds

    def rng(self, *purpose: str) -> np.random.Generator:
        """A generator that depends on the run's seed, this round and the given words, and on nothing else."""
        return derived_rng(self.seed, str(self.index), *purpose)


def derived_rng(seed: int, *purpose: str) -> np.random.Generator:
    """A generator for one purpose; the same words always give the same stream, on every machine."""
    import numpy as np

    digest = hashlib.sha256("\x1f".join((str(seed), *purpose)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


@dataclass(frozen=True, slots=True)
class DenseLogits:
    """Teacher signal: full next-token logits, [positions, vocabulary]."""

    logits: Tensor


@dataclass(frozen=True, slots=True)
class TopKLogits:
    """Teacher signal: the k largest logits of each position and the rest of the mass.

    values, indices: [positions, k]; rest: [positions], log-sum-exp of all logits that were left out.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


@dataclass(frozen=True, slots=True)
class ReasoningPath:
    """Teacher signal: text, with its final answer if one could be parsed."""

    text: str
    answer: str | None = None


Signal = DenseLogits | TopKLogits | ReasoningPath


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are drawn.

    max_new_tokens: at most so many; temperature 0 is greedy; top_p: tokens outside the most likely part of
    that mass are never drawn; seed: the only source of randomness; stop: a text ends before any of these.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def cut(self, text: str) -> str:
        """What stands before the first stop string."""
        for stop in self.stop:
            text = text.split(stop, 1)[0]
        return text


@dataclass(frozen=True, slots=True)
class Written:
    """A text that a model wrote after a prompt, and what it took; empty if there is none that can be used.

    finished: the model came to its end; False if the length cap cut it.
    """

    text: str
    tokens_in: int
    tokens_out: int
    finished: bool


def readable(text: str) -> str:
    """The text with a question mark for each half of a pair of surrogates, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


Keep = Callable[[Mapping[int, Written]], None]
"""Told what has been written, by number of the prompt, some at a time."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run, for whoever watches.

    `phase` is e.g. tune, gather, co-tune, evaluate, checkpoint; `done` of `total` steps of it are finished.
    `facts` holds e.g. loss_slm, loss_llm, tokens, up_bytes, down_bytes, client, note.
    """

    round: int
    num_rounds: int
    phase: str
    done: int
    total: int
    facts: Facts = field(default_factory=dict)


Listener = Callable[[Event], None]
Progress = Callable[[str, int, int], None]
"""Told what is being done (reading, grouping, ...), how much of it is done, and of how much."""
Note = Callable[[str], None]
"""Told something in words, for the user."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress of which nobody hears."""


def adapter_header(adapter: Adapter) -> dict[str, Any]:
    """What must travel beside an adapter's arrays."""
    return {"base": adapter.base, "rank": adapter.rank, "alpha": adapter.alpha}


def adapter_of(message: Message) -> Adapter | None:
    """The adapter a message carries, if any."""
    header = message.facts.get("adapter")
    if not header:
        return None
    return Adapter(message.arrays, str(header["base"]), int(header["rank"]), float(header["alpha"]))


def adapter_digest(adapter: Adapter | None) -> str:
    """SHA-256 of an adapter's values by name, in hex; empty for none."""
    if adapter is None:
        return ""
    import numpy as np

    digest = hashlib.sha256(adapter.base.encode())
    for name in sorted(adapter.arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(adapter.arrays[name]).tobytes())
    return digest.hexdigest()


def refusal(message: Message, reason: str) -> Message:
    """A reply that says why nothing else is sent."""
    return Message(message.client, message.round, message.action, {}, {"refused": reason})
