"""Finds what matters in an article: the weight of each word, and the sentences that hold the most of it.

A word matters if the article repeats it and says it early; function words do not matter. News says first what it is
about, and later texts repeat their subject, so no model is needed for this (Luhn, 1958; Edmundson, 1969).
"""

import math
from collections import Counter
from collections.abc import Sequence

from judges.text.sentences import split_sentences, strip_dateline
from judges.text.tokens import normalized_tokens
from judges.text.word_forms import is_function_word

_POSITION = 0.3  # how fast the weight of a word falls with the sentence that says it first
_LENGTH = 5  # words that are added to a sentence's or summary's length, so that two words do not make the best one
_MIN_TOKENS = 4  # a shorter sentence is a caption or a heading


def article_sentences(article: str) -> list[str]:
    """Return the article's sentences in order, without its dateline."""
    sentences = split_sentences(article)
    return [text for text in (strip_dateline(sentences[0]), *sentences[1:]) if text] if sentences else []


def word_weights(sentences: Sequence[str]) -> dict[str, float]:
    """Return how much each word of an article matters: log(1 + its count) / (1 + 0.3 x its first sentence's index).

    Args:
        sentences: the article's sentences, in order.

    Returns:
        a weight above 0 for each normalized token that is no function word.
    """
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number, sentence in enumerate(sentences):
        for token in normalized_tokens(sentence):
            if not is_function_word(token):
                counts[token] += 1
                first.setdefault(token, number)
    return {token: math.log1p(count) / (1 + _POSITION * first[token]) for token, count in counts.items()}


def weight_per_length(text: str, weights: dict[str, float]) -> float:
    """Return the weights of the distinct words of a text, divided by the square root of their number plus 5.

    More of what matters is better, and twice as long a text needs 1.4 times as much of it.
    """
    words = {token for token in normalized_tokens(text) if not is_function_word(token)}
    return sum(weights.get(word, 0.0) for word in words) / math.sqrt(len(words) + _LENGTH)


def key_sentences(sentences: Sequence[str], weights: dict[str, float], count: int, skip: int = 0) -> list[str]:
    """Return up to `count` sentences that matter most, best first.

    Args:
        sentences: the article's sentences.
        weights: the weight of each word.
        count: the number of sentences.
        skip: leave out this many of the best ones, for another set of sentences.
    """
    long_enough = [text for text in dict.fromkeys(sentences) if len(normalized_tokens(text)) >= _MIN_TOKENS]
    ranked = sorted(long_enough, key=lambda text: -weight_per_length(text, weights))
    return ranked[skip : skip + count]
