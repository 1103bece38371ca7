"""An engine that gives the log-probabilities of given texts under a causal LM, instead of sampling.

Prompts that share a beginning are branches of one tree, so an article is read once for all of its summaries
(`training/modeling/logprobs.py`).
"""

from collections.abc import Sequence
from typing import Any

from judges.base import Prompt, Sample
from pipeline.inference.base import Reply

_TOKENS_PER_BATCH = 4096  # of a packed row


class LikelihoodEngine:
    """Answers a prompt with one sample for each of its continuations, with `logp` and without `token_logps`.

    The prompt is written with the model's chat template. A continuation is tokenized by itself, so its tokens do not
    depend on the prompt.

    Args:
        model: a Hugging Face model by folder or name.
        dtype: "float32" or "bfloat16".
        on_gpu: whether to put the model on the GPU.

    Raises:
        ValueError: the model cannot be scored on a tree.
    """

    def __init__(self, model: str, dtype: str, on_gpu: bool):
        from transformers import AutoTokenizer

        from pipeline.training.modeling.loading import load_model

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded = load_model(model, dtype, article_tree=True).requires_grad_(False)
        self.model = loaded.to("cuda") if on_gpu else loaded
        self.max_model_len = getattr(loaded.config, "max_position_embeddings", None)

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        from pipeline.inference.vllm import encode_messages
        from pipeline.training.modeling.logprobs import frozen_logps

        replies: list[Reply] = []
        scored: list[tuple[int, list[list[int]]]] = []
        for prompt in prompts:
            prompt_ids = encode_messages(self.tokenizer, prompt.messages)
            texts = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompt.continuations]
            longest = len(prompt_ids) + max(map(len, texts), default=0)
            if not texts or (self.max_model_len is not None and longest > self.max_model_len):
                replies.append(Reply(prompt_ids, error="prompt too long" if texts else "prompt without continuations"))
                continue
            scored.append((len(replies), texts))
            replies.append(Reply(prompt_ids))
        filled = [(i, [text for text in texts if text]) for i, texts in scored]
        logps = frozen_logps(
            self.model, [(replies[i].prompt_ids, texts) for i, texts in filled if texts], _TOKENS_PER_BATCH
        )
        values = iter(logps)
        for (i, texts), (_, nonempty) in zip(scored, filled, strict=True):
            own = iter(next(values)) if nonempty else iter(())
            for text, ids in zip(prompts[i].continuations, texts, strict=True):
                replies[i].samples.append(Sample(text, ids, "stop", next(own) if ids else 0.0))
        return replies
