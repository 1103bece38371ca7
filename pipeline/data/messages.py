"""Reads the messages of any data set as dicts with `role` and `content`.

Public data sets name roles in many ways, write messages as JSON text or their content in parts, and come as arrays of
numpy. The formats of whole rows are in `preference_formats.py`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.data.readers import replace_surrogates
from pipeline.storage.model_files.chat_template import without_nulls

Message = dict[str, Any]
Text = str | list[Message]

# Names of roles in public data sets, and the role that chat templates know.
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "observation": "tool",
} | {role: role for role in ("system", "user", "assistant", "tool")}


class NotAPair(Exception):
    """The row is not a preference pair. The message is the reason, which quotes no data but the name of a role."""


def read_text(value: Any) -> str:
    """The value as a text that a tokenizer takes. Raises NotAPair if it is none."""
    if not isinstance(value, str):
        raise NotAPair("wrong type")
    return replace_surrogates(value)


def make_message(role: str, content: Any) -> Message:
    """A message. Raises NotAPair if its content is no text."""
    return {"role": role, "content": read_text(content)}


def read_messages(value: Any) -> list[Message]:
    """Read a list of messages, a single message, or the text of a single assistant message. Raises NotAPair."""
    if isinstance(value, str):
        return [make_message("assistant", value)]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise NotAPair("wrong type")
    return [_parse_message(message) for message in messages]


def _parse_message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise NotAPair("wrong type")
    message = without_nulls(message)  # Arrow gives each message the keys of all others
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str):
        raise NotAPair("wrong type")
    if content is None and message.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        content = _join_parts(content)
    other_keys = {name: value for name, value in message.items() if name not in ("role", "from", "content", "value")}
    return {**other_keys, **make_message(_ROLES.get(role.strip().lower(), role), content)}


def _join_parts(parts: list[Any]) -> str:
    """The text of content in parts, such as `[{"type": "text", "text": "Hi"}]`."""
    if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        raise NotAPair("wrong type")
    if any(part["type"] != "text" for part in parts):
        raise NotAPair("content that is not text")
    return "".join(read_text(part.get("text")) for part in parts)


def parse_json(value: Any) -> Any:
    """Messages that are given as JSON text, as messages. Any other value is returned as it is.

    Raises:
        NotAPair: the text is messages as Python's `str` writes them.
    """
    if not isinstance(value, str) or not re.match(r"\s*[\[{]", value):
        return value
    if re.match(r"""\s*\[?\s*\{'(role|from|content|value)': ['"]""", value):
        raise NotAPair("messages as Python writes them: write them as JSON")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    messages = [parsed] if isinstance(parsed, dict) else parsed
    return parsed if messages and all(map(_has_keys, messages)) else value


def _has_keys(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def to_plain(value: Any) -> Any:
    """Arrays and scalars of numpy and pandas as Python's, tuples as lists, NaN as None."""
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Mapping):
        return {name: to_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    is_missing = (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")
    return None if is_missing else value


def has_content(text: Text) -> bool:
    """Whether a text, or any of the messages, has more than white space."""
    if isinstance(text, str):
        return bool(text.strip())
    return any(message["content"].strip() for message in text)
