"""Damages English summaries in known ways, and changes them in ways that alter no fact.

Each function takes a summary, the material that it may draw from, and a source of chance. It returns the changed
summary, or None if the change does not apply. A damaged summary must lose to the undamaged one. A harmless change must
not matter. `measure` in `bench/judge_damage.py` counts both for a judge.
"""

import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from judges.text.sentences import split_sentences


@dataclass(frozen=True)
class Material:
    """What a damage may draw from: the article of the summary, and another article with its summary."""

    article: str
    other_article: str
    other_summary: str


Change = Callable[[str, Material, random.Random], str | None]

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_NAME = re.compile(r"\b[A-Z][\w'’-]*[a-z]\w*(?: (?:[A-Z][\w'’-]*[a-z]\w*|[A-Z]{2,}))*")
_NEGATABLE = re.compile(
    r"\b(is|are|was|were|will|would|can|could|should|has|have|had|does|did|must)\b(?! (?:not|no)\b)"
)
_NEGATION = re.compile(r" not\b|n['’]t\b")
# Capitalised words that are no names. A name that begins with one of them loses it.
_NO_NAMES = frozenset(
    "A An And As At But By For From He Her His How I If In It Its Monday Tuesday Wednesday Thursday Friday Saturday "
    "Sunday January February March April May June July August September October November December My No Not Of On One "
    "Or Our She So Some That The Their There These They This Those To We What When Where Which While Who With You Your "
    "After Before Also All Both Many More Most New Now Only Other Two Three Four Five Six Police".split()
)


def sentences(text: str) -> list[str]:
    """The sentences of an English text, without the white space between them."""
    return list(_sentences(text))


@lru_cache(maxsize=4096)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(split_sentences(text, "en"))


@lru_cache(maxsize=4096)
def names(text: str) -> tuple[str, ...]:
    """Names in a text, each once: capitalised words. The first word of a sentence counts if it is a name elsewhere."""
    inside: dict[str, None] = {}
    first: dict[str, None] = {}
    for sentence in sentences(text):
        for match in _NAME.finditer(sentence):
            words = match[0].removesuffix("'s").removesuffix("’s").split(" ")
            while words and words[0] in _NO_NAMES:
                words.pop(0)
            if words:
                # Two capitalised words at the start of a sentence are a name, one may be any word.
                is_sure = match.start() > 1 or len(words) > 1
                (inside if is_sure else first)[" ".join(words)] = None
    known_words = {word for name in inside for word in name.split(" ")}
    return (*inside, *(name for name in first if name in known_words and name not in inside))


def numbers(text: str) -> tuple[str, ...]:
    """Numbers in digits, each once."""
    return tuple(dict.fromkeys(match[0] for match in _NUMBER.finditer(text)))


# ---- Damages


def swap_number(summary: str, material: Material, rng: random.Random) -> str | None:
    """Replace a number by another one of the article."""
    others = [number for number in numbers(material.article) if number not in numbers(summary)]
    return _replace_one(summary, numbers(summary), others, rng)


def swap_name(summary: str, material: Material, rng: random.Random) -> str | None:
    """Replace a name by another one of the article."""
    own = names(summary)
    return _replace_one(summary, own, _foreign_names(names(material.article), summary), rng)


def exchange_names(summary: str, material: Material, rng: random.Random) -> str | None:
    """Exchange two names of the summary."""
    own = [name for name in names(summary) if not any(name != other and name in other for other in names(summary))]
    if len(own) < 2:
        return None
    a, b = rng.sample(own, 2)
    return re.sub(rf"{_whole(a)}|{_whole(b)}", lambda match: b if match[0] == a else a, summary)


def name_from_elsewhere(summary: str, material: Material, rng: random.Random) -> str | None:
    """Replace a name by one that the article does not have."""
    foreign = _foreign_names(names(material.other_article), summary + material.article)
    return _replace_one(summary, names(summary), foreign, rng)


