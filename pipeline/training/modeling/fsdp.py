"""One policy over many workers: FSDP2 for each decoder layer, and the whole weights again at the end.

Gradients are summed over the workers, not averaged: each worker's loss is already divided by the pairs of the global
step. Left out: tensor and context parallelism.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


class PolicyModule(nn.Module):
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


def decoder_layers(policy: PolicyModule) -> list[nn.Module]:
    """The decoder layers, as the model's class names them. Raises ValueError if it names none."""
    names = set(policy.model._no_split_modules or ())
    found = [module for module in policy.model.modules() if type(module).__name__ in names]
    if not found:
        raise ValueError(
            f"{type(policy.model).__name__} does not say which of its modules are layers (_no_split_modules), so it "
            "cannot be sharded, compiled or checkpointed by layers: use one worker, and neither of these settings"
        )
    return found


def compile_layers(policy: PolicyModule) -> None:
    """Compile each layer's forward, in place, for rows of any length; attention itself stays as it is.

    Layer by layer, because all layers are one program, and FSDP2's hooks and checkpointing stay outside of it.
    """
    for layer in decoder_layers(policy):
        layer.forward = torch.compile(layer.forward, dynamic=True)


def checkpoint_activations(policy: PolicyModule) -> None:
    """Activation checkpointing: each layer keeps its input only, and backward runs it again. In place.

    Around the layer's forward, not the layer: FSDP2's hooks stay outside, so backward gathers a layer's weights once.
    """
    for layer in decoder_layers(policy):
        # Nothing in a layer is random (dropout is 0), so no random state need be kept.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def shard(policy: PolicyModule, device: torch.device, workers: int, *, cpu_offload: bool = False) -> None:
    """Spread the weights over all workers, in place. A collective: every worker calls it.

    Args:
        policy: the same complete weights on every worker.
        cpu_offload: keep weights, gradients and the optimizer's tensors in the CPU's memory between uses.
    """
    mesh = init_device_mesh(device.type, (workers,))
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),  # gradients are summed in float32
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
    }
    for layer in decoder_layers(policy):
        fully_shard(layer, **options)
    fully_shard(policy, **options)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no pre-multiplied sum, which is what a factor asks for otherwise.
            module.set_force_sum_reduction_for_comms(True)


def full_state_dict(policy: PolicyModule, keep: bool) -> dict[str, Tensor]:
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


def local_shard(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor: rows of it, or all where it is not sharded. Shares its memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
