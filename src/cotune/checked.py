"""Requests that a client's process must not act on: a server may be wrong, or somebody else.

A client answers only what its own configuration has asked for. All that a request may say is known here
before it comes (who lives here, how many rounds there are, which steps there are, how an adapter looks), so
that nothing in it is taken on trust. What one step is told is for that step to read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotune.errors import WireError
from cotune.records import Adapter, Message, adapter_header

EVALUATE = "evaluate"
"""The only step that is also asked for before the first round."""
FACTS = frozenset({"adapter", "told"})
SCORE = "score:"
"""Begins the base of arrays that a selector's score has summed; their form is the score's own affair."""

_SELECT = re.compile(r"select/(0|[1-9][0-9]{0,2})/[a-z_]{1,32}")
_OTHERS = re.compile(r"(?:teach|secure)/[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class Known:
    """What a client's process knows of the run by itself.

    clients: who lives here; num_rounds: of the run; actions: of the strategy, such as tune; num_selectors:
    selectors, of which each has steps; others: whether there are steps of teaching or of a masked sum, as
    `teach/` and `secure/`; adapters: one for each form an adapter may have, of which only header, names,
    shapes and types count; needed: actions that come with an adapter.
    """

    clients: Collection[str]
    num_rounds: int
    actions: frozenset[str] = frozenset({"tune"})
    num_selectors: int = 0
    others: frozenset[str] = frozenset()
    adapters: Sequence[Adapter] = ()
    needed: frozenset[str] = frozenset()


def check_requests(messages: Sequence[Message], known: Known) -> None:
    """Refuse messages that are not one request to some of the clients that live here.

    Raises:
        WireError: there is none, they differ in round or action, a client stands there twice, or one of them
            is refused by `check_request`.
    """
    if not messages:
        raise WireError("a request without messages; expected one for each client that is asked")
    first, seen = messages[0], set[str]()
    for message in messages:
        if (message.round, message.action) != (first.round, first.action):
            raise WireError(
                f"a request with {message.action!r:.60} of round {_short(message.round)} beside "
                f"{first.action!r:.60} of round {_short(first.round)}; expected one action of one round"
            )
        if message.client in seen:
            raise WireError(f"a request with two messages for {message.client!r:.60}; expected one")
        seen.add(message.client)
        check_request(message, known)


def check_request(message: Message, known: Known) -> None:
    """Refuse a message that no server of this run sends.

    Args:
        message: what came, decoded.
        known: what is known of the run here.

    Raises:
        WireError: a client who lives elsewhere, a round or action that the run has not, facts of other names,
            or an adapter of another base, rank, name, shape or type, or with values that are not finite.
    """
    if message.client not in known.clients:
        raise WireError(f"a message for {message.client!r:.60}, who does not live here")
    _check_action(message.action, known)
    first = 0 if message.action == EVALUATE else 1
    if not first <= message.round <= known.num_rounds:
        raise WireError(
            f"{message.action!r} of round {_short(message.round)}; expected {first} to {known.num_rounds}"
        )
    odd = sorted(message.facts.keys() - FACTS)
    if odd:
        raise WireError(f"{message.action!r} with {odd[0]!r:.60}; expected nothing but adapter and told")
    told = message.facts.get("told", {})
    if not isinstance(told, dict):
        raise WireError(f"{message.action!r}: told is {_short(told)}; expected facts by name")
    _check_adapter(message, known)


def _check_action(action: str, known: Known) -> None:
    chosen = _SELECT.fullmatch(action)
    is_known = action == EVALUATE or action in known.actions
    is_known |= chosen is not None and int(chosen[1]) < known.num_selectors
    is_known |= bool(_OTHERS.fullmatch(action)) and action.partition("/")[0] + "/" in known.others
    if not is_known:
        words = sorted({EVALUATE, *known.actions, *(f"{name}..." for name in known.others)})
        if known.num_selectors:
            words.append(f"select/ and a number below {known.num_selectors}")
        raise WireError(f"unknown action {action!r:.60}; this client knows {', '.join(words)}")


def _check_adapter(message: Message, known: Known) -> None:
    if "adapter" not in message.facts:
        if message.arrays:
            raise WireError(f"{message.action!r} with arrays that belong to no adapter")
        if message.action in known.needed:
            raise WireError(f"{message.action!r} without an adapter; expected the one to start from")
        return
    header = _header(message.facts["adapter"])
    is_sum = message.action.startswith("select/") and header["base"].startswith(SCORE)
    if not is_sum:
        _check_form(message, header, known.adapters)
    for name, array in message.arrays.items():
        if not np.isfinite(array).all():
            raise WireError(f"{message.action!r}: {name:.80}: a value is not finite")


def _header(header: Any) -> Mapping[str, Any]:
    """A base, a rank and a scale, and nothing else, each of its own type: 1 is not True, and not 1.0."""
    kinds = {"base": str, "rank": int, "alpha": float}
    if isinstance(header, dict) and header.keys() == kinds.keys():
        alpha = header["alpha"]
        is_number = type(alpha) in (int, float) and abs(alpha) < 1e9  # NaN is not below anything
        if type(header["base"]) is str and type(header["rank"]) is int and is_number:
            return header
    raise WireError(f"adapter {_short(header)}; expected base (text), rank (whole number) and alpha (number)")


def _check_form(message: Message, header: Mapping[str, Any], forms: Sequence[Adapter]) -> None:
    fitting = [form for form in forms if adapter_header(form) == header]
    if not fitting:
        expected = " or ".join(_short(adapter_header(form)) for form in forms) or "none"
        raise WireError(f"{message.action!r}: adapter {_short(header)}; expected {expected}")
    differences = [_difference(message.arrays, form) for form in fitting]
    if all(differences):
        raise WireError(f"{message.action!r}: {differences[0]}")


def _difference(arrays: Mapping[str, Any], form: Adapter) -> str:
    """What is other than it should be, first by name; empty for nothing."""
    for name in sorted(arrays.keys() | form.arrays.keys()):
        if name not in form.arrays:
            return f"{name:.80}: no such array in an adapter of {form.base}"
        expected = form.arrays[name]
        if name not in arrays:
            return f"{name}: missing; expected {expected.dtype}{expected.shape}"
        came = arrays[name]
        if came.shape != expected.shape or came.dtype != expected.dtype:
            return f"{name}: {came.dtype}{came.shape}; expected {expected.dtype}{expected.shape}"
    return ""


def _short(value: object) -> str:
    """A value in a message; `decode` bounds how deep it is, not how long."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
