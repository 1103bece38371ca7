"""What may be said: on a terminal no control character, in Markdown no mark, anywhere no secret.

Articles, summaries, ids and column names are anybody's, and libraries quote what they were given, a key among it. Left
out: refusing settings that hold secrets (`config.py`), and marks that mean something to a model (`engines/plain.py`).
"""

import os
import re

_SECRET = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|ACCESS_KEY_ID)$", re.IGNORECASE)
_SHORTEST = 8  # a shorter value could be any word
# Escape sequences restyle, retitle and rewrite a terminal; bidirectional controls show a text in another order.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKS = re.compile(r"[\\`*_{}\[\]<>#|~$&]")


def redact(text: str) -> str:
    """The text with the name in place of the value of every environment variable that is a secret by its name."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET.search(name):
            text = text.replace(value, f"({name})")
    return text


def printable(text: str) -> str:
    """The text with a replacement character for each one that would steer a terminal; line ends and tabs stay.

    >>> printable("a\\x1b[31mb")
    'a�[31mb'
    """
    return _CONTROL.sub("�", text)


def escape_markdown(text: str) -> str:
    """The text as Markdown that shows it, on one line: no HTML, link, image, table cell or heading comes of it.

    >>> markdown("a | <b>\\n# c")
    'a \\\\| \\\\<b\\\\> \\\\# c'
    """
    return _MARKS.sub(r"\\\g<0>", one_line(printable(text), limit=None))


def one_line(error_or_text: BaseException | str, limit: int | None = 200) -> str:
    """Put an error's message, or a text, on one line: each run of spaces and line ends becomes one space.

    An error without a message gives the name of its class.

    Args:
        error_or_text: an exception or a text.
        limit: the most characters to keep; "…" marks a cut. None: keep everything.

    >>> one_line("a\\n  b c", limit=3)
    'a b …'
    """
    line = " ".join(str(error_or_text).split())
    if not line and isinstance(error_or_text, BaseException):
        line = type(error_or_text).__name__
    return line if limit is None or len(line) <= limit else f"{line[:limit].rstrip()} …"
