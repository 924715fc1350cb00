"""Groups on clients, groups of groups on the server, one example for each group that wins.

Paper: Qin et al. 2024 (FedHDS), https://arxiv.org/abs/2410.10926: hierarchical data selection, with the
correct rows and group numbers that its released code lacks. In mode `paper` every client lays out its
examples by a t-SNE of its own, so that centres of different clients cannot be compared; in `shared_basis` all
clients use the same seeded projection, and distinct groups are kept instead of being taken for noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cotune import picking
from cotune.plugins import PluginConfig
from cotune.protocols import Client, Given, Reply, SelectorParts, State, Verbs
from cotune.records import Array, Message, Round

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cotune.groups import Tick


class Config(PluginConfig):
    """Options of FedHDS."""

    mode: Literal["shared_basis", "paper"] = Field(
        "shared_basis", description="one projection for everybody, or as printed: a t-SNE for each client"
    )
    model: str = Field(
        "slm", description="whose features: `slm` as it is now, or a frozen model (all-MiniLM-L6-v2: Turbo)"
    )
    every: int = Field(1, ge=0, description="rounds between choices; 1: every round; 0: once, by everybody")
    keep: float | None = Field(
        None, gt=0, le=1, description="at most this share of all examples; groups of most centres first"
    )
    min_group: int = Field(2, ge=2, description="examples that make a group on a client")
    min_group_server: int = Field(2, ge=2, description="centres that make a group on the server")
    keep_server_noise: bool = Field(
        True, description="shared_basis: a centre that no other is near to is a group of its own"
    )
    dimensions: int = Field(16, gt=1, description="of the shared basis")
    seed: int = Field(0, ge=0, description="of the shared basis; the same for everybody")
    smallest_sent: int = Field(
        1,
        ge=1,
        description="groups of fewer examples are not sent; a mean over 5 hides one example better than a "
        "mean over 2, but it is no guarantee",
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="deviation of Gaussian noise on tanh of a centre; obscures it, and is no differential "
        "privacy: at 0.3 one centre of 16 dimensions would cost an epsilon of about 130 in one round",
    )


class FedHDS:
    """Propose on clients, reconcile on the server, pick on clients."""

    def __init__(self, config: Config, parts: SelectorParts) -> None:
        self.config, self.parts = config, parts
        self.asks_all = config.every != 1

    def is_due(self, round: Round) -> bool:
        """Once, or every so many rounds from the first."""
        return picking.is_due(self.config.every, round)

    def server_select(self, state: State, round: Round, verbs: Verbs) -> dict[str, int]:
        """Only centres and the numbers of groups cross, one client at a time."""
        adapter = state.slm if self.config.model == "slm" else None
        proposals = self._usable(verbs.ask("propose", adapter, round), verbs)
        winners = self.reconcile(proposals, round)
        told = {client: {"groups": groups} for client, groups in winners.items()}
        return picking.counts(verbs.ask("pick", None, round, told), verbs)

    def client_step(self, action: str, given: Sequence[Given], clients: Sequence[Client]) -> list[Reply]:
        """`propose`: group the examples; `pick`: the member nearest to the centre of each group that won."""
        if action == "pick":
            return [self._pick(told.facts, client) for told, client in zip(given, clients, strict=True)]
        reader = self.parts.reader(self.config.model)
        reader.mount(given[0].adapter)
        texts = [example.prompt + example.completion for client in clients for example in client.examples]
        is_shared = self.config.mode == "shared_basis"
        features = reader.features(texts, self.config.dimensions if is_shared else None, self.config.seed)
        reader.mount(None)
        replies: list[Reply] = []
        ends = list(accumulate((len(client.examples) for client in clients), initial=0))
        for client, start, end in zip(clients, ends, ends[1:], strict=False):
            tick = partial(self._tell, (start, len(texts)))
            replies.append(self._propose(features[start:end], client, reader.fingerprint, tick))
            tick(end - start, end - start)
        return replies

    def _tell(self, among: tuple[int, int], done: int, _of_one_client: int) -> None:
        before, total = among
        self.parts.progress("grouping", before + done, total)

    def reconcile(self, proposals: Sequence[Message], round: Round) -> dict[str, list[int]]:
        """Groups of centres; of each the centre nearest to its middle wins. Returns what won, by client."""
        import numpy as np

        from cotune import groups

        owners = [(m.client, number) for m in proposals for number in m.facts["groups"]]
        won: dict[str, list[int]] = {message.client: [] for message in proposals}
        if not owners:
            return won
        points = np.concatenate([m.arrays["centres"] for m in proposals if m.facts["groups"]])
        tick = partial(self.parts.progress, "grouping centres")
        labels, weights = groups.density_groups(points, self.config.min_group_server, round.seed, tick)
        if self.config.mode == "shared_basis" and self.config.keep_server_noise:
            alone = np.flatnonzero(labels < 0)
            labels[alone] = labels.max(initial=-1) + 1 + np.arange(len(alone))
            weights[alone] = 1.0
        best = groups.nearest(points, labels, groups.centres(points, labels, weights))
        limit = self._limit(proposals)
        sizes = np.bincount(labels[labels >= 0], minlength=len(best))
        order = round.rng("fedhds").permutation(len(sizes))  # so that a tie favours nobody
        for group in order[np.argsort(-sizes[order], kind="stable")][:limit].tolist():
            client, number = owners[best[group]]
            won[client].append(number)
        return won

    def _limit(self, proposals: Sequence[Message]) -> int | None:
        if self.config.keep is None:
            return None
        total: int = sum(m.facts["total"] for m in proposals)
        return max(1, int(self.config.keep * total + 0.5))

    def _usable(self, replies: Sequence[Message], verbs: Verbs) -> list[Message]:
        """Replies that fit together: well formed, with centres read from the model that most of them name."""
        kept = []
        for reply in replies:
            problem = _malformed(reply, None if self.config.mode == "paper" else self.config.dimensions)
            if problem:
                verbs.refuse(reply, problem)
            else:
                kept.append(reply)
        models = [reply.facts["model"] for reply in kept]
        common = max(dict.fromkeys(models), key=models.count, default="")
        for reply in [reply for reply in kept if reply.facts["model"] != common]:
            verbs.refuse(
                reply,
                f"its features come from model {reply.facts['model']}, the others' from {common}: centres of "
                "different models cannot be compared. Give every client the same model.",
            )
        return [reply for reply in kept if reply.facts["model"] == common]

    def _propose(self, features: npt.NDArray[np.float32], client: Client, model: str, tick: Tick) -> Reply:
        import numpy as np

        from cotune import groups

        groups.check_finite(features)
        rng = client.rng("fedhds")
        tick(0, len(features))
        points = features if self.config.mode == "shared_basis" else _layout(features, rng)
        labels, weights = self._groups(points, int(rng.integers(2**31)), tick)
        middle = groups.centres(points, labels, weights)
        rows = groups.nearest(points, labels, middle)
        sizes = np.bincount(labels[labels >= 0], minlength=len(rows))
        sent = np.flatnonzero(sizes >= self.config.smallest_sent)
        centres = self._hidden(middle[sent], rng)
        facts: dict[str, Any] = {"groups": sent.tolist(), "total": len(features), "model": model}
        return Reply(facts=facts, arrays={"centres": centres}, memo={"labels": labels, "rows": rows})

    def _groups(self, points: npt.NDArray[Any], seed: int, tick: Tick) -> tuple[Array, Array]:
        """HDBSCAN; in a shared basis a client whose examples form no groups is one group as a whole."""
        import numpy as np

        from cotune import groups

        labels, weights = groups.density_groups(points, self.config.min_group, seed, tick)
        if self.config.mode == "shared_basis" and len(points) and labels.max() < 0:
            return np.zeros(len(points), np.int64), np.ones(len(points))
        return labels, weights

    def _hidden(self, centres: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
        if self.config.noise == 0:
            return centres
        import numpy as np

        noise = rng.normal(0.0, self.config.noise, centres.shape)
        noisy: npt.NDArray[Any] = (np.tanh(centres) + noise).astype(centres.dtype)
        return noisy

    def _pick(self, told: Mapping[str, Any], client: Client) -> Reply:
        rows = client.memo["rows"]
        picked = sorted({int(rows[number]) for number in told.get("groups", [])})
        facts = {"selected": len(picked), "total": len(client.examples)}
        return Reply(facts=facts, chosen=picked)


def _layout(features: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[Any]:
    """A client's own two-dimensional t-SNE (the paper's step 2), [n, 2]; fewer than 3 points stay put."""
    import numpy as np
    from sklearn.manifold import TSNE

    if len(features) < 3 or (features == features[0]).all():
        return np.ascontiguousarray(features[:, :2])
    perplexity = min(30.0, len(features) - 1)
    layout = TSNE(2, perplexity=perplexity, random_state=int(rng.integers(2**31)), init="pca")
    found: npt.NDArray[Any] = layout.fit_transform(features)
    return found


def _malformed(reply: Message, dimensions: int | None) -> str:
    """What is wrong with a proposal; empty for nothing."""
    numbers, centres = reply.facts.get("groups"), reply.arrays.get("centres")
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        return "groups: expected a list of whole numbers"
    if centres is None or centres.ndim != 2 or len(centres) != len(numbers):
        return f"centres: expected one for each of {len(numbers)} groups"
    if len(numbers) and centres.shape[1] != (dimensions or 2):
        return f"centres: {centres.shape[1]} dimensions, expected {dimensions or 2}"
    total = reply.facts.get("total")
    if type(total) is not int or total < 0 or not isinstance(reply.facts.get("model"), str):
        return "expected the number of examples (total) and the fingerprint of the model (model)"
    return ""


def build(config: Config, parts: SelectorParts) -> FedHDS:
    """The selector."""
    return FedHDS(config, parts)
