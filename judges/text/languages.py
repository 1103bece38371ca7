"""Detects the language of a text with py3langid (Lui and Baldwin 2012), which knows over 100 languages."""

from functools import cache
from typing import Any

import regex

_MIN_LETTERS = 15  # a shorter text is a guess: "Hello" is Breton to the model
_MIN_DENSE_LETTERS = 6  # of scripts in which one letter is a syllable or a word
_MIN_PROBABILITY = 0.7
_MAX_CHARS = 5000  # more text makes the answer slower, and no surer

_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_LETTER = regex.compile(r"\p{L}")


def detect_language(text: str) -> str | None:
    """Return the text's language as ISO 639-1 code ("en", "zh"), or None if the text is too short or the model unsure.

    The first 5,000 characters decide. The same text always gives the same answer. It takes about 0.3 ms for 1,000
    words; the first call loads the model in half a second.
    """
    text = text[:_MAX_CHARS]
    letters = len(_LETTER.findall(text))
    if letters < (_MIN_DENSE_LETTERS if 2 * len(_DENSE.findall(text)) > letters else _MIN_LETTERS):
        return None
    language, probability = _identifier().classify(text)
    return str(language) if probability >= _MIN_PROBABILITY else None


@cache
def _identifier() -> Any:
    """The model, loaded once per process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Without this, English texts with many names are detected as Nigerian Pidgin ("pcm"), which has no ISO 639-1 code.
    identifier.set_languages([language for language in identifier.nb_classes if len(language) == 2])
    return identifier
