"""Holds the data of one article that training needs. `dataset.py` makes examples from the rows of a table."""

from dataclasses import dataclass

import numpy as np

from pipeline.training.batches.article_tree import Article, Unscored, count_row_tokens


@dataclass(frozen=True, eq=False)
class Example:
    """An article, the completions that its pairs need, and their log-probabilities under reference and sampler.

    Attributes:
        article_id: id of the row.
        prompt_ids: (prompt tokens,) int.
        completions: for each completion its token ids, (tokens,) int.
        pairs: (chosen, rejected), indices into `completions`.
        reference_logps: one per completion, in nats; empty if training has no reference.
        sampled_logps: one per completion, in nats, from the engine that sampled it; None if the engine did not return
            one.
        weights: one per pair: a pair with weight 2 counts as two pairs in its step. Empty: all weights are 1.
        reference_shared_logps: one (chosen, rejected) per pair, in nats: the reference log-probabilities of the first n
            scored tokens of each, where n is the number of scored tokens of the shorter. Only for `ld_alpha`; else
            empty.
        unscored: for each completion, the tokens that are read but not scored. Empty: all tokens are scored. The
            log-probabilities are of the scored tokens only.
    """

    article_id: str
    prompt_ids: np.ndarray
    completions: tuple[np.ndarray, ...]
    pairs: tuple[tuple[int, int], ...]
    reference_logps: tuple[float, ...]
    sampled_logps: tuple[float | None, ...] = ()
    weights: tuple[float, ...] = ()
    unscored: tuple[Unscored, ...] = ()
    reference_shared_logps: tuple[tuple[float, float], ...] = ()

    @property
    def article(self) -> Article:
        return self.prompt_ids, self.completions

    @property
    def tokens(self) -> int:
        """Number of tokens in a packed row, where the prompt is stored once."""
        return count_row_tokens(self.article)

    @property
    def naive_tokens(self) -> int:
        """Number of tokens if each side of each pair had its own copy of the prompt."""
        ids = self.completions
        return sum(2 * len(self.prompt_ids) + len(ids[c]) + len(ids[r]) for c, r in self.pairs)

    @property
    def pair_weights(self) -> tuple[float, ...]:
        """The weight of each pair."""
        return self.weights or (1.0,) * len(self.pairs)

    @property
    def weight(self) -> float:
        """The sum of the weights of its pairs."""
        return sum(self.pair_weights)

    @property
    def chosen_tokens(self) -> float:
        """Number of scored tokens of the chosen completions, summed over pairs, each multiplied by its weight."""
        weighted, lengths = zip(self.pairs, self.pair_weights, strict=True), self.lengths
        return sum(weight * lengths[chosen] for (chosen, _), weight in weighted)

    @property
    def longest(self) -> int:
        """Number of tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of scored tokens of each completion."""
        unscored = self.unscored or ((0, 0),) * len(self.completions)
        return tuple(len(ids) - (end - start) for ids, (start, end) in zip(self.completions, unscored, strict=True))