def negate(summary: str, material: Material, rng: random.Random) -> str | None:
    """Negate a sentence, or remove a negation: by a "not" after an auxiliary verb."""
    if negations := list(_NEGATION.finditer(summary)):
        match = rng.choice(negations)
        before = summary[: match.start()]
        before = before[:-2] + "can" if re.search(r"\bca$", before) and match[0] != " not" else before
        return before + summary[match.end() :]
    if not (verbs := list(_NEGATABLE.finditer(summary))):
        return None
    at = rng.choice(verbs).end()
    return summary[:at] + " not" + summary[at:]


def drop_sentence(summary: str, material: Material, rng: random.Random) -> str | None:
    """Remove a sentence; the rest is right, but tells less."""
    parts = sentences(summary)
    if len(parts) < 2:
        return None
    del parts[rng.randrange(len(parts))]
    return " ".join(parts)


def stray_ending(summary: str, material: Material, rng: random.Random) -> str | None:
    """Append a sentence of another article."""
    parts = [part for part in sentences(material.other_article) if len(part.split()) > 5]
    return f"{summary} {rng.choice(parts)}" if parts else None


def other_summary(summary: str, material: Material, rng: random.Random) -> str | None:
    """Take another article's summary."""
    return material.other_summary


def repeat_sentence(summary: str, material: Material, rng: random.Random) -> str | None:
    """Say a sentence of the summary twice."""
    parts = sentences(summary)
    at = rng.randrange(len(parts))
    return " ".join([*parts[: at + 1], parts[at], *parts[at + 1 :]])


def repeat_lead(summary: str, material: Material, rng: random.Random) -> str | None:
    """Take the article's first sentence as often as the summary has sentences, and at least twice."""
    lead = sentences(material.article)[:1]
    return " ".join(lead * max(2, len(sentences(summary)))) if lead else None


def shuffle_words(summary: str, material: Material, rng: random.Random) -> str | None:
    """Put the words of each sentence in a random order."""
    return _each_sentence(summary, lambda words: rng.sample(words, len(words)))


