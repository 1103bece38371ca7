"""One policy over many workers: FSDP2 for each decoder layer, and the whole weights again at the end.

Gradients are summed over the workers, not averaged: each worker's loss is already divided by the pairs of the global
step. Left out: tensor and context parallelism, offloading.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


class Policy(nn.Module):
    """A model behind one forward, which runs a function on it.

    FSDP2 gathers weights in the forward hooks of the modules it wraps. `completion_logps` calls the decoder and then
    the head's weight, never the model itself, so hooks on the model would not fire and it would meet shards. This
    module is the root: its hooks gather what no layer holds (embeddings, last norm, head) around whatever function
    runs in its forward, and keep it until backward, where the head is computed again.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def shard(policy: Policy, device: torch.device, workers: int) -> None:
    """Spread the weights over all workers, in place. A collective: every worker calls it.

    Args:
        policy: the same complete weights on every worker.
    """
    mesh = init_device_mesh(device.type, (workers,))
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # gradients are summed in float32
    layers = set(policy.model._no_split_modules or ())
    for module in list(policy.model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no pre-multiplied sum, which is what a factor asks for otherwise.
            module.set_force_sum_reduction_for_comms(True)


def whole(policy: Policy, keep: bool) -> dict[str, Tensor]:
    """What was trained, on the CPU: the model's state dict, or with LoRA the adapter's part of it.

    A collective: every worker calls it, and those who `keep` get it.
    """
    # Tied weights have two names. Buffers are no parameters: a state dict without them would not be complete.
    frozen = {name for name, p in policy.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    state = {}
    for name, tensor in policy.model.state_dict().items():
        if name in frozen:
            continue
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            state[name] = full.detach().cpu()
    return state


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor: rows of it, or all where it is not sharded. Shares its memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
