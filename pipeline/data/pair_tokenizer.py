"""Turns a preference pair into token ids: the same ids as TRL's DPOTrainer, so that gradients are equal.

Messages go through the tokenizer's chat template: an answer's ids are those that the template adds after the prompt
with its generation prompt. A plain text is tokenized together with its prompt and the end-of-sequence token: the
answers begin where the ids of either answer's text first differ from the ids of the prompt alone.

Two things differ from TRL. A second BOS is removed. A pair is skipped if the chat template refuses or leaves out a
message, or writes the prompt differently once there is an answer.

Which text is tokenized is decided in `preference_formats.py`. Samples of a run's own rounds are never tokenized again
(`inference/sampling.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judges.base import Skip
from judges.text.conversations import merge_system
from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.data.messages import Message
from pipeline.data.preference_formats import Preference
from pipeline.storage.model_files import chat_template
from pipeline.storage.model_files.chat_template import TemplateRefusal
from pipeline.storage.model_files.hub import adapter_config, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairIds:
    """Token ids of one pair.

    Attributes:
        prompt, chosen, rejected: ids. The model sees prompt + chosen, and the loss counts the ids of `chosen`; the
            same for `rejected`.
        moved: the answers begin before the end of the prompt, because its last letters and the first letters of an
            answer form one token.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    moved: bool = False


@dataclass(frozen=True)
class PairTokenizer:
    """Tokenizes pairs for a policy.

    Attributes:
        tokenizer: the policy's tokenizer, a class of transformers.
        max_length: the most tokens of a prompt with its answer. None: no limit.
        merge_system: put the system message of each prompt into its first user message.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int | None = None
    merge_system: bool = False

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    @property
    def knows_thinking(self) -> bool:
        """Whether the chat template can turn thinking on and off."""
        return "enable_thinking" in str(self.tokenizer.chat_template)

    def encode(self, pair: Preference) -> PairIds | Skip:
        """Tokenize a pair. Returns a Skip if it cannot be trained on.

        Raises:
            UserError: the pair has messages, and the tokenizer has no chat template.
        """
        ids = self._encode_text(pair) if isinstance(pair.prompt, str) else self._encode_messages(pair)
        if isinstance(ids, Skip):
            return ids
        if not ids.prompt:
            return Skip("no prompt")
        if not ids.chosen or not ids.rejected:
            return Skip("empty answer")
        if ids.chosen == ids.rejected:
            return Skip("chosen and rejected are the same")
        longest = len(ids.prompt) + max(len(ids.chosen), len(ids.rejected))
        if self.max_length is not None and longest > self.max_length:
            return Skip("too long")
        return ids

    def encode_prompt(self, messages: list[Message], **template: Any) -> list[int]:
        """Tokenize messages with the generation prompt.

        Args:
            messages: the conversation so far.
            template: keyword arguments for the chat template.

        Raises:
            TemplateRefusal: the chat template refuses the messages.
        """
        return self._apply_template(messages, template | {"add_generation_prompt": True})

    def _encode_text(self, pair: Preference) -> PairIds:
        assert isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
        eos = self.tokenizer.eos_token or ""
        prompt = self._tokenize(pair.prompt)
        chosen, rejected = (
            self._tokenize(pair.prompt + answer + ("" if answer.endswith(eos) else eos))
            for answer in (pair.chosen, pair.rejected)
        )
        start = min(_common_prefix_length(prompt, chosen), _common_prefix_length(prompt, rejected))
        return PairIds(prompt[:start], chosen[start:], rejected[start:], moved=start < len(prompt))

    def _encode_messages(self, pair: Preference) -> PairIds | Skip:
        assert isinstance(pair.prompt, list) and isinstance(pair.chosen, list) and isinstance(pair.rejected, list)
        if not self.has_chat_template:
            raise UserError(
                "the pairs are messages, and the policy's tokenizer has no chat template: choose a policy that has "
                "one, or give prompt, chosen and rejected as text, without a column system"
            )
        template = dict(pair.template)
        messages = merge_system(pair.prompt) if self.merge_system else pair.prompt
        try:
            prompt = self.encode_prompt(messages, **template)
            chosen = self._apply_template(messages + pair.chosen, template)
            rejected = self._apply_template(messages + pair.rejected, template)
        except TemplateRefusal as refusal:
            return Skip(refusal.with_remedy("policy.merge_system"))
        start = len(prompt)
        if chosen[:start] != prompt or rejected[:start] != prompt:
            return Skip("the chat template does not extend the prompt")
        return PairIds(prompt, chosen[start:], rejected[start:])

    def _tokenize(self, text: str) -> list[int]:
        return self._without_second_bos(self.tokenizer(text=text)["input_ids"])

    def _apply_template(self, messages: list[Message], template: dict[str, Any]) -> list[int]:
        return self._without_second_bos(chat_template.encode(self.tokenizer, messages, **template))

    def _without_second_bos(self, ids: list[int]) -> list[int]:
        """Remove a repeated BOS token: the tokenizer adds one also to text in which a template already wrote it."""
        bos, start = self.tokenizer.bos_token_id, 0
        while bos is not None and ids[start : start + 2] == [bos, bos]:
            start += 1
        return list(ids[start:])


def load_pair_tokenizer(model: str, max_model_len: int | None = None, merge_system: bool = False) -> PairTokenizer:
    """Load a model's tokenizer. An adapter without its own tokenizer uses the tokenizer of its base.

    Args:
        model: path, URI or name on the hub.
        max_model_len: the most tokens of a prompt with its answer. None: what the model allows.
        merge_system: as in `PairTokenizer`.

    Raises:
        UserError: the tokenizer cannot be loaded, or `max_model_len` is more than the model takes.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = fetch(model)
    adapter = adapter_config(folder)
    base = folder if adapter is None else fetch(adapter["base_model_name_or_path"])
    config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if max_model_len and positions and max_model_len > positions:
        raise UserError(
            f"policy.max_model_len is {max_model_len}, and {model} takes {positions} tokens (max_position_embeddings): "
            f"lower it to {positions}, or leave it out"
        )
    has_own_tokenizer = Path(folder, "tokenizer_config.json").is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if has_own_tokenizer else base, trust_remote_code=False)
    except Exception as error:  # damaged, of an unknown kind, or with code of its own: a dozen exception classes
        reason = one_line(error)
        raise UserError(f"the tokenizer of {model} cannot be loaded (trust_remote_code is off): {reason}") from None
    return PairTokenizer(tokenizer, max_model_len or positions, merge_system)


def _common_prefix_length(ids: list[int], others: list[int]) -> int:
    """How many ids the two lists have in common from the start."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))
