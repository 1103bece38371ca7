"""Measures how much of a text repeats what the text said before."""

import re
from collections.abc import Sequence

from judges.text.sentences import split_sentences
from judges.text.tokens import normalized_tokens

REPEATED_GRAM = 5  # tokens; in 202 human summaries of CNN articles no 4 tokens come twice
_NEAR_IDENTICAL = 0.8  # Jaccard similarity of the token sets of two sentences
# Scripts that are written without spaces, so that a token is one character or a few.
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def repeated_share(text: str, language: str | None = None) -> float:
    """Return the share of a text's tokens that repeat something, from 0 to 1.

    A token counts if it lies in a 5-gram that began earlier in the text, or in a sentence of which an earlier one has
    nearly the same tokens (Jaccard similarity of 0.8 or more). The first time that something is said does not count.
    In scripts without spaces, whose tokens are shorter, n-grams are twice as long. 0 for an empty text.
    """
    return repeated_share_of(tokens_by_sentence(text, language))


def tokens_by_sentence(text: str, language: str | None) -> list[list[str]]:
    """Return the tokens of each sentence that has any."""
    return [tokens for sentence in split_sentences(text, language) if (tokens := normalized_tokens(sentence))]


def gram_size(tokens: Sequence[str], size: int) -> int:
    """Return the length of n-grams in tokens: twice `size` in scripts without spaces, where a token says less."""
    unspaced = sum(UNSPACED.match(token) is not None for token in tokens)
    return 2 * size if 2 * unspaced > len(tokens) else size


def grams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return all runs of `size` tokens, in order."""
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def repeated_share_of(by_sentence: Sequence[Sequence[str]]) -> float:
    """Return `repeated_share` of a text that is already split into sentences and tokens."""
    tokens = [token for sentence in by_sentence for token in sentence]
    if not tokens:
        return 0.0
    is_repeated = [False] * len(tokens)
    size = gram_size(tokens, REPEATED_GRAM)
    seen: set[tuple[str, ...]] = set()
    for start, gram in enumerate(grams(tokens, size)):
        if gram in seen:
            is_repeated[start : start + size] = [True] * size
        seen.add(gram)
    begin = 0
    earlier: list[frozenset[str]] = []
    for sentence in by_sentence:
        distinct = frozenset(sentence)
        if any(len(distinct & other) >= _NEAR_IDENTICAL * len(distinct | other) for other in earlier):
            is_repeated[begin : begin + len(sentence)] = [True] * len(sentence)
        earlier.append(distinct)
        begin += len(sentence)
    return sum(is_repeated) / len(tokens)
