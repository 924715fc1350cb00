"""Settings that are right each by itself and cannot work together; told before anything is loaded."""

from __future__ import annotations

from cotune import plugins
from cotune.config import Config
from cotune.errors import ConfigError


def teachable() -> list[str]:
    """Strategies whose clients tune what they are sent, so that they can be taught before it."""
    modules = {name: plugins.module("strategy", name) for name in plugins.names("strategy")}
    return [name for name, module in modules.items() if getattr(module, "TEACHABLE", False)]


def refuse(config: Config) -> None:
    """Refuse an allocator that the strategy or an endpoint cannot serve; known before anything is loaded."""
    if config.allocator is None:
        return
    if config.strategy.name not in teachable():
        raise ConfigError(
            f"allocator: clients of strategy {config.strategy.name!r} do not tune an adapter that they are "
            f"sent, so they cannot be taught before it. Take one of: {', '.join(teachable())}; or no "
            "allocator."
        )
    if config.teach.teacher is None:
        return
    if "llm" in plugins.module("strategy", config.strategy.name).TRAINS:
        raise ConfigError(
            f"teach.teacher: strategy {config.strategy.name!r} trains the LLM, and a model behind an "
            "endpoint cannot be trained. Take strategy fedavg, or no endpoint."
        )
    if "losses" in plugins.load("allocator", config.allocator.name, config.allocator.options).needs:
        raise ConfigError(
            f"teach.teacher: allocator {config.allocator.name!r} compares losses with the LLM's, and an "
            "endpoint tells none. Take another allocator, e.g. lada, or no endpoint."
        )
