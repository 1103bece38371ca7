"""Reads the instruction of a conversation, fills in the article, and merges system messages for templates without them.

An instruction is a text, which the user says, or a list of messages: a system message, and turns of user and assistant
as examples (few-shot). The policy's instruction and that of a reward model are read here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from judges.base import fill, user
from judges.mcq.languages import article_language, language_name

Messages = tuple[dict[str, str], ...]
Instruction = str | Sequence[Mapping[str, str]]
ARTICLE = "{article}"
_ROLES = ("system", "user", "assistant")


def read_instruction(instruction: Instruction, name: str = "instruction", merge: bool = False) -> Messages:
    """Check an instruction, and return it as messages. A text is one message of the user.

    Args:
        instruction: a text with {article}; or messages with `role` and `content`, of which one user message has
            {article} once. The first may be a system message. The last is the user's.
        name: the setting that holds it, for messages of errors.
        merge: put the system message into the first user message, as `merge_system` does.

    Raises:
        ValueError: the instruction is neither, or has {article} at no place or in a wrong one, or it has no system
            message to merge.
    """
    if isinstance(instruction, str):
        if ARTICLE not in instruction:
            raise ValueError(f"{name} must contain {ARTICLE}, the place of the article")
        messages = user(instruction)
    else:
        messages = _read_messages(instruction, name)
    if not merge:
        return messages
    if messages[0]["role"] != "system":
        setting = f"{name.removesuffix('instruction')}merge_system"
        raise ValueError(f"{setting} is set, and {name} has no system message to merge: remove it")
    return tuple(merge_system(messages))


def _read_messages(instruction: Sequence[Any], name: str) -> Messages:
    messages = tuple(_read_message(message, f"{name}[{i}]") for i, message in enumerate(instruction))
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] != "user":
        raise ValueError(f"{name} ends with {roles[-1] if roles else 'nothing'}: the last message should be the user's")
    if "system" in roles[1:]:
        raise ValueError(f"{name} has a system message at place {roles.index('system', 1)}: it should be the first one")
    of_user = [message["content"].count(ARTICLE) for message in messages if message["role"] == "user"]
    count = sum(message["content"].count(ARTICLE) for message in messages)
    if count != 1 or sum(of_user) != 1:
        where = "once" if count == 1 else f"{count} times"
        where += ", in a message that is not the user's" if count == 1 else ""
        raise ValueError(f"{name} has {ARTICLE} {where}: it should have it once, in a message of the user")
    return messages


def _read_message(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise ValueError(f"{name} has {found}: a message should have role and content, and nothing else")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise ValueError(f"{name} has the role {role!r:.40}: it should be one of {', '.join(_ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{name} has the content {content!r:.40}: it should be text")
    return {"role": role, "content": content}


def fill_instruction(messages: Messages, article: str) -> Messages:
    """Put the article into the messages. `{language}` becomes the English name of its language.

    The language is "English" if the article is too short to tell.
    """
    values = {"article": article}
    if any("{language}" in message["content"] for message in messages):
        values["language"] = language_name(article_language(article))
    return tuple(message | {"content": fill(message["content"], values)} for message in messages)


def merge_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the system messages at the beginning, and an empty line, before the text of the first user message.

    For chat templates without a system role. Without a user message after them, their text becomes one.

    >>> merge_system([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nHi'}]
    """
    count = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if not count:
        return list(messages)
    system, rest = "\n\n".join(message["content"] for message in messages[:count]), list(messages[count:])
    if rest and rest[0]["role"] == "user":
        return [rest[0] | {"content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [*user(system), *rest]
