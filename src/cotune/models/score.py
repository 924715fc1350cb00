"""Token log-probabilities: (context, target) -> sums and counts; the primitive under most plug-ins.

Origin: accuracies as lm-evaluation-harness defines them (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness);
the choices of one question are read as a tree of tokens, as in Miao et al. 2023,
https://arxiv.org/abs/2305.09781, so that what they have in common is computed once.

A sequence's last token is predicted but never read: choices of one token cost no position of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotune.errors import DataError
from cotune.models.causal_lm import CausalLM, Encoded, fitted
from cotune.models.head import positions_per_chunk
from cotune.records import DELIMITER, Example

Progress = Callable[[int, int], None]
"""Told how many sequences are done, and of how many."""

_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model thinks of some targets, in the order they were asked for; arrays of [targets].

    sums: log-probability of the whole target in nats, float64; counts: its tokens; is_greedy: every token
    was the model's first choice.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    is_greedy: npt.NDArray[np.bool_]

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Log-probability per token in nats; 0 for a target without tokens."""
        return self.sums / np.maximum(self.counts, 1)


@dataclass(frozen=True, slots=True)
class _Tree:
    """Sequences that share their beginnings: node i reads ids[i] after the path that ends in parents[i].

    Target token `targets[j]` of sequence `owners[j]` is predicted at node `places[j]`.
    """

    ids: list[int]
    parents: list[int]
    depths: list[int]
    places: list[int]
    targets: list[int]
    owners: list[int]

    @property
    def is_chain(self) -> bool:
        """Every node follows the one before, so that plain causal attention is right."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))


def score_pairs(
    lm: CausalLM, pairs: Sequence[tuple[str, str]], *, tokens: int, progress: Progress | None = None
) -> Scores:
    """Log-probability of each target after its context.

    Args:
        lm: the model, with or without one adapter mounted.
        pairs: (context, target); they are encoded together and split as `CausalLM.encode_pair` does.
        tokens: positions per forward pass, padding included; a longer pair gets a pass of its own.
            Neighbours with the same context are read once where the model allows it.
        progress: told after every pass.

    Returns:
        Scores in the order of `pairs`, whatever the batches were. A pair that is longer than the model's
        context loses the start of its context, then the end of its target; `counts` says what was scored.
    """
    groups = _grouped(lm, _encode(lm, pairs), [context for context, _ in pairs], tokens)
    return _score(lm, groups, tokens, progress)


def score_rows(lm: CausalLM, rows: Sequence[Encoded], *, tokens: int) -> Scores:
    """`score_pairs` of texts that are tokens already, exactly as they are: nothing is cut."""
    groups = _grouped(lm, rows, [row.ids[: row.num_context] for row in rows], tokens)
    return _score(lm, groups, tokens)


def score_choices(lm: CausalLM, examples: Sequence[Example], *, tokens: int) -> list[tuple[float, ...]]:
    """Log-probability of `DELIMITER + choice` after the prompt, for each choice of each example.

    Equal to `score_pairs` on every choice within rounding, but a prompt is read once for all its choices
    where the model allows it.

    Args:
        lm: the model, with or without one adapter mounted.
        examples: each with one choice or more.
        tokens: positions per forward pass, padding included.

    Returns:
        Sums in nats, one tuple per example in the order of its choices.

    Raises:
        DataError: an example without choices, or with one that is empty; names the example.
    """
    groups: list[list[Encoded]] = []
    for choices in _encode_choices(lm, examples):
        groups += [choices] if _can_share(lm, choices, tokens) else [[choice] for choice in choices]
    sums = iter(_score(lm, groups, tokens).sums.tolist())
    return [tuple(next(sums) for _ in example.choices) for example in examples]


def context_length(lm: CausalLM) -> int:
    """Tokens the model can read at once; a very large number where it does not say."""
    config = lm.model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return _NO_LIMIT


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first; rows x longest <= tokens, but at least one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _encode(lm: CausalLM, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
    limit = context_length(lm) + 1
    return [fitted(head, tail, limit) for head, tail in lm.encode_pairs(pairs)]


def _grouped(
    lm: CausalLM, rows: Sequence[Encoded], contexts: Sequence[object], tokens: int
) -> list[list[Encoded]]:
    """Runs of neighbours with the same context, where they may stand in one row; else each on its own."""
    groups: list[list[Encoded]] = []
    for _, numbers in groupby(range(len(rows)), key=contexts.__getitem__):
        mine = [rows[number] for number in numbers]
        groups += [mine] if _can_share(lm, mine, tokens) else [[row] for row in mine]
    return groups


def _encode_choices(lm: CausalLM, examples: Sequence[Example]) -> list[list[Encoded]]:
    pairs = [(example.prompt, DELIMITER + choice) for example in examples for choice in example.choices]
    rows = iter(_encode(lm, pairs))
    found = [[next(rows) for _ in example.choices] for example in examples]
    for example, choices in zip(examples, found, strict=True):
        _check(example, choices)
    return found


def _check(example: Example, rows: Sequence[Encoded]) -> None:
    if not rows:
        raise DataError(f"example {example.id!r}: has no choices; score its completion with another metric.")
    for number, (choice, row) in enumerate(zip(example.choices, rows, strict=True)):
        if not choice or not row.num_targets:
            raise DataError(
                f"example {example.id!r}: choice {number} is {choice!r}, which leaves no token to score. "
                "Give it a text or take it out."
            )


def _score(
    lm: CausalLM, groups: Sequence[Sequence[Encoded]], tokens: int, progress: Progress | None = None
) -> Scores:
    """Scores of all sequences of all groups, in order; the sequences of one group share one row."""
    trees = [_tree(group) for group in groups]
    starts = np.cumsum([0, *(len(group) for group in groups)]).tolist()
    total = starts[-1]
    sums, counts, misses = np.zeros(total), np.zeros(total, np.int64), np.zeros(total, np.int64)
    asked = [i for i, tree in enumerate(trees) if tree.targets]
    done = total - sum(len(groups[i]) for i in asked)
    for chosen in _alike(trees, asked, tokens):
        owner = np.array([starts[i] + owner for i in chosen for owner in trees[i].owners])
        values, is_first = _score_batch(lm, [trees[i] for i in chosen])
        np.add.at(sums, owner, values)
        np.add.at(counts, owner, 1)
        np.add.at(misses, owner, ~is_first)
        done += sum(len(groups[i]) for i in chosen)
        if progress:
            progress(done, total)
    return Scores(sums, counts, misses == 0)


def _alike(trees: Sequence[_Tree], asked: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Batches of indices into `trees`; chains, which need no mask of ours, keep to themselves."""
    for is_chain in (False, True):
        kind = [i for i in asked if trees[i].is_chain == is_chain]
        for batch in batches([len(trees[i].ids) for i in kind], tokens):
            yield [kind[i] for i in batch]


