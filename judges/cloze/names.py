"""Finds names by their capital letters, and guesses whether a name is a person, a place or an organisation.

A capital letter at the start of a sentence tells nothing, unless the word has one elsewhere too. Where every noun has
one, as in German, only two or more such words in a row are a name. The guesses look at the words around a name; a name
without such a sign stays a name of unknown kind.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import regex

from judges.text.languages import detect_language
from judges.text.word_forms import DENSE, FUNCTION_WORDS

_LETTER = rf"[\p{{L}}\p{{N}}--[{DENSE}]]"
_INNER = rf"[\p{{L}}\p{{M}}\p{{N}}\u00ad--[{DENSE}]]"
# Words of scripts with spaces, and initials ("U.S.").
WORD = regex.compile(rf"(?:\p{{Lu}}\.){{2,}}|{_LETTER}{_INNER}*(?:['’-]{_LETTER}{_INNER}*)*", regex.V1)

# The point of an abbreviation is the only one inside a sentence, so it opens none.
_OPENS_SENTENCE = regex.compile(r"(?:^|[!?:;…][\p{P}\s]*)[\p{P}\s--[.]]*$", regex.V1)
_OPENS_QUOTATION = regex.compile(r"[\p{Pi}\p{Ps}\"'„]\s*$")
_ARTICLES = frozenset("the a an".split())
_POSSESSIVE = regex.compile(r"['’]s?$")
_TITLES = frozenset("mr mrs ms dr prof sir st jr sr rep sen gov gen col lt sgt capt frau herr mme г".split())
_PARTICLES = frozenset("de da di del van von bin al el ibn dos du la le".split())
_PARTICLE_NAME = regex.compile(rf"(?:{'|'.join(sorted(_PARTICLES))})[-'’]\p{{Lu}}")  # al-Abadi
_COMPOUND = regex.compile(r"-\p{Ll}")  # Smith-starring

_BEFORE_PERSON = regex.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sen|Rep|Gov|Gen|Judge|President|Senator|Officer|Minister|Frau|Herr|M|Mme|[Aa]ctor|[Aa]ctress|"
    r"author|coach|director|minister|mayor|singer|spokesman|spokeswoman|attorney|doctor|professor|мэр|директор|президент|"
    r"министр)\.?\s$"
)
_PERSON = regex.compile(
    r"(?:Prime Minister|President|Senator|Director|Minister|Judge|Officer|Principal|Coach|Mayor|Governor|Justice|"
    r"Professor|Detective|Sergeant|Captain|General|Chief|King|Queen|Prince|Princess|Pope) \p{Lu}"
)
_AFTER_PERSON = regex.compile(
    r",? (?:said|says|told|added|wrote|tweeted|who|whose|\d\d,|сказал|заявил|sagte|erklärte|dijo|a dit)\b"
)
_BEFORE_PLACE = regex.compile(r"\b(?:in|In|near|across|from|outside|im|aus|en|à)\s$")
_ORGANISATION = regex.compile(
    r"\b(?:inc|corp|ltd|llc|gmbh|ag|university|police|department|ministry|party|bank|company|association|council|court|"
    r"committee|agency|institute|school|college|hospital|club|united|fc|group|foundation|union|news|times|post)\b",
    regex.IGNORECASE,
)
_EVERY_NOUN = ("de", "lb")
_LEAST_SHARE = 0.15  # of words with a capital letter in such a language; less is text in small letters


# Annotations with `regex.Match[str]` are in quotes: cloudpickle, which sends classes to Ray, cannot pickle it.
class Casing:
    """Finds by capital letters which words of an article are names.

    Args:
        sentences: of one article.
        words: the matches of `WORD` in each sentence.

    Attributes:
        every_noun: the language writes every noun with a capital letter.
    """

    def __init__(self, sentences: Sequence[str], words: "Sequence[Sequence[regex.Match[str]]]"):
        self._sentences, self._words = sentences, words
        self._small: set[str] = set()
        self._capital: Counter[str] = Counter()  # not where a sentence begins
        small = 0
        for sentence, matches in zip(sentences, words, strict=True):
            for match in matches:
                word = match[0]
                if word[0].islower():
                    self._small.add(word.casefold())
                    small += 1
                elif word[0].isupper() and not _opens_sentence(sentence, match.start()):
                    self._capital[word.casefold()] += 1
        capitals = self._capital.total()
        self.every_noun = (
            capitals > _LEAST_SHARE * (capitals + small) and detect_language(" ".join(sentences)) in _EVERY_NOUN
        )

    def names(self, number: int) -> Iterator[tuple[int, int, str]]:
        """Find start, end and kind of each name in a sentence."""
        sentence, matches = self._sentences[number], self._words[number]
        at = 0
        while at < len(matches):
            end = at + 1
            if self._may_begin(sentence, matches[at]):
                while end < len(matches) and self._goes_on(sentence, matches, end):
                    end += 1
                run = matches[at:end]
                if not self._is_opener(sentence, run) and not all(self._is_function_word(m[0]) for m in run):
                    start = matches[at].start()
                    stop = start + len(_POSSESSIVE.sub("", sentence[start : matches[end - 1].end()]))
                    single_noun = self.every_noun and end == at + 1
                    yield start, stop, "term" if single_noun else _guess_kind(sentence, start, stop)
            at = end

    def only_opens(self, sentence: str, match: "regex.Match[str]") -> bool:
        """Return whether a word opens its sentence and is nowhere else in the article."""
        folded = match[0].casefold()
        opens = match[0][0].isupper() and _opens_sentence(sentence, match.start())
        return opens and folded not in self._small and not self._capital[folded]

    def _may_begin(self, sentence: str, match: "regex.Match[str]") -> bool:
        word = match[0]
        folded = word.casefold()
        capital = _has_capital(word) or (word[0].isdigit() and any(map(str.isupper, word)))
        if not capital or len(word) < 2 or folded in _TITLES or _COMPOUND.search(word):
            return False
        opens = _opens_sentence(sentence, match.start())
        if self._is_function_word(word):
            # "Will Smith" inside a sentence; but not "The Obama" or "It" where a sentence or a quotation begins.
            return not opens and not _OPENS_QUOTATION.search(sentence, 0, match.start()) and folded not in _ARTICLES
        return not opens or self._capital[folded] > 0 or folded not in self._small

    @staticmethod
    def _is_function_word(word: str) -> bool:
        """Whether it is one, or begins with one ("That's"), and is no abbreviation ("IS")."""
        folded = word.casefold()
        return not word.isupper() and not FUNCTION_WORDS.isdisjoint((folded, regex.split("['’]", folded)[0]))

    def _goes_on(self, sentence: str, matches: "Sequence[regex.Match[str]]", at: int) -> bool:
        before, match = matches[at - 1], matches[at]
        if sentence[before.end() : match.start()].strip() or _POSSESSIVE.search(before[0]):
            return False
        folded = match[0].casefold()
        if match[0].islower() and folded in _PARTICLES:
            return not self.every_noun and at + 1 < len(matches) and self._goes_on(sentence, matches, at + 1)
        if folded in FUNCTION_WORDS or folded in _TITLES or _COMPOUND.search(match[0]):
            return False
        return _has_capital(match[0])

    def _is_opener(self, sentence: str, run: "Sequence[regex.Match[str]]") -> bool:
        """Whether a word has its only capital letter because it opens a sentence."""
        return len(run) == 1 and _opens_sentence(sentence, run[0].start()) and not self._capital[run[0][0].casefold()]


def _has_capital(word: str) -> bool:
    return word[0].isupper() or bool(_PARTICLE_NAME.match(word))


def _opens_sentence(sentence: str, at: int) -> bool:
    return bool(_OPENS_SENTENCE.search(sentence, max(0, at - 8), at)) if at else True


def _guess_kind(sentence: str, start: int, end: int) -> str:
    text = sentence[start:end]
    if _ORGANISATION.search(text):
        return "organisation"
    if _PERSON.match(text) or _BEFORE_PERSON.search(sentence, 0, start) or _AFTER_PERSON.match(sentence, end):
        return "person"
    if _BEFORE_PLACE.search(sentence, 0, start):
        return "place"
    return "organisation" if text.isupper() and text.isalpha() else "name"
