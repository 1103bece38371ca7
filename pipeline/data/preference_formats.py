"""Reads a row of preference pairs, in any of several formats, as one prompt with a chosen and a rejected answer.

The columns decide the format. Each row has `chosen` and `rejected`. The first of these columns that is present decides:

| column | format | the prompt |
|---|---|---|
| `prompt` | TRL, our own export | text or messages; see below for messages in `chosen` with a text as prompt |
| `conversations` | LLaMA-Factory, sharegpt | `{from, value}` messages; `system` |
| `question` | Intel orca_dpo_pairs | `question`; `system` |
| `instruction` | LLaMA-Factory, alpaca | `instruction`, a line end, `input`; `system`, `history` |
| none of them | TRL, implicit prompt | the common start of `chosen` and `rejected` |

UltraFeedback-binarized has the first format, with the whole conversation in `chosen` and in `rejected`: the prompt is
then their common start, as in the last format. Other columns are ignored, except TRL's `tools` and
`chat_template_kwargs`. All functions here are pure functions of one row. Files are read in `readers.py`; token ids are
made in `pair_tokenizer.py`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from judges.base import Skip
from pipeline.data.readers import UNREADABLE, replace_surrogates

Message = dict[str, Any]
Text = str | list[Message]

# Arguments of apply_chat_template that no row may set: above all another template, which is a program.
_RESERVED_ARGUMENTS = frozenset(
    {"conversation", "messages", "chat_template", "tokenizer_kwargs", "tokenize", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "add_generation_prompt"}
    | {"continue_final_message"}
)
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # sharegpt's name -> ours


@dataclass(frozen=True)
class Preference:
    """One pair.

    Attributes:
        prompt, chosen, rejected: all three are text, or all three are messages: dicts with `role` and `content`, and
            any other keys that the chat template may use.
        template: keyword arguments for the chat template, from TRL's columns.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    template: Mapping[str, Any] = field(default_factory=dict)


class _NotAPair(Exception):
    """The row is not a preference pair. The message is the reason, which quotes no data."""


def has_known_columns(row: Mapping[str, Any]) -> bool:
    """Whether the row has the columns of a known format."""
    return "chosen" in row and "rejected" in row


def parse_row(row: Mapping[str, Any]) -> Preference | Skip:
    """Read one row of any known format. Returns a Skip with the reason if it is not a pair."""
    if UNREADABLE in row:
        return Skip(row[UNREADABLE])
    try:
        return _parse(row)
    except _NotAPair as error:
        return Skip(str(error))


_Parts = tuple[Text | None, Any, Any]  # prompt (None: implicit), chosen, rejected


def _parse(row: Mapping[str, Any]) -> Preference:
    prompt, chosen, rejected = _format(row)(row)
    chosen, rejected = _answers(chosen, rejected)
    if not _has_content(chosen) or not _has_content(rejected):
        raise _NotAPair("empty answer")
    if chosen == rejected:
        raise _NotAPair("chosen and rejected are the same")
    if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        prompt, chosen, rejected = _extract_prompt(prompt, chosen, rejected)
    elif isinstance(prompt, list):
        chosen, rejected = _remove_prompt(prompt, _messages(chosen), _messages(rejected))
    if not prompt or not _has_content(chosen) or not _has_content(rejected):
        raise _NotAPair("empty answer" if prompt else "no prompt")
    return Preference(prompt, chosen, rejected, _template_arguments(row))


def _format(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], _Parts]:
    if not has_known_columns(row):
        raise _NotAPair("no chosen or no rejected")
    column = next((column for column in _FORMATS if column in row), None)
    if column is None:
        return _bare
    if not row[column]:
        raise _NotAPair("no prompt")
    return _FORMATS[column]


def _trl(row: Mapping[str, Any]) -> _Parts:
    prompt = row["prompt"]
    return _text(prompt) if isinstance(prompt, str) else _messages(prompt), row["chosen"], row["rejected"]


def _bare(row: Mapping[str, Any]) -> _Parts:
    return None, row["chosen"], row["rejected"]


def _sharegpt(row: Mapping[str, Any]) -> _Parts:
    messages = _messages(row["conversations"])
    system = [] if messages and messages[0]["role"] == "system" else _system(row)
    return system + messages, _messages(row["chosen"]), _messages(row["rejected"])


def _orca(row: Mapping[str, Any]) -> _Parts:
    return [*_system(row), _message("user", row["question"])], row["chosen"], row["rejected"]


def _alpaca(row: Mapping[str, Any]) -> _Parts:
    messages = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history):
        raise _NotAPair("wrong type")
    for question, answer in history:
        messages += [_message("user", question), _message("assistant", answer)]
    instruction = "\n".join(_text(part) for part in (row["instruction"], row.get("input")) if part)
    return [*messages, _message("user", instruction)], row["chosen"], row["rejected"]


_FORMATS: dict[str, Callable[[Mapping[str, Any]], _Parts]] = {
    "prompt": _trl,
    "conversations": _sharegpt,
    "question": _orca,
    "instruction": _alpaca,
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _NotAPair("wrong type")
    return replace_surrogates(value)


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": _text(content)}


def _system(row: Mapping[str, Any]) -> list[Message]:
    """The system message. Datasets write an empty text for "none"; a chat template would print it, so drop it."""
    return [_message("system", row["system"])] if row.get("system") else []


def _messages(value: Any) -> list[Message]:
    """Read a list of messages, a single message, or the text of a single assistant message."""
    if isinstance(value, str):
        return [_message("assistant", value)]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise _NotAPair("wrong type")
    return [_parse_message(message) for message in messages]


def _parse_message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise _NotAPair("wrong type")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str):
        raise _NotAPair("wrong type")
    other_keys = {name: value for name, value in message.items() if name not in ("role", "from", "content", "value")}
    return {**other_keys, **_message(_SHAREGPT_ROLES.get(role, role), content)}


def _answers(chosen: Any, rejected: Any) -> tuple[Text, Text]:
    """Both answers as text if both are text, else both as messages."""
    if chosen is None or rejected is None:
        raise _NotAPair("no chosen or no rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _text(chosen), _text(rejected)
    return _messages(chosen), _messages(rejected)


def _extract_prompt(prompt: str | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Split off the common start of both answers as the prompt, as TRL's `extract_prompt` does.

    If the answers are messages without a common start, a `prompt` given as text becomes the user's message.
    """
    if not isinstance(chosen, str) and prompt is not None and chosen[0] != rejected[0]:
        return [_message("user", prompt)], chosen, rejected
    shorter = min(len(chosen), len(rejected))
    common = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if common is None:
        common = shorter - 1  # one answer is the start of the other: leave it one element, so that it is not empty
    elif common > 0 and chosen[common - 1] == " ":
        common -= 1  # the space belongs to the first word of the answer
    if common < 1:
        raise _NotAPair("no prompt")
    return chosen[:common], chosen[common:], rejected[common:]


def _remove_prompt(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], ...]:
    """Remove the prompt's messages if both answers repeat them: they would be trained on as part of the answer."""
    if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return chosen, rejected


def _has_content(answer: Text) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(message["content"].strip() for message in answer)


def _template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for the chat template, from the columns `tools` and `chat_template_kwargs`."""
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs") or {}
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    except (ValueError, RecursionError):
        raise _NotAPair("wrong type") from None
    if not isinstance(kwargs, dict) or not isinstance(tools or [], list):
        raise _NotAPair("wrong type")
    if _RESERVED_ARGUMENTS & kwargs.keys():
        raise _NotAPair("chat_template_kwargs that are not the template's")
    return ({"tools": tools} if tools else {}) | kwargs
