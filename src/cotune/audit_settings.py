"""Settings that all audits share: how often one observes in a run, and who judges."""

from __future__ import annotations

from pydantic import Field

from cotune.plugins import PluginConfig


class AuditConfig(PluginConfig):
    """Options that every audit has."""

    every: int = Field(1, gt=0, description="rounds between two observations in a run; also before and after")
