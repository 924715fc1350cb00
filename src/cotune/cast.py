"""Which role plays which part in an audit: student, reference, baseline, unrelated model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cotune.errors import ConfigError
from cotune.examined import BASELINE, BEFORE, REFERENCE, STUDENT, UNRELATED
from cotune.protocols import SLM

LLM = "llm"
"""What the reference is called in a run; the student is called `SLM`."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Names of roles. None: nobody plays that part."""

    student: str
    reference: str
    baseline: str | None = None
    unrelated: str | None = None


def cast(roles: Mapping[str, str]) -> Cast:
    """Who plays which part among `roles` (role -> name for people).

    In a run, where nobody is called student, the SLM is the student, the LLM the reference, and the SLM as it
    was before the run the baseline.

    Raises:
        ConfigError: there is no student or no reference.
    """
    student, reference, baseline = STUDENT, REFERENCE, BASELINE
    if STUDENT not in roles and SLM in roles:
        student, reference, baseline = SLM, LLM, SLM + BEFORE
    for part, role in (("student", student), ("reference", reference)):
        if role not in roles:
            came = ", ".join(sorted(roles)) or "none"
            raise ConfigError(
                f"audit: there is no model to be the {part}; roles: {came}; expected `{STUDENT}` and "
                f"`{REFERENCE}`, or in a run `{SLM}` and `{LLM}`. Give `--{part} MODEL`, or run a "
                f"strategy that trains both."
            )
    return Cast(student, reference, _present(baseline, roles), _present(UNRELATED, roles))


def _present(role: str, roles: Mapping[str, str]) -> str | None:
    return role if role in roles else None
