"""Updates weights with AdamW on float32 masters, with Hugging Face's learning rate schedules.

In bf16 a weight near 1 moves in steps of 0.008, so an update of 1e-6 would be lost. Therefore a bf16 model has float32
master weights, and the model's own weights are these, rounded. Gradients of micro-batches are also added up in float32.
A float32 model is its own master. Works on plain tensors and on FSDP2's DTensors. 8-bit states and other kinds of
parameter groups are not supported.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def learning_rate(step: int, *, total: int, peak: float, warmup_ratio: float, kind: str) -> float:
    """The learning rate of update `step`, counted from 0, of `total` updates: linear warmup from 0, then `kind`.

    The same as transformers' `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup` and
    `get_constant_schedule_with_warmup` with ceil(warmup_ratio x total) warmup steps, except that at least one step is
    at the peak. Otherwise a run of a single step would change nothing.

    Raises:
        ValueError: `kind` is not linear, cosine or constant.
    """
    warmup = min(math.ceil(warmup_ratio * total), total - 1)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    match kind:
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return peak
    raise ValueError(f"lr_scheduler_type is {kind!r}: it must be linear, cosine or constant")


class Optimizer:
    """AdamW over a model's parameters.

    Args:
        model: the model, already sharded if it is to be.
        settings: has `adam_beta1`, `adam_beta2`, `weight_decay` and `max_grad_norm`, named as in transformers.

    Attributes:
        parameters: the parameters that are trained, by name.
        masters: their float32 masters, by name.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {name: _master(p) for name, p in self.parameters.items()}
        self.max_grad_norm = settings["max_grad_norm"]
        # As in transformers' Trainer, matrices decay; biases and norms, which are vectors, do not.
        groups = [
            {"params": [m for m in self.masters.values() if m.ndim >= 2], "weight_decay": settings["weight_decay"]},
            {"params": [m for m in self.masters.values() if m.ndim < 2], "weight_decay": 0.0},
        ]
        betas = settings["adam_beta1"], settings["adam_beta2"]
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=1e-8, fused=True)
        # Made now and not at the first step, so that a resumed run can copy saved moments into them.
        for master in self.masters.values():
            self.adamw.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @torch.no_grad()
    def collect(self) -> None:
        """Add the model's gradients, of one micro-batch, to those of the masters, and clear them."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.to(master.dtype)
            master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Clip the gradients, update the weights, clear the gradients.

        Args:
            rate: learning rate.

        Returns:
            The norm of the whole gradient before clipping.

        Raises:
            ValueError: the norm is not finite; no weight was changed.
        """
        total_norm = nn.utils.clip_grad_norm_(self.masters.values(), self.max_grad_norm)
        norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm)
        if not math.isfinite(norm):
            raise ValueError(f"the gradient is {norm}: training has diverged. Lower learning_rate, or use float32")
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad()
        self.copy_masters_to_model()
        return norm

    @torch.no_grad()
    def copy_masters_to_model(self) -> None:
        """Round the masters to the model's dtype and copy them into the model."""
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that an update depends on, by name: masters and both moments. Sharded tensors stay sharded."""
        for name, master in self.masters.items():
            yield f"master.{name}", master
            yield f"exp_avg.{name}", self.adamw.state[master]["exp_avg"]
            yield f"exp_avg_sq.{name}", self.adamw.state[master]["exp_avg_sq"]

    def resume(self, steps: int) -> None:
        """Continue after saved values have been copied into the tensors of `state()`.

        Args:
            steps: number of updates made before; AdamW's bias correction depends on it.
        """
        for state in self.adamw.state.values():
            state["step"].fill_(steps)
        self.copy_masters_to_model()


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().to(torch.float32).requires_grad_()
