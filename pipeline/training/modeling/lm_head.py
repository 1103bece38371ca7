"""The LM head on completion tokens only: log-probabilities, a chunk of logits at a time, in float32.

In bf16 numbers near 100 are 0.5 apart, so logits, their log-sum-exp and its difference are float32, whatever the
weights are. A chunk's logits are overwritten by their softmax and that by its gradient; backward computes them again
if there is more than one chunk. So memory holds `_CHUNK` logits, not tokens x vocabulary of them.
Left out: anything a model does to logits after its head (such models are refused in `logps.py`).
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 25  # logits that exist at one time: 128 MiB of float32


def token_logps(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Log-probability of each target token.

    Args:
        hidden: (N, d), what predicts them.
        targets: (N,) int64.
        weight: (V, d); bias: (V,) or None.

    Returns:
        (N,) in nats; float32, or float64 for float64 weights.
    """
    if not len(targets):
        return (hidden.sum() * 0).expand(0)
    rows = max(1, _CHUNK // len(weight))
    return _TokenLogps.apply(hidden, targets, weight, bias, rows)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        logps, sums = [], []
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = _logits(h, weight, bias)
            target = logits.gather(1, t[:, None])[:, 0]
            largest = logits.amax(-1)
            # In place: from here on `logits` holds the softmax, but for its denominator.
            total = logits.sub_(largest[:, None]).exp_().sum(-1)
            logps.append(target - largest - total.log())
            sums.append(largest + total.log())
        wanted = any(ctx.needs_input_grad)
        kept = logits.div_(total[:, None]) if wanted and len(targets) <= rows else None
        ctx.save_for_backward(hidden, targets, weight, bias, torch.cat(sums), kept)
        ctx.rows = rows
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, sums, kept = ctx.saved_tensors
        of_hidden, _, of_weight, of_bias, _ = ctx.needs_input_grad
        to_hidden = []
        to_weight = torch.zeros_like(weight, dtype=sums.dtype) if of_weight else None
        to_bias = torch.zeros_like(bias, dtype=sums.dtype) if of_bias else None
        for h, t, s, g in zip(*(tensor.split(ctx.rows) for tensor in (hidden, targets, sums, gradient)), strict=True):
            softmax = _logits(h, weight, bias).sub_(s[:, None]).exp_() if kept is None else kept.clone()
            # d logp / d logits = 1 at the target - softmax
            step = softmax.neg_()
            step[torch.arange(len(t), device=t.device), t] += 1
            step *= g[:, None]
            if to_bias is not None:
                to_bias += step.sum(0)
            step = step.to(weight.dtype)
            if of_hidden:
                to_hidden.append((step @ weight).to(hidden.dtype))
            if to_weight is not None:
                to_weight += step.T @ h
        return (
            torch.cat(to_hidden) if of_hidden else None,
            None,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None or bias is None else to_bias.to(bias.dtype),
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(n, d), (V, d), (V,) -> (n, V) in at least float32: products of bf16 are exact there, and so are added up."""
    if hidden.is_cuda and hidden.dtype == torch.bfloat16:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(dtype) @ weight.to(dtype).T
    return logits if bias is None else logits.add_(bias)
