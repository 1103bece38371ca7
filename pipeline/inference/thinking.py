"""Knows how models think: the tags around a thought, and how a chat template opens or prevents one.

A thought is never judged and never counted as words of a summary: `strip_thoughts` removes it from text, and
`close_thought` ends it when its budget is spent. `vllm.py` samples a thought and then, after it, the answer. A server
does both by itself (`server/openai_server.py`).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.base import user
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.messages import one_line
from pipeline.storage.model_files import chat_template

Tags = tuple[str, str]  # what opens a thought, and what closes it

# The tags that vLLM's reasoning parsers know. The first pair that a template mentions is the model's.
KNOWN_TAGS: tuple[Tags, ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM, SmolLM3, Nemotron, Olmo
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),  # MiniMax
    ("<|channel>thought\n", "<channel|>"),  # Gemma 4
)
_CONVERSATION = user("Hello")


def find_tags(template: str) -> Tags | None:
    """The tags that a chat template, or a conversation that it rendered, mentions; None if it mentions none."""
    return next((tags for tags in KNOWN_TAGS if tags[0].strip() in template or tags[1] in template), None)


def template_switches(thinking: bool) -> dict[str, bool]:
    """The variables by which chat templates are told to think or not. A template ignores those that it does not know.

    `enable_thinking` is Qwen3's, GLM's and SmolLM3's; `thinking` is DeepSeek-V3.1's and Granite's.
    """
    return {"enable_thinking": thinking, "thinking": thinking}


@dataclass(frozen=True)
class Thinker:
    """How the model of one engine thinks.

    Attributes:
        tags: around its thoughts; None: it has none.
        budget: the most tokens of a thought; 0: the prompt closes the thought; None: it is told not to think.
        suffix: text that opens the thought, and closes it if the budget is 0. It is added after the rendered prompt.
    """

    tags: Tags | None = None
    budget: int | None = None
    suffix: str = ""

    @property
    def thinks(self) -> bool:
        return bool(self.budget)


def make_thinker(
    tokenizer: Any, thinking: Thinking | None, setting: str, model: str, can_think: bool = True
) -> Thinker:
    """Read from the chat template how a model is to think.

    Args:
        tokenizer: the model's tokenizer, of transformers.
        thinking: the settings; None: the model is not to think.
        setting: the section of the settings, such as `policy`, for messages.
        model: the model's name, for messages.
        can_think: whether the section may have `thinking`.

    Raises:
        UserError: the model is to think and has no tags, or it is not to think and its template cannot prevent it.
    """
    template = str(tokenizer.chat_template or "")
    told_to, told_not_to = (_render(tokenizer, thinks) for thinks in (True, False))
    tags = (thinking.tags if thinking else None) or find_tags(template) or find_tags(told_to)
    if tags is None:
        if thinking is None:
            return Thinker()
        raise UserError(
            f"{setting}.thinking is set, and the chat template of {model} has no thoughts: remove it, or name the "
            f"model's tags, as in {setting}.thinking.tags=[{KNOWN_TAGS[0][0]},{KNOWN_TAGS[0][1]}]"
        )
    opening, closing = tags
    if thinking is None:
        # A template without a switch renders the same both ways, and only the model decides whether it thinks.
        if _ends_with(told_not_to, opening) or (told_to == told_not_to and not _ends_with(told_not_to, closing)):
            remedy = (
                f"set {setting}.thinking.budget to the most tokens of a thought, or to 0, which closes the thought at "
                "once"
                if can_think
                else "use another model"
            )
            raise UserError(
                f"{setting}.model is {model!r}, which cannot be told to stop thinking (its chat template opens "
                f"{opening} or has no enable_thinking): {remedy}"
            )
        return Thinker(tags)
    suffix = "" if _ends_with(told_to, opening) else opening
    if not thinking.budget:
        suffix += f"\n{closing}\n\n" if told_to.endswith("\n") and not suffix else f"\n\n{closing}\n\n"
    return Thinker(tags, thinking.budget, suffix)


def _render(tokenizer: Any, thinking: bool) -> str:
    if tokenizer.chat_template is None:
        return ""
    return chat_template.render(tokenizer, _CONVERSATION, add_generation_prompt=True, **template_switches(thinking))


def _ends_with(rendered: str, tag: str) -> bool:
    return rendered.rstrip().endswith(tag.strip())


def check_folder(setting: str, model: str, folder: str, thinking: Thinking | None, can_think: bool = True) -> None:
    """Check before a run that a model can think, or can be told not to. It reads no weights.

    Args:
        setting, model, thinking, can_think: as in `make_thinker`.
        folder: has the tokenizer.

    Raises:
        UserError: see `make_thinker`.
    """
    if thinking is None and find_tags(_template_text(Path(folder))) is None:
        return  # most models: nothing to load
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged, of an unknown kind, or with code of its own: a dozen exception classes
        raise UserError(
            f"the tokenizer of {model} cannot be loaded (trust_remote_code is off): {one_line(error)}"
        ) from None
    make_thinker(tokenizer, thinking, setting, model, can_think)


def _template_text(folder: Path) -> str:
    """Everything that may hold the chat template, as text."""
    files = [folder / "chat_template.jinja", folder / "chat_template.json", folder / "tokenizer_config.json"]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()]
    try:
        template = json.loads(texts.pop())["chat_template"] if files[2].is_file() else ""
    except (ValueError, KeyError, TypeError):
        template = ""  # the added tokens beside it name tags too, also those of models that never think
    return "\n".join([*texts, json.dumps(template, ensure_ascii=False)])


# Thoughts in text and in tokens


def strip_thoughts(text: str, tags: Sequence[Tags] = KNOWN_TAGS) -> tuple[str | None, str]:
    """Divide a reply into what was thought and the answer.

    The answer begins after the last tag that closes a thought. Whatever stands before it counts as thought, because the
    prompt may have opened the thought, so that the reply shows only its end.

    Args:
        text: a reply.
        tags: those to look for.

    Returns:
        the thoughts without tags, None if there are none; and the answer. The answer of a reply whose thought was never
        closed is what stands before it, so in most cases it is empty.
    """
    thoughts: list[str] = []
    answer = text
    for opening, closing in tags:
        before, closed, after = answer.rpartition(closing)
        answer, opened, unclosed = after.partition(opening)
        if closed or opened:
            thoughts += [*re.split(f"{re.escape(opening)}|{re.escape(closing)}", before), unclosed]
    if answer == text:
        return None, text
    return "\n".join(filter(None, map(str.strip, thoughts))), answer.lstrip()


def answer_tokens(tokens: Sequence[tuple[str, float]], answer: str) -> list[tuple[str, float]] | None:
    """The last of a reply's tokens, which spell the answer; None if no last tokens spell it, or if it is empty.

    Args:
        tokens: text and log-probability of each token of the reply, the thought included.
        answer: the end of the reply. White space before it and after it may be in the tokens or not.
    """
    spelt = ""
    for start in reversed(range(len(tokens))):
        spelt = tokens[start][0] + spelt
        if answer.strip() and spelt.lstrip().startswith(answer.strip()):
            return list(tokens[start:])
    return None


def close_thought(
    ids: Sequence[int], tags: Tags, decode: Callable[[Sequence[int]], str], encode: Callable[[str], list[int]]
) -> tuple[int, list[int]]:
    """Find where a sampled thought ends, and what is missing to close it.

    Args:
        ids: the sampled tokens of the thought, with what closes it if the model wrote that.
        decode: gives the text of tokens, special tokens included.
        encode: gives the tokens of a text.

    Returns:
        how many of `ids` to keep, and the tokens to add. A token that spells the end of the closing tag and the
        beginning of the answer is not kept: the answer has its own form.
    """
    closing = tags[1]
    kept, text = len(ids), decode(ids)
    while closing in text and text.partition(closing)[2].strip():
        kept -= 1
        text = decode(ids[:kept])
    if closing in text:
        return kept, []
    overlap = next(n for n in reversed(range(len(closing))) if text.endswith(closing[:n]))
    return kept, encode(closing[overlap:])
