"""Chooses the wrong options of a blank: of the key's kind, from the article, and not from the blanked sentence.

If the article has too few, numbers are made up in the form of the key, weekdays and months come from the calendar, and
names are joined by other words of the article.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import regex

from judges.cloze.calendar_words import CALENDAR_WORDS
from judges.cloze.spots import Spot, tokens_of
from judges.text.tokens import contains
from judges.text.word_forms import is_dense, is_function_word, is_inflected, stem

_NAMES = ("person", "place", "organisation", "name")
_NUMBERS = ("number", "money", "percent", "year")
_TRIES = 60  # options looked at in each group, so that an article of many words takes no longer
_DIGITS = regex.compile(r"\d+")

Pools = Mapping[str, Sequence[str]]  # by kind: the article's texts of that kind, each once


def option_pools(spots: Iterable[Spot]) -> dict[str, list[str]]:
    """Return the texts of each kind, in order and each once."""
    pools: dict[str, dict[tuple[str, ...], str]] = {}
    for spot in spots:
        pools.setdefault(spot.kind, {}).setdefault(spot.tokens, spot.text)
    return {kind: list(texts.values()) for kind, texts in pools.items()}


def wrong_options(
    key: Spot, pools: Pools, sentence_tokens: Sequence[str], count: int, rng: random.Random
) -> list[str] | None:
    """Choose `count` wrong options for a key; None if there are not so many.

    Args:
        key: the place that is blanked out.
        pools: the texts of each kind in the article.
        sentence_tokens: of the whole sentence. A reader could exclude what it names, without reading the passage.
    """
    chosen: list[str] = []
    used = [key.tokens]
    sentence_stems = {stem(token) for token in sentence_tokens if not (is_dense(token) or is_function_word(token))}
    for group in _groups(key, pools):
        for text in rng.sample(group, min(len(group), _TRIES)):
            if len(chosen) == count:
                return chosen
            tokens = tokens_of(text)
            named = contains(sentence_tokens, tokens) or not sentence_stems.isdisjoint(map(stem, tokens))
            if not named and not any(_are_alike(tokens, other) for other in used):
                chosen.append(text)
                used.append(tokens)
    return chosen if len(chosen) == count else None


def _groups(key: Spot, pools: Pools) -> Iterator[list[str]]:
    """Groups of options, the best one first."""

    def of(*kinds: str) -> list[str]:
        return [text for kind in kinds for text in pools.get(kind, ())]

    if key.kind in _NUMBERS:
        yield [text for text in of(key.kind) if _are_of_one_size(text, key.text)]
        yield _made_up(key)
        yield of(key.kind)
    elif key.kind in _NAMES:
        yield of(*_NAMES) if key.kind == "name" else of(key.kind, "name")
        yield of(*_NAMES)
        yield of("term")
    elif key.kind == "term":
        yield [text for text in of("term") if _look_alike(text, key.text)]
        yield of("term")
    else:
        yield of(key.kind)
        yield list(CALENDAR_WORDS[key.tokens][1])


def _are_of_one_size(a: str, b: str) -> bool:
    """Whether two numbers are alike at first sight: as many digits, or one more or less; decimals; a scale word."""
    digits, points, scales = zip(*map(_form, (a, b)), strict=True)
    return abs(digits[0] - digits[1]) <= 1 and points[0] == points[1] and scales[0] == scales[1]


def _form(number: str) -> tuple[int, bool, bool]:
    token = tokens_of(number)[0]
    return sum(map(str.isdecimal, token)), "." in token, any(map(str.isalpha, number))


def _look_alike(a: str, b: str) -> bool:
    return abs(len(a) - len(b)) <= 3 and a[0].isupper() == b[0].isupper()


def _made_up(key: Spot) -> list[str]:
    """Numbers written like the key, with another first digit; years near it."""
    text = key.text if _DIGITS.search(key.text) else key.tokens[0]  # "eleven"
    match = _DIGITS.search(text)
    if not match or not match[0].isdecimal():  # `regex` knows newer digits than Python
        return []
    digits = "".join(str(int(digit)) for digit in match[0])
    if key.kind == "year":
        values = [str(int(digits) + years) for years in (-7, -5, -4, -3, -2, -1, 1, 2, 3, 4)]
    else:
        values = [f"{first}{digits[1:]}" for first in range(1, 10)]
    return [text[: match.start()] + value + text[match.end() :] for value in values if value != digits]


def _are_alike(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether both options would be right or wrong together: one is part of the other, or they share a word."""
    if not a or not set(a).isdisjoint(b):
        return True
    return any(stem(x) == stem(y) or is_inflected(x, y) for x in a for y in b)
