"""Measures faults of a summary that a judge may not see, and that training may reward.

Five figures: how much of the summary is repeated, how much of it is copied from the article and from the article's
lead, whether it ends off topic, and whether it is in another language than the article. They need no model. The column
`scores` has them as `faults`. The report shows them, `stop` and `pairs` can limit them, and a user's preference
function gets them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from judges.text.gibberish import count_gibberish
from judges.text.languages import detect_language
from judges.text.repetition import UNSPACED, gram_size, grams, repeated_share_of, tokens_by_sentence
from judges.text.words import count_words
from pipeline.config.judging import Pairs

Faults = Mapping[str, Any]  # see `measure_faults`

LEAD_SENTENCES = 3
COPIED_GRAM = 8  # tokens; the length that is common in work on how extractive summaries are
_STEM = 5  # letters by which inflected forms of a word are matched
_MIN_CONTENT = 3  # content words; with fewer in the last sentence, their share says nothing
# Share of content words of the last sentence that the article lacks. Of 202 human summaries of CNN articles 2 % reach
# it; 84 % do if their last sentence is another summary's, and 93 % if it is a phrase such as "In conclusion, …".
OFF_TOPIC = 0.7

# Names of the faults in tallies, in reasons of pairs and in `rondo show`.
REPEATED, COPIED, LEAD_COPIED = "repeats itself", "copies its article", "copies the lead"
OFF_TOPIC_END, OTHER_LANGUAGE = "ends off topic", "is in another language"

# `rondo show` and the page of a run name a fault from these shares on. `pairs` has limits of its own.
NOTICEABLE = {"repeated": 0.1, "copied": 0.5, "lead_copied": 0.5, "off_topic_end": OFF_TOPIC}

_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_CASED = re.compile(r"[A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f\u0530-\u058f]")
_ARABIC_ARTICLE = re.compile(r"^[وفبك]?ال(?=\w{2})")


@dataclass(frozen=True)
class _Article:
    """What is compared with a summary.

    Attributes:
        text: the article's tokens, joined by spaces.
        grams, lead_grams: the 8-grams of the article and of its first sentences.
        language: ISO code; None: not sure.
    """

    text: str
    grams: frozenset[tuple[str, ...]]
    lead_grams: frozenset[tuple[str, ...]]
    language: str | None


def measure_text(summary: str, article: str) -> dict[str, Any]:
    """The fields of a score that depend on the text alone: `words`, `invalid_chars` (of gibberish) and `faults`."""
    return {
        "words": count_words(summary),
        "invalid_chars": count_gibberish(summary, article),
        "faults": measure_faults(summary, article),
    }


@lru_cache(maxsize=1024)
def measure_faults(summary: str, article: str) -> dict[str, Any]:
    """Measure the faults of a summary.

    Tokens are `judges.text.tokens.normalized_tokens`. For scripts without spaces, whose tokens are shorter, n-grams are
    twice as long as stated here.

    Returns:
        shares from 0 to 1, None if there is nothing to measure:

        - `repeated`: share of the summary's tokens that lie in a 5-gram that began earlier in the summary, or in a
          sentence of which an earlier one has nearly the same tokens (Jaccard similarity of 0.8 or more). The first
          time that something is said does not count. 0 for an empty summary.
        - `copied`: share of the summary's 8-grams that the article has too. None if the summary has fewer than 8
          tokens.
        - `lead_copied`: share of the summary's 8-grams that the article's first 3 sentences have too. None as above.
        - `off_topic_end`: share of the content words of the summary's last sentence that the article lacks. A content
          word has a digit, or at least 4 letters (3 in scripts without capitals); the article has it if its first 5
          letters (2 syllables in Korean) are somewhere in the article. In scripts without spaces it is a pair of
          characters. None if there are fewer than 3.
        - `other_language`: ISO code of the summary's language if it and the article's language are certain and
          differ; else None.
    """
    source = _read_article(article)
    language = detect_language(summary)
    by_sentence = tokens_by_sentence(summary, language or source.language)
    tokens = [token for sentence in by_sentence for token in sentence]
    size = gram_size(tokens, COPIED_GRAM)
    own_grams = grams(tokens, size)
    return {
        "repeated": repeated_share_of(by_sentence),
        "copied": sum(gram in source.grams for gram in own_grams) / len(own_grams) if own_grams else None,
        "lead_copied": sum(gram in source.lead_grams for gram in own_grams) / len(own_grams) if own_grams else None,
        "off_topic_end": _unknown_share(by_sentence[-1], source.text) if by_sentence else None,
        "other_language": language if source.language and language != source.language else None,
    }


@lru_cache(maxsize=16)
def _read_article(article: str) -> _Article:
    language = detect_language(article)
    by_sentence = tokens_by_sentence(article, language)
    # Tokens by sentence here too: "1990. Two" gives other tokens as a whole, and a copied text must have the same ones.
    tokens = [token for sentence in by_sentence for token in sentence]
    lead = [token for sentence in by_sentence[:LEAD_SENTENCES] for token in sentence]
    size = gram_size(tokens, COPIED_GRAM)
    return _Article(" ".join(tokens), frozenset(grams(tokens, size)), frozenset(grams(lead, size)), language)


def _unknown_share(sentence: Sequence[str], article: str) -> float | None:
    stems = _content_stems(sentence)
    if len(stems) < _MIN_CONTENT:
        return None
    return sum(stem not in article for stem in stems) / len(stems)


def _content_stems(tokens: Sequence[str]) -> list[str]:
    """The beginnings of the words that carry the content; for scripts without spaces, pairs of adjacent characters."""
    stems = []
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        if UNSPACED.match(token):
            if len(token) > 1:
                stems.append(token)
            elif following and UNSPACED.match(following):
                stems.append(f"{token} {following[0]}")
            continue
        if any(character.isdigit() for character in token):
            stems.append(token)
            continue
        word = _ARABIC_ARTICLE.sub("", token)
        if _HANGUL.match(word):  # a noun of two syllables, then particles
            stems += [word[:2]] if len(word) > 1 else []
        elif len(word) >= (4 if _CASED.match(word) else 3):
            stems.append(word[:_STEM])
    return stems


def exceeded_limits(faults: Faults, limits: Pairs) -> list[str]:
    """The faults of a summary that are beyond the limits of `pairs`."""
    bounds = {
        REPEATED: (faults["repeated"], limits.max_repeated),
        COPIED: (faults["copied"], limits.max_copied),
        LEAD_COPIED: (faults["lead_copied"], limits.max_lead_copied),
        OFF_TOPIC_END: (faults["off_topic_end"], limits.max_off_topic_end),
    }
    exceeded = [
        name for name, (share, limit) in bounds.items() if share is not None and limit is not None and share > limit
    ]
    return [*exceeded, OTHER_LANGUAGE] if limits.same_language and faults["other_language"] else exceeded


def describe_faults(faults: Faults | None) -> list[str]:
    """The noticeable faults of a summary in words, with figures; empty if there are none, or if they are unknown."""
    if faults is None:
        return []
    texts = {
        "repeated": "says {:.0%} of its words twice",
        "copied": "{:.0%} of its 8-grams are the article's",
        "lead_copied": "{:.0%} of its 8-grams are the lead's",
        "off_topic_end": "ends off topic (the article lacks {:.0%} of its last words)",
    }
    described = [
        texts[name].format(faults[name])
        for name, share in NOTICEABLE.items()
        if faults[name] is not None and faults[name] >= share
    ]
    other = faults["other_language"]
    return [*described, f"is in another language ({other})"] if other else described
