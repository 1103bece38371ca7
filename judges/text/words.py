"""Counts words as the language does: by white space, and by characters in scripts that write no spaces.

In English and every other language that separates words by white space, the count is exactly `len(text.split())`:
"don't", "well-known", "2.5" and a dash standing alone are one word each. Earlier records and the reference setting
count so, and a run may mix old and new rows.

Chinese, Japanese, Thai, Lao, Khmer and Burmese write no spaces. There, each letter (with its marks) is a word,
punctuation is none, and a name in Latin letters or a number is one. Korean separates words by spaces.
"""

from itertools import pairwise

import regex

WORD_UNIT = "separated by white space, and characters in Chinese, Japanese, Thai, Lao, Khmer and Burmese"  # for reports

_SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー&&\p{L}]"
_IS_SPACELESS = regex.compile(_SPACELESS, regex.V1)
# One spaceless letter with its marks, or a run of anything else that holds letters and digits ("U.S.-China", "2.5").
_OTHER = rf"[[\p{{L}}\p{{N}}]--{_SPACELESS}]"
_WORD = regex.compile(rf"{_SPACELESS}\p{{M}}*|{_OTHER}(?:{_OTHER}|\p{{M}}|['’.,:_-](?={_OTHER}))*", regex.V1)
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]")


def count_words(text: str) -> int:
    """Return the number of words; of characters where the script has no spaces (see above)."""
    return sum(len(_split_piece(piece)) for piece in text.split())


def split_words(text: str) -> list[str]:
    """Return the words that `count_words` counts, with the punctuation that touches them.

    Joined, they are the text without its white space.
    """
    return [word for piece in text.split() for word in _split_piece(piece)]


def first_words(text: str, count: int) -> str:
    """Return the first `count` words, with one space where the text has white space."""
    kept: list[str] = []
    for piece in text.split():
        if count <= 0:
            break
        words = _split_piece(piece)[:count]
        kept.append("".join(words))
        count -= len(words)
    return " ".join(kept)


def _split_piece(piece: str) -> list[str]:
    """Split a piece without white space into words."""
    if piece.isascii() or not _IS_SPACELESS.search(piece):
        return [piece]
    matches = list(_WORD.finditer(piece))
    starts = [0]
    for word, following in pairwise(matches):
        opening = _OPENING.search(piece, word.end(), following.start())
        starts.append(opening.start() if opening else following.start())
    return [piece[start:end] for start, end in zip(starts, [*starts[1:], len(piece)], strict=True)]
