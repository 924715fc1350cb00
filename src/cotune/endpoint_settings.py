"""Settings of a chat endpoint that speaks OpenAI's protocol; `cotune.models.endpoint` asks it."""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import Field

from cotune.errors import ConfigError
from cotune.plugins import PluginConfig

PATIENCE = frozenset(
    {"concurrency", "timeout_seconds", "max_retries", "price_in", "price_out", "api_key_env"}
)
"""Settings that change no answer, so that a run may go on with others."""


class EndpointSettings(PluginConfig):
    """Where an endpoint is, what it is asked for, and with how much patience."""

    url: str = Field(pattern="^https?://", description="up to and with /v1, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="as the endpoint calls it")
    api_key_env: str | None = Field(
        None, description="name of the environment variable that holds the key; never the key itself"
    )
    concurrency: int = Field(8, gt=0, description="requests under way at a time")
    timeout_seconds: float = Field(120.0, gt=0, description="for one answer")
    max_retries: int = Field(6, ge=0, description="further tries of one request before the run stops")
    length_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls the length cap; some hosted models want the other"
    )
    price_in: float | None = Field(None, ge=0, description="of a million tokens read, in any currency")
    price_out: float | None = Field(None, ge=0, description="of a million tokens written")


def key_of(settings: EndpointSettings) -> str:
    """The key, read where it is used and kept nowhere; empty if there is none.

    Raises:
        ConfigError: the variable's name or its value cannot be right; neither is shown if it may be the key.
    """
    name = settings.api_key_env
    if name is None:
        return ""
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        raise ConfigError(
            "endpoint api_key_env: expected the name of an environment variable in capitals, such as "
            "OPENAI_API_KEY. What stands there is not shown, because it may be the key itself"
        )
    key = os.environ.get(name, "").strip()
    if not re.fullmatch("[!-~]+", key):
        state = "holds characters that no key has" if key else "is not set"
        raise ConfigError(f"endpoint api_key_env: the environment variable {name} {state}. Put the key there")
    return key