def _tree(sequences: Sequence[Encoded]) -> _Tree:
    """Merge sequences from the left; see `_Tree`."""
    tree = _Tree([], [], [], [], [], [])
    nodes: dict[tuple[int, int], int] = {}
    for owner, sequence in enumerate(sequences):
        parent = -1
        for depth, token in enumerate(sequence.ids[:-1]):
            node = nodes.setdefault((parent, token), len(tree.ids))
            if node == len(tree.ids):
                tree.ids.append(token)
                tree.parents.append(parent)
                tree.depths.append(depth)
            if depth >= sequence.num_context - 1:
                tree.places.append(node)
                tree.targets.append(sequence.ids[depth + 1])
                tree.owners.append(owner)
            parent = node
    return tree


@torch.no_grad()
def _score_batch(
    lm: CausalLM, trees: Sequence[_Tree]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probability of every target of some trees, tree by tree, and whether it was the likeliest token."""
    hidden = _read(lm, trees)
    length = hidden.shape[1]
    places = torch.tensor([row * length + p for row, tree in enumerate(trees) for p in tree.places])
    targets = torch.tensor([t for tree in trees for t in tree.targets], device=lm.device)
    once, which = torch.unique(places, return_inverse=True)
    order = torch.argsort(which, stable=True)
    ends = torch.cumsum(torch.bincount(which), 0).tolist()
    picked = hidden.flatten(0, 1)[once.to(lm.device)]
    which = which.to(lm.device)
    kind = torch.promote_types(hidden.dtype, torch.float32)
    values = torch.empty(len(targets), dtype=kind, device=lm.device)
    is_first = torch.empty(len(targets), dtype=torch.bool, device=lm.device)
    size = positions_per_chunk(lm.vocab_size)
    for start in range(0, len(picked), size):
        logits = lm.project(picked[start : start + size])
        stop = start + len(logits)
        mine = order[ends[start - 1] if start else 0 : ends[stop - 1]].to(lm.device)
        own = logits[which[mine] - start, targets[mine]]
        values[mine] = own - torch.logsumexp(logits, dim=1)[which[mine] - start]
        is_first[mine] = own >= logits.amax(dim=1)[which[mine] - start]
    return values.double().cpu().numpy(), is_first.cpu().numpy()


def _read(lm: CausalLM, trees: Sequence[_Tree]) -> Tensor:
    """Hidden states [trees, longest, width]; a node sees its ancestors and itself."""
    length = max(len(tree.ids) for tree in trees)
    pad = lm.tokenizer.pad_token_id or 0
    ids = torch.tensor([[*tree.ids, *[pad] * (length - len(tree.ids))] for tree in trees], device=lm.device)
    if all(tree.is_chain for tree in trees):
        return lm.hidden(ids)
    depths = [[*tree.depths, *[0] * (length - len(tree.ids))] for tree in trees]
    visible = torch.from_numpy(np.stack([_ancestors(tree, length) for tree in trees])).to(lm.device)
    mask = torch.zeros(visible.shape, dtype=lm.model.dtype, device=lm.device)
    mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
    return lm.hidden(ids, attention_mask=mask[:, None], position_ids=torch.tensor(depths, device=lm.device))


def _ancestors(tree: _Tree, length: int) -> npt.NDArray[np.bool_]:
    """[length, length]: entry (i, j) says that node i sees node j; padding sees all and is seen by none."""
    visible = np.eye(length, dtype=np.bool_)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            visible[node] |= visible[parent]
    visible[len(tree.ids) :] = True
    return visible


def _can_share(lm: CausalLM, choices: Sequence[Encoded], tokens: int) -> bool:
    """Whether the choices of one question may stand in one row.

    Not where one was cut on the left (they begin differently), where the row would be very long, where a
    layer sees only a window of the text (a mask of our own would lift it), or where the model does not
    honour such a mask.
    """
    longest = max(len(choice.ids) for choice in choices)
    if len(choices) < 2 or any(choice.was_cut for choice in choices):
        return False
    if longest + sum(choice.num_targets for choice in choices) > max(tokens, 2 * longest):
        return False
    return longest <= _window(lm) and _honours_trees(lm)


def _window(lm: CausalLM) -> int:
    config: Any = lm.model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((int(size) for size in sizes if size), default=_NO_LIMIT)


_VERDICTS: WeakKeyDictionary[CausalLM, bool] = WeakKeyDictionary()


def _honours_trees(lm: CausalLM) -> bool:
    """Whether the model reads a tree as it reads its rows; tried once on a few tokens."""
    if lm not in _VERDICTS:
        _VERDICTS[lm] = _try_tree(lm)
    return _VERDICTS[lm]


@torch.no_grad()
def _try_tree(lm: CausalLM) -> bool:
    stem, branches = (1, 2, 3, 4), ((5, 6, 7), (8, 9, 10), (11, 12, 13))
    size = lm.vocab_size
    rows = [Encoded(tuple(t % size for t in (*stem, *branch)), len(stem)) for branch in branches]
    chains = [_tree([row]) for row in rows]
    try:
        shared = _read(lm, [_tree(rows)])[0].float()
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return False
    plain = _read(lm, chains).float()
    joined = torch.cat([plain[0], plain[1, len(stem) :], plain[2, len(stem) :]])
    tolerance = 1e-3 if lm.model.dtype == torch.float32 else 5e-2
    return bool((shared - joined).norm() <= tolerance * joined.norm())
