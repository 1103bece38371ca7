"""Normalizes text to tokens, so that the same word written in another way compares equal, and another word does not.

`normalized_tokens` is for comparing texts, not for showing them. Two writings are equal if they differ by

- case, Unicode normalization (NFC, NFD, full width, ligatures), white space and line ends, soft hyphens and other
  characters of no width, punctuation, hyphens, apostrophes (straight or typographic), a possessive 's or s';
- the writing of a number: 1,000, 1 000, 1.000, 1'000, 1000, ١٬٠٠٠ and "one thousand"; 2.5 million, $2.5m, 250万 and
  2,500,000; 2,50 and 2.5; 5% and 5 percent. A currency sign is dropped;
- the points in initials: U.N. and UN. U.S., USA and "US" in capitals are all "usa", for "us" is a word;
- Arabic and Hebrew vowel marks and tatweel, Cyrillic stress marks and ё for е.

A number is one token: "14,000" holds neither "14" nor "000", and "2.5 million" holds no "2" and no "2.5". A comma or
point before exactly three digits groups thousands ("1.000" is 1000, as in German; "0.125" is not), else it is a
decimal point. Number words are read in English, and scales ("млрд", "Millionen", "万", "लाख") in some languages more.
The text's language does not matter, so that a name has the same tokens alone and in its sentence. "one" alone stays a
word, because it is rarely a number.

Han, Hiragana, Thai, Lao, Khmer and Burmese letters are one token each, for these scripts write no spaces: a name is
found as consecutive letters. Katakana runs are one token. All other words end at Unicode word boundaries (UAX 29).
"""

import unicodedata
from collections.abc import Sequence
from decimal import Decimal

