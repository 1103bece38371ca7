"""Secrets are in the environment and stay there: what an error says is cleared of their values.

Libraries quote what they were given, a key among it. Left out: refusing settings that hold secrets (`config.py`).
"""

import os
import re

_NAMED = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|ACCESS_KEY_ID)$", re.IGNORECASE)
_SHORTEST = 8  # a shorter value could be any word


def redacted(text: str) -> str:
    """The text without the values of environment variables that are secrets by their names; the names instead."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _NAMED.search(name):
            text = text.replace(value, f"({name})")
    return text
