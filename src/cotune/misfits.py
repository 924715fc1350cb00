"""Settings that are right each by itself and cannot work together; told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from cotune import plugins
from cotune.cast import LLM
from cotune.config import Config
from cotune.errors import ConfigError
from cotune.protocols import SLM

BLIND = ("everything", "random_subset")
"""Selectors that choose without a look at the examples."""
OF_A_PAIR = ("likeness", "rse", "homogenisation")
"""Audits that compare models of a run with each other."""
BEHIND = {"similarity": ("rse", "likeness"), "identity": ("ice",), "canary": ("canary",)}
"""Which audits a gate goes by."""


def teachable() -> list[str]:
    """Strategies whose clients tune what they are sent, so that they can be taught before it."""
    modules = {name: plugins.module("strategy", name) for name in plugins.names("strategy")}
    return [name for name, module in modules.items() if getattr(module, "TEACHABLE", False)]


def refuse(config: Config) -> None:
    """Refuse what cannot work; known before anything is loaded.

    Raises:
        ConfigError: an allocator that the strategy or an endpoint cannot serve, an audit that would find
            nothing to ask, a gate that nothing could follow from, guards that could not keep what they
            promise, or private tuning where private examples also go another way.
    """
    _refuse_allocator(config)
    for audit in config.audits:
        _refuse_audit(config, audit.name)
    _refuse_gates(config)
    _refuse_guards(config)
    _refuse_private(config)


def _refuse_private(config: Config) -> None:
    """Private tuning where private examples also go another way."""
    if config.llm.tune.private:
        raise ConfigError(
            "llm.tune.private: the server tunes the LLM on public examples, which need no hiding. Take it "
            "out, or set slm.tune.private."
        )
    if not (config.slm.tune.private or any(family.tune.private for family in config.families)):
        return
    strategy = plugins.module("strategy", config.strategy.name)
    if not getattr(strategy, "UPDATES", False) and config.strategy.name != "standalone":
        raise ConfigError(
            f"slm.tune.private: in strategy {config.strategy.name!r} clients give their examples away. Take "
            "another strategy, or private out."
        )
    if config.allocator:
        raise ConfigError(
            "slm.tune.private: with an allocator clients also tune a reference and write paths, which hide "
            "nothing. Take allocator or private out."
        )
    seen = [selector.name for selector in config.selector if selector.name not in BLIND]
    if seen:
        raise ConfigError(
            f"slm.tune.private: selector {seen[0]} reads the examples that it chooses from, so that its "
            f"choice tells of them. Take one of {', '.join(BLIND)}, or private out."
        )


def _refuse_guards(config: Config) -> None:
    """Guards of updates that nobody sends, `clip_noise` where no mean is taken, guards beside families, or
    twice the same one."""
    names = [guard.name for guard in config.guards]
    if not names:
        return
    if not getattr(plugins.module("strategy", config.strategy.name), "UPDATES", False):
        raise ConfigError(
            f"guards: in strategy {config.strategy.name!r} no client sends an update that guards could watch "
            "over. Take another strategy, e.g. fedavg or fedcollm, or no guards."
        )
    single = getattr(plugins.module("aggregator", config.aggregator.name), "NEEDS_SINGLE", False)
    if single and "clip_noise" in names:
        raise ConfigError(
            f"guards: clip_noise counts on a mean, which one client changes by clip / clients; aggregator "
            f"{config.aggregator.name!r} may be moved further, so that epsilon would be wrong. Take "
            "aggregator mean or secure_sum, or clip_noise out."
        )
    if config.families:
        raise ConfigError(
            "guards: they count on all clients holding the same model, and there are families. Take guards "
            "or families out."
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"guards: {twice[0]} is there twice. Take one of them out.")


def _refuse_allocator(config: Config) -> None:
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


def _refuse_audit(config: Config, name: str) -> None:
    """An audit that stands there twice, or lacks what it asks or whom it asks."""
    if [audit.name for audit in config.audits].count(name) > 1:
        raise ConfigError(
            f"audits: {name} is there twice, and a run keeps one result by name. Take one of them out."
        )
    if not getattr(plugins.module("strategy", config.strategy.name), "SHARES", True):
        raise ConfigError(
            f"audits: a run's audits ask the server's models, and in strategy {config.strategy.name!r} it "
            "learns none. Take another strategy; or ask a client's model where it is: cotune audit."
        )
    missing = [role.upper() for role in (SLM, LLM) if role not in _roles(config)]
    if name in OF_A_PAIR and missing:
        raise ConfigError(
            f"audits: {name} compares the SLM with the LLM, and in a run of strategy "
            f"{config.strategy.name!r} there is no {' and no '.join(missing)}. Take a strategy that trains "
            "both, e.g. fedcollm, or an allocator; or compare the finished model with another one: cotune "
            "audit."
        )
    if name == "rse" and config.auditing.judge is None:
        raise ConfigError(
            "audits: rse needs somebody who compares answers. Name a model or an endpoint that is not under "
            "test (auditing.judge), or take likeness, which needs none."
        )
    if name == "ice":
        _refuse_ice(config)
    if name == "membership":
        raise ConfigError(
            "audits: membership needs the examples that were trained on, and the server of a run has none of "
            "them. Take it out, and where they are: cotune audit --audits membership --members FILE "
            "--non-members FILE"
        )


def _roles(config: Config) -> set[str]:
    """Which of LLM and SLM a run has; an endpoint may stand for the LLM."""
    trained = set(plugins.module("strategy", config.strategy.name).TRAINS)
    return trained | ({SLM, LLM} if config.allocator else set()) | ({LLM} if config.teach.teacher else set())


def _refuse_ice(config: Config) -> None:
    [options] = [audit.options for audit in config.audits if audit.name == "ice"]
    if SLM not in _roles(config) and not options.get("roles"):
        raise ConfigError(
            f"audits: ice asks the SLM, and in a run of strategy {config.strategy.name!r} there is none. Say "
            "which models to ask: roles: [llm]"
        )
    path, cure = options.get("identity"), "Make one: cotune audit init --name NAME --maker MAKER"
    if path is None:
        raise ConfigError(f"audits: ice does not know who the SLM is: identity is missing. {cure}")
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"audits: ice: identity {str(path)!r}: no such file. {cure}")


def _refuse_gates(config: Config) -> None:
    """Gates without audits, and those that would lower what there is not."""
    if config.gates is None:
        return
    names = [audit.name for audit in config.audits]
    if not names:
        raise ConfigError(
            "gates: there are no audits that they could go by. Name some, e.g. audits: [likeness], or take "
            "gates out."
        )
    behind = {audit for audits in BEHIND.values() for audit in audits}
    if not behind & set(names):
        raise ConfigError(
            f"gates: they go by {', '.join(sorted(behind))}, and none of these is among the audits. Add one, "
            "or take gates out."
        )
    strategy = plugins.module("strategy", config.strategy.name)
    if config.allocator or getattr(strategy, "DISTILS", False):
        return
    keys = [f"on_{gate}" for gate, audits in BEHIND.items() if any(name in names for name in audits)]
    idle = [f"gates.{key}" for key in keys if getattr(config.gates, key) == "lower"]
    if idle:
        raise ConfigError(
            f"gates: in strategy {config.strategy.name!r} no model teaches another one, so that there is "
            f"nothing to lower. Set {' and '.join(idle)} to stop or off, or take an allocator."
        )
