"""Defines the error for a user's mistake."""

from pipeline.config.sanitize import printable, redact


class UserError(ValueError):
    """Something that the user asked for cannot be done. The message says what was found, what was expected and what to
    do.

    Attributes:
        status: the exit status of the command that this error ends.
    """

    status = 2

    def __init__(self, message: str):
        super().__init__(printable(redact(message)))
