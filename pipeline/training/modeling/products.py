"""Multiplies bf16 matrices with float32 results, as bf16 units do before they round.

Products of bf16 numbers are exact in float32, and a bf16 unit adds them up in float32 too. Only the result is rounded
to bf16, where numbers near 100 are 0.5 apart. That is too coarse for logits and attention scores.
"""

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, or batches of them.

    Args:
        a: (n, k), or (batch, n, k).
        b: (k, m), or (batch, k, m), of the same dtype.

    Returns:
        (n, m), or (batch, n, m), in float32; for float64 matrices in float64.
    """
    if a.dtype != torch.bfloat16:
        dtype = torch.promote_types(a.dtype, torch.float32)
        return a.to(dtype) @ b.to(dtype)
    if a.is_cuda:
        multiply = torch.mm if a.ndim == 2 else torch.bmm
        return multiply(a, b, out_dtype=torch.float32)
    # On a CPU torch has no such product. But oneDNN may round float32 operands to bf16, which changes nothing here, and
    # compute in the CPU's bf16 units, if it has any. That is two to four times as fast as in float32.
    matmul = torch.backends.mkldnn.matmul
    precision = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        return a.float() @ b.float()
    finally:
        matmul.fp32_precision = precision
