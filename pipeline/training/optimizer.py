"""AdamW on float32 master weights, with Hugging Face's learning rate schedules.

In bf16 a weight near 1 moves in steps of 0.008, and an update of 1e-6 is lost; so bf16 models have float32 masters,
and the model is their rounding. Gradients of micro-batches are also added up in float32. A float32 model is its own
master. Works on plain tensors and on FSDP2's DTensors. Left out: 8-bit states, parameter groups of other kinds.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def learning_rate(step: int, *, total: int, peak: float, warmup_ratio: float, kind: str) -> float:
    """The rate of update `step`, counted from 0, of `total`: linear warmup from 0, then `kind`.

    As transformers' `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup` and
    `get_constant_schedule_with_warmup`, with ceil(warmup_ratio x total) warmup steps; but never so many that no step is
    at the peak, for a run of a single step would then change nothing.

    Raises:
        ValueError: an unknown kind.
    """
    warmup = min(math.ceil(warmup_ratio * total), total - 1)
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    match kind:
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * (1 + math.cos(math.pi * done)) / 2
        case "constant":
            return peak
    raise ValueError(f"lr_scheduler_type is {kind!r}: it must be linear, cosine or constant")


class Optimizer:
    """AdamW over a model's parameters.

    Args:
        model: after sharding.
        settings: `adam_beta1`, `adam_beta2`, `weight_decay`, `max_grad_norm`, named as in transformers.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {name: _master(p) for name, p in self.parameters.items()}
        self.max_grad_norm = settings["max_grad_norm"]
        # Matrices decay; biases and norms, which are vectors, do not: as transformers' Trainer has it.
        groups = [
            {"params": [m for m in self.masters.values() if m.ndim >= 2], "weight_decay": settings["weight_decay"]},
            {"params": [m for m in self.masters.values() if m.ndim < 2], "weight_decay": 0.0},
        ]
        betas = settings["adam_beta1"], settings["adam_beta2"]
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=1e-8, fused=True)
        # Here and not at the first step, so that a run that goes on has somewhere to put what it reads.
        for master in self.masters.values():
            self.adamw.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of a micro-batch to the masters', and clear them."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.to(master.dtype)
            master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Clip, update, clear the gradients.

        Returns:
            The norm of the whole gradient before clipping.

        Raises:
            ValueError: it is not finite; nothing was updated.
        """
        clipped = nn.utils.clip_grad_norm_(self.masters.values(), self.max_grad_norm)
        norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)
        if not math.isfinite(norm):
            raise ValueError(f"the gradient is {norm}: training has diverged. Lower learning_rate, or use float32")
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad()
        self.publish()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that an update depends on, by name: masters and both moments, sharded as they are."""
        for name, master in self.masters.items():
            yield f"master.{name}", master
            yield f"exp_avg.{name}", self.adamw.state[master]["exp_avg"]
            yield f"exp_avg_sq.{name}", self.adamw.state[master]["exp_avg_sq"]

    def go_on(self, steps: int) -> None:
        """Take up what was put into `state()` after so many updates: AdamW's bias correction depends on them."""
        for state in self.adamw.state.values():
            state["step"].fill_(steps)
        self.publish()


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().to(torch.float32).requires_grad_()
