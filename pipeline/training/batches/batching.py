"""Divides pairs into steps, and the articles of each step among workers and packed rows.

These are pure functions of ids, sizes and settings. Nothing is random (articles are ordered by hash), so a worker that
restarts on another machine, or with another number of workers, makes the same plan. A step's loss is the weighted mean
over the pairs of the *global* step (a weight is 1, unless all pairs of an article together count as one). Packing and
dealing only regroup that sum, so gradients do not depend on them. `article_tree.py` lays out a row, and
`modeling/logprobs.py` scores it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.batches.article_tree import ArticleTree, empty_row, first_fit_rows, pack_row
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable, stable_hash
from pipeline.training.modeling.logprobs import RowScores


@dataclass(frozen=True)
class Step:
    """One update of the weights.

    Attributes:
        epoch: number of epochs done after this step; a whole number after the last step of an epoch.
        examples: the articles of the step.
    """

    epoch: float
    examples: Sequence[Example]

    @cached_property
    def pairs(self) -> int:
        return sum(len(example.pairs) for example in self.examples)

    @cached_property
    def weight(self) -> float:
        """The sum of the weights of its pairs; equal to `pairs` if no pair has a weight."""
        return sum(example.weight for example in self.examples)

    @property
    def tokens(self) -> int:
        return sum(example.tokens for example in self.examples)

    @property
    def naive_tokens(self) -> int:
        return sum(example.naive_tokens for example in self.examples)

    @cached_property
    def mean_chosen_length(self) -> float:
        """Number of scored tokens of a chosen completion, the weighted mean over all pairs."""
        return sum(example.chosen_tokens for example in self.examples) / self.weight

    @property
    def sizes(self) -> dict[str, float]:
        """The sizes of the step, by their names in a line of metrics."""
        return {
            "pairs": self.pairs,
            "weight": self.weight,
            "num_tokens": self.tokens,
            "num_tokens_naive": self.naive_tokens,
        }


@dataclass(frozen=True)
class MicroBatch:
    """One packed row and its P pairs. P is 0 in a row that only keeps this worker in step with the others.

    Attributes:
        tree: the row, with C completions.
        chosen, rejected: (P,) int64, indices of completions of the row.
        reference_logps: (C,) float32, in nats; 0 if training has no reference.
        lengths: (C,) float32, number of scored tokens of each completion.
        reference_shared_logps: (P, 2) float32, in nats: `Example.reference_shared_logps`; 0 without them.
        weights: (P,) float32; a pair with weight 2 counts as two pairs.
        article_weights: (articles,) float32, the sum of the weights of each article's pairs.
    """

    tree: ArticleTree
    chosen: Tensor
    rejected: Tensor
    reference_logps: Tensor
    lengths: Tensor
    reference_shared_logps: Tensor
    weights: Tensor
    article_weights: Tensor

    def by_pair(self, scores: RowScores, ld_alpha: float | None = None) -> dict[str, Tensor]:
        """The arguments that losses take from the batch, by name, (P,) each.

        Args:
            scores: what the policy gives for the row. If it has concentrations, the result has `wpo_weights`.
            ld_alpha: see `_desensitized`; None counts all tokens alike.
        """
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        logps = {side: scores.logps[index] for side, index in sides.items()}
        reference = {side: self.reference_logps[index] for side, index in sides.items()}
        values = {"chosen_nll": -logps["chosen"], "pair_weights": self.weights}
        if ld_alpha is not None:
            logps, reference = self._desensitized(scores.token_logps, logps, reference, ld_alpha)
        for side, index in sides.items():
            values |= {f"{side}_logps": logps[side], f"ref_{side}_logps": reference[side]}
            values[f"{side}_lengths"] = self.lengths[index]
        if scores.concentrations is not None:
            values["wpo_weights"] = self._wpo_weights(scores.token_logps.detach(), scores.concentrations)
        return values

    def _desensitized(
        self, token_logps: Tensor, logps: dict[str, Tensor], reference: dict[str, Tensor], alpha: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Log-probabilities in which tokens beyond the length of the pair's shorter completion count `alpha` times.

        Liu et al. (2024), LD-DPO, arXiv 2409.06411: `alpha x whole + (1 - alpha) x first part`.
        """
        shared = torch.minimum(self.lengths[self.chosen], self.lengths[self.rejected]).long()
        sums = F.pad(token_logps.double().cumsum(0), (1, 0))
        starts = F.pad(self.lengths.long().cumsum(0), (1, 0))
        tempered, tempered_reference = {}, {}
        for place, (side, index) in enumerate((("chosen", self.chosen), ("rejected", self.rejected))):
            first = (sums[starts[index] + shared] - sums[starts[index]]).to(token_logps)
            tempered[side] = alpha * logps[side] + (1 - alpha) * first
            tempered_reference[side] = alpha * reference[side] + (1 - alpha) * self.reference_shared_logps[:, place]
        return tempered, tempered_reference

    def _wpo_weights(self, token_logps: Tensor, concentrations: Tensor) -> Tensor:
        """The weight of each pair: how likely the policy itself is to write both completions.

        A completion's weight is the geometric mean over its tokens of `p / sum of squares of all tokens' p`. Zhou et
        al. (2024), WPO, arXiv 2406.11827, equation 2, with "sampled alignment".
        """
        sums = token_logps.new_zeros(len(self.lengths)).index_add(0, self.tree.owner, token_logps - concentrations)
        weights = (sums / self.lengths).exp()
        return weights[self.chosen] * weights[self.rejected]

    def to(self, device: torch.device | str) -> "MicroBatch":
        """A copy on another device."""
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class StepPlan:
    """The steps of all epochs. A step is made when it is read.

    Args:
        examples: all articles to train on.
        epochs: how many times each article is used.
        pairs_per_step: see `plan_steps`.
        seed: of the order of the articles.
    """

    def __init__(self, examples: ExampleTable, epochs: int, pairs_per_step: int, seed: int):
        self.examples, self.seed = examples, seed
        self._cuts: list[np.ndarray] = []  # for each epoch: where its steps begin in its order, and where the last ends
        self._ordered: tuple[int, ExampleTable] | None = None  # the last epoch of which a step was read
        for epoch in reversed(range(epochs)):  # so that the order of the first is kept, which is used next
            self._cuts.insert(0, _cut(self._in_order(epoch).weights, pairs_per_step))

    def __len__(self) -> int:
        return sum(len(cuts) - 1 for cuts in self._cuts)

    def __iter__(self) -> Iterator[Step]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Step:
        place = range(len(self))[number]
        for epoch, cuts in enumerate(self._cuts):
            steps = len(cuts) - 1
            if place < steps:
                examples = self._in_order(epoch)[cuts[place] : cuts[place + 1]]
                return Step(epoch + (place + 1) / steps, tuple(examples))
            place -= steps
        raise AssertionError("the place is in the range of the steps")

    def _in_order(self, epoch: int) -> ExampleTable:
        """The articles in the order of an epoch."""
        if self._ordered is None or self._ordered[0] != epoch:
            self._ordered = None  # its memory is free before the next order is made
            self._ordered = epoch, self.examples.sort_by(partial(stable_hash, self.seed, epoch))
        return self._ordered[1]


