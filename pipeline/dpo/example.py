"""What there is to learn from one article. Left out: where it comes from (`rows.py`)."""

from dataclasses import dataclass

import numpy as np

from pipeline.dpo.tree import Article, size


@dataclass(frozen=True, eq=False)
class Example:
    """An article, the completions that its pairs need, and what the reference thinks of them.

    Attributes:
        article_id: of the row.
        prompt_ids: (prompt tokens,) int.
        completions: token ids of each, (tokens,) int.
        pairs: (chosen, rejected), indices into `completions`.
        reference_logps: one a completion, in nats.
    """

    article_id: str
    prompt_ids: np.ndarray
    completions: tuple[np.ndarray, ...]
    pairs: tuple[tuple[int, int], ...]
    reference_logps: tuple[float, ...]

    @property
    def article(self) -> Article:
        return self.prompt_ids, self.completions

    @property
    def tokens(self) -> int:
        """Tokens that it takes in a row, the prompt once."""
        return size(self.article)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions))
