"""Text that stays text: what a chat template or a tokenizer would take for a mark of its own is broken up.

An article or a summary may hold `<|im_end|>` or `[/INST]`, by accident or to end its turn and give orders. Tokenized
with the conversation that would become the very token that the template writes. One space inside makes it ordinary
text, which a person still reads; text without such marks is left as it is, and has the token ids it always had.
(Tokenizing the text apart, with special tokens split, would give other ids wherever a token spans the seam.)
Left out: orders in plain words. Against those a judge has its grammar, and the person its card.
"""

import functools
import re
from typing import TYPE_CHECKING

from judges.base import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# As chat templates write their marks, whether or not the tokenizer has a token for each.
_MARK = re.compile(r"<<?[^<>\s'\"{}]{1,60}>>?|\[/?[A-Z][A-Z_]+\]")
# Of a model at a server only the well-known ones can be known.
WELL_KNOWN = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<｜[^<>｜\s]{1,60}｜>|<</?SYS>>|</?(s|think|tool_call|tool_response)>|<[be]os>"
    r"|<(start|end)_of_turn>|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|THINK)\]"
)


def break_special_tokens(prompt: Prompt, marks: re.Pattern[str]) -> tuple[dict[str, str], ...]:
    """The messages of a prompt, without marks in what it quotes. What we and the settings say is left alone."""
    messages = prompt.messages
    for text in filter(marks.search, prompt.quotes):
        broken = marks.sub(lambda m: f"{m[0][0]} {m[0][1:]}" if len(m[0]) > 1 else " ", text)
        messages = tuple(message | {"content": message["content"].replace(text, broken)} for message in messages)
    return messages


def special_tokens_of(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """The marks of a tokenizer and its chat template: special tokens, and what the template writes that looks so."""
    return _marks(tokenizer, str(tokenizer.chat_template or ""))


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: "PreTrainedTokenizerBase", template: str) -> re.Pattern[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    if template:
        # Rendered too: many a template puts a mark together of a bracket and a role.
        asked = [{"role": "user", "content": ""}]
        rendered = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        found |= set(_MARK.findall(template)) | set(_MARK.findall(str(rendered)))
    # The longest first: of two that begin alike the whole one is meant. Without any, a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, sorted(filter(str.strip, found), key=len, reverse=True))) or r"(?!)")
