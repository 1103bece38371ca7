"""The numeric passport of a policy: how far its log-probabilities differ where they should not, measured on itself.

The same completions are scored in every way there is before anything is trained: on an article's tree, on a row of
several articles, one sequence at a time, as a padded batch, and by the engine that sampled them. In float32 the
differences are rounding; in bf16 they depend on what else is in the batch (Horace He, 2025, "Defeating nondeterminism
in LLM inference"), and a reader of small margins should know how large they are.
Left out: step 0, which is measured as it is taken (`loop.py`).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dpo import attention
from pipeline.dpo.example import Example
from pipeline.dpo.logps import batch_logps, completion_logps, disagreement, plain_logps
from pipeline.dpo.sharding import Policy
from pipeline.dpo.tree import grow

_ARTICLES, _COMPLETIONS = 4, 4  # looked at


def measure(policy: Policy, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """Score a few articles in every way. A collective: every worker calls it, with the same examples.

    Returns:
        Largest differences over some completions, in nats per token of the completion: `tree_vs_plain`,
        `packed_vs_single`, `batch_1_vs_n`; and `vllm_vs_trainer_max` and `_mean`, over all completions whose sampler
        gave its log-probability (None where none did). A model that is scored one sequence at a time has only these.

    Raises:
        ValueError: the tree does not give what the model itself gives, by more than rounding.
    """
    # By hash: a few that no order and no length has chosen.
    some = sorted(examples, key=lambda e: hashlib.sha256(e.article_id.encode()).digest())[:_ARTICLES]
    articles = [(example.prompt_ids, example.completions[:_COMPLETIONS]) for example in some]
    lengths = torch.tensor([len(c) for _, completions in articles for c in completions], dtype=torch.float64)

    def largest(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs() / lengths).max())

    values: dict[str, Any] = {"dtype": str(policy.model.dtype).removeprefix("torch.")} | _sampler(examples)
    if policy.model.config._attn_implementation != attention.NAME:
        return values | {"attention": "plain"}  # one sequence at a time: there is no other way to compare with
    with torch.no_grad():
        single = torch.cat([policy(completion_logps, grow([article]).to(device)).cpu() for article in articles])
        packed = policy(completion_logps, grow(articles).to(device)).cpu()
        plain = torch.cat([policy(plain_logps, *article).cpu() for article in articles])
        batch = torch.cat([policy(batch_logps, *article).cpu() for article in articles])
    values |= {
        "attention": "flex_attention" if device.type == "cuda" else "sdpa",
        "articles": len(articles),
        "completions": len(lengths),
        "tree_vs_plain": largest(single, plain),
        "packed_vs_single": largest(packed, single),
        "batch_1_vs_n": largest(batch, plain),
    }
    disagreement(policy.model, values["tree_vs_plain"])
    return values


def _sampler(examples: Sequence[Example]) -> dict[str, float | None]:
    """The engine against the reference column, which the trainer's own function made with the same weights."""
    gaps = [
        abs(sampled - reference) / len(completion)
        for example in examples
        if example.reference_logps and example.sampled_logps
        for completion, reference, sampled in zip(
            example.completions, example.reference_logps, example.sampled_logps, strict=True
        )
        if sampled is not None
    ]
    return {
        "vllm_vs_trainer_max": max(gaps) if gaps else None,
        "vllm_vs_trainer_mean": sum(gaps) / len(gaps) if gaps else None,
    }
