"""Finds gibberish in a text about an article: characters that no writer of the article's language would put there.

Gibberish is a property of scripts and of runs, not of single characters: a paraphrase in German, Russian or Hindi uses
letters, and any writer uses signs ("€", "•", "°"), that the article happens not to have. Meaningless words are left to
the judge.
"""

from functools import lru_cache

import regex

from judges.text.languages import detect_language

# Share of an article's letters: a script with more is the article's own, one with less is only quoted.
_MIN_SHARE = 0.1
_MIN_RUN = 8  # "Nooooo!!!" is a style; leaders and rules (".....", "-----") of any length are fine too
_MAX_MARKS = 4  # on one letter; Hebrew with points and accents has up to 3

_SCRIPTS = (
    "Latin Greek Cyrillic Armenian Georgian Hebrew Arabic Syriac Thaana Nko Devanagari Bengali Gurmukhi Gujarati Oriya "
    "Tamil Telugu Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar Khmer Ethiopic Cherokee Mongolian Hangul Han "
    "Hiragana Katakana Bopomofo Yi Tifinagh Javanese Balinese Sundanese"
).split()
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in _SCRIPTS))
_NO_SCRIPT = regex.compile(r"[\p{Script=Common}\p{Script=Inherited}]")
# Scripts that a language uses besides those that are common in the article; Latin is used everywhere.
_SCRIPTS_OF_LANGUAGE = {
    "ja": {"Han", "Hiragana", "Katakana"},
    "zh": {"Han", "Bopomofo"},
    "ko": {"Hangul", "Han"},
    **{language: {"Cyrillic"} for language in ("sr", "bs", "mn", "kk", "uz", "az", "ky")},
}

# Control characters but tab and line ends, surrogates, private use, unassigned; and what stands for a lost character.
_NOT_TEXT = regex.compile(r"[[\p{Cc}\p{Cs}\p{Co}\p{Cn}]--[\t\n\v\f\r\x1c-\x1f\x85]]|[\ufffc\ufffd]", regex.V1)
# A space, line end or tab as byte-level and sentencepiece vocabularies write it, before or after a letter.
_TOKENIZER_MARK = regex.compile(r"(?<!\p{L})[ĠĊĉ](?=\p{L}|[ĠĊĉ])|[ĊĠĉ]$|▁")
_RUN = regex.compile(rf"([^\s\d.·•…_=*#~+|\p{{Pd}}─━])\1{{{_MIN_RUN - 1},}}")
_MARKS = regex.compile(rf"\p{{Mn}}{{{_MAX_MARKS + 1},}}")
_GREEK_SYMBOL = regex.compile(r"(?<![\p{Greek}\p{M}])\p{Greek}(?![\p{Greek}\p{M}])")

# UTF-8 that was read as Windows-1252: a lead byte with its continuation bytes. The first alternative becomes Latin
# letters and typographic signs; the second other scripts, and needs two letters, for it has words of its own.
_CONTINUATION = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = regex.compile(rf"[ÂÃÄÅ]{_CONTINUATION}|â{_CONTINUATION}{{2}}|ð{_CONTINUATION}{{3}}")
_MOJIBAKE_WORD = regex.compile(rf"(?:[Î-Û]{_CONTINUATION}|[à-ï]{_CONTINUATION}{{2}}){{2,}}")
_CYRILLIC_MOJIBAKE = regex.compile(
    "(?:[РС][ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—™љ›њќћџ\u00a0ЎўЈ¤Ґ¦§Ё©Є«¬\u00ad®Ї°±Ііґµ¶·ё№є»јЅѕї]){3,}"
)
_READABLE = regex.compile(r"[\u0080-\u017f\u2010-\u205e\u20a0-\u20bf\u2100-\u214f\u2190-\u21ff\U0001f300-\U0001faff]")


def count_gibberish(text: str, article: str) -> int:
    """Return how many characters of a text about an article are gibberish.

    These are: control characters, private use, unassigned code points and U+FFFD; letters and digits of a script that
    neither the article nor its language uses (a script that is under a tenth of the article counts as quoted: only the
    letters that it has are its own); mojibake ("Ã¼", "â€™"); marks of a tokenizer's vocabulary ("Ġ"); 8 or more of
    one letter or sign in a row; 5 or more marks on one letter. What the article itself has is never gibberish.
    """
    found: set[int] = set()
    for match in _NOT_TEXT.finditer(text):
        found.update(_span(match, article))
    for pattern in (_RUN, _MARKS):
        for match in pattern.finditer(text):
            found.update(_span(match, article))
    if not text.isascii():
        for match in _TOKENIZER_MARK.finditer(text):
            found.update(_span(match, article))
        found.update(_mojibake(text, article))
        found.update(_foreign_letters(text, article))
    return len(found)


def script_of(char: str) -> str | None:
    """Return a character's script by its Unicode name ("Latin", "Han"); "other" for a rare one, None for signs."""
    if _NO_SCRIPT.match(char):
        return None
    match = _SCRIPT.match(char)
    return str(match.lastgroup) if match else "other"


def _span(match: regex.Match[str], article: str) -> range:
    return range(0) if match[0] in article else range(*match.span())


def _foreign_letters(text: str, article: str) -> set[int]:
    new = {char for char in set(text) - set(article) if not char.isascii()}
    scripts = {char: script_of(char) for char in new}
    foreign = {char for char, script in scripts.items() if script not in (None, "Latin")}
    if not foreign:
        return set()
    allowed = _scripts_of_article(article)
    foreign = {char for char in foreign if scripts[char] not in allowed}
    symbols = {match.start() for match in _GREEK_SYMBOL.finditer(text)}  # "α" in "interferon α"
    return {at for at, char in enumerate(text) if char in foreign and at not in symbols}


@lru_cache(maxsize=16)  # all summaries of an article are counted one after the other
def _scripts_of_article(article: str) -> frozenset[str]:
    counts: dict[str, int] = {}
    for match in _SCRIPT.finditer(article):
        counts[str(match.lastgroup)] = counts.get(str(match.lastgroup), 0) + 1
    total = sum(counts.values())
    own = {script for script, count in counts.items() if count >= _MIN_SHARE * total}
    return frozenset(own | _SCRIPTS_OF_LANGUAGE.get(detect_language(article) or "", set()))


def _mojibake(text: str, article: str) -> set[int]:
    found: set[int] = set()
    for match in _MOJIBAKE.finditer(text):
        decoded = _as_utf8(match[0])
        if decoded and _READABLE.fullmatch(decoded) and not _ends_capitals(text, match):
            found.update(_span(match, article))
    for match in _MOJIBAKE_WORD.finditer(text):
        if _as_utf8(match[0]):
            found.update(_span(match, article))
    for match in _CYRILLIC_MOJIBAKE.finditer(text):
        found.update(_span(match, article))
    return found


def _ends_capitals(text: str, match: regex.Match[str]) -> bool:
    """Whether this is the last letter of a word in capitals, and a quotation mark: “AMANHÃ”, „Ä“."""
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    return match[0][-1] in "»”“’‘›" and (before.isupper() or not before.isalnum()) and not after.isalpha()


def _as_utf8(text: str) -> str | None:
    """Undo a reading as Windows-1252; None if the bytes are not UTF-8."""
    try:
        return b"".join(c.encode("latin-1" if ord(c) < 256 else "cp1252") for c in text).decode("utf-8")
    except UnicodeError:
        return None
