"""Composition of what stands between training and the wire: guards, masks, their keys, and what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotune import plugins
from cotune.cohorts import Asked, drawn
from cotune.config import Config, fingerprint
from cotune.errors import ConfigError
from cotune.guarded import Guards, Secret
from cotune.guarding import GuardParts
from cotune.outbox import Outbox
from cotune.shelf import Shelf
from cotune.spending import Spending

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from cotune.under_masks import UnderMasks

Members = Mapping[str, Sequence[str]]
"""Clients by family."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What each party of a deployed run has: its secret, its signing key, and everybody's public keys.

    A client's process knows its own secret and key only, the server's only its secret.
    """

    secret: Secret
    identity: Callable[[str], Ed25519PrivateKey]
    registry: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Wire:
    """What both sides of a run put between training and the wire; `facts` go into results.json."""

    outbox: Outbox
    guards: Guards | None = None
    masks: UnderMasks | None = None
    spending: Spending | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def wire(config: Config, members: Members, out: Path, num_values: int, keys: Keys | None = None) -> Wire:
    """The guards and masks of a configuration.

    Args:
        config: of the run, the same for all parties.
        members: all clients of the run.
        out: the run's folder; clients keep what they keep in `clients`.
        num_values: of one update.
        keys: of a deployed run; by default simulated, so that an embedded run can be repeated.

    Raises:
        ConfigError: a guard that cannot work with the others or with masked sums, or too few clients for it.
    """
    clients = tuple(sorted(client for found in members.values() for client in found))
    size = len(drawn(config.seed, 1, clients, config.cohort.fraction))
    is_masked = getattr(plugins.module("aggregator", config.aggregator.name), "MASKED", False)
    settings = plugins.load("aggregator", config.aggregator.name, config.aggregator.options)
    _refuse_too_few(config, settings)
    least = config.cohort.minimum
    if is_masked:
        for name, found in members.items():
            if len(found) < 2 and len(members) > 1:
                raise ConfigError(
                    f"families: {name} has {len(found)} client, expected at least 2: the masked sum of one "
                    "client is its update. Give it another one, or take aggregator mean."
                )
            asked = size if len(members) == 1 else len(found)
            plan = settings.plan(asked, asked)
            least = max(least, plan.quorum, plan.corrupt + 2)  # a second try may have no more than these
    parts = GuardParts(len(clients), size, least, config.rounds, is_masked)
    secret = keys.secret if keys else simulated_secret(config.seed)
    guards = _guards(config, parts, Guards({}, secret, Shelf(out / "clients", "guards")))
    spending = _spending(config, guards, is_simulated=keys is None)
    if not is_masked:
        return Wire(Outbox(guards), guards, None, spending)
    settings = settings.bounded(guards.bound if guards else None)
    if spending is not None:
        grid = settings.layout(size, (), (), is_update=True).grid
        step = grid.step * settings.config.largest_weight  # guarded updates weigh 1
        spending = _on_grid(spending, guards, (step, num_values, grid.bits == 16))
    outbox, masks = _masked(config, members, out, (settings, guards, keys))
    smallest = size if len(members) == 1 else min(map(len, members.values()))
    return Wire(outbox, guards, masks, spending, {"secure_sum": settings.describe(smallest)})


def _refuse_too_few(config: Config, aggregator: Any) -> None:
    """An aggregator that needs more replies than a round may end with."""
    least = getattr(aggregator, "minimum", 1)
    if least > config.cohort.minimum:
        raise ConfigError(
            f"aggregator: {config.aggregator.name} needs {least} replies, and a round may end with "
            f"{config.cohort.minimum}. Set cohort.minimum to at least {least}."
        )


def _guards(config: Config, parts: GuardParts, none: Guards) -> Guards | None:
    """The guards in their order; each is told the bound of those before it."""
    if not config.guards:
        return None
    found, before = {}, None
    for spec in config.guards:
        made = found[spec.name] = plugins.load(
            "guard", spec.name, spec.options, parts=replace(parts, before=before)
        )
        before = made.bound if made.bound is not None else before
    names = list(found)
    packing = [name for name in names[:-1] if hasattr(found[name], "pack")]
    if packing:
        raise ConfigError(
            f"guards: {packing[0]} packs an update into fewer bytes, and {names[-1]} comes after it. Put "
            f"{packing[0]} last."
        )
    _refuse_unsent_noise(config, parts.is_masked)
    return replace(none, guards=found)


def _refuse_unsent_noise(config: Config, is_masked: bool) -> None:
    """What quantize left out is sent later, and no longer under the noise that it came with."""
    options = {guard.name: guard.options for guard in config.guards}
    noise = options.get("clip_noise", {"noise_multiplier": 0}).get("noise_multiplier", 1.0)
    if is_masked and "quantize" in options and noise > 0:
        raise ConfigError(
            "guards: under masked sums quantize sends later what it left out, so that noise of clip_noise "
            "would not hide it. Drop quantize (aggregator.bits: 16 halves the bytes), or set "
            "clip_noise.noise_multiplier: 0."
        )


def _spending(config: Config, guards: Guards | None, *, is_simulated: bool) -> Spending | None:
    """The budget of the guard that has one."""
    for guard in guards.guards.values() if guards else ():
        budget = getattr(guard, "budget", None)
        if budget is not None:
            audits = tuple(audit.name for audit in config.audits)
            return Spending(budget, bool(getattr(guard, "sends_losses", False)), audits, is_simulated)
    return None


def _on_grid(spending: Spending, guards: Guards | None, grid: tuple[float, int, bool]) -> Spending:
    """The budget once values are rounded to a masked sum's grid: (step, values, rounded at random)."""
    from cotune.privacy import check_grid, widened

    assert guards is not None
    guard: Any = next(found for found in guards.guards.values() if hasattr(found, "budget"))
    step, num_values, is_random = grid
    if guard.deviation > 0:
        check_grid(step, guard.deviation)
        return spending
    wide = widened(step, num_values, guard.clip, is_random=is_random)
    return replace(spending, budget=replace(spending.budget, widening=wide))


def _masked(
    config: Config, members: Members, out: Path, how: tuple[Any, Guards | None, Keys | None]
) -> tuple[Outbox, UnderMasks]:
    """Both halves of masked sums."""
    try:
        from cotune.identity_keys import simulated_identity, simulated_registry
        from cotune.masked_gather import Journal
        from cotune.masked_member import Members as Masking
        from cotune.under_masks import UnderMasks
    except ImportError as error:
        raise ConfigError(
            f"aggregator: {config.aggregator.name} needs the package cryptography ({error}). Install it: "
            "pip install 'cotune[secure]'"
        ) from error
    settings, guards, keys = how
    run, least = fingerprint(config), max(2, config.cohort.minimum)
    clients = [client for found in members.values() for client in found]
    asked = Asked(config.seed, config.cohort.fraction, members)
    registry = keys.registry if keys else simulated_registry(config.seed, clients)
    identity = keys.identity if keys else lambda client: simulated_identity(config.seed, client)
    masking = Masking(
        out / "clients", identity, registry, run, settings, least, asked, is_flushed=keys is not None
    )
    journal = Journal(out / "sums", config.runtime.keep_checkpoints + 1)
    return Outbox(guards, masking), UnderMasks(run, settings, registry, journal, asked, config.cohort.minimum)


def simulated_secret(seed: int) -> Callable[[str], bytes]:
    """Secrets of all parties of an embedded run. Whoever knows the seed knows them: such a run is a
    simulation, and one that can be repeated."""
    return lambda party: hashlib.sha256(f"cotune simulated secret\x1f{seed}\x1f{party}".encode()).digest()
