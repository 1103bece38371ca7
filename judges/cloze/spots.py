"""Finds the places in an article's sentences that can be blanked out: numbers, names, and words with a meaning.

Rules find them, not a model for named entities. `numbers.py`, `names.py` and `spaceless.py` each find their kind;
this module puts them together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from judges.cloze.calendar_words import CALENDAR_WORDS
from judges.cloze.names import WORD, Casing
from judges.cloze.numbers import find_numbers
from judges.cloze.spaceless import DENSE_CALENDAR, find_dense_terms
from judges.text.tokens import normalized_tokens
from judges.text.word_forms import is_function_word

Span = tuple[int, int, str]  # start and end in characters of a sentence, and the kind

_CASED = regex.compile(r"[\p{Ll}\p{Lu}]")
_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True)
class Spot:
    """A place in a sentence that can be blanked out.

    Attributes:
        sentence: the index of the sentence.
        start, end: the place, in characters of the sentence.
        text: what is written there.
        tokens: the text, normalized.
        kind: number, money, percent, year, weekday, month, person, place, organisation, name (one of the last three,
            but which one is not known), or term (any other word).
    """

    sentence: int
    start: int
    end: int
    text: str
    tokens: tuple[str, ...]
    kind: str


@lru_cache(1 << 14)
def tokens_of(text: str) -> tuple[str, ...]:
    """Return the normalized tokens of a short text. The same words are asked for again and again."""
    return tuple(normalized_tokens(text))


def find_spots(sentences: Sequence[str]) -> list[Spot]:
    """Return the places that can be blanked out, in order. They do not overlap."""
    words = [list(WORD.finditer(sentence)) for sentence in sentences]
    casing = Casing(sentences, words)
    dense_terms = find_dense_terms(sentences)
    spots = []
    for number, sentence in enumerate(sentences):
        spans = _without_overlaps(
            len(sentence),
            find_numbers(sentence),
            _calendar_spans(sentence, words[number]),
            casing.names(number),
            dense_terms[number],
            _word_spans(sentence, words[number], casing),
        )
        for start, end, kind in spans:
            text = sentence[start:end]
            # "dollars" after a number is no word to ask for.
            if kind != "unit" and (tokens := tokens_of(text)):
                spots.append(Spot(number, start, end, text, tokens, kind))
    return spots


def _without_overlaps(length: int, *groups: Iterable[Span]) -> list[Span]:
    """The spans in order. Where two overlap, the one that comes first in the arguments is kept."""
    taken = bytearray(length)
    spans = []
    for start, end, kind in (span for group in groups for span in group):
        if start < end and not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            spans.append((start, end, kind))
    return sorted(spans)


def _calendar_spans(sentence: str, words: "Sequence[regex.Match[str]]") -> Iterator[Span]:
    for match in words:
        entry = CALENDAR_WORDS.get(tokens_of(match[0]))
        # As it is written in the table: "May" is a month, and "may" is none.
        if entry and match[0] in entry[1]:
            yield match.start(), match.end(), entry[0]
    for match in DENSE_CALENDAR.finditer(sentence):
        yield match.start(), match.end(), CALENDAR_WORDS[tokens_of(match[0])][0]


def _word_spans(sentence: str, words: "Sequence[regex.Match[str]]", casing: Casing) -> Iterator[Span]:
    for match in words:
        tokens = tokens_of(match[0])
        if len(tokens) == 1 and tokens[0].isdecimal() and match[0].isalpha():
            yield match.start(), match.end(), "number"  # "eleven"
        elif casing.every_noun and match[0][0].islower():
            continue  # where nouns can be told, only they are terms
        elif _says_something(match[0], tokens) and not casing.only_opens(sentence, match):
            yield match.start(), match.end(), "term"


def _says_something(word: str, tokens: Sequence[str]) -> bool:
    # Three letters are a word where vowels are not written, and seldom one that matters elsewhere.
    least = 4 if _CASED.search(word) else 3
    return len(_LETTER.findall(word)) >= least and not all(map(is_function_word, tokens)) and not {"'", "’"} & set(word)
