"""Measures how far log-probabilities differ between ways of scoring that should agree.

Before training, the same completions are scored in every way: on an article's tree, on a row of several articles, one
sequence at a time, as a padded batch, and by the engine that sampled them. In float32 the differences are rounding
errors. In bf16 they depend on the rest of the batch (Horace He, 2025, "Defeating nondeterminism in LLM inference").
Their size shows which margins are too small to mean anything. Records call the result the policy's `passport`. The
check at step 0 is in `loop.py`, because it compares values that this step computes anyway.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipeline.storage.model_files.engine_check import EngineCheck
from pipeline.training.batches.article_tree import ArticleTree, pack_row
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable, stable_hash
from pipeline.training.modeling import tree_attention
from pipeline.training.modeling.fsdp import PolicyModule
from pipeline.training.modeling.logprobs import batch_logps, check_agreement, completion_logps, plain_logps

_MAX_ARTICLES, _MAX_COMPLETIONS = 4, 2  # articles that are scored, and completions of each
# What an engine scores to prove its weights: the first token and the end of a prompt, and the beginnings of two of its
# completions, in tokens. They are short, because an engine scores each token with a request of its own. The first token
# stays, because many models are trained with it at the beginning, and round more coarsely without it.
_PROMPT_END, _BEGINNINGS, _BEGINNING = 31, 2, 16
# The gap between two ways to score the same short sequences is the largest of 8. Another two ways may differ by more.
_MORE_ROUNDING = 3
# How far a completion's log-probability may be from the reference's if the weights are the same, in nats per token.
# The two are packed with different other articles, so rounding remains: in float32 the rounding of sums near 100 nats,
# in bf16 the rounding in all layers.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def measure_consistency(
    policy: PolicyModule,
    examples: ExampleTable,
    device: torch.device,
    sampler: Mapping[str, Any] | None = None,
    *,
    is_reference: bool = True,
) -> dict[str, Any]:
    """Score a few articles in every way. A collective: every worker must call it, with the same examples.

    Args:
        policy: the policy, before any update.
        examples: all articles to train on.
        device: the device of the policy.
        sampler: the settings `references` if the sampler gave the reference log-probabilities; None if the trainer
            computed them.
        is_reference: True if the reference log-probabilities are of these weights.

    Returns:
        The largest differences over some completions, in nats per token of the completion: `tree_vs_plain`,
        `packed_vs_single`, `batch_1_vs_n`. Also `vllm_vs_trainer_max` and `vllm_vs_trainer_mean`, over all completions
        for which the sampler gave a log-probability (None if there are none). For a model that is scored one sequence
        at a time, only these last two.

    Raises:
        ValueError: the tree differs from the model's own forward by more than rounding; or the sampler's values are
            the reference, and they are too far from the trainer's.
    """
    shuffled = _shuffled(examples)
    values: dict[str, Any] = {"dtype": str(policy.model.dtype).removeprefix("torch.")}
    with torch.no_grad():
        if policy.model.config._attn_implementation == tree_attention.NAME:
            values |= _compare_layouts(policy, shuffled[:_MAX_ARTICLES], device)
            check_agreement(policy.model, max(values["tree_vs_plain"], values["packed_vs_single"]))
        else:
            values["attention"] = "plain"  # one sequence at a time: there are no layouts to compare
        if sampler is None and is_reference:
            return values | _sampler_gap((example, example.reference_logps) for example in examples)
        with_sampled = (example for example in shuffled if any(logp is not None for logp in example.sampled_logps))
        scored = shuffled[: sampler["check_articles"]] if sampler else list(islice(with_sampled, _MAX_ARTICLES))
        trainer_logps = [policy(completion_logps, _row(e).to(device)).tolist() for e in scored]
        values |= _sampler_gap(zip(scored, trainer_logps, strict=True))
    if sampler and not values["vllm_vs_trainer_mean"] <= sampler["max_difference"]:
        raise ValueError(
            f"references.source is sampler, and its log-probabilities differ from the trainer's by "
            f"{values['vllm_vs_trainer_mean']:.2g} nats per token on average over {len(scored)} articles, where "
            f"references.max_difference allows {sampler['max_difference']}: use references.source=trainer"
        )
    return values


def make_engine_check(
    policy: PolicyModule,
    examples: ExampleTable,
    device: torch.device,
    passport: Mapping[str, Any],
    *,
    is_exact: bool = True,
) -> EngineCheck | None:
    """Score a few short sequences, with which an engine can prove that it holds these weights.

    A collective: every worker must call it, with the same examples.

    Args:
        policy: the policy after training.
        examples: all articles to train on.
        device: the device of the policy.
        passport: what `measure_consistency` returned before training. The engine may be twice as far from the trainer
            as it was then, and at least as far as rounding explains: in whole completions, and in these sequences.
        is_exact: False: the engine has the base in another precision than the trainer.

    Returns:
        None if nothing says how far the engine may be from the trainer.
    """
    gap = passport.get("vllm_vs_trainer_max")
    if gap is None and not is_exact:
        return None
    chosen = _shuffled(examples)[:_MAX_ARTICLES]
    # Without its second token, so that an engine whose context a sample fills has room to answer.
    prompts = [
        [int(token) for token in (*example.prompt_ids[:1], *example.prompt_ids[2:][-_PROMPT_END:])]
        for example in chosen
    ]
    sequences = [
        [[int(token) for token in ids[:_BEGINNING]] for ids in example.completions[:_BEGINNINGS]] for example in chosen
    ]
    with torch.no_grad():
        articles = list(zip(prompts, sequences, strict=True))
        logps = [policy(completion_logps, pack_row([article]).to(device)).tolist() for article in articles]
        plain = [policy(plain_logps, *article).tolist() for article in articles]
    # The rounding errors of the tokens are about independent, so their mean is larger over fewer tokens.
    typical = statistics.fmean(length for example in chosen for length in example.lengths)
    larger = math.sqrt(max(1.0, typical / _BEGINNING))
    check = EngineCheck(prompts, sequences, logps, larger * max(TOLERANCE[passport["dtype"]], 2 * (gap or 0.0)))
    return replace(check, limit=max(check.limit, _MORE_ROUNDING * check.largest_gap(plain)))


def check_reference(
    reference: PolicyModule, name: str, examples: ExampleTable, dtype: str, device: torch.device
) -> None:
    """Check on a few articles that the reference model gives the reference log-probabilities of the rows.

    Use it if the reference is not the model to train. If it is, step 0 makes this check. A collective if the reference
    is sharded: every worker must call it, with the same examples.

    Args:
        reference: the reference, loaded as for the reference log-probabilities.
        name: its name, for the error message.
        examples: all articles to train on.
        dtype: dtype that the reference log-probabilities were computed in, and so that of training.
        device: the device of the reference.

    Raises:
        ValueError: they differ by more than rounding.
    """
    with torch.no_grad():
        gaps = [
            abs(logp - expected) / length
            for example in _shuffled(examples)[:_MAX_ARTICLES]
            for length, logp, expected in zip(
                example.lengths,
                reference(completion_logps, _row(example).to(device)).tolist(),
                example.reference_logps,
                strict=True,
            )
        ]
    if not max(gaps) <= TOLERANCE[dtype]:  # `not <=` also catches nan
        raise ValueError(
            f"the reference is {name}, and its log-probabilities differ from those of the rows by up to "
            f"{max(gaps):.2g} nats per token, where rounding gives at most {TOLERANCE[dtype]:g}: the references are of "
            "other weights, another dtype or other tokens; make them again"
        )


def _shuffled(examples: ExampleTable) -> ExampleTable:
    """Sort by hash of the article id, so that the first few are chosen neither by position nor by length."""
    return examples.sort_by(stable_hash)


def _row(example: Example) -> ArticleTree:
    return pack_row([example.article], unscored=[example.unscored])


def _compare_layouts(policy: PolicyModule, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """Score one article per row, several articles in a row, one sequence at a time, and a padded batch."""
    articles = [(example.prompt_ids, example.completions[:_MAX_COMPLETIONS]) for example in examples]
    unscored = [example.unscored[:_MAX_COMPLETIONS] for example in examples]
    lengths = torch.tensor([n for example in examples for n in example.lengths[:_MAX_COMPLETIONS]], dtype=torch.float64)

    def largest_gap(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs() / lengths).max())

    each = list(zip(articles, unscored, strict=True))
    rows = [pack_row([article], unscored=[left_out]) for article, left_out in each]
    single = torch.cat([policy(completion_logps, row.to(device)).cpu() for row in rows])
    packed = policy(completion_logps, pack_row(articles, unscored=unscored).to(device)).cpu()
    plain = torch.cat([policy(plain_logps, *article, left_out).cpu() for article, left_out in each])
    batch = torch.cat([policy(batch_logps, *article, left_out).cpu() for article, left_out in each])
    return {
        "attention": "flex_attention" if device.type == "cuda" else "sdpa",
        "articles": len(articles),
        "completions": len(lengths),
        "tree_vs_plain": largest_gap(single, plain),
        "packed_vs_single": largest_gap(packed, single),
        "batch_1_vs_n": largest_gap(batch, plain),
    }


def _sampler_gap(scored: Iterable[tuple[Example, Sequence[float]]]) -> dict[str, float | None]:
    """Compare the engine with the trainer, whose values stand beside each example, for the same weights."""
    count, total, largest = 0, 0.0, 0.0
    for example, logps in scored:
        if logps and example.sampled_logps:
            for length, logp, sampled in zip(example.lengths, logps, example.sampled_logps, strict=True):
                if sampled is not None:
                    gap = abs(sampled - logp) / length
                    count, total, largest = count + 1, total + gap, max(largest, gap)
    return {
        "vllm_vs_trainer_max": largest if count else None,
        "vllm_vs_trainer_mean": total / count if count else None,
    }
