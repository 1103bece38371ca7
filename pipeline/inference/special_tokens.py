"""Breaks up special tokens in quoted text, so that an article or a summary stays plain text for the model.

Quoted text may hold `<|im_end|>` or `[/INST]`, by accident, or to end its turn and give the model orders. Tokenized
with the conversation, it would become the same token that the chat template writes. One space inside turns it into
ordinary text that a person can still read. Text without such markers is not changed, and keeps its token ids.
(Tokenizing the text separately, with special tokens split, would give different ids where a token spans the seam.)

This does not stop orders in plain words. Against those, the judge's grammar limits its answers, and a person reads
the judge card.
"""

import functools
import re
from typing import TYPE_CHECKING

from judges.base import Prompt
from pipeline.storage.model_files import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How chat templates write their markers, whether or not the tokenizer has a token for each of them.
_MARKER = re.compile(r"<<?[^<>\s'\"{}]{1,60}>>?|\[/?[A-Z][A-Z_]+\]")
# For a model at a server, whose tokenizer we do not have.
WELL_KNOWN_MARKERS = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<｜[^<>｜\s]{1,60}｜>|<</?SYS>>|</?(s|think|tool_call|tool_response)>|<[be]os>"
    r"|<(start|end)_of_turn>|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|THINK)\]"
)


def break_special_tokens(prompt: Prompt, markers: re.Pattern[str]) -> tuple[dict[str, str], ...]:
    """The prompt's messages, with the markers broken up in all quoted text.

    Our own words and those of the settings are not changed.
    """
    messages = prompt.messages
    for quote in filter(markers.search, prompt.quotes):
        broken = markers.sub(_break, quote)
        messages = tuple(message | {"content": message["content"].replace(quote, broken)} for message in messages)
    return messages


def _break(marker: re.Match[str]) -> str:
    return f"{marker[0][0]} {marker[0][1:]}" if len(marker[0]) > 1 else " "


def special_tokens_of(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """A pattern that matches the tokenizer's special tokens and the markers of its chat template."""
    return _marker_pattern(tokenizer, str(tokenizer.chat_template or ""))


@functools.lru_cache(maxsize=8)
def _marker_pattern(tokenizer: "PreTrainedTokenizerBase", template: str) -> re.Pattern[str]:
    added_tokens = getattr(tokenizer, "added_tokens_decoder", {}).values()
    markers = {*tokenizer.all_special_tokens, *(str(token) for token in added_tokens if token.special)}
    if template:
        # Search a rendered conversation too: many templates build a marker from a bracket and a role.
        conversation = [{"role": "user", "content": ""}]
        rendered = chat_template.render(tokenizer, conversation, add_generation_prompt=True)
        markers |= set(_MARKER.findall(template)) | set(_MARKER.findall(rendered))
    longest_first = sorted(filter(str.strip, markers), key=len, reverse=True)  # else "<a" would match before "<a>"
    matches_nothing = r"(?!)"
    return re.compile("|".join(map(re.escape, longest_first)) or matches_nothing)
