"""Defines the error for a user's mistake, and makes text safe to show: no secrets, no control characters, no Markdown.

Articles, summaries, ids and column names may come from anybody. Libraries quote their input in error messages, and that
input may include a key. Other modules refuse secrets in settings: `base.py` in locations, `run.py` in `judge.settings`,
and `hardware.py` in the settings of a server. `inference/special_tokens.py` breaks up special tokens in prompts.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

_SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|ACCESS_KEY_ID)$", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8  # a shorter value could be any word
# Escape sequences change a terminal's style, title and content. Bidirectional controls show text in another order.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN_MARKS = re.compile(r"[\\`*_{}\[\]<>#|~$&]")


def format_bytes(count: float) -> str:
    """A number of bytes for people.

    >>> format_bytes(1536), format_bytes(12)
    ('1.5 KiB', '12 B')
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """Replace the values of secret environment variables by the names of the variables.

    A variable is secret if its name ends like one, such as `OPENAI_API_KEY`.
    """
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_LENGTH and value in text and is_secret_name(name):
            text = text.replace(value, f"({name})")
    return text


def printable(text: str) -> str:
    """Replace each character that controls a terminal by U+FFFD. Line feeds and tabs stay.

    >>> printable("a\\x1b[31mb")
    'a�[31mb'
    """
    return _CONTROL.sub("�", text)


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line: never as HTML, link, image, table cell or heading.

    >>> escape_markdown("a | <b>\\n# c")
    'a \\\\| \\\\<b\\\\> \\\\# c'
    """
    return _MARKDOWN_MARKS.sub(r"\\\g<0>", one_line(printable(text), limit=None))


def markdown_environment(folder: Path, rewrite: Callable[[str], str] = str) -> "jinja2.Environment":
    """The environment of Markdown templates in a folder.

    Its filter `text` escapes text that anybody may have written, after `rewrite`. Its filter `code` is for text in
    backticks, and `printable` for text in a block of code.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "text": lambda text: escape_markdown(rewrite(text)),
        "code": lambda text: printable(text).replace("`", "'"),
        "printable": printable,
    }
    return environment


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the known name that is most like it. Empty if none is.

    >>> did_you_mean("treshold", ["threshold", "weighting"]), did_you_mean("zzz", ["threshold"])
    (' (did you mean threshold?)', '')
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


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


class UserError(ValueError):
    """Something that the user asked for cannot be done. The message says what was found, what was expected and what to
    do.

    Attributes:
        status: the exit status of the command that this error ends.
    """

    status = 2

    def __init__(self, message: str):
        super().__init__(printable(redact(message)))
