"""A preference pair as token ids: the ones that TRL's DPOTrainer makes of the same row, so that gradients are equal.

Messages go through the tokenizer's chat template; the answer is what it adds after the prompt with its generation
prompt. Text is tokenized with its prompt and the end-of-sequence token; the answer begins where the two answers' ids
leave the prompt's. Two things TRL lets pass are not: a second BOS is dropped, and a template that writes the prompt
another way once there is an answer is no ground to train on. Left out: whose text it is (`formats.py`); within a run
of rounds nothing is ever tokenized again (`sampling.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judges.base import Skip
from pipeline.config import UserError
from pipeline.data.preference_formats import Message, Preference
from pipeline.storage.model_files.hub import adapter_config, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairIds:
    """Token ids of one pair.

    Attributes:
        prompt, chosen, rejected: ids; prompt + chosen is what the model sees, and chosen what is scored.
        moved: the answers begin before the end of the prompt, where its last letters and their first make one token.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    moved: bool = False


@dataclass(frozen=True)
class PairTokenizer:
    """A policy's tokenizer.

    Attributes:
        tokenizer: as transformers has it.
        room: tokens that prompt and answer may have together; None: any number.
    """

    tokenizer: "PreTrainedTokenizerBase"
    room: int | None = None

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return self.tokenizer.chat_template is not None

    def of(self, pair: Preference) -> PairIds | Skip:
        """The ids of a pair, or why it cannot be learned from.

        Raises:
            UserError: the pair has messages, and there is no chat template.
        """
        ids = self._text(pair) if isinstance(pair.prompt, str) else self._messages(pair)
        if isinstance(ids, Skip):
            return ids
        if not ids.prompt:
            return Skip("no prompt")
        if not ids.chosen or not ids.rejected:
            return Skip("empty answer")
        if ids.chosen == ids.rejected:
            return Skip("chosen and rejected are the same")
        if self.room is not None and len(ids.prompt) + max(len(ids.chosen), len(ids.rejected)) > self.room:
            return Skip("too long")
        return ids

    def prompt(self, messages: list[Message], **template: Any) -> list[int]:
        """The ids of messages, ready to be answered. Raises whatever a template does that refuses them."""
        return self._template(messages, template | {"add_generation_prompt": True})

    def _text(self, pair: Preference) -> PairIds:
        assert isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
        end = self.tokenizer.eos_token or ""
        prompt = self._plain(pair.prompt)
        chosen, rejected = (
            self._plain(pair.prompt + answer + ("" if answer.endswith(end) else end))
            for answer in (pair.chosen, pair.rejected)
        )
        start = min(_common(prompt, chosen), _common(prompt, rejected))
        return PairIds(prompt[:start], chosen[start:], rejected[start:], moved=start < len(prompt))

    def _messages(self, pair: Preference) -> PairIds | Skip:
        assert isinstance(pair.prompt, list) and isinstance(pair.chosen, list) and isinstance(pair.rejected, list)
        if not self.chats:
            raise UserError(
                "the pairs are messages, and the policy's tokenizer has no chat template: take a policy that has one, "
                "or give prompt, chosen and rejected as text"
            )
        template = dict(pair.template)
        try:
            prompt = self.prompt(pair.prompt, **template)
            chosen = self._template(pair.prompt + pair.chosen, template)
            rejected = self._template(pair.prompt + pair.rejected, template)
        except Exception:  # a template is a program of the model's, and stumbles over data in ways of its own
            return Skip("the chat template refuses the messages")
        start = len(prompt)
        if chosen[:start] != prompt or rejected[:start] != prompt:
            return Skip("the chat template does not extend the prompt")
        return PairIds(prompt, chosen[start:], rejected[start:])

    def _plain(self, text: str) -> list[int]:
        return self._one_bos(self.tokenizer(text=text)["input_ids"])

    def _template(self, messages: list[Message], template: dict[str, Any]) -> list[int]:
        return self._one_bos(
            self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **template)["input_ids"]
        )

    def _one_bos(self, ids: list[int]) -> list[int]:
        """Text that begins with the BOS token's name, as a template printed it, gets another from the tokenizer."""
        bos, start = self.tokenizer.bos_token_id, 0
        while bos is not None and ids[start : start + 2] == [bos, bos]:
            start += 1
        return list(ids[start:])


def load_pair_tokenizer(model: str, max_model_len: int | None = None) -> PairTokenizer:
    """The tokenizer of a model by path, URI or name, with its room: what is set, or what the model allows.

    An adapter without a tokenizer of its own has its base's.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = fetch(model)
    adapter = adapter_config(folder)
    base = folder if adapter is None else fetch(adapter["base_model_name_or_path"])
    room = max_model_len or getattr(
        AutoConfig.from_pretrained(base, trust_remote_code=False), "max_position_embeddings", None
    )
    own = Path(folder, "tokenizer_config.json").is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if own else base, trust_remote_code=False)
    except Exception as error:  # damaged, of an unknown kind, or code of its own: a dozen classes
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer of {model} cannot be loaded (trust_remote_code is off): {reason}") from None
    return PairTokenizer(tokenizer, room)


def _common(ids: list[int], others: list[int]) -> int:
    """How many ids both begin with."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))
