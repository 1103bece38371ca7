"""What there is to learn from one article. Left out: where it comes from (`rows.py`)."""

from dataclasses import dataclass

import numpy as np

from pipeline.training.batches.article_tree import Article, count_row_tokens


@dataclass(frozen=True, eq=False)
class Example:
    """An article, the completions that its pairs need, and what reference and sampler think of them.

    Attributes:
        article_id: of the row.
        prompt_ids: (prompt tokens,) int.
        completions: token ids of each, (tokens,) int.
        pairs: (chosen, rejected), indices into `completions`.
        reference_logps: one a completion, in nats; empty where training goes without a reference.
        sampled_logps: one a completion, in nats, as the engine had it that sampled it; None where it was not asked.
        weights: one a pair: as how many pairs it counts in its step; empty: each as one.
    """

    article_id: str
    prompt_ids: np.ndarray
    completions: tuple[np.ndarray, ...]
    pairs: tuple[tuple[int, int], ...]
    reference_logps: tuple[float, ...]
    sampled_logps: tuple[float | None, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def article(self) -> Article:
        return self.prompt_ids, self.completions

    @property
    def tokens(self) -> int:
        """Tokens that it takes in a row, the prompt once."""
        return count_row_tokens(self.article)

    @property
    def naive_tokens(self) -> int:
        """Tokens that it would take if each side of each pair had a prompt of its own."""
        return sum(2 * len(self.prompt_ids) + self._length(c) + self._length(r) for c, r in self.pairs)

    @property
    def pair_weights(self) -> tuple[float, ...]:
        """One a pair."""
        return self.weights or (1.0,) * len(self.pairs)

    @property
    def weight(self) -> float:
        """As how many pairs it counts."""
        return sum(self.pair_weights)

    @property
    def chosen_tokens(self) -> float:
        """Tokens of the chosen completions, pair by pair, each as often as its pair counts."""
        weighted = zip(self.pairs, self.pair_weights, strict=True)
        return sum(weight * self._length(chosen) for (chosen, _), weight in weighted)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions))

    def _length(self, completion: int) -> int:
        return len(self.completions[completion])
