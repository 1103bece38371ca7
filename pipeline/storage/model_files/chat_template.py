"""Writes conversations with the chat template of a model's tokenizer, as text or as token ids.

All of Rondo's conversations are written here: of the policy, judges, reward models and pairs. Keys without a value are
removed first, because Arrow gives every message the keys of all others, and templates print or refuse a null. If the
template refuses a message, the error names its role and quotes the template. A template that leaves out a message
without a word is an error too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import UserError
from pipeline.config.messages import one_line

_SAID_BY_ALL = ("user", "assistant", "tool")  # a template may write a tool's reply in another form
_PROBE = "d2f1c07a"  # a text that no template has


class TemplateRefusal(UserError):
    """The chat template refuses the messages, or leaves one out. The message names the role and quotes the template.

    Attributes:
        role: the role that is refused; None: the template gives another reason.
    """

    def __init__(self, message: str, role: str | None = None):
        super().__init__(message)
        self.role = role

    def with_remedy(self, setting: str) -> str:
        """The message, with what a user can do by a setting that merges system messages."""
        return (
            f"{self}; {setting}=true puts its text into the first user message" if self.role == "system" else str(self)
        )


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Write a conversation as text.

    Args:
        tokenizer: of transformers, with a chat template.
        messages: dicts with `role` and `content`, and any other keys that the template uses.
        variables: for the template, such as `add_generation_prompt` or `tools`.

    Raises:
        TemplateRefusal: the template refuses the messages.
    """
    return str(_apply(tokenizer, messages, variables | {"tokenize": False}))


def encode(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
    """Write a conversation as token ids. Arguments and errors as in `render`."""
    return list(_apply(tokenizer, messages, variables | {"tokenize": True, "return_dict": False}))


def without_nulls(value: Any) -> Any:
    """Remove every key without a value from dicts, at any depth.

    >>> without_nulls([{"role": "user", "name": None, "content": "Hi"}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(value, Mapping):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list | tuple) else value


def _apply(tokenizer: Any, messages: Sequence[Mapping[str, Any]], variables: dict[str, Any]) -> Any:
    plain = [without_nulls(message) for message in messages]
    try:
        written = tokenizer.apply_chat_template(plain, **variables)
    except Exception as error:  # a template is a program that comes with the model: it can fail on data in any way
        raise _refusal(tokenizer, plain, variables, one_line(error, limit=120)) from None
    for place, message in enumerate(plain):
        role = str(message.get("role"))
        if role not in _SAID_BY_ALL and _leaves_out(tokenizer, plain, place, variables):
            raise TemplateRefusal(f"the chat template leaves out a message of the role {role:.40}", role)
    return written


def _refusal(tokenizer: Any, messages: list[Any], variables: dict[str, Any], words: str) -> TemplateRefusal:
    """Find the role that the template refuses: without its messages, it takes the conversation."""
    roles = [str(message.get("role")) for message in messages]
    for role in dict.fromkeys(roles):
        others = [message for message, its_role in zip(messages, roles, strict=True) if its_role != role]
        if role in ("user", "assistant") or not others:
            continue
        try:
            tokenizer.apply_chat_template(others, **variables)
        except Exception:  # it refuses something else as well
            continue
        return TemplateRefusal(f"the chat template refuses the role {role:.40}: {words!r}", role)
    shown = ", ".join(role[:40] for role in roles[:6]) + (", …" if len(roles) > 6 else "")
    return TemplateRefusal(f"the chat template refuses the messages ({shown}): {words!r}")


def _leaves_out(tokenizer: Any, messages: list[Any], place: int, variables: dict[str, Any]) -> bool:
    """Whether the template writes the conversation without the content of the message at this place."""
    probe = [*messages[:place], messages[place] | {"content": _PROBE}, *messages[place + 1 :]]
    try:
        return _PROBE not in tokenizer.apply_chat_template(
            probe, **variables | {"tokenize": False, "return_dict": False}
        )
    except Exception:  # the template wants another content there, so it reads it
        return False
