"""Composition of what stands between training and the wire: guards, and the secrets they draw noise from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from cotune import plugins
from cotune.config import Config
from cotune.guarded import Guards, Secret
from cotune.guarding import GuardParts
from cotune.shelf import Shelf


def guards(
    config: Config, clients: tuple[str, ...], folder: Path, *, is_masked: bool, secret: Secret | None = None
) -> Guards | None:
    """The guards of a configuration, for clients that keep what they keep in `folder`.

    `secret`: of each party; by default simulated, so that an embedded run can be repeated.

    Raises:
        ConfigError: a guard that cannot work with the others, or with masked sums.
    """
    if not config.guards:
        return None
    found, before = {}, None
    for spec in config.guards:
        parts = GuardParts(
            num_clients=len(clients),
            cohort=max(1, round(config.cohort.fraction * len(clients))),
            minimum=config.cohort.minimum,
            num_rounds=config.rounds,
            is_masked=is_masked,
            before=before,
        )
        made = found[spec.name] = plugins.load("guard", spec.name, spec.options, parts=parts)
        before = made.bound if made.bound is not None else before
    return Guards(found, secret or simulated_secret(config.seed), Shelf(folder, "guards"))


def simulated_secret(seed: int) -> Callable[[str], bytes]:
    """Secrets of all parties of an embedded run. Whoever knows the seed knows them: such a run is a
    simulation, and one that can be repeated."""
    return lambda party: hashlib.sha256(f"cotune simulated secret\x1f{seed}\x1f{party}".encode()).digest()
