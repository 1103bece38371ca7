"""Lays out article trees: a prompt once, then each of its completions as a branch, several articles in one packed row.

For one article the row is `[prompt | s1 | s2 | … | sK]`. A completion sees its prompt and itself; positions restart
after the prompt for each branch; articles do not see each other. So one forward pass gives the same as K passes over
`prompt + s`, and the prompt, which is most of the tokens, is computed once. Sharing the prompt between the two sides of
a pair is from Wang and Hegde (2024), arXiv 2410.20305; here all completions of an article share it.

`modeling/logprobs.py` scores a row, and `batching.py` decides which articles make a step.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int] | np.ndarray
Article = tuple[Ids, Sequence[Ids]]  # prompt, completions
# The tokens of a completion, from the first number up to the second, that later tokens see and that are not scored
# themselves, such as a thought before the answer.
Unscored = tuple[int, int]


@dataclass(frozen=True)
class Span:
    """Where an article is in the row.

    Attributes:
        start, prompt_end: first token of the prompt, and the token after it, where the branches begin.
        lengths: number of tokens of each branch.
    """

    start: int
    prompt_end: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class ArticleTree:
    """One packed row of T tokens, of which N tokens of completions are scored. All tensors are int64.

    Attributes:
        input_ids: (1, T).
        position_ids: (1, T), from 0 for each article; each branch begins at the length of its prompt.
        article: (T,), number of the token's article in this row, from 0.
        branch: (T,), number of the token's completion in this row, from 0; -1 for prompt tokens.
        predictors: (N,), index in the row of the token whose logits predict the target: the last prompt token for the
            first token of a branch, else the token before it in the branch.
        targets: (N,), the scored tokens of completions.
        owner: (N,), number in this row of the completion that the target belongs to; ascending.
        completions: for each completion of the row, (number of the article as given, number of its completion).
        lengths: number of scored tokens of each completion.
        unscored: the tokens of each completion that are not scored.
        articles: where each article is.
        longest: number of tokens of the longest prompt with one of its completions.
    """

    input_ids: Tensor
    position_ids: Tensor
    article: Tensor
    branch: Tensor
    predictors: Tensor
    targets: Tensor
    owner: Tensor
    completions: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    unscored: tuple[Unscored, ...]
    articles: tuple[Span, ...]
    longest: int
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Number of tokens in the row, each prompt counted once."""
        return self.input_ids.shape[1]

    @property
    def placeholder_mask(self) -> Tensor:
        """(1, 1, 1, 1) int8. A model treats it as a finished attention mask, and does not make its own mask."""
        return torch.zeros(1, 1, 1, 1, dtype=torch.int8, device=self.branch.device)

    @property
    def unique_predictors(self) -> Tensor:
        """(M,) int64, the tokens that predict at least one target, ascending."""
        return self.cached("unique predictors", self.predictors.unique)

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Call `make` once per key and keep the result, because all layers use the same mask."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def unpack(self) -> list[tuple[Ids, Sequence[Ids], Sequence[Unscored]]]:
        """The articles that are packed in the row: prompt ids, completions as ids, and what of them is not scored."""
        ids = self.input_ids[0].tolist()
        articles: list[tuple[Ids, Sequence[Ids], Sequence[Unscored]]] = []
        first = 0  # the article's first completion in the row
        for span in self.articles:
            ends = list(accumulate(span.lengths, initial=span.prompt_end))
            last = first + len(span.lengths)
            completions = [ids[a:b] for a, b in pairwise(ends)]
            articles.append((ids[span.start : span.prompt_end], completions, self.unscored[first:last]))
            first = last
        return articles

    def mask(self) -> Tensor:
        """Which token may attend to which: (1, 1, T, T) bool on the tree's device, True at [0, 0, query, key].

        This defines the tree's attention. `modeling/tree_attention.py` computes the same without the whole mask.
        """
        index = torch.arange(self.tokens, device=self.article.device)
        # In a row every token comes after all tokens that it may see, so the mask is a subset of the causal one.
        causal = index[:, None] >= index[None, :]
        same_article = self.article[:, None] == self.article[None, :]
        prompt_or_own_branch = (self.branch[None, :] == -1) | (self.branch[:, None] == self.branch[None, :])
        return (causal & same_article & prompt_or_own_branch)[None, None]

    def to(self, device: torch.device | str) -> "ArticleTree":
        """The same tree on another device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_cache"}
        return ArticleTree(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()})


def count_row_tokens(article: Article) -> int:
    """Number of tokens that an article takes in a row."""
    prompt, completions = article
    return len(prompt) + sum(len(completion) for completion in completions)


def first_fit_rows(sizes: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Put items into rows of at most `tokens_per_batch` tokens; a larger item gets a row of its own.

    First-fit decreasing: at most 11/9 of the fewest rows possible (Johnson, 1973). Deterministic.

    Args:
        sizes: number of tokens of each item.
        tokens_per_batch: largest number of tokens in a row.

    Returns:
        For each row, the indices of its items.

    Raises:
        ValueError: `tokens_per_batch` is less than 1.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}: it must be at least 1")
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        row = next((row for row, left in enumerate(room) if left >= sizes[item]), None)
        if row is None:
            rows.append([item])
            room.append(tokens_per_batch - sizes[item])
        else:
            rows[row].append(item)
            room[row] -= sizes[item]
    return rows


def pack_row(
    articles: Sequence[Article],
    numbers: Sequence[int] | None = None,
    unscored: Sequence[Sequence[Unscored]] | None = None,
) -> ArticleTree:
    """Lay articles out in one row, in the order given.

    Args:
        articles: (prompt ids, completions as ids) each.
        numbers: the number that `ArticleTree.completions` gives each article; by default they count from 0.
        unscored: for each article, what of each completion is not scored; None, or empty for an article: nothing.

    Raises:
        ValueError: an empty prompt, no completions, or an empty completion.
    """
    unscored = [() for _ in articles] if unscored is None else unscored
    numbers = range(len(articles)) if numbers is None else numbers
    pieces, positions, article_of, branch_of = [], [], [], []
    predictors, targets, owner, spans = [], [], [], []
    completions: list[tuple[int, int]] = []
    spans_unscored: list[Unscored] = []
    scored_counts: list[int] = []
    start = 0  # the article's first token in the row
    for place, (number, (prompt, branches), left_out) in enumerate(zip(numbers, articles, unscored, strict=True)):
        _refuse_empty(number, prompt, branches)
        pieces.append(prompt)
        positions.append(np.arange(len(prompt)))
        branch_of.append(np.full(len(prompt), -1))
        prompt_end = start + len(prompt)
        begin = prompt_end  # the branch's first token in the row
        for j, branch in enumerate(branches):
            pieces.append(branch)
            positions.append(np.arange(len(prompt), len(prompt) + len(branch)))
            branch_of.append(np.full(len(branch), len(completions)))
            first, last = left_out[j] if left_out else (0, 0)
            scored = np.concatenate([np.arange(first), np.arange(last, len(branch))])
            before = np.concatenate([[prompt_end - 1], np.arange(begin, begin + len(branch) - 1)])
            predictors.append(before[scored])
            targets.append(np.asarray(branch)[scored])
            owner.append(np.full(len(scored), len(completions)))
            spans_unscored.append((first, last))
            scored_counts.append(len(scored))
            completions.append((number, j))
            begin += len(branch)
        article_of.append(np.full(begin - start, place))
        spans.append(Span(start, prompt_end, tuple(map(len, branches))))
        start = begin
    return ArticleTree(
        input_ids=_join(pieces)[None],
        position_ids=_join(positions)[None],
        article=_join(article_of),
        branch=_join(branch_of),
        predictors=_join(predictors),
        targets=_join(targets),
        owner=_join(owner),
        completions=tuple(completions),
        lengths=tuple(scored_counts),
        unscored=tuple(spans_unscored),
        articles=tuple(spans),
        longest=max(len(prompt) + max(map(len, branches)) for prompt, branches in articles),
    )


def empty_row() -> ArticleTree:
    """A row of two tokens that nobody reads. It lets a worker take part in a collective forward."""
    return pack_row([([0], [[0]])])


def pack_rows(
    articles: Sequence[Article], tokens_per_batch: int, unscored: Sequence[Sequence[Unscored]] | None = None
) -> list[ArticleTree]:
    """Pack articles into few rows of at most `tokens_per_batch` tokens, by `first_fit_rows`.

    An article that is larger gets a row of its own. `ArticleTree.completions` has each article's index in `articles`.
    `unscored` is as in `pack_row`.

    Raises:
        ValueError: see `pack_row` and `first_fit_rows`.
    """
    rows = first_fit_rows([count_row_tokens(article) for article in articles], tokens_per_batch)
    unscored = [() for _ in articles] if unscored is None else unscored
    return [pack_row([articles[n] for n in row], row, [unscored[n] for n in row]) for row in rows]


def _join(pieces: Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces]))


def _refuse_empty(number: int, prompt: Ids, completions: Sequence[Ids]) -> None:
    if len(prompt) == 0:
        raise ValueError(f"article {number} has an empty prompt: the first token of a completion has no predictor")
    if len(completions) == 0:
        raise ValueError(f"article {number} has no completions: there is nothing to score, leave it out")
    for j, completion in enumerate(completions):
        if len(completion) == 0:
            raise ValueError(f"completion {j} of article {number} is empty: leave it out")