def cut_sentences(summary: str, material: Material, rng: random.Random) -> str | None:
    """End each sentence after two thirds of its words, without a full stop."""
    return _each_sentence(summary, lambda words: words[: max(2, len(words) * 2 // 3)])


def cut_in_half(summary: str, material: Material, rng: random.Random) -> str | None:
    """Keep the first half of the words, as if the token limit had cut the summary off."""
    words = summary.split()
    return " ".join(words[: len(words) // 2]) if len(words) >= 8 else None


# ---- Harmless changes


def lower_case(summary: str, material: Material, rng: random.Random) -> str | None:
    """Write everything in lower case."""
    return summary.lower()


def typographic_signs(summary: str, material: Material, rng: random.Random) -> str | None:
    """Write typographic apostrophes, quotation marks, dashes and dots instead of those of ASCII; or the reverse."""
    if not summary.isascii():
        plain = summary.translate(str.maketrans("‘’“”–—", "''\"\"--")).replace("…", "...")
        if plain != summary:
            return plain
    text = re.sub(r'(?<!\w)"', "“", summary).replace('"', "”").replace("...", "…")
    return re.sub(r"(?<!\w)'(?=\w)", "‘", text).replace("'", "’").replace(" - ", " — ").replace("--", "—")


def plain_thousands(summary: str, material: Material, rng: random.Random) -> str | None:
    """Write 1000 instead of 1,000; or the reverse."""
    if re.search(r"\d,\d{3}(?!\d)", summary):
        return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", summary)
    # Not 1900 to 2099: these are years.
    return re.sub(r"(?<![\d.,])(?!19|20)\d{4,6}(?![\d.,])", lambda match: f"{int(match[0]):,}", summary)


def decomposed(summary: str, material: Material, rng: random.Random) -> str | None:
    """Write accented letters as letter and accent (Unicode NFD)."""
    return unicodedata.normalize("NFD", summary)


def line_ends(summary: str, material: Material, rng: random.Random) -> str | None:
    """Break lines at 40 characters, also within names, as a terminal or an e-mail does."""
    lines = [""]
    for word in summary.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > 40:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "\n".join(lines)


def no_break_spaces(summary: str, material: Material, rng: random.Random) -> str | None:
    """Write no-break spaces within names and before or after numbers."""
    text = re.sub(r"(?<=\d) (?=\w)|(?<=\w) (?=\d)", "\u00a0", summary)
    return re.sub(r"(?<=[a-z]) (?=[A-Z][a-z])", "\u00a0", text)


def full_width(summary: str, material: Material, rng: random.Random) -> str | None:
    """Write full-width punctuation, as in Chinese and Japanese text, but not within numbers."""
    signs = {",": "，", ".": "．", "!": "！", "?": "？", ":": "：", ";": "；", "(": "（", ")": "）"}
    return re.sub(r"(?<!\d)[,.!?:;()]|[,.!?:;()](?!\d)", lambda match: signs[match[0]], summary)


DAMAGES: dict[str, Change] = {
    "number swapped": swap_number,
    "name swapped": swap_name,
    "names exchanged": exchange_names,
    "name from elsewhere": name_from_elsewhere,
    "negated": negate,
    "sentence dropped": drop_sentence,
    "stray ending": stray_ending,
    "other article's summary": other_summary,
    "sentence repeated": repeat_sentence,
    "lead repeated": repeat_lead,
    "words shuffled": shuffle_words,
    "sentences cut": cut_sentences,
    "cut in half": cut_in_half,
}
HARMLESS: dict[str, Change] = {
    "lower case": lower_case,
    "typographic signs": typographic_signs,
    "thousands": plain_thousands,
    "NFD": decomposed,
    "line ends": line_ends,
    "no-break spaces": no_break_spaces,
    "full-width signs": full_width,
}
# These change a summary in one place, so several can be applied to one summary, also twice.
_LOCAL = (swap_number, swap_name, exchange_names, name_from_elsewhere, negate, drop_sentence, stray_ending)


def apply(change: Change, summary: str, material: Material, seed: str) -> str | None:
    """Apply a change with a chance of its own. Returns None if it does not apply or leaves the summary as it is."""
    changed = change(summary, material, random.Random(f"{seed}\n{change.__name__}\n{summary}"))
    return None if changed is None or changed.strip() in ("", summary.strip()) else changed


def damage_often(summary: str, material: Material, seed: str, times: int = 4) -> list[str]:
    """Damage a summary again and again in one place.

    Returns:
        the summary, then the summary with 1, 2, … up to `times` damages; fewer if no more apply.
    """
    order = list(_LOCAL)
    random.Random(f"{seed}\n{summary}").shuffle(order)
    versions = [summary]
    for round_number in range(2):
        for change in order:
            if len(versions) > times:
                return versions
            damaged = apply(change, versions[-1], material, f"{seed}/{round_number}")
            if damaged is not None and damaged not in versions:
                versions.append(damaged)
    return versions[: times + 1]


def _whole(part: str) -> str:
    return rf"(?<!\w){re.escape(part)}(?!\w)"


def _foreign_names(candidates: tuple[str, ...], text: str) -> list[str]:
    """The candidates of which no word is in the text."""
    return [name for name in candidates if not any(re.search(_whole(word), text) for word in name.split(" "))]


def _replace_one(summary: str, own: tuple[str, ...], others: list[str], rng: random.Random) -> str | None:
    """Replace one of the values `own`, wherever it is, by one of `others`."""
    present = [value for value in own if re.search(_whole(value), summary)]
    if not present or not others:
        return None
    old, new = rng.choice(present), rng.choice(others)
    return re.sub(_whole(old), lambda _: new, summary)


def _each_sentence(summary: str, change: Callable[[list[str]], list[str]]) -> str | None:
    """Change the words of each sentence; short sentences stay. The last sign of a sentence is dropped."""
    parts = []
    for sentence in sentences(summary):
        words = sentence.rstrip(".!?").split()
        parts.append(" ".join(change(words)) if len(words) >= 4 else sentence)
    return " ".join(parts)
