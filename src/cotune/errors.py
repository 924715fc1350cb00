"""One exception family. Every message says where, what came, what was expected, and the cure.

CotuneError
+-- UserError        the user's input is wrong           exit code 2
|   +-- ConfigError    the YAML or a --set
|   +-- DataError      a file, a row, a partition
|   +-- ModelError     a model, an adapter, a vocabulary
+-- RunError         the run failed but can be resumed   exit code 3
|   +-- WireError      a message that must not be accepted
|   +-- Paused         something outside failed; going on later is the cure
+-- Interrupted      Ctrl-C or SIGTERM, resumable        exit code 130
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CotuneError(Exception):
    """Root of the family."""

    exit_code = 3


class UserError(CotuneError):
    """The user's input is wrong; nothing was written."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration cannot be used."""


class DataError(UserError):
    """A data file, a row or a partition cannot be used."""


class ModelError(UserError):
    """A model, an adapter or a pair of vocabularies cannot be used."""


class RunError(CotuneError):
    """The run failed; what it had finished is kept and can be resumed."""


class WireError(RunError):
    """A message was malformed or broke the contract, and was rejected."""


class Paused(RunError):
    """Something outside the run failed, such as an endpoint; the launcher adds how to go on."""


class Interrupted(CotuneError):
    """The run was asked to stop; it can be resumed."""

    exit_code = 130


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
