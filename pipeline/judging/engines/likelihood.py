"""An engine that gives the log-probabilities of given texts under a causal LM, instead of sampling.

Prompts that share a beginning are branches of one tree, so an article is read once for all of its summaries
(`training/modeling/logprobs.py`).
"""

import math
from collections.abc import Sequence
from typing import Any

from judges.base import Prompt, Sample
from pipeline.inference.base import Reply
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of

_TOKENS_PER_BATCH = 4096  # of a packed row
# Marks of special tokens in a text that is scored are plain text.
_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}
_Tree = tuple[list[int], list[list[int]]]  # a prompt and its continuations, as token ids


class LikelihoodEngine:
    """Answers a prompt with one sample for each of its continuations, with `logp` and `token_logps`.

    The prompt is written with the model's chat template. A continuation is tokenized by itself, so its tokens do not
    depend on the prompt. A continuation that is empty, or longer than the model's context together with the prompt, has
    no `logp`; if no continuation of a prompt can be scored, the reply is an error.

    Args:
        model: a Hugging Face model by folder or name.
        dtype: "float32" or "bfloat16".
        max_model_len: the longest prompt with a continuation in tokens; None: what the model allows.
        on_gpu: whether to put the model on the GPU.

    Raises:
        ValueError: the model cannot be scored on a tree.
    """

    def __init__(self, model: str, dtype: str, max_model_len: int | None, on_gpu: bool):
        from transformers import AutoTokenizer

        from pipeline.training.modeling.frozen import FrozenPolicy
        from pipeline.training.modeling.loading import load_model

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded = load_model(model, dtype, article_tree=True)
        self.policy = FrozenPolicy(loaded, "cuda" if on_gpu else "cpu")
        limits = (max_model_len, getattr(loaded.config, "max_position_embeddings", None))
        self.max_model_len = min((limit for limit in limits if limit is not None), default=None)

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        trees = [self._tokenize(prompt) for prompt in prompts]
        fitting = [[ids for ids in texts if self._fits(prompt_ids, ids)] for prompt_ids, texts in trees]
        scorable = [(tree[0], texts) for tree, texts in zip(trees, fitting, strict=True) if texts]
        logps = iter(self.policy.token_logps(scorable, _TOKENS_PER_BATCH))
        return [
            self._reply(prompt, tree, next(logps)) if texts else Reply(tree[0], error=_fault(tree[1]))
            for prompt, tree, texts in zip(prompts, trees, fitting, strict=True)
        ]

    def _tokenize(self, prompt: Prompt) -> _Tree:
        from pipeline.inference.vllm import encode_messages

        texts = [self.tokenizer(text, **_AS_TEXT)["input_ids"] for text in prompt.continuations]
        return encode_messages(self.tokenizer, break_special_tokens(prompt, special_tokens_of(self.tokenizer))), texts

    def _fits(self, prompt_ids: list[int], ids: list[int]) -> bool:
        return bool(ids) and (self.max_model_len is None or len(prompt_ids) + len(ids) <= self.max_model_len)

    def _reply(self, prompt: Prompt, tree: _Tree, logps: list[list[float]]) -> Reply:
        prompt_ids, texts = tree
        of_fitting = iter(logps)
        samples = []
        for text, ids in zip(prompt.continuations, texts, strict=True):
            if not self._fits(prompt_ids, ids):
                samples.append(Sample(text, ids, "length" if ids else "stop"))
                continue
            values = next(of_fitting)
            token_logps = list(zip(self.tokenizer.convert_ids_to_tokens(ids), values, strict=True))
            samples.append(Sample(text, ids, "stop", math.fsum(values), token_logps))
        return Reply(prompt_ids, samples)


def _fault(texts: list[list[int]]) -> str:
    """Why none of these continuations can be scored."""
    if not texts:
        return "prompt without continuations"
    return "prompt too long" if any(texts) else "empty continuation"
