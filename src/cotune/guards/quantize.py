"""Fewer bytes: updates as integers of 8 or 4 bits, the largest values only; what was not sent is sent later.

Papers: Seide et al. 2014, https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html, and
Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847 (error feedback); Alistarh et al. 2017,
https://arxiv.org/abs/1610.02132 (QSGD: a scale for each group); Stich et al. 2018,
https://arxiv.org/abs/1809.07599 (the largest, or random, values with memory).

**In the clear.** All arrays make one vector. Its `keep` largest values are rounded to integers that share a
scale by groups (see `cotune.packing`). What rounding and leaving out have changed is kept by the client and
added to its next update, so the sum of all it has sent differs from the sum of its updates by what it keeps
now, and by nothing else. A reply that is lost on its way stays lost, as without packing.

**Under masked sums** all clients of a round must send the same places at the same scale. The places are a
random `keep` of all, drawn from the round; nothing is multiplied by 1 / keep, because what is left out comes
later. The shared scale is that of the sum itself (see `cotune.fixed_point`): its grid has steps of bound / L,
where L = floor((2^(bits-1) - 1) / n) leaves room to add n clients, so a value has the bits of the sum (16 or
32, `aggregator.bits`) and `bits` here counts for nothing. Rounding to 8 or 4 bits first would save no byte,
and cost much: the shared step would be bound / 127 or bound / 7, and the bound of one value is the L2 norm of
a whole update. Bytes for a value: keep times 2 or 4. The mean errs by `fixed_point.Layout.error`, as ever.

**With differential privacy.** Where a guard before this one bounds the values, no value that leaves is larger
(to float32's rounding), and in the clear the L2 norm is not larger than that of the update that came: scales
shrink until it is. So a clipped update stays clipped, whatever was kept from earlier rounds, and noise that
the server adds covers it as before. Noise that clients add in shares is not covered: rounding and sending
later come after a client's own share, but only the sum of all shares hides anybody. Under masked sums the
norm may grow by what is sent later. So masked sums with noise and this guard do not go together.

**With robust aggregators** leave `keep` at 1: clients choose different places, and where most have sent
nothing, a median or a trimmed mean is nothing too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cotune.errors import ConfigError, DataError, WireError
from cotune.guarding import GuardParts, Sender, Total, Update
from cotune.plugins import PluginConfig
from cotune.records import Array, Round

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cotune.packing import Coding, Floats

UNSENT = "unsent"
"""Name of what a client keeps: float32, one number for each value of its update."""
VALUES = "values"
"""Name of what crosses under a masked sum."""


class Config(PluginConfig):
    """Options of fewer bytes."""

    bits: Literal[8, 4] = Field(8, description="of one value in the clear; a masked sum has bits of its own")
    group: int = Field(64, ge=2, le=1 << 20, description="values that share a scale, in the clear")
    keep: float = Field(
        1.0, gt=0, le=1, description="share of values sent: the largest, or random ones under masked sums"
    )


@dataclass(frozen=True, slots=True)
class Quantize:
    """See the module. `bound`: what the guards before this one promise of every value, which stays true."""

    config: Config
    bound: float | None = None
    is_masked: bool = False

    @property
    def coding(self) -> Coding:
        """How a vector is packed in the clear."""
        from cotune.packing import Coding  # here, so that reading `Config` starts fast

        return Coding(self.config.bits, self.config.group, self.config.keep)

    def outgoing(self, update: Update, sender: Sender) -> tuple[Update, Mapping[str, Array]]:
        """The update as the server will unpack it, and what was not sent of it and of earlier ones.

        Raises:
            WireError: a value is not finite.
            DataError: what was kept belongs to an adapter of another size.
        """
        import numpy as np

        from cotune.packing import flat, norm, shaped

        given = flat(update.arrays)
        kept = sender.memo.get(UNSENT, np.zeros_like(given))
        if kept.shape != given.shape:
            raise DataError(
                f"quantize: {sender.client!r} kept {kept.size:,} values that were not sent yet; its update "
                f"has {given.size:,}: the folder is of another run. Give this run a folder of its own."
            )
        with np.errstate(over="ignore"):
            wanted = given + kept
        if not np.isfinite(wanted).all():
            raise WireError("an update is not finite: training diverged; lower slm.tune.lr")
        bounded = wanted if self.bound is None else np.clip(wanted, -self.bound, self.bound)
        if self.is_masked:
            sent = np.zeros_like(bounded)
            places = self._places(len(bounded), sender.round)
            sent[places] = bounded[places]
        else:
            sent = self.coding.rounded(bounded, None if self.bound is None else norm(given))
        return replace(update, arrays=shaped(sent, update.arrays)), {UNSENT: wanted - sent}

    def incoming(self, mean: Mapping[str, Array], total: Total) -> dict[str, Array]:
        """The mean as it is."""
        return dict(mean)

    def pack(self, arrays: Mapping[str, Array], round: Round) -> dict[str, Array]:
        """Few bytes for what `outgoing` has returned; see `packing.Coding.pack`.

        Under a masked sum float32 `values` [sent], which may be added up over the clients of a round.
        """
        from cotune.packing import flat

        values = flat(arrays)
        if self.is_masked:
            return {VALUES: values[self._places(len(values), round)]}
        return self.coding.pack(values)

    def unpack(
        self, arrays: Mapping[str, Array], round: Round, like: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Float32 arrays with the names and shapes of `like`: of one client, or the mean under a masked sum.

        Raises:
            WireError: what came is no packed update of that shape.
        """
        import numpy as np

        from cotune.packing import shaped

        size = sum(np.size(array) for array in like.values())
        if not self.is_masked:
            return shaped(self.coding.unpack(arrays, size), like)
        places = self._places(size, round)
        values = arrays.get(VALUES)
        if values is None or len(arrays) != 1 or values.shape != places.shape:
            raise WireError(
                f"packed arrays {sorted(arrays)[:4]!s:.80}; expected {VALUES!r}, float32[{len(places):,}]"
            )
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise WireError(f"packed values: {values.dtype}; expected finite float32")
        whole: Floats = np.zeros(size, np.float32)
        whole[places] = values
        return shaped(whole, like)

    def _places(self, num_values: int, round: Round) -> npt.NDArray[np.int64]:
        """Which values everybody sends in this round, ascending."""
        import numpy as np

        from cotune.packing import num_kept

        kept = num_kept(num_values, self.config.keep)
        # raw bits: unlike shuffling, they are the same in every version of numpy, and so at every client
        keys = round.rng("quantize", "places").bit_generator.random_raw(num_values)
        return np.sort(np.argpartition(keys, kept - 1)[:kept]) if kept else np.zeros(0, np.int64)


def bytes_per_value(config: Config) -> float:
    """Bytes up for each value of an update in the clear, at most; names and header, some 300 bytes, aside.

    Under a masked sum it is `config.keep` times the bytes of `aggregator.bits`.
    """
    from cotune.packing import Coding

    return Coding(config.bits, config.group, config.keep).bytes_per_value()


def build(config: Config, parts: GuardParts) -> Quantize:
    """The guard.

    Raises:
        ConfigError: masked sums, and no guard before this one bounds the values, or nothing would be saved.
    """
    if parts.is_masked and parts.before is None:
        raise ConfigError(
            "quantize under masked sums: no guard before it bounds the values, so clients share no scale. "
            "Put clip_noise before it (noise_multiplier: 0 clips only)."
        )
    if parts.is_masked and config.keep == 1:
        raise ConfigError(
            "quantize.keep: 1 under masked sums, where bits are those of the sum: no byte would be saved. "
            "Set keep below 1, e.g. 0.25, or leave quantize out and set aggregator.bits: 16."
        )
    return Quantize(config, parts.before, parts.is_masked)
