"""Who masks with whom: clients on a random ring, each with the k / 2 next ones on either side.

Paper: Bell et al. 2020, https://eprint.iacr.org/2020/704 (SecAgg+): a k-regular Harary graph on a random
order of the clients, with k and the threshold t chosen from hypergeometric tails. The paper's conditions for
this graph are those for a server that follows the protocol; here the server may lie about who is alive:

* *One list.* Clients open masks only under a list of the living that `quorum` clients have signed. With n
  clients of which c collude, 2 quorum > n + c, and an honest client signs one list: no second one reaches it.
  A sum that opens holds at least quorum - c honest clients; more may be said to be in it.
* *Nobody is cut off.* Suppose the living honest clients fall into two sets without an edge between them.
  Where the ring goes from one set to the other there are at least k / 2 places in a row without one of them.
  The client v before the gap can be opened by itself, the k / 2 clients on its other side, and the colluding
  ones in the gap. So if on either side of every client fewer than t - 1 - k / 2 clients collude, v's own mask
  stays closed, in either set, and neither set's sum is learned, whoever the server declares dead.
* *Nobody is opened twice.* The same condition leaves fewer than t colluding neighbours, so that one client's
  own mask and its key are never both opened.
* *The honest case works.* At least t of every client's neighbours live, but for `success_failure`.

The second and third hold but for `privacy_failure`, for one ring. The ring follows from all clients' fresh
keys, so a server can only try others by leaving clients out, or through colluding clients that send other
keys: 2^a tries make it 2^a times as likely, and `privacy_bits` should be larger by a. On a complete graph,
which is taken where the ring would need as many neighbours, nobody can be cut off, there is nothing to try,
and t = quorum. All tails are exact fractions of integers, so that all parties come to the same k and t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, floor

from cotune.errors import ConfigError

PRIVACY_BITS = 40
"""A plan may fail to hide somebody with probability 2^-40, over the random ring."""
SUCCESS_BITS = 20
"""A sum may fail to open with probability 2^-20 although no more clients dropped out than planned."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cohort agrees on.

    num_clients: of the cohort; corrupt: so many may collude with the server; dropped: so many may drop out,
    from the first message to the last; num_neighbours: k; threshold: t, shares that open a secret, of the k
    neighbours and the client itself; quorum: signatures under the list of the living; privacy_failure and
    success_failure: bounds on the probability, over the ring, that the plan does not keep what it says.
    """

    num_clients: int
    corrupt: int
    dropped: int
    num_neighbours: int
    threshold: int
    quorum: int
    privacy_failure: float
    success_failure: float

    @property
    def minimum(self) -> int:
        """The fewest clients whose sum is opened: as planned, and two that do not collude."""
        return max(self.num_clients - self.dropped, self.corrupt + 2)


def plan(num_clients: int, dropout: float, corruption: float, privacy_bits: int = PRIVACY_BITS) -> Plan:
    """Choose k and t.

    Args:
        num_clients: of the cohort.
        dropout: the share of them that may drop out during the sum, all steps together.
        corruption: the share of them that may collude with the server.
        privacy_bits: the plan may fail to hide somebody with probability 2^-privacy_bits.

    Raises:
        ConfigError: a share is not from 0 to below 1, or so many cannot be tolerated.
    """
    for name, share in (("dropout", dropout), ("corruption", corruption)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} {share}; expected a share from 0 to below 1")
    dropped, corrupt = (floor(Fraction(str(share)) * num_clients) for share in (dropout, corruption))
    quorum = (num_clients + corrupt) // 2 + 1
    if num_clients - dropped < max(quorum, corrupt + 2):
        raise ConfigError(
            f"{num_clients} clients, of which {dropped} may drop out and {corrupt} collude; expected at "
            f"least {max(quorum, corrupt + 2)} that stay, so that more than half of the "
            "honest ones agree and two of them are in the sum. Lower dropout or corruption, or enlarge the "
            "cohort."
        )
    # those who drop out at once leave a smaller ring, with the same colluding clients
    rest = num_clients - dropped
    for k in range(2, rest - 1, 2):
        failing = _open(num_clients, dropped, k)
        threshold = max((t for t in range(1, k + 1) if failing[t] * 2**SUCCESS_BITS <= 1), default=0)
        spare = threshold - 1 - k // 2
        if spare <= 0:
            continue
        exposed = min(Fraction(1), 2 * rest * _tail(rest - 1, corrupt, k // 2, spare))
        if exposed * 2**privacy_bits <= 1:
            return Plan(
                num_clients, corrupt, dropped, k, threshold, quorum, float(exposed), float(failing[threshold])
            )
    return Plan(num_clients, corrupt, dropped, num_clients - 1, quorum, quorum, 0.0, 0.0)


def _open(num_clients: int, dropped: int, k: int) -> list[Fraction]:
    """For each threshold from 0 to k: a bound on how likely some client has fewer living neighbours."""
    living = _counts(num_clients - 1, num_clients - 1 - dropped, k)
    everything, below, found = comb(num_clients - 1, k), 0, []
    for count in living:
        found.append(min(Fraction(1), Fraction(num_clients * below, everything)))
        below += count
    return found


def _tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """Probability of at least `least` marked ones among `drawn` of a population, drawn without return."""
    return Fraction(sum(_counts(population, marked, drawn)[least:]), comb(population, drawn))


def _counts(population: int, marked: int, drawn: int) -> list[int]:
    """In how many ways 0, 1, ... `drawn` marked ones are drawn."""
    return [comb(marked, i) * comb(population - marked, drawn - i) for i in range(drawn + 1)]


def ring(clients: Iterable[str], seed: bytes) -> tuple[str, ...]:
    """The clients in an order that everybody can compute from a seed: by SHA-256 of seed and name."""
    return tuple(sorted(clients, key=lambda name: hashlib.sha256(seed + name.encode()).digest()))


def neighbours(order: Sequence[str], place: int, num_neighbours: int) -> tuple[str, ...]:
    """The clients next to `place` on the ring, half on either side; all others if there are no more."""
    count = len(order)
    if num_neighbours >= count - 1:
        return (*order[:place], *order[place + 1 :])
    half = num_neighbours // 2
    return tuple(order[(place + shift) % count] for shift in range(-half, half + 1) if shift)
