"""The article tree: a prompt once, then each of its completions as a branch, several articles packed into one row.

For one article the row is `[prompt | s1 | s2 | … | sK]`. A completion sees its prompt and itself; positions restart
after the prompt for each branch; articles do not see each other. So one forward pass gives what K passes over
`prompt + s` would, and the prompt, which is most of the tokens, is computed once. Sharing the prompt between the two
sides of a pair is from Wang and Hegde (2024), arXiv 2410.20305; here all completions of an article share it.

Left out: what is done with the row (`logps.py`), and which articles go together for learning (`plan.py`).
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

# Branches that are looked at together: up to so many tokens, or half the prompt's. Alone, each would read the prompt
# anew; all together, they would read each other in vain.
_GROUP = 384


@dataclass(frozen=True)
class Branches:
    """Some branches of an article that lie side by side in the row: tokens `start` to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """Where an article is in the row: its prompt from `start` to `prompt_end`, then its branches, of these `lengths`.

    `groups` has the same branches, a few at a time.
    """

    start: int
    prompt_end: int
    lengths: tuple[int, ...]
    groups: tuple[Branches, ...]


@dataclass(frozen=True)
class ArticleTree:
    """One packed row of T tokens with N completion tokens. All tensors are int64.

    Attributes:
        input_ids: (1, T).
        position_ids: (1, T), from 0 for each article; each branch begins at the length of its prompt.
        article: (T,), number of the token's article in this row, from 0.
        branch: (T,), number of the token's completion in this row, from 0; -1 for prompt tokens.
        predictors: (N,), index in the row of the token whose logits predict the target: the last prompt token for the
            first token of a branch, else the token before it in the branch.
        targets: (N,), the completion tokens.
        owner: (N,), number in this row of the completion that the target belongs to; ascending.
        completions: for each completion of the row, (number of the article as given, number of its completion).
        lengths: of each completion, in tokens.
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
    articles: tuple[Span, ...]
    longest: int
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Number of tokens in the row, each prompt counted once."""
        return self.input_ids.shape[1]

    @property
    def placeholder(self) -> Tensor:
        """(1, 1, 1, 1) int8: passes for an attention mask that is ready made, so that models make none."""
        return torch.zeros(1, 1, 1, 1, dtype=torch.int8, device=self.branch.device)

    @property
    def read(self) -> Tensor:
        """(M,) int64, the tokens whose output predicts something, ascending."""
        return self.cached("read", self.predictors.unique)

    def cached(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once: all layers look at the same mask."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def texts(self) -> list[Article]:
        """The articles as they were given: (prompt ids, completions as ids) each."""
        ids = self.input_ids[0].tolist()
        articles: list[Article] = []
        for span in self.articles:
            ends = list(accumulate(span.lengths, initial=span.prompt_end))
            articles.append((ids[span.start : span.prompt_end], [ids[a:b] for a, b in pairwise(ends)]))
        return articles

    def mask(self) -> Tensor:
        """Which token may attend to which: (1, 1, T, T) bool on the tree's device, True at [0, 0, query, key].

        The definition. Attention itself never makes it whole (`attention.py`).
        """
        index = torch.arange(self.tokens, device=self.article.device)
        # A row lists every token after all that it may see, so the causal triangle is the outer limit.
        causal = index[:, None] >= index[None, :]
        same_article = self.article[:, None] == self.article[None, :]
        prompt_or_own_branch = (self.branch[None, :] == -1) | (self.branch[:, None] == self.branch[None, :])
        return (causal & same_article & prompt_or_own_branch)[None, None]

    def to(self, device: torch.device | str) -> "ArticleTree":
        """The same tree on another device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_made"}
        return ArticleTree(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()})


def count_row_tokens(article: Article) -> int:
    """Number of tokens that an article takes in a row."""
    prompt, completions = article
    return len(prompt) + sum(len(completion) for completion in completions)


def first_fit_rows(sizes: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Put items into rows of at most `tokens_per_batch` tokens; a larger item gets a row of its own.

    First-fit decreasing: at most 11/9 of the fewest rows possible (Johnson, 1973). Deterministic.

    Args:
        sizes: tokens of each item.

    Returns:
        For each row, the numbers of its items.
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


def pack_row(articles: Sequence[Article], numbers: Sequence[int] | None = None) -> ArticleTree:
    """Lay articles out in one row, in the order given.

    Args:
        articles: (prompt ids, completions as ids) each.
        numbers: what `Tree.completions` calls each article; counted from 0 if not given.

    Raises:
        ValueError: an empty prompt, no completions, or an empty completion.
    """
    numbers = range(len(articles)) if numbers is None else numbers
    pieces, positions, article_of, branch_of = [], [], [], []
    predictors, targets, owner, spans = [], [], [], []
    completions: list[tuple[int, int]] = []
    start = 0  # of the article in the row
    for place, (number, (prompt, branches)) in enumerate(zip(numbers, articles, strict=True)):
        _refuse_empty(number, prompt, branches)
        pieces.append(prompt)
        positions.append(np.arange(len(prompt)))
        branch_of.append(np.full(len(prompt), -1))
        last_of_prompt = start + len(prompt) - 1
        begin = start + len(prompt)  # of the branch in the row
        for j, branch in enumerate(branches):
            pieces.append(branch)
            positions.append(np.arange(len(prompt), len(prompt) + len(branch)))
            branch_of.append(np.full(len(branch), len(completions)))
            predictors.append(np.concatenate([[last_of_prompt], np.arange(begin, begin + len(branch) - 1)]))
            targets.append(branch)
            owner.append(np.full(len(branch), len(completions)))
            completions.append((number, j))
            begin += len(branch)
        article_of.append(np.full(begin - start, place))
        lengths = tuple(map(len, branches))
        spans.append(Span(start, start + len(prompt), lengths, _groups(start + len(prompt), lengths, len(prompt))))
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
        lengths=tuple(length for span in spans for length in span.lengths),
        articles=tuple(spans),
        longest=max(len(prompt) + max(map(len, branches)) for prompt, branches in articles),
    )


def _groups(begin: int, lengths: Sequence[int], prompt: int) -> tuple[Branches, ...]:
    """Branches of these lengths, the first at token `begin`, in groups."""
    groups = [Branches(begin, begin)]
    for length in lengths:
        start, end = groups[-1].start, groups[-1].end
        if end > start and end + length - start > max(_GROUP, prompt // 2):
            groups.append(Branches(end, end + length))
        else:
            groups[-1] = Branches(start, end + length)
    return tuple(groups)


def pack_rows(articles: Sequence[Article], tokens_per_batch: int) -> list[ArticleTree]:
    """Pack articles into as few rows of at most `tokens_per_batch` tokens as we can.

    An article that is larger gets a row of its own. `Tree.completions` leads back to the articles.

    Raises:
        ValueError: as `grow` and `pack`.
    """
    rows = first_fit_rows([count_row_tokens(article) for article in articles], tokens_per_batch)
    return [pack_row([articles[number] for number in row], row) for row in rows]


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
