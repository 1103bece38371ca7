"""Splits text into sentences in any language, and removes datelines."""

from collections.abc import Sequence
from itertools import pairwise

import regex
import sentencex

from judges.text.languages import detect_language

_SURROGATE = regex.compile(r"[\ud800-\udfff]")  # sentencex refuses it
_OTHER_SPACES = regex.compile(r"[^\S ]")
_AFTER_SIGN = regex.compile(r"(?<=[\p{Sentence_Terminal}…])\s+")
_LINE_END = regex.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_ENDS_SENTENCE = regex.compile(r"[\p{Sentence_Terminal}…:;][\p{Pe}\p{Pf}\p{Pi}\"'*_]*$")

_NO_SPACE = regex.compile(r"[。．！？｡」』】）]$|[\p{Han}\p{Hiragana}\p{Katakana}]\p{P}+$")

# sentencex (1.0.32) ends a sentence at "5 p.m. Tuesday" and at "No 1. in".
_ENDS_IN_NUMBER = regex.compile(r"\d\.$")
_ENDS_IN_TIME = regex.compile(r"(?i)\b[ap]\.\s?m\.$")
_GOES_ON_AFTER_TIME = regex.compile(
    r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z.]*\s\d"
    r"|[ECMP][SD]?T|GMT|UTC|BST|CEST|CET|Eastern|Central|Mountain|Pacific|Greenwich|[Ll]ocal)\b|\("
)

_DASHES = r"(?:--?|[‐-―−])"
_PLACE = r"\p{Lu}[\p{L}\p{M}'’.-]*(?:,? \p{Lu}[\p{L}\p{M}'’.-]*){0,3}(?:, [\p{L}\d. ]{2,25})?"
_AGENCY = "CNN|CNN Student News|Reuters|Рейтер|ТАСС|AP|AFP|dpa|DPA|EFE|ANSA|UPI|PTI|IANS|Xinhua|Bloomberg|KNA|SID"
_GLUED_AGENCY = regex.compile(rf"\((?:{_AGENCY})\)(?=\S)")
_DATELINES = (
    # "(CNN)Share", "(CNN) -- A man", "(Reuters) - Oil": the agency alone.
    regex.compile(rf"\((?:{_AGENCY})\)\s*(?:{_DASHES}\s*)?"),
    # "LONDON, England (CNN) --", "Berlin (dpa) -": a place and an agency that we know.
    regex.compile(rf"{_PLACE}\s?\((?:{_AGENCY})\)\s*{_DASHES}\s*"),
    # "МОСКВА, 5 мая (ТАСС) -", "WASHINGTON — The": a place in capitals, perhaps an agency, a dash, a new sentence.
    regex.compile(
        r"\p{Lu}{2}[\p{Lu}'’.-]+(?: [\p{Lu}'’.-]+){0,3}(?:, [\p{L}\d. ]{2,25})?(?:\s?\([\p{L}\d ./&-]{2,30}\))?"
        rf"\s+{_DASHES}\s+(?=[\p{{Lu}}\p{{Pi}}\"'\d])"
    ),
    # "新华社北京5月1日电", "【ロンドン＝共同】"
    regex.compile(r"[（(]?新[华華]社[^，。]{2,20}[电電][）)]?[\s\u3000]*"),
    regex.compile(r"[【［][^】］。]{2,20}[】］][\s\u3000]*"),
)


def split_sentences(text: str, language: str | None = None) -> list[str]:
    """Split a text into sentences.

    No character but white space is lost or added, and sentences keep their order. A line end ends a sentence, except
    in text that is wrapped at a fixed width: a next line that begins with a small letter goes on, and if most do, only
    blank lines end paragraphs. Any white space inside a sentence becomes a space.

    Args:
        text: plain text in any language.
        language: ISO 639-1 code of its language, for the abbreviations; None detects it, and falls back to English.

    Returns:
        the sentences, without white space at their ends, and none empty. A surrogate without its pair, which is no
        text, becomes U+FFFD.
    """
    text = _SURROGATE.sub("\ufffd", text)
    language = language or detect_language(text) or "en"
    return [sentence for paragraph in _paragraphs(text) for sentence in _split_paragraph(paragraph, language)]


def join_sentences(sentences: Sequence[str]) -> str:
    """Join sentences by a space; by nothing after Chinese and Japanese ones, which have no space between them."""
    return "".join(sentence if _NO_SPACE.search(sentence) else f"{sentence} " for sentence in sentences).rstrip()


def strip_dateline(sentence: str) -> str:
    """Remove the dateline of an article's first sentence: "(CNN)", "LONDON (Reuters) -", "【ロンドン＝共同】".

    Returns:
        the rest of the sentence: all of it if it has no dateline, and "" if it is one.
    """
    for dateline in _DATELINES:
        if match := dateline.match(sentence):
            return sentence[match.end() :].strip()
    return sentence


def _paragraphs(text: str) -> list[str]:
    lines = [line.strip() for line in _LINE_END.split(text)]
    pairs = [(line, following) for line, following in pairwise(lines) if line and following]
    wrapped = 2 * sum(_goes_on(*pair) for pair in pairs) > len(pairs)
    paragraphs: list[str] = []
    before = ""
    for line in lines:
        if line and before and (wrapped or _goes_on(before, line)):
            paragraphs[-1] += f" {line}"
        elif line:
            paragraphs.append(line)
        before = line
    return paragraphs


def _goes_on(line: str, following: str) -> bool:
    return following[0].islower() and not _ENDS_SENTENCE.search(line)


def _split_paragraph(paragraph: str, language: str) -> list[str]:
    if glued := _GLUED_AGENCY.match(paragraph):  # "(CNN)Dr. Smith": sentencex would not see the abbreviation
        first, *others = _split_paragraph(paragraph[glued.end() :], language)
        return [glued[0] + first, *others]
    sentences: list[str] = []
    for part in _segment(paragraph, language):
        sentence = part.strip()
        if sentences and sentence and _is_one(sentences[-1], sentence):
            sentences[-1] += f" {sentence}"
        elif sentence:
            sentences.append(sentence)
    return sentences


def _segment(paragraph: str, language: str) -> list[str]:
    """The sentences that sentencex finds; those that end in a sign if it fails.

    sentencex (1.0.32) takes an initial and what follows for single bytes, and panics at "B." before a no-break space.
    Its panic is no Exception, so it would end the worker.
    """
    try:
        return list(sentencex.segment(language, _OTHER_SPACES.sub(" ", paragraph)))
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return _AFTER_SIGN.split(paragraph)


def _is_one(part: str, following: str) -> bool:
    """Whether the parts are of one sentence: "at 5 p.m. Tuesday", and "was No 1. in" if the text writes capitals."""
    if _ENDS_IN_TIME.search(part):
        return bool(_GOES_ON_AFTER_TIME.match(following))
    return bool(_ENDS_IN_NUMBER.search(part)) and following[0].islower() and any(map(str.isupper, part))
