"""Finds terms in scripts without spaces, where neither white space nor a capital letter shows a word.

A term is an n-gram that occurs twice or more, and more often than the longer ones around it. In Japanese, kana surround
words in kanji, and katakana writes names and foreign words, so those need not be repeated.
"""

from collections import Counter
from collections.abc import Sequence

import regex

from judges.cloze.calendar_words import CALENDAR
from judges.text.word_forms import DENSE, FUNCTION_CHARACTERS

_ANY = regex.compile(rf"[{DENSE}]")
_HIRAGANA = regex.compile(r"\p{Hiragana}")
_KATAKANA = regex.compile(r"[\p{Katakana}ー・]{3,}")
_KANJI = regex.compile(r"\p{Han}{2,8}")
_RUN = regex.compile(r"[\p{Han}\p{Katakana}ー]+|\p{Thai}+|\p{Lao}+|\p{Khmer}+|\p{Myanmar}+")
_LONGEST = 8
_MOST_NGRAMS = 400  # of one article; a book repeats more than can be looked up

# Names of weekdays and months; the longest first, for 一月 is part of 十一月.
DENSE_CALENDAR = regex.compile(
    "|".join(
        sorted(
            {name for table in CALENDAR.values() for row in table for name in row if _ANY.match(name)},
            key=lambda name: (-len(name), name),
        )
    )
)


def find_dense_terms(sentences: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """Find start, end and kind ("term") of the terms in each of an article's sentences. They may overlap."""
    found: list[list[tuple[int, int, str]]] = [[] for _ in sentences]
    if not any(map(_ANY.search, sentences)):
        return found
    patterns = [_KATAKANA, *([_KANJI] if any(map(_HIRAGANA.search, sentences)) else [])]
    if ngrams := _repeated_ngrams(sentences):
        patterns.append(regex.compile("|".join(map(regex.escape, ngrams))))
    for spans, sentence in zip(found, sentences, strict=True):
        for pattern in patterns:
            spans += [(m.start(), m.end(), "term") for m in pattern.finditer(sentence) if not _ends_in_grammar(m[0])]
    return found


def _ends_in_grammar(term: str) -> bool:
    return not FUNCTION_CHARACTERS.isdisjoint((term[0], term[-1]))


def _repeated_ngrams(sentences: Sequence[str]) -> list[str]:
    """N-grams of 2 to 8 characters that occur twice or more, and are not just a part of a longer one. Longest first."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        for run in _RUN.findall(sentence):
            for size in range(2, _LONGEST + 2):
                counts.update(run[i : i + size] for i in range(len(run) - size + 1))
    repeated = {ngram: count for ngram, count in counts.items() if count > 1}
    parts: set[str] = set()
    for ngram, count in repeated.items():
        parts.update(part for part in (ngram[1:], ngram[:-1]) if repeated.get(part, 0) <= count)
    whole = [n for n in repeated if n not in parts and len(n) <= _LONGEST and not _ends_in_grammar(n)]
    most = sorted(whole, key=lambda n: (-repeated[n] * len(n), n))[:_MOST_NGRAMS]
    return sorted(most, key=lambda n: (-len(n), n))
