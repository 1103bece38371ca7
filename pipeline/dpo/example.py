"""What there is to learn from one article. Left out: where it comes from (`rows.py`)."""

from dataclasses import dataclass

import numpy as np

from pipeline.dpo.tree import Article, size


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
    """

    article_id: str
    prompt_ids: np.ndarray
    completions: tuple[np.ndarray, ...]
    pairs: tuple[tuple[int, int], ...]
    reference_logps: tuple[float, ...]
    sampled_logps: tuple[float | None, ...] = ()

    @property
    def article(self) -> Article:
        return self.prompt_ids, self.completions

    @property
    def tokens(self) -> int:
        """Tokens that it takes in a row, the prompt once."""
        return size(self.article)

    @property
    def naive_tokens(self) -> int:
        """Tokens that it would take if each side of each pair had a prompt of its own."""
        return sum(2 * len(self.prompt_ids) + self._length(c) + self._length(r) for c, r in self.pairs)

    @property
    def chosen_tokens(self) -> int:
        """Tokens of the chosen completions, pair by pair."""
        return sum(self._length(chosen) for chosen, _ in self.pairs)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions))

    def _length(self, completion: int) -> int:
        return len(self.completions[completion])
