"""Clients tune one SLM adapter; the server averages it, then teaches it public labels and rationales.

Paper: Hsieh et al. 2023 (Distilling Step-by-Step), https://arxiv.org/abs/2305.02301, after each round of
FedAvg: the plain use of rationales, which allocation by reasoning paths must beat.

The paper's T5 reads "predict: " before a question whose label is asked for and "explain: " before one whose
rationale is. Here the label's question stands bare, for that is what evaluation asks and what clients tune
on; only the rationale's has its prefix, so nothing that is measured or used later ever asks for a rationale.
Both prefixes are no option: evaluation would then ask another question than the one that was trained. Where
a task's own answer is a path (gsm8k, say), its label holds the rationale already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from cotune import reasoning
from cotune.errors import ConfigError
from cotune.plugins import PluginConfig
from cotune.protocols import Client, Parts, Reply, State, Verbs
from cotune.records import Adapter, Example, Round, Sampling

TRAINS = frozenset({"slm"})
UPDATES = True
"""Its clients send back what they made of an adapter, which guards may watch over."""
TEACHABLE = False
"""It is what teaching by an allocator is compared with."""
DISTILS = True
"""The SLM learns from rationales, which a gate may lower."""


class Config(PluginConfig):
    """Options of Distilling Step-by-Step."""

    weight: float = Field(0.5, ge=0, le=1, description="of the label's loss; the rationale's has the rest")
    public_epochs: float = Field(1.0, ge=0, description="passes over the public set in a round; 0: FedAvg")
    public_lr: float | None = Field(None, gt=0, description="lr on the public set; slm.tune.lr by default")
    rationales: Literal["data", "teacher"] = Field(
        "data", description="from the rows' own field, or written once by the LLM"
    )
    path_tokens: int = Field(256, gt=0, description="longest path that the teacher writes")
    guard: bool = Field(
        True, description="only the teacher's paths that end on the right answer; off: all, as in the paper"
    )
    weights: Literal["equal", "examples"] = Field("equal", description="how much a client counts in the mean")

    @property
    def explains(self) -> bool:
        """Whether rationales are trained on at all."""
        return self.public_epochs > 0 and self.weight < 1


class StepByStep:
    """Clients as in FedAvg; on the server the mean of their adapters learns the two tasks."""

    trains = TRAINS

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.slm = config, parts.learners["slm"]
        self.public, self.teacher = parts.public, parts.teacher
        self._reasoned: Sequence[Example] | None = None

    def init(self, seed: int) -> State:
        """One fresh adapter, the same for everybody."""
        return State(slm=self.slm.fresh(seed))

    def server_round(self, state: State, round: Round, verbs: Verbs) -> tuple[State, Mapping[str, float]]:
        """The mean of the clients' adapters, then the public set; without replies nothing changes."""
        self.reasoned(round, verbs)  # a teacher that cannot be asked is told before anybody has trained
        gathered = verbs.gather("tune", state.slm, round)
        if gathered.adapter is None:
            return state, {}
        slm, losses = self.distil(gathered.adapter, round, verbs, state.distil)
        return state.replace(slm=slm), {**gathered.losses, **losses}

    def client_step(
        self, action: str, given: Sequence[Adapter | None], clients: Sequence[Client]
    ) -> list[Reply]:
        """Tune the shared adapter on the client's own examples: labels alone."""
        done = self.slm.tune_clients(clients, [adapter for adapter in given if adapter])
        equal = self.config.weights == "equal"
        return [
            Reply(tuned.adapter, 1.0 if equal else float(client.num_examples), tuned.sums)
            for tuned, client in zip(done, clients, strict=True)
        ]

    def distil(
        self, start: Adapter, round: Round, verbs: Verbs, share: float = 1.0
    ) -> tuple[Adapter, Mapping[str, float]]:
        """Both tasks of each public batch in one step; the adapter after it, and mean losses by task.

        `share` is how much of the rationales' weight the gates have left.
        """
        from cotune.models.two_tasks import Balance, TwoTasks, with_a_task

        label = self.config.weight + (1 - share) * (1 - self.config.weight)
        balance = Balance(label, self.config.public_lr)
        examples = with_a_task(self.slm, self.reasoned(round, verbs), balance)
        batches = self.slm.batches(examples, self.config.public_epochs, round.rng("public"))
        if not batches:
            return start, {}
        tasks = TwoTasks(self.slm, balance, start, (len(batches), round.span))
        for step, batch in enumerate(batches):
            losses = tasks.step(batch)
            tokens = losses.pop("tokens")
            named = {f"loss_{task}": value for task, value in losses.items()}
            verbs.progress("co-tune", step + 1, len(batches), tokens=tokens, **named)
        return tasks.finish()

    def reasoned(self, round: Round, verbs: Verbs) -> Sequence[Example]:
        """The public set with the rationales that are trained on; empty ones are none.

        The teacher is asked when they are first needed, and once: it does not change in a run.
        """
        if not self.config.explains:
            return self.public
        if self._reasoned is None:
            found = self.public if self.config.rationales == "data" else self._written(round, verbs)
            usable = sum(bool(example.rationale.strip()) for example in found)
            note = f"rationales: {usable} of {len(found)} public examples have one that can be learned from"
            verbs.progress("co-tune", 0, 1, note=note)
            self._reasoned = found
        return self._reasoned

    def _written(self, round: Round, verbs: Verbs) -> list[Example]:
        """The public set with what the teacher wrote, each path up to its answer."""
        assert self.teacher is not None  # `build` refuses
        verbs.progress("write", 0, len(self.public))
        prompts = [reasoning.path_prompt(example) for example in self.public]
        sampling = Sampling(self.config.path_tokens, seed=round.seed, stop=reasoning.STOP)
        written = self.teacher(self.config.guard).write(prompts, sampling)
        return [
            replace(example, rationale=self._usable(path.text, example))
            for path, example in zip(written, self.public, strict=True)
        ]

    def _usable(self, path: str, example: Example) -> str:
        is_refused = self.config.guard and not reasoning.is_right(path, example)
        return "" if is_refused else reasoning.reasons(path)


def build(config: Config, parts: Parts) -> StepByStep:
    """The strategy.

    Raises:
        ConfigError: there is nothing to learn on the server: no public examples, or no rationales.
    """
    if config.public_epochs > 0 and not parts.public:
        raise ConfigError(
            "strategy step_by_step: there are no public examples for the server to train on. Set public_rows "
            "of a source above 0, or strategy.public_epochs=0."
        )
    if config.explains and config.rationales == "teacher" and parts.teacher is None:
        raise ConfigError(
            "strategy.rationales: 'teacher' was asked for, but there is nobody who could write. Take rows "
            "with rationales and strategy.rationales=data."
        )
    has_any = any(example.rationale.strip() for example in parts.public)
    if config.explains and config.rationales == "data" and not has_any:
        raise ConfigError(
            f"strategy.rationales: none of the {len(parts.public)} public examples has a rationale. Take "
            "rows with a field rationale (task dss_cqa has them), let the LLM write them "
            "(strategy.rationales=teacher), or train on labels alone (strategy.weight=1)."
        )
    return StepByStep(config, parts)
