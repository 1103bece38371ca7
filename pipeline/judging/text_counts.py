"""Counts what the column `scores` says about a summary's text in any language: words and characters of gibberish."""

from judges.text.gibberish import count_gibberish as count_invalid_chars
from judges.text.words import count_words

__all__ = ["count_invalid_chars", "count_words"]
