"""Runs the LM head on completion tokens only, and returns log-probabilities, a chunk of logits at a time, in float32.

In bf16 numbers near 100 are 0.5 apart. So logits, their log-sum-exp and the difference of the two are float32, whatever
the dtype of the weights. A chunk's logits are overwritten by their softmax, and this by its gradient; backward computes
them again if there is more than one chunk. So memory holds `LOGITS_PER_CHUNK` logits, not tokens x vocabulary of them.
Models that change logits after the head other than by a factor are refused in `logprobs.py`.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.training.modeling import LOGITS_PER_CHUNK


def token_logps(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, factor: float = 1.0) -> Tensor:
    """Log-probability of each target token.

    Args:
        hidden: (N, d), hidden states that predict the targets.
        targets: (N,) int64, token ids.
        weight: (V, d), the head's weight.
        bias: (V,), the head's bias, or None.
        factor: what the model multiplies its logits with.

    Returns:
        (N,) in nats; float32, or float64 for float64 weights.
    """
    return token_logps_and_concentration(hidden, targets, weight, bias, factor=factor, with_concentration=False)[0]


def token_logps_and_concentration(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    factor: float = 1.0,
    with_concentration: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target token, and the log of the sum of squares of all tokens' probabilities there.

    The second is what WPO compares a token's log-probability with: the mean probability of a token that the model
    itself draws. It has no gradient.

    Args:
        hidden, targets, weight, bias, factor: see `token_logps`.
        with_concentration: False leaves out the second.

    Returns:
        Twice (N,) in nats, of the dtype of `token_logps`; None for what is left out.
    """
    if not len(targets):
        nothing = (hidden.sum() * 0).expand(0)
        return nothing, nothing.detach() if with_concentration else None
    tokens_per_chunk = max(1, LOGITS_PER_CHUNK // len(weight))
    return _TokenLogps.apply(hidden, targets, weight, bias, factor, tokens_per_chunk, with_concentration)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: float,
        tokens_per_chunk: int,
        with_concentration: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logps, log_sums, concentrations = [], [], []
        for h, t in zip(hidden.split(tokens_per_chunk), targets.split(tokens_per_chunk), strict=True):
            logits = _logits(h, weight, bias, factor)
            target_logits = logits.gather(1, t[:, None])[:, 0]
            largest = logits.amax(-1)
            # In place: from here on `logits` holds the softmax without its denominator.
            denominator = logits.sub_(largest[:, None]).exp_().sum(-1)
            logps.append(target_logits - largest - denominator.log())
            log_sums.append(largest + denominator.log())
            if with_concentration:
                concentrations.append(2 * (torch.linalg.vector_norm(logits, dim=-1).log() - denominator.log()))
        # A single chunk keeps its softmax for backward.
        keep_softmax = any(ctx.needs_input_grad) and len(targets) <= tokens_per_chunk
        softmax = logits.div_(denominator[:, None]) if keep_softmax else None
        ctx.save_for_backward(hidden, targets, weight, bias, torch.cat(log_sums), softmax)
        ctx.factor, ctx.tokens_per_chunk = factor, tokens_per_chunk
        concentration = torch.cat(concentrations) if with_concentration else None
        if concentration is not None:
            ctx.mark_non_differentiable(concentration)
        return torch.cat(logps), concentration

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, log_sums, saved_softmax = ctx.saved_tensors
        needs_hidden, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        hidden_grads = []
        weight_grad = torch.zeros_like(weight, dtype=log_sums.dtype) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=log_sums.dtype) if needs_bias else None
        chunks = (tensor.split(ctx.tokens_per_chunk) for tensor in (hidden, targets, log_sums, gradient))
        for h, t, s, g in zip(*chunks, strict=True):
            if saved_softmax is None:
                softmax = _logits(h, weight, bias, ctx.factor).sub_(s[:, None]).exp_()
            else:
                softmax = saved_softmax.clone()
            # d logp / d logits = 1 at the target - softmax
            logits_grad = softmax.neg_()
            logits_grad[torch.arange(len(t), device=t.device), t] += 1
            logits_grad *= ctx.factor * g[:, None]
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
            logits_grad = logits_grad.to(weight.dtype)
            if needs_hidden:
                hidden_grads.append((logits_grad @ weight).to(hidden.dtype))
            if weight_grad is not None:
                weight_grad += logits_grad.T @ h
        return (
            torch.cat(hidden_grads) if needs_hidden else None,
            None,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None or bias is None else bias_grad.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """(n, d), (V, d), (V,) -> (n, V) in at least float32, where products of bf16 are exact and are added up too."""
    if hidden.is_cuda and hidden.dtype == torch.bfloat16:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits.add_(bias)
    return logits if factor == 1 else logits.mul_(factor)