class MicroBatches:
    """The rows of one worker in a step. A row is laid out each time it is read, and is not kept.

    Args:
        examples: the articles of the step.
        rows: for each row, the places of its articles in `examples`.
        count: the number of rows; those after `rows` have no pairs.
        device: where the rows' tensors are.
    """

    def __init__(
        self, examples: Sequence[Example], rows: Sequence[Sequence[int]], count: int, device: torch.device | str
    ):
        self.examples, self.rows, self.count, self.device = examples, rows, count, device

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[MicroBatch]:
        return (self[number] for number in range(self.count))

    def __getitem__(self, number: int) -> MicroBatch:
        is_empty = number >= len(self.rows)
        batch = _empty_micro_batch() if is_empty else _micro_batch([self.examples[n] for n in self.rows[number]])
        return batch.to(self.device)


def split_held_out(examples: ExampleTable, eval_fraction: float) -> tuple[ExampleTable, ExampleTable]:
    """Split articles by hash of their id, not by position, so that the split stays the same when articles are added.

    Returns:
        The articles to train on, and the held-out ones.

    Raises:
        ValueError: nothing is left to train on.
    """
    # "held out" changes the hash. The run was already split by hash of the id; with the same hash, this split would
    # hold out nothing or everything.
    is_held_out = examples.map_ids(lambda name: stable_hash("held out", name) < eval_fraction * 2**64).astype(bool)
    if is_held_out.all():
        raise ValueError(
            f"eval_fraction={eval_fraction} holds out all {len(examples)} articles: lower it, or add articles"
        )
    return examples.select(~is_held_out), examples.select(is_held_out)


