"""An engine that gives the number that a reward model has for a conversation, instead of sampling.

A reward model is a sequence-classification model with one label. Its head reads the last token of the conversation.
"""

from collections.abc import Sequence
from typing import Any

from judges.base import Prompt, Sample
from pipeline.inference.base import Reply
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.storage.model_files import chat_template

_TOKENS_PER_BATCH = 8192  # with padding


class RewardEngine:
    """Answers a prompt, a conversation that ends with a reply, with one sample whose text is the reward, as `repr`.

    The conversation is written with the model's chat template; a model without one gets the bare texts. A conversation
    that is longer than the model allows gets a Reply with an error. It is never cut.

    Args:
        model: folder of a Hugging Face model on this machine.
        dtype: "float32" or "bfloat16".
        max_model_len: the longest conversation in tokens; None: what the model allows.
        on_gpu: whether to put the model on the GPU.
    """

    def __init__(self, model: str, dtype: str, max_model_len: int | None, on_gpu: bool):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
        )
        self.device = "cuda" if on_gpu else "cpu"
        self.model = loaded.requires_grad_(False).eval().to(self.device)
        config, tokenizer = loaded.config.get_text_config(), self.tokenizer
        self.pad_id: int | None = config.pad_token_id
        limits = (max_model_len, getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        # A tokenizer without a limit has 1e30.
        self.max_model_len = min((limit for limit in limits if limit is not None and limit < 1e9), default=None)

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        replies = [self._tokenize(prompt) for prompt in prompts]
        served = [reply for reply in replies if reply.error is None]
        by_length = sorted(served, key=lambda reply: len(reply.prompt_ids), reverse=True)
        while by_length:
            # The longest first, so that a batch that is too large for the memory fails at once.
            count = max(1, _TOKENS_PER_BATCH // len(by_length[0].prompt_ids))
            batch, by_length = by_length[:count], by_length[count:]
            for reply, reward in zip(batch, self._rewards([reply.prompt_ids for reply in batch]), strict=True):
                reply.samples.append(Sample(repr(reward), [], "stop"))
        return replies

    def _tokenize(self, prompt: Prompt) -> Reply:
        messages = break_special_tokens(prompt, special_tokens_of(self.tokenizer))
        if self.tokenizer.chat_template is None:
            ids = self.tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
        else:
            ids = chat_template.encode(self.tokenizer, messages)
        if not ids:
            return Reply([], error="empty conversation")
        if self.max_model_len is not None and len(ids) > self.max_model_len:
            return Reply(list(ids), error="prompt too long")
        return Reply(list(ids))

    def _rewards(self, conversations: Sequence[list[int]]) -> list[float]:
        import torch

        longest, pad_id = max(map(len, conversations)), self._choose_padding(conversations)
        ids = torch.full((len(conversations), longest), pad_id)
        mask = torch.zeros_like(ids)
        for row, conversation in enumerate(conversations):
            ids[row, : len(conversation)] = torch.tensor(conversation)
            mask[row, : len(conversation)] = 1
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        return [float(value) for value in logits[:, 0].float().cpu()]

    def _choose_padding(self, conversations: Sequence[list[int]]) -> int:
        """The token id that fills up shorter conversations.

        The head of a decoder reads the last token that is not padding. If the model names no padding, any id will do
        that ends no conversation of the batch, because the attention mask hides it.
        """
        if self.pad_id is not None:
            return self.pad_id
        last_ids = {conversation[-1] for conversation in conversations}
        pad_id = next(number for number in range(len(last_ids) + 1) if number not in last_ids)
        self.model.config.get_text_config().pad_token_id = pad_id
        return pad_id
