"""Shards a policy over workers with FSDP2, one unit per decoder layer, and gathers the whole weights at the end.

Gradients are summed over the workers, not averaged, because each worker's loss is already divided by the number of
pairs of the global step. Tensor and context parallelism are not supported.
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

from pipeline.training.modeling import last_layer


class PolicyModule(nn.Module):
    """Wraps a model in a module whose forward runs any function on it.

    FSDP2 gathers weights in the forward hooks of the modules that it wraps. `completion_logps` calls the decoder and
    then uses the head's weight, but never calls the model itself, so hooks on the model would not fire and the function
    would see shards. This module is the root of FSDP2's modules. While the function runs in its forward, its hooks
    gather the weights outside the layers (embeddings, last norm, head). These stay gathered until backward, where the
    head is computed again.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def decoder_layers(policy: PolicyModule) -> list[nn.Module]:
    """The decoder layers, by the class names that the model's class lists. Raises ValueError if it lists none."""
    layers = last_layer.decoder_layers(policy.model)
    if not layers:
        raise ValueError(
            f"{type(policy.model).__name__} does not say which of its modules are layers (_no_split_modules), so it "
            "cannot be sharded, compiled or checkpointed by layers: use workers=1, without torch_compile and "
            "gradient_checkpointing"
        )
    return layers


def compile_layers(policy: PolicyModule) -> None:
    """Compile each layer's forward, in place, for rows of any length. Attention itself is not compiled here.

    One layer at a time, because all layers then share one compiled program, and the hooks of FSDP2 and the activation
    checkpointing stay outside of it.
    """
    for layer in decoder_layers(policy):
        layer.forward = torch.compile(layer.forward, dynamic=True)


def checkpoint_activations(policy: PolicyModule) -> None:
    """Turn on activation checkpointing, in place: each layer keeps only its input, and backward runs it again.

    This wraps the layer's forward, not the layer. FSDP2's hooks stay outside, so backward gathers a layer's weights
    once.
    """
    for layer in decoder_layers(policy):
        # Nothing in a layer is random (dropout is 0), so the random state does not have to be preserved.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def place_policy(policy: PolicyModule, device: torch.device, workers: int, *, cpu_offload: bool = False) -> None:
    """Put a policy where it computes, in place: whole on a device, or sharded, and then it is a collective.

    Args:
        policy, device, workers, cpu_offload: see `shard`. A single worker without `cpu_offload` keeps the whole policy.
    """
    if workers > 1 or cpu_offload:
        shard(policy, device, workers, cpu_offload=cpu_offload)
    else:
        policy.to(device)


def shard(policy: PolicyModule, device: torch.device, workers: int, *, cpu_offload: bool = False) -> None:
    """Shard the weights over all workers, in place. A collective: every worker must call it.

    Args:
        policy: the same complete weights on every worker.
        device: this worker's device.
        workers: number of workers.
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
            # With a factor FSDP2 would ask for a pre-multiplied sum, which gloo does not have.
            module.set_force_sum_reduction_for_comms(True)


def full_state_dict(policy: PolicyModule, keep: bool) -> dict[str, Tensor]:
    """Gather the trained weights on the CPU: the model's state dict, or with LoRA the adapter's part of it.

    A collective: every worker must call it. Workers with `keep` false get an empty dict.
    """
    # `remove_duplicate=False` because tied weights have two names. A complete state dict also needs the buffers, which
    # are not parameters; with LoRA they are those of the base, as are the scales of weights in 4 bits.
    parameters = dict(policy.model.named_parameters(remove_duplicate=False))
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    is_adapter = len(trained) < len(parameters)
    state = {}
    for name, tensor in policy.model.state_dict().items():
        if is_adapter and name not in trained:
            continue
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            state[name] = full.detach().cpu()
    return state


def local_shard(tensor: Tensor) -> Tensor:
    """This worker's shard of a tensor: some of its rows, or all if it is not sharded. It shares the tensor's memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
