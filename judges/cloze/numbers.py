"""Finds numbers in a sentence, with their scale and percent sign, and tells money, percent and years from others.

"2.5 million" is one number, and so are "14,000", "1 450", "6,50,000" and "1万5000". The numbers of "10:30" and "2-1"
cannot be asked for alone, and are left out.
"""

from collections.abc import Iterator

import regex

from judges.text.word_forms import DENSE

_SPACE = r"[\s\u00a0\u202f]"
_SCALE = (
    r"thousand|million|billion|trillion|Tausend|Million(?:en)?|Mio\.?|Milliarden?|Mrd\.?|mille|mil|millones|milliards?|"
    r"millions|milioni|miliardi|milhões|miljoen|miljard|mln\.?|mld\.?|tys\.?|тыс\.?|тысяч\w?|млн\.?|миллион\w*|млрд\.?|"
    r"миллиард\w*|ألف|آلاف|مليون|ملايين|مليار|हज़ार|हजार|लाख|करोड़|करोड़|अरब|万|萬|亿|億|兆|千"
)
_PERCENT = (
    r"%|٪|％|percent\b|per cent\b|Prozent\b|процент\w*|في المئة|في المائة|بالمئة|प्रतिशत|फीसदी|फ़ीसदी|por ciento|"
    r"pour cent|per cento|por cento|procent\b"
)
_CURRENCY = (
    r"\p{Sc}|dollars?\b|euros?\b|pounds?\b|yen\b|yuan\b|rupees?\b|Euro\b|Franken\b|руб\w*|доллар\w*|евро|دولار\w*|يورو|"
    r"جنيه\w*|ريال\w*|रुपये|रुपए|डॉलर|元|円|美元|欧元|ドル|ユーロ"
)
_DIGITS = (
    r"\p{Nd}{1,3}(?:[.,'’٬\u00a0\u202f ]\p{Nd}{3}(?!\p{Nd}))+(?:[.,٫]\p{Nd}+)?"
    r"|\p{Nd}{1,3}(?:,\p{Nd}{2})+,\p{Nd}{3}"
    r"|\p{Nd}+(?:[.,٫]\p{Nd}+)?"
)
_NUMBER = regex.compile(
    rf"(?<![[\p{{L}}\p{{M}}--[{DENSE}]]\p{{N}}]|[.,]|\p{{Nd}}[-–:/])"
    rf"(?<prefix>\p{{Sc}}\s?)?(?<digits>{_DIGITS})"
    rf"(?<scale>{_SPACE}?(?:{_SCALE})(?![\p{{Latin}}\p{{Cyrillic}}\p{{Arabic}}\p{{Devanagari}}])\p{{Nd}}*"
    r"|(?<=\p{Sc}\s?\p{Nd}[\p{Nd}.,]*)(?:k|m|bn)\b)?"
    rf"(?<percent>{_SPACE}?(?:{_PERCENT}))?(?=(?<currency>{_SPACE}?(?:{_CURRENCY}))?)"
    r"(?![\p{Latin}\p{Nd}]|[.,:/–-]\p{Nd})",
    regex.V1,
)
_YEAR_IN_DENSE_SCRIPT = regex.compile(rf"\s?[年년]|(?![{DENSE}])")


def find_numbers(sentence: str) -> Iterator[tuple[int, int, str]]:
    """Find start, end and kind (number, money, percent, year) of each number in digits; and of currencies (unit)."""
    for match in _NUMBER.finditer(sentence):
        yield match.start(), match.end(), _kind(sentence, match)
        if match["currency"]:
            yield match.end(), match.end("currency"), "unit"


def _kind(sentence: str, match: "regex.Match[str]") -> str:
    if match["percent"]:
        return "percent"
    if match["prefix"] or match["currency"]:
        return "money"
    digits = match["digits"]
    if len(digits) == 4 and digits.isdecimal() and not match["scale"] and 1500 <= int(digits) <= 2099:
        # 2000棵 are 2,000 trees.
        return "year" if _YEAR_IN_DENSE_SCRIPT.match(sentence, match.end()) else "number"
    return "number"
