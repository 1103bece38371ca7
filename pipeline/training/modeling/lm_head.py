"""Runs the LM head on completion tokens only, and returns log-probabilities. It holds a chunk of logits at a time.

In bf16 numbers near 100 are 0.5 apart. So logits, their log-sum-exp and the difference of the two are float32, whatever
the dtype of the weights. A chunk has the logits of all completion tokens for a part of the vocabulary. So each part of
the weight is read once, and its gradient is complete after one product. A chunk's logits are overwritten by their
softmax, and this by its gradient; backward computes them again if all together are more than `MOST_LOGITS`. So memory
holds that many logits, not tokens x vocabulary of them. Models that change logits after the head other than by a
factor are refused in `logprobs.py`.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.training.modeling import LOGITS_IN_CACHE, MOST_LOGITS
from pipeline.training.modeling.products import product


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
    chunk_size = max(1, (MOST_LOGITS if hidden.is_cuda else LOGITS_IN_CACHE) // len(targets))
    return _TokenLogps.apply(hidden, targets, weight, bias, factor, chunk_size, with_concentration)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: float,
        chunk_size: int,
        with_concentration: bool,
    ) -> tuple[Tensor, Tensor | None]:
        target_logits, log_sum, log_square_sum = None, None, None
        # If all logits fit into memory, each chunk keeps its softmax without the denominator, and its largest logit.
        keep_softmax = any(ctx.needs_input_grad) and len(targets) * len(weight) <= MOST_LOGITS
        kept: list[Tensor] = []
        for first, w, b in _chunks(weight, bias, chunk_size):
            logits = _logits(hidden, w, b, factor)
            index, is_inside = _find(targets, first, len(w))
            found = logits.gather(1, index)[:, 0]
            target_logits = found if target_logits is None else torch.where(is_inside, found, target_logits)
            largest = logits.amax(-1)
            softmax = logits.sub_(largest[:, None]).exp_()  # in place
            log_sum = _log_add(log_sum, largest + softmax.sum(-1).log())
            if with_concentration:
                log_squares = 2 * (largest + torch.linalg.vector_norm(softmax, dim=-1).log())
                log_square_sum = _log_add(log_square_sum, log_squares)
            if keep_softmax:
                kept += [softmax, largest]
        assert target_logits is not None and log_sum is not None
        ctx.save_for_backward(hidden, targets, weight, bias, log_sum, *kept)
        ctx.factor, ctx.chunk_size = factor, chunk_size
        concentration = None if log_square_sum is None else log_square_sum - 2 * log_sum
        if concentration is not None:
            ctx.mark_non_differentiable(concentration)
        return target_logits - log_sum, concentration

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, log_sum, *kept = ctx.saved_tensors
        needs_hidden, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden, dtype=log_sum.dtype) if needs_hidden else None
        weight_grad = torch.empty_like(weight) if needs_weight else None
        bias_grad = torch.empty_like(bias) if needs_bias else None
        scale = ctx.factor * gradient
        for number, (first, w, b) in enumerate(_chunks(weight, bias, ctx.chunk_size)):
            # d logp / d logits = 1 at the target - softmax
            if kept:
                softmax, largest = kept[2 * number : 2 * number + 2]
                logits_grad = softmax * (-scale * (largest - log_sum).exp_())[:, None]
            else:
                softmax = _logits(hidden, w, b, ctx.factor).sub_(log_sum[:, None]).exp_()
                logits_grad = softmax.mul_(-scale[:, None])
            index, is_inside = _find(targets, first, len(w))
            logits_grad.scatter_add_(1, index, (scale * is_inside)[:, None])
            if bias_grad is not None:
                bias_grad[first : first + len(w)] = logits_grad.sum(0)
            logits_grad = logits_grad.to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad += logits_grad @ w
            if weight_grad is not None:
                torch.mm(logits_grad.T, hidden, out=weight_grad[first : first + len(w)])
        return (
            None if hidden_grad is None else hidden_grad.to(hidden.dtype),
            None,
            weight_grad,
            bias_grad,
            None,
            None,
            None,
        )


def _chunks(weight: Tensor, bias: Tensor | None, size: int) -> list[tuple[int, Tensor, Tensor | None]]:
    """For each chunk of the vocabulary: its first token id, its rows of the weight, and its part of the bias."""
    firsts = range(0, len(weight), size)
    biases = [None] * len(firsts) if bias is None else bias.split(size)
    return list(zip(firsts, weight.split(size), biases, strict=True))


def _find(targets: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Where targets (N,) are among `count` token ids from `first` on.

    Returns:
        (N, 1) int64, the place of each target, or any place if it is not among them; and (N,) bool, whether it is.
    """
    place = targets - first
    return place.clamp(0, count - 1)[:, None], (place >= 0) & (place < count)


def _log_add(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else torch.logaddexp(total, more)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """(N, d), (n, d), (n,) -> (N, n) in at least float32"""
    logits = product(hidden, weight.T)
    if bias is not None:
        logits.add_(bias)
    return logits if factor == 1 else logits.mul_(factor)
