"""Restores the writing of a summary that a tokenizer, a lower-casing model or another keyboard has changed.

Published summaries often come as "paul merson ( left ) has n't played , he said". A language model finds such writing
unlikely, and would blame the summary for it.
"""

from collections import Counter
from functools import lru_cache

import regex

from judges.text.word_forms import is_function_word

_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_BRACKET = regex.compile("|".join(_BRACKETS), regex.IGNORECASE)
_QUOTES = regex.compile(r"`` ?| ?''")
_SPACE_BEFORE = regex.compile(r"(?<=\S) +(?=[.,;:!?%)\]}…。，、](?:\s|$))")
_SPACE_AFTER = regex.compile(r"(?<=[(\[{]) +(?=\S)")
_CLITIC = regex.compile(r"(?<=\p{L}) +(?=(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b)", regex.IGNORECASE)
# Signs that are written in more than one way: typographic, full width, no-break. A summary gets the plain ones, unless
# its article has the others.
_PLAIN_SIGNS = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-", "\u00a0": " ", "…": "..."} | {
    chr(sign + 0xFEE0): chr(sign) for sign in range(0x21, 0x7F)
}
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\p{N}]*(?:['’-]\p{L}[\p{L}\p{M}\p{N}]*)*")
_OPENING_WORD = regex.compile(r"(?:^|(?<=[.!?]['\"”’)]? ))[\p{P}\s]*\p{Ll}")


def restore(summary: str, article: str) -> str:
    """Return the summary with the case of the article's words, and without the spaces that a tokenizer adds.

    A word changes its case only if the article never writes it so, and likewise a sign. If a summary has no capital
    letter at all, its sentences get one each. A summary in ordinary writing stays as it is.
    """
    signs = {ord(sign): plain for sign, plain in _PLAIN_SIGNS.items() if sign not in article}
    summary = summary.translate(signs)
    text = " ".join(_QUOTES.sub('"', _BRACKET.sub(lambda match: _BRACKETS[match[0].lower()], summary)).split())
    text = _CLITIC.sub("", _SPACE_AFTER.sub("", _SPACE_BEFORE.sub("", text)))
    writings = _count_writings(article)

    def as_in_article(match: regex.Match[str]) -> str:
        known = writings.get(match[0].casefold())
        # A capital that only opens a sentence here is no other writing.
        if not known or match[0] in known or (match[0][0].isupper() and match[0].lower() in known):
            return match[0]
        return known.most_common(1)[0][0]

    has_capitals = any(c.isupper() for c in text)
    text = _WORD.sub(as_in_article, text)
    return text if has_capitals else _OPENING_WORD.sub(lambda match: match[0].upper(), text)


@lru_cache(maxsize=256)  # the articles of a batch: each is asked for with every summary, before and after the engine
def _count_writings(article: str) -> dict[str, Counter[str]]:
    """How the article writes each word, by the word in small letters."""
    writings: dict[str, Counter[str]] = {}
    for word in _WORD.findall(article):
        # "Just" in the article only opens a sentence.
        if not (word[0].isupper() and is_function_word(word.casefold())):
            writings.setdefault(word.casefold(), Counter())[word] += 1
    return writings