def plan_steps(examples: ExampleTable, *, epochs: int, pairs_per_step: int, seed: int) -> StepPlan:
    """Plan all steps of all epochs.

    Each epoch has its own order of articles, and each step takes articles up to `pairs_per_step` pairs. Pairs are
    counted by their weights. Otherwise the weight of an article would depend on how many pairs the other articles in
    its step have. An article is never cut, so a step may have a few pairs more; the last step of an epoch may have
    fewer.
    """
    return StepPlan(examples, epochs, pairs_per_step, seed)


def _cut(weights: np.ndarray, pairs_per_step: int) -> np.ndarray:
    """Cut articles of these weights into steps. Returns (steps + 1,): the first article of each, and the number."""
    cuts = [0]
    step: list[float] = []
    for place, weight in enumerate(_floats(weights)):
        if sum(step) > pairs_per_step - 1e-3:  # three weights of 1/3 may sum to under 1
            cuts.append(place)
            step = []
        step.append(weight)
    return np.array([*cuts, len(weights)])


def _floats(values: np.ndarray) -> Iterator[float]:
    """The values as floats of Python, of which a few are in memory."""
    for part in np.array_split(values, len(values) // 10_000 + 1):
        yield from part.tolist()


def deal_to_workers(examples: Sequence[Example], workers: int) -> list[list[int]]:
    """Divide articles among workers so that each gets about as many tokens.

    The largest article comes first, and each goes to the worker that has the fewest tokens so far (Graham, 1969).

    Returns:
        For each worker, the places of its articles in `examples`.
    """
    sizes = [(-example.tokens, example.article_id, place) for place, example in enumerate(examples)]
    shares: list[list[int]] = [[] for _ in range(workers)]
    tokens = [0] * workers
    for negative_tokens, _, place in sorted(sizes):
        worker = tokens.index(min(tokens))
        shares[worker].append(place)
        tokens[worker] -= negative_tokens
    return shares


def micro_batches(
    examples: Sequence[Example],
    *,
    rank: int,
    workers: int,
    tokens_per_batch: int,
    device: torch.device | str = "cpu",
) -> MicroBatches:
    """Pack the share of worker `rank` of `workers` in these articles into rows.

    Every worker gets the same number of rows, because each forward and backward is a collective. A worker with less
    work gets rows without pairs at the end.
    """
    tokens = [example.tokens for example in examples]
    rows = []
    for share in deal_to_workers(examples, workers):
        packed = first_fit_rows([tokens[place] for place in share], tokens_per_batch)
        rows.append([[share[number] for number in row] for row in packed])
    return MicroBatches(examples, rows[rank], max(map(len, rows)), device)


def _micro_batch(examples: Sequence[Example]) -> MicroBatch:
    chosen: list[int] = []
    rejected: list[int] = []
    logps: list[float] = []
    weights: list[float] = []
    shared_logps: list[tuple[float, float]] = []
    for example in examples:
        first = len(logps)  # index in the row of the example's first completion
        chosen += [first + pair[0] for pair in example.pairs]
        rejected += [first + pair[1] for pair in example.pairs]
        logps += example.reference_logps or [0.0] * len(example.completions)
        weights += example.pair_weights
        shared_logps += example.reference_shared_logps or [(0.0, 0.0)] * len(example.pairs)
    tree = pack_row([example.article for example in examples], unscored=[example.unscored for example in examples])
    return MicroBatch(
        tree=tree,
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        reference_logps=torch.tensor(logps, dtype=torch.float32),
        lengths=torch.tensor(tree.lengths, dtype=torch.float32),
        reference_shared_logps=torch.tensor(shared_logps, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
        article_weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
    )


def _empty_micro_batch() -> MicroBatch:
    """A row without pairs: its loss is an empty sum and its gradient zero, but it takes part in all collectives."""
    no_pairs = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        tree=empty_row(),
        chosen=no_pairs,
        rejected=no_pairs,
        reference_logps=torch.zeros(1),
        lengths=torch.ones(1),
        reference_shared_logps=torch.zeros(0, 2),
        weights=torch.zeros(0),
        article_weights=torch.zeros(1),
    )
