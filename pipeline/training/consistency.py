"""The numeric passport of a policy: how far its log-probabilities differ where they should not, measured on itself.

The same completions are scored in every way there is before anything is trained: on an article's tree, on a row of
several articles, one sequence at a time, as a padded batch, and by the engine that sampled them. In float32 the
differences are rounding; in bf16 they depend on what else is in the batch (Horace He, 2025, "Defeating nondeterminism
in LLM inference"), and a reader of small margins should know how large they are.
Left out: step 0, which is measured as it is taken (`loop.py`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.training.batches.article_tree import pack_row
from pipeline.training.batches.example import Example
from pipeline.training.modeling import loading, tree_attention
from pipeline.training.modeling.fsdp import PolicyModule
from pipeline.training.modeling.logprobs import batch_logps, check_agreement, completion_logps, plain_logps

_ARTICLES, _COMPLETIONS = 4, 4  # looked at
# How far a completion's log-probability may be from the reference's where the weights are the same, in nats per token.
# Row companions are not the same, so what is left is rounding: of sums near 100 nats in float32, in bf16 of all layers.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def measure_consistency(
    policy: PolicyModule,
    examples: Sequence[Example],
    device: torch.device,
    sampler: Mapping[str, Any] | None = None,
    *,
    is_reference: bool = True,
) -> dict[str, Any]:
    """Score a few articles in every way. A collective: every worker calls it, with the same examples.

    Args:
        policy: before any update.
        sampler: settings `references`, where the reference column is the sampler's; None where it is the trainer's.
        is_reference: the reference column is of these weights.

    Returns:
        Largest differences over some completions, in nats per token of the completion: `tree_vs_plain`,
        `packed_vs_single`, `batch_1_vs_n`; and `vllm_vs_trainer_max` and `_mean`, over all completions whose sampler
        gave its log-probability (None where none did). A model that is scored one sequence at a time has only these.

    Raises:
        ValueError: the tree does not give what the model itself gives, by more than rounding; or the sampler's values
            are the reference, and too far from the trainer's.
    """
    shuffled = _shuffled(examples)
    values: dict[str, Any] = {"dtype": str(policy.model.dtype).removeprefix("torch.")}
    with torch.no_grad():
        if policy.model.config._attn_implementation == tree_attention.NAME:
            values |= _layouts(policy, shuffled[:_ARTICLES], device)
            check_agreement(policy.model, max(values["tree_vs_plain"], values["packed_vs_single"]))
        else:
            values["attention"] = "plain"  # one sequence at a time: there is nothing to compare with
        if sampler is None and is_reference:
            return values | _gap(shuffled, [example.reference_logps for example in shuffled])
        known = [example for example in shuffled if any(logp is not None for logp in example.sampled_logps)]
        some = shuffled[: sampler["check_articles"]] if sampler else known[:_ARTICLES]
        values |= _gap(some, [policy(completion_logps, pack_row([e.article]).to(device)).tolist() for e in some])
    if sampler and not values["vllm_vs_trainer_mean"] <= sampler["max_difference"]:
        raise ValueError(
            f"references.source is sampler, and its log-probabilities differ from the trainer's by "
            f"{values['vllm_vs_trainer_mean']:.2g} nats per token in the mean over {len(some)} articles, where "
            f"references.max_difference allows {sampler['max_difference']}: use references.source=trainer"
        )
    return values


def check_reference(
    name: str, examples: Sequence[Example], dtype: str, device: torch.device, *, article_tree: bool
) -> None:
    """See that the reference column is what a model gives that is not the one to be trained, on a few articles.

    Args:
        name: of the reference: a folder, a URI or a name on the hub.
        dtype, article_tree: of the reference column, and so of training.
        device: where the reference is looked at, and is gone from afterwards.

    Raises:
        ValueError: it differs by more than rounding.
    """
    some = _shuffled(examples)[:_ARTICLES]
    model = loading.load_model(name, dtype, article_tree=article_tree).to(device)
    with torch.no_grad():
        gaps = [
            abs(logp - expected) / len(completion)
            for example in some
            for completion, logp, expected in zip(
                example.completions,
                completion_logps(model, pack_row([example.article]).to(device)).tolist(),
                example.reference_logps,
                strict=True,
            )
        ]
    if not max(gaps) <= TOLERANCE[dtype]:  # also if nan
        raise ValueError(
            f"the reference is {name}, and its log-probabilities differ from those of the rows by up to "
            f"{max(gaps):.2g} nats per token, where rounding gives at most {TOLERANCE[dtype]:g}: the references are of "
            "other weights, another dtype or other tokens; make them again"
        )


def _shuffled(examples: Sequence[Example]) -> list[Example]:
    """By hash: the first are a few that no order and no length has chosen."""
    return sorted(examples, key=lambda example: hashlib.sha256(example.article_id.encode()).digest())


def _layouts(policy: PolicyModule, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """One article a row, several in a row, one sequence at a time, a padded batch."""
    articles = [(example.prompt_ids, example.completions[:_COMPLETIONS]) for example in examples]
    lengths = torch.tensor([len(c) for _, completions in articles for c in completions], dtype=torch.float64)

    def largest(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs() / lengths).max())

    single = torch.cat([policy(completion_logps, pack_row([article]).to(device)).cpu() for article in articles])
    packed = policy(completion_logps, pack_row(articles).to(device)).cpu()
    plain = torch.cat([policy(plain_logps, *article).cpu() for article in articles])
    batch = torch.cat([policy(batch_logps, *article).cpu() for article in articles])
    return {
        "attention": "flex_attention" if device.type == "cuda" else "sdpa",
        "articles": len(articles),
        "completions": len(lengths),
        "tree_vs_plain": largest(single, plain),
        "packed_vs_single": largest(packed, single),
        "batch_1_vs_n": largest(batch, plain),
    }


def _gap(examples: Sequence[Example], trainer: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """The engine against the trainer, which scored the same completions with the same weights."""
    gaps = [
        abs(sampled - logp) / len(completion)
        for example, logps in zip(examples, trainer, strict=True)
        if logps and example.sampled_logps
        for completion, logp, sampled in zip(example.completions, logps, example.sampled_logps, strict=True)
        if sampled is not None
    ]
    return {
        "vllm_vs_trainer_max": max(gaps) if gaps else None,
        "vllm_vs_trainer_mean": sum(gaps) / len(gaps) if gaps else None,
    }