import regex

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼʹ`´＇‛′", "'"))
_DECIMAL_MARKS = str.maketrans({"٫": ".", "٬": ",", "，": ",", "．": "."})
_FRACTION = regex.compile(r"(?<!\d)(\d*+)([¼-¾⅐-⅞])")
_RAISED = regex.compile(r"(?<=\d)[⁰¹²³⁴-⁹₀-₉]+")  # a footnote's mark, not a digit of the number
# No width, or no meaning for comparing: soft hyphen, joiners, direction marks, variation selectors, vowel marks.
_INVISIBLE = regex.compile(
    r"[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufe00-\ufe0f\u0640\u064b-\u0652\u0670\u0591-\u05c7]"
)
_CYRILLIC_STRESS = regex.compile(r"(?<=\p{Cyrillic})[\u0300\u0301]")
_DIGIT = regex.compile(r"(?![0-9])\p{Nd}")
_SPACES = regex.compile(r"[\s\u200b]+")

# Digits in groups of three, or of two before the last three as in India, with one separator; then decimals.
_NUMBER = regex.compile(
    r"(?=\d)(?<![\d.,])"  # the look ahead makes it nine times faster
    r"(?:(?P<grouped>[1-9]\d{0,2}(?:(?P<mark>[,.' ])\d{3}(?:(?P=mark)\d{3})*|(?:,\d\d)+,\d{3}))|(?P<plain>\d+))"
    r"(?:[.,](?P<decimals>\d+))?(?![\d]|[.,]\d)"
)
_CURRENCY_SCALE = regex.compile(r"(?<=\p{Sc} ?[\d.]+ ?)(?:(k)|(m|mn|mln)|(bn|b|bln)|(tn|trn))\b")
_PERCENT = regex.compile(r"%|\bper cent\b|\bpct\b")
_POSSESSIVE = regex.compile(r"(?<=\w)'s?(?!\w)")
# French, Italian and Catalan articles and pronouns: "l'homme" holds "homme".
_ELISION = regex.compile(r"\b(l|d|j|n|s|m|t|c|qu|jusqu|lorsqu|puisqu|dell|nell|sull|all|dall|un)'(?=\w)")
_INITIALS = regex.compile(r"(?<![\w.])(?:\p{L}\p{M}*\.){2,}(?:\p{L}\b)?|(?<![\w.])\p{L}\.\p{L}(?![\w.])")
_UNITED_STATES = regex.compile(r"(?<![\w.])(?:[Uu]\.[Ss]\.(?:[Aa]\.)?|USA?(?!\w))")
# A word as UAX 29 ends it, or a punctuation mark that ends a number in words: "two hundred, nineteen".
_WORDS = regex.compile(r"\b\w.*?\b|[^\w\s'-]", regex.WORD | regex.DOTALL)
_PUNCTUATION = regex.compile(r"[.,:;·]")  # UAX 29 leaves it in "10.11.2012" and "a:b"

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_UNITS = {word: value for value, word in enumerate(_SMALL)} | {w: 10 * n for n, w in enumerate(_TENS, 2)}
# What multiplies the number before it. English first, in the order of _CURRENCY_SCALE.
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12} | {
    unicodedata.normalize("NFKC", word): scale
    for scale, words in {
        10**3: "tausend тыс тысяча тысячи тысяч ألف آلاف الف हजार हज़ार 千",
        10**4: "万 萬",
        10**5: "लाख lakh",
        10**6: "millionen mio млн миллион миллиона миллионов مليون ملايين millions millón millones milione milioni",
        10**7: "करोड़ crore",
        10**8: "亿 億",
        10**9: "milliarde milliarden mrd млрд миллиард миллиарда миллиардов مليار مليارات milliard milliards miliardi",
        10**12: "billionen трлн триллион триллиона триллионов تريليون 兆",
    }.items()
    for word in words.split()
}
_DENSE_SCALES = set("千万萬亿億兆")  # a further number may follow: 2億5000万
_PERCENT_WORDS = set("prozent процент процента процентов प्रतिशत फीसदी パーセント".split())
_LONGEST = 18  # digits
_LARGEST = Decimal(10**_LONGEST)  # a longer number is a serial number, and stays as it is written


def normalized_tokens(text: str) -> list[str]:
    """Return the text's tokens, normalized as the module says. Never fails; a text without words has none."""
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).translate(_DECIMAL_MARKS)
    text = _RAISED.sub(" ", _FRACTION.sub(_decimal_fraction, _UNITED_STATES.sub("usa", text)))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _CYRILLIC_STRESS.sub("", _INVISIBLE.sub("", text)).replace("ё", "е").replace("i\u0307", "i")
    text = _SPACES.sub(" ", _DIGIT.sub(_ascii_digit, text))
    text = _PERCENT.sub(" percent ", _NUMBER.sub(_plain_number, text))
    text = _CURRENCY_SCALE.sub(_scale_word, text)
    text = _INITIALS.sub(lambda match: match[0].replace(".", ""), text)
    text = _ELISION.sub(r"\1 ", _POSSESSIVE.sub("", text))
    tokens = _join_numbers([token for word in _WORDS.findall(text) for token in _split_word(word)])
    tokens = ["percent" if token in _PERCENT_WORDS else token for token in tokens]
    return [token for token in tokens if token[0].isalnum() or token[-1].isalnum()]


def contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    """Return whether `part` is in `tokens` as consecutive tokens. Nothing contains an empty part."""
    part = list(part)
    return bool(part) and any(
        token == part[0] and list(tokens[start : start + len(part)]) == part for start, token in enumerate(tokens)
    )


def _ascii_digit(match: regex.Match[str]) -> str:
    # `regex` knows newer digits than `unicodedata`; these stay as they are.
    return str(unicodedata.digit(match[0], match[0]))


def _decimal_fraction(match: regex.Match[str]) -> str:
    whole, fraction = match[1], Decimal(str(round(unicodedata.numeric(match[2]), 4)))
    # `regex` knows newer digits than Python, and Python reads no number of thousands of digits.
    if whole and (not whole.isdecimal() or len(whole) > _LONGEST):
        return f" {whole} {fraction:f}"
    return f" {(int(whole or 0) + fraction).normalize():f}"


def _plain_number(match: regex.Match[str]) -> str:
    """1,000.50 becomes 1000.5, and 2,5 becomes 2.5."""
    whole = "".join(c for c in match["grouped"] or match["plain"] if c.isdigit())
    decimals = (match["decimals"] or "").rstrip("0")
    return f"{whole}.{decimals}" if decimals else whole


def _scale_word(match: regex.Match[str]) -> str:
    return f" {list(_SCALES)[(match.lastindex or 1) - 1]}"


def _split_word(word: str) -> list[str]:
    """A word of dotted parts, such as a date or an address, becomes its parts; a number stays whole."""
    if len(word) == 1 or word.isalpha() or _is_number(word):
        return [word]
    return [part for part in _PUNCTUATION.split(word) if part]


def _is_number(token: str) -> bool:
    return token.replace(".", "", 1).isdecimal() and token[0] != "." and token[-1] != "."


def _join_numbers(tokens: list[str]) -> list[str]:
    """Replace English number words, and scales after digits, by the number: ["two", "thousand"] becomes ["2000"]."""
    joined: list[str] = []
    at = 0
    while at < len(tokens):
        length, number = _read_number(tokens, at) if _may_begin_number(tokens[at]) else (0, "")
        joined.append(number if length else tokens[at])
        at += length or 1
    return joined


def _may_begin_number(token: str) -> bool:
    return token in _UNITS or token == "a" or token[0].isdecimal()


def _read_number(tokens: list[str], start: int) -> tuple[int, str]:
    """Read the number that begins at `start`.

    Returns:
        how many tokens it takes, 0 if none begins there; and the number in digits.
    """
    total = Decimal(0)  # the whole scales read so far
    below_thousand: Decimal | None = None  # the number before the next scale
    smallest_scale = _LARGEST
    room = 1000  # a unit must be smaller: after "twenty" only 1 to 9 go on
    at = end = start
    while at < len(tokens):
        token = tokens[at]
        if token in _UNITS and _UNITS[token] < room and (_UNITS[token] or at == start):
            below_thousand = (below_thousand or Decimal(0)) + Decimal(_UNITS[token])
            room = 10 if token in _TENS else 0
        elif token == "hundred" and _precedes_hundred(tokens, at, start, below_thousand):
            below_thousand, room = (below_thousand or Decimal(1)) * 100, 100
        elif (
            token in _SCALES and _SCALES[token] < smallest_scale and _precedes_scale(tokens, at, start, below_thousand)
        ):
            total += (1 if below_thousand is None else below_thousand) * _SCALES[token]
            smallest_scale, below_thousand, room = Decimal(_SCALES[token]), None, 1000
        elif (
            (at == start or tokens[at - 1] in _DENSE_SCALES)
            and _is_number(token)
            and len(token) <= _LONGEST
            and Decimal(token) < smallest_scale
        ):
            below_thousand, room = Decimal(token), 0
        elif not _joins_number(tokens, at, start):
            break
        at += 1
        end = end if _joins_number(tokens, at - 1, start) else at
    if end == start or tokens[start:end] == ["one"]:
        return 0, ""
    if end == start + 1 and _is_number(tokens[start]):
        return 1, tokens[start]  # as it is written: 007 is not 7
    return end - start, f"{(total + (below_thousand or 0)).normalize():f}"


def _joins_number(tokens: list[str], at: int, start: int) -> bool:
    """Whether this is the "a" of "a hundred", or the "and" of "two hundred and five"."""
    if at == start:
        return tokens[at] == "a" and at + 1 < len(tokens) and tokens[at + 1] in ("hundred", *_SCALES)
    return tokens[at] == "and" and tokens[at - 1] in ("hundred", *_SCALES)


def _precedes_hundred(tokens: list[str], at: int, start: int, value: Decimal | int | None) -> bool:
    """Whether "hundred" goes on with a number: after 1 to 99, or after "a"."""
    return 1 <= value < 100 if value is not None else at > start and tokens[at - 1] == "a"


def _precedes_scale(tokens: list[str], at: int, start: int, value: Decimal | int | None) -> bool:
    """Whether "thousand" and the like go on with a number: after any number, or after "a"."""
    return at > start and (value is not None or tokens[at - 1] == "a")
