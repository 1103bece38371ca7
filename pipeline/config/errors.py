"""The error that a user's mistake ends in."""

from pipeline.config.sanitize import printable, redact


class UserError(ValueError):
    """What a person wrote cannot be done. The message says what was found, what was expected, and what to do."""

    status = 2  # of the command that it ends

    def __init__(self, message: str):
        super().__init__(printable(redact(message)))
