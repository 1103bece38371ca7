"""Which pairs make which step, and which worker does what of it: pure functions of ids, sizes and settings.

Nothing is drawn at random (order is by hash), so a worker that starts again on another machine, or with other
workers, finds the same plan. A step's loss is the weighted mean over the pairs of the *global* step (a weight is 1,
unless all pairs of an article are to weigh as one); since packing and dealing only regroup that sum, gradients do not
depend on them.
Left out: how a row is laid out (`tree.py`) and scored (`logps.py`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.training.batches.article_tree import ArticleTree, first_fit_rows, pack_row
from pipeline.training.batches.example import Example


@dataclass(frozen=True)
class Step:
    """One update of the weights.

    Attributes:
        epoch: how many epochs are done after it; a whole number after the last step of one.
        examples: its articles.
    """

    epoch: float
    examples: tuple[Example, ...]

    @property
    def pairs(self) -> int:
        return sum(len(example.pairs) for example in self.examples)

    @property
    def weight(self) -> float:
        """As how many pairs they count; without weights that is `pairs`."""
        return sum(example.weight for example in self.examples)

    @property
    def tokens(self) -> int:
        return sum(example.tokens for example in self.examples)

    @property
    def naive_tokens(self) -> int:
        return sum(example.naive_tokens for example in self.examples)

    @property
    def mean_chosen_length(self) -> float:
        """Tokens of a chosen completion, over all pairs by their weights."""
        return sum(example.chosen_tokens for example in self.examples) / self.weight

    @property
    def sizes(self) -> dict[str, float]:
        """As a line of metrics has them."""
        return {
            "pairs": self.pairs,
            "weight": self.weight,
            "num_tokens": self.tokens,
            "num_tokens_naive": self.naive_tokens,
        }


@dataclass(frozen=True)
class MicroBatch:
    """One packed row and its P pairs; P is 0 in one that only keeps step with other workers.

    Attributes:
        tree: the row, of C completions.
        chosen, rejected: (P,) int64, completions of the row.
        reference_logps: (C,) float32, in nats; 0 where training goes without a reference.
        lengths: (C,) float32, tokens of each completion.
        weights: (P,) float32, as how many pairs each counts.
    """

    tree: ArticleTree
    chosen: Tensor
    rejected: Tensor
    reference_logps: Tensor
    lengths: Tensor
    weights: Tensor

    def by_pair(self, logps: Tensor) -> dict[str, Tensor]:
        """What losses take of the batch, by their names for it, (P,) each.

        Args:
            logps: (C,) of the policy.
        """
        return {
            "chosen_logps": logps[self.chosen],
            "rejected_logps": logps[self.rejected],
            "ref_chosen_logps": self.reference_logps[self.chosen],
            "ref_rejected_logps": self.reference_logps[self.rejected],
            "chosen_lengths": self.lengths[self.chosen],
            "rejected_lengths": self.lengths[self.rejected],
        }

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def split_held_out(examples: Sequence[Example], eval_fraction: float) -> tuple[list[Example], list[Example]]:
    """(to train on, held out), by hash of the article id: never by position, so it stays when articles are added.

    Raises:
        ValueError: nothing is left to train on.
    """
    # The articles were split by hash of their id before: under the same hash this split would be empty or everything.
    parts: tuple[list[Example], list[Example]] = [], []
    for example in examples:
        parts[_hash("held out", example.article_id) < eval_fraction * 2**64].append(example)
    if not parts[0]:
        raise ValueError(
            f"eval_fraction={eval_fraction} holds out all {len(examples)} articles: lower it, or add articles"
        )
    return parts


def plan_steps(examples: Sequence[Example], *, epochs: int, pairs_per_step: int, seed: int) -> list[Step]:
    """All steps of all epochs; each takes articles, in an order of its epoch's own, up to `pairs_per_step` pairs.

    A pair counts by its weight: else a step would weigh its articles by how many pairs the others in it have. An
    article is never cut, so a step may have a few pairs more; the last of an epoch may have fewer.
    """
    plan = []
    for epoch in range(epochs):
        groups: list[list[Example]] = [[]]
        for example in sorted(examples, key=lambda example: _hash(seed, epoch, example.article_id)):
            if sum(e.weight for e in groups[-1]) > pairs_per_step - 1e-3:  # thirds may add up to a hair less than one
                groups.append([])
            groups[-1].append(example)
        plan += [Step(epoch + (done + 1) / len(groups), tuple(group)) for done, group in enumerate(groups)]
    return plan


def deal_to_workers(examples: Sequence[Example], workers: int) -> list[list[Example]]:
    """Articles for each worker, tokens about even: the largest first, each to whoever has least (Graham, 1969)."""
    hands: list[list[Example]] = [[] for _ in range(workers)]
    load = [0] * workers
    for example in sorted(examples, key=lambda example: (-example.tokens, example.article_id)):
        least = load.index(min(load))
        hands[least].append(example)
        load[least] += example.tokens
    return hands


def micro_batches(examples: Sequence[Example], *, rank: int, workers: int, tokens_per_batch: int) -> list[MicroBatch]:
    """What worker `rank` of `workers` computes of these articles, as packed rows.

    Every worker gets the same number, because each forward and backward is a collective: those who have less work
    get some without pairs at the end.
    """
    hands = deal_to_workers(examples, workers)
    rows = [first_fit_rows([example.tokens for example in hand], tokens_per_batch) for hand in hands]
    batches = [_micro_batch([hands[rank][number] for number in row]) for row in rows[rank]]
    return batches + [_nothing()] * (max(map(len, rows)) - len(batches))


def _micro_batch(examples: Sequence[Example]) -> MicroBatch:
    chosen: list[int] = []
    rejected: list[int] = []
    logps: list[float] = []
    weights: list[float] = []
    for example in examples:
        chosen += [len(logps) + pair[0] for pair in example.pairs]
        rejected += [len(logps) + pair[1] for pair in example.pairs]
        logps += example.reference_logps or [0.0] * len(example.completions)
        weights += example.pair_weights
    return MicroBatch(
        tree=(tree := pack_row([example.article for example in examples])),
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        reference_logps=torch.tensor(logps, dtype=torch.float32),
        lengths=torch.tensor(tree.lengths, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
    )


def _nothing() -> MicroBatch:
    """A row without pairs: its loss is an empty sum, its gradient zero, and its collectives are all there."""
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(pack_row([([0], [[0]])]), none, none, torch.zeros(1), torch.ones(1), torch.zeros(0))


def _hash(*parts: object) -> int:
    """A number in [0, 2**64) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:8], "big")
