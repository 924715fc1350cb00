"""Model families: which clients hold which model.

Adapters are summed inside a family; only text crosses families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotune.config import Config, FamilyConfig, ModelConfig
from cotune.errors import ConfigError, suggestion
from cotune.protocols import SLM


def models(config: Config) -> dict[str, ModelConfig]:
    """The SLM of each family, by the family's name; the first one is `slm`."""
    return {SLM: config.slm, **{family.name: family for family in config.families}}


def members(config: Config, clients: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The clients of each family, by its name.

    Families that name their clients come first; those that count take the first ones that are left, in the
    order of the file; the rest hold `slm`.

    Raises:
        ConfigError: a family has no clients, a client is unknown or wanted twice, or nobody is left for
            `slm`; or a family is smaller than the quorum, so that it could never learn anything.
    """
    _refuse_names(config.families)
    owner: dict[str, str] = {}
    for number, family in enumerate(config.families):
        if not isinstance(family.clients, int):
            _claim(family.clients, (family.name, f"families.{number}.clients"), owner, clients)
    for number, family in enumerate(config.families):
        if isinstance(family.clients, int):
            free = [client for client in clients if client not in owner]
            if len(free) <= family.clients:
                raise ConfigError(
                    f"families.{number}.clients: {family.clients} of {len(clients)} clients, but only "
                    f"{len(free)} are left and one at least must hold slm. Lower it, or let the largest "
                    "family be slm."
                )
            owner |= dict.fromkeys(free[: family.clients], family.name)
    found = {name: tuple(c for c in clients if owner.get(c, SLM) == name) for name in models(config)}
    _refuse_small(found, config.cohort.minimum)
    return found


def _refuse_names(families: Sequence[FamilyConfig]) -> None:
    names = [family.name for family in families]
    for number, name in enumerate(names):
        if name in (SLM, "llm") or name in names[:number]:
            raise ConfigError(
                f"families.{number}.name: {name!r} is taken; expected a name of its own, e.g. the model's."
            )


def _claim(
    wanted: Sequence[str], whose: tuple[str, str], owner: dict[str, str], clients: Sequence[str]
) -> None:
    """Write down who owns the wanted clients."""
    name, place = whose
    if not wanted:
        raise ConfigError(f"{place}: no clients; expected their names, or how many.")
    for client in wanted:
        if client not in clients:
            raise ConfigError(
                f"{place}: there is no client {client!r}; expected one of {len(clients)} clients, such as "
                f"{', '.join(clients[:3])}.{suggestion(client, clients)}"
            )
        if client in owner:
            raise ConfigError(f"{place}: {client!r} is in family {owner[client]!r} already. Name it once.")
        owner[client] = name


def _refuse_small(found: Mapping[str, Sequence[str]], minimum: int) -> None:
    for name, clients in found.items():
        if not clients:
            raise ConfigError(
                "families: every client is in a family, nobody holds slm. Let one of them be slm."
            )
        if len(found) > 1 and len(clients) < minimum:
            raise ConfigError(
                f"family {name!r} has {len(clients)} clients, cohort.minimum is {minimum}: adapters are "
                "summed inside a family, so it would never learn anything. Give it more clients, or a "
                "lower minimum."
            )
