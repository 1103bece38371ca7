"""Rows of preference pairs as others write them, read as one thing: a prompt, what was chosen over what.

Which format a row has is told by its columns. Beside `chosen` and `rejected` there is, looked for in this order:

| column | format | the prompt |
|---|---|---|
| `prompt` | TRL, our own export | text or messages; see below for messages in `chosen` beside text |
| `conversations` | LLaMA-Factory, sharegpt | `{from, value}` messages; `system` |
| `question` | Intel orca_dpo_pairs | `question`; `system` |
| `instruction` | LLaMA-Factory, alpaca | `instruction`, a line end, `input`; `system`, `history` |
| none of them | TRL, implicit prompt | what `chosen` and `rejected` both begin with |

UltraFeedback-binarized is the first, with the whole conversation in `chosen` and in `rejected`: the prompt is then
what both begin with, as in the last. Other columns are ignored, but for TRL's `tools` and `chat_template_kwargs`.
Pure functions of one row. Left out: files (`sources.py`), and token ids (`tokens.py`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from judges.base import Skip
from pipeline.data.readers import UNREADABLE, replace_surrogates

Message = dict[str, Any]
Text = str | list[Message]

# Of apply_chat_template's arguments those that no row may decide: another template above all, which is a program.
_OURS = frozenset(
    {"conversation", "messages", "chat_template", "tokenizer_kwargs", "tokenize", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "add_generation_prompt"}
    | {"continue_final_message"}
)
_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # sharegpt's names of them


@dataclass(frozen=True)
class Preference:
    """One pair.

    Attributes:
        prompt, chosen, rejected: all three text, or all three messages: dicts with `role` and `content`, and
            whatever else the chat template may know.
        template: keyword arguments for the chat template, as in TRL's columns.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    template: Mapping[str, Any] = field(default_factory=dict)


class _Bad(Exception):
    """A row that is no preference pair, and why, in words that name no data."""


def has_known_columns(row: Mapping[str, Any]) -> bool:
    """Whether the columns are those of a format that can be read."""
    return "chosen" in row and "rejected" in row


def parse_row(row: Mapping[str, Any]) -> Preference | Skip:
    """One row, of whatever format, as a pair; or why it is none."""
    if UNREADABLE in row:
        return Skip(row[UNREADABLE])
    try:
        prompt, chosen, rejected = _format(row)(row)
        chosen, rejected = _answers(chosen, rejected)
        if not _said(chosen) or not _said(rejected):
            raise _Bad("empty answer")
        if chosen == rejected:
            raise _Bad("chosen and rejected are the same")
        if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
            prompt, chosen, rejected = _implicit(prompt, chosen, rejected)
        elif isinstance(prompt, list):
            chosen, rejected = _beyond(prompt, _messages(chosen), _messages(rejected))
        if not prompt or not _said(chosen) or not _said(rejected):
            raise _Bad("empty answer" if prompt else "no prompt")
        return Preference(prompt, chosen, rejected, _template(row))
    except _Bad as bad:
        return Skip(str(bad))


_Parts = tuple[Text | None, Any, Any]


def _format(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], _Parts]:
    if not has_known_columns(row):
        raise _Bad("no chosen or no rejected")
    column = next((column for column in _FORMATS if column in row), None)
    if column is None:
        return _bare
    if not row[column]:
        raise _Bad("no prompt")
    return _FORMATS[column]


def _trl(row: Mapping[str, Any]) -> _Parts:
    prompt = row["prompt"]
    return _text(prompt) if isinstance(prompt, str) else _messages(prompt), row["chosen"], row["rejected"]


def _bare(row: Mapping[str, Any]) -> _Parts:
    return None, row["chosen"], row["rejected"]


def _sharegpt(row: Mapping[str, Any]) -> _Parts:
    turns = _messages(row["conversations"])
    system = [] if turns and turns[0]["role"] == "system" else _system(row)
    return system + turns, _messages(row["chosen"]), _messages(row["rejected"])


def _orca(row: Mapping[str, Any]) -> _Parts:
    return [*_system(row), _turn("user", row["question"])], row["chosen"], row["rejected"]


def _alpaca(row: Mapping[str, Any]) -> _Parts:
    turns = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history):
        raise _Bad("wrong type")
    for asked, answered in history:
        turns += [_turn("user", asked), _turn("assistant", answered)]
    asked = "\n".join(_text(part) for part in (row["instruction"], row.get("input")) if part)
    return [*turns, _turn("user", asked)], row["chosen"], row["rejected"]


_FORMATS: dict[str, Callable[[Mapping[str, Any]], _Parts]] = {
    "prompt": _trl,
    "conversations": _sharegpt,
    "question": _orca,
    "instruction": _alpaca,
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Bad("wrong type")
    return replace_surrogates(value)


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": _text(content)}


def _system(row: Mapping[str, Any]) -> list[Message]:
    """Datasets spell "none" as an empty one; a template would print it."""
    return [_turn("system", row["system"])] if row.get("system") else []


def _messages(value: Any) -> list[Message]:
    """Messages of whichever spelling: a list, one alone, or the bare text of the assistant's."""
    if isinstance(value, str):
        return [_turn("assistant", value)]
    found = [value] if isinstance(value, dict) else value
    if not isinstance(found, list) or not found:
        raise _Bad("wrong type")
    return [_message(message) for message in found]


def _message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise _Bad("wrong type")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str):
        raise _Bad("wrong type")
    more = {name: value for name, value in message.items() if name not in ("role", "from", "content", "value")}
    return {**more, **_turn(_ROLES.get(role, role), content)}


def _answers(chosen: Any, rejected: Any) -> tuple[Text, Text]:
    """Both as text, or both as messages."""
    if chosen is None or rejected is None:
        raise _Bad("no chosen or no rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _text(chosen), _text(rejected)
    return _messages(chosen), _messages(rejected)


def _implicit(prompt: str | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The prompt is what both answers begin with, as TRL's `extract_prompt` has it.

    Where they are messages that begin with nothing in common, a prompt of text is what the user asked.
    """
    if not isinstance(chosen, str) and prompt is not None and chosen[0] != rejected[0]:
        return [_turn("user", prompt)], chosen, rejected
    shorter = min(len(chosen), len(rejected))
    same = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if same is None:
        same = shorter - 1  # one begins with the other, and an answer of nothing is none
    elif same > 0 and chosen[same - 1] == " ":
        same -= 1  # the space belongs to the answer's first word
    if same < 1:
        raise _Bad("no prompt")
    return chosen[:same], chosen[same:], rejected[same:]


def _beyond(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], ...]:
    """Answers that repeat the prompt's messages, without them: they would be learned as if they were the answer."""
    if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return chosen, rejected


def _said(answer: Text) -> bool:
    """Whether there is anything to learn in it."""
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(message["content"].strip() for message in answer)


def _template(row: Mapping[str, Any]) -> dict[str, Any]:
    tools, more = row.get("tools"), row.get("chat_template_kwargs") or {}
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    except (ValueError, RecursionError):
        raise _Bad("wrong type") from None
    if not isinstance(more, dict) or not isinstance(tools or [], list):
        raise _Bad("wrong type")
    if _OURS & more.keys():
        raise _Bad("chat_template_kwargs that are not the template's")
    return ({"tools": tools} if tools else {}) | more
