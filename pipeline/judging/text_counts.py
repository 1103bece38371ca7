"""Counts words and invalid characters in a summary."""

import re

# Printable ASCII, white space, typographic quotation marks, dashes and the ellipsis.
_PLAIN_TEXT = re.compile(r"[ -~\s‘’“”–—…]")


def count_words(text: str) -> int:
    """Number of words separated by white space, as the reference setting counts them."""
    return len(text.split())


def count_invalid_chars(summary: str, article: str) -> int:
    """Number of characters that are neither in the article nor plain printable text.

    This finds gibberish. The reference setting looks for it in the same way: by characters that no article has.
    """
    return sum(c not in article for c in _PLAIN_TEXT.sub("", summary))
