"""Makes, reads, writes and merges LoRA adapters with PEFT.

An adapter is injected into the model's own layers, so the model keeps its Hugging Face class, and `logprobs.py` finds
its decoder and head as before. Folders hold plain LoRA on linear layers, which PEFT and vLLM both read. Folders with
DoRA, trained biases, whole modules beside the adapter, different ranks for different layers, or initializations that
change the base are refused. DoRA can be trained, but only to be merged. Dropout is always off, because policy and
reference must be the same function.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.storage.model_files.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    USED_FIELDS,
    adapted_layers,
    describe_unsupported,
    unsupported_fields,
)

if TYPE_CHECKING:
    from peft import LoraConfig

# PEFT is imported where it is used: that takes a second, and most trainings have no adapter.
# PEFT imports bitsandbytes if it is installed, which then warns of an optional package that it lacks for a CPU.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def attach_adapter(model: PreTrainedModel, lora: Mapping[str, Any], seed: int) -> None:
    """Put a fresh adapter into a model, in place, in the model's dtype. Only the adapter will be trained.

    Its B is 0, and DoRA's magnitudes are those of the weights, so the model is the same function as before. Its A is
    drawn from `seed` alone, and the global random state stays the same.

    Args:
        model: the model, on the CPU, without an adapter.
        lora: has `r`, `lora_alpha`, `use_rslora`, `use_dora` and `target_modules` ("all-linear", or names of linear
            layers).
        seed: seed of A.

    Raises:
        ValueError: `target_modules` has a name that no linear layer has.
    """
    from peft import inject_adapter_in_model

    config = _config({**lora, "target_modules": sorted(target_layers(model, lora))})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators too
        inject_adapter_in_model(config, model)
    _use_dtype_of(model)


def restore_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter in a folder into its base, in place, in the base's dtype. Only the adapter will be trained.

    Raises:
        ValueError: the adapter is not plain LoRA, or it belongs to another model.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = read_adapter_config(folder)
    assert config is not None, f"{folder} is not an adapter"
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}: convert the adapter, pickled weights are not read")
    state = {_to_model_name(name): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    # PEFT takes the layers from the names of these tensors, because target_modules may be a pattern.
    peft_state = {name.replace(".default.", "."): tensor for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, model, state_dict=peft_state)
    _use_dtype_of(model)
    fill_adapter(model, state, folder)
    head = model.get_output_embeddings()
    if isinstance(head, LoraLayer) or isinstance(model.get_input_embeddings(), LoraLayer):
        raise ValueError(
            f"the adapter {folder} is on the embeddings or the head too, and only other linear layers are supported: "
            "merge it into its base with PEFT"
        )


def _use_dtype_of(model: PreTrainedModel) -> None:
    """Convert the adapter to the dtype of a model. On weights in 4 bits PEFT makes it in float32."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(model.dtype)


def fill_adapter(model: PreTrainedModel, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy an adapter's tensors, named as in the model, into the adapter that the model has.

    Args:
        model: a model with an adapter.
        state: the tensors.
        source: where they come from, for the error message.

    Raises:
        ValueError: the names or shapes are not those of the model's adapter.
    """
    parameters = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    wrong_shape = {name for name in parameters.keys() & state.keys() if parameters[name].shape != state[name].shape}
    if wrong_shape or parameters.keys() != state.keys():
        raise ValueError(
            f"the adapter {source} does not fit {type(model).__name__}: "
            f"missing {sorted(parameters.keys() - state.keys())[:5]}, "
            f"unknown {sorted(state.keys() - parameters.keys())[:5]}, of another shape {sorted(wrong_shape)[:5]}. "
            f"Look at base_model_name_or_path in its {ADAPTER_CONFIG}: it must name the model that it was trained on"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def read_adapter_config(folder: Path) -> "LoraConfig | None":
    """Read the config in an adapter folder; None if the folder has no adapter.

    Raises:
        ValueError: the adapter is not plain LoRA, or its config names no base.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    raw = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if unsupported := unsupported_fields(raw):
        raise ValueError(
            f"the adapter {folder} is not plain LoRA: {ADAPTER_CONFIG} has {describe_unsupported(unsupported)}. Merge "
            "it into its base with PEFT"
        )
    if not raw.get("base_model_name_or_path"):
        raise ValueError(
            f"{folder}/{ADAPTER_CONFIG} has no base_model_name_or_path: write there which model it belongs to"
        )
    return _config(raw)


def check_adapter_settings(model: PreTrainedModel, lora: Mapping[str, Any]) -> None:
    """Check that a model's adapter matches the settings. Training continues with the adapter, so its
    rank, scale and layers stay as they are.

    Raises:
        ValueError: the adapter has another rank, scale or set of layers.
    """
    from peft.tuners.lora import LoraLayer

    config = model.peft_config["default"]
    actual = {name: getattr(config, name) for name in ("r", "lora_alpha", "use_rslora", "use_dora")}
    expected = {name: lora[name] for name in actual} | {"target_modules": sorted(target_layers(model, lora))}
    adapted = {_last_name(name) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    actual["target_modules"] = sorted(adapted)
    differences = [
        f"training.lora.{name} is {expected[name]}, and the adapter has {actual[name]}"
        for name in actual
        if expected[name] != actual[name]
    ]
    if differences:
        raise ValueError(
            f"the policy is already an adapter, and training continues with it; {'; '.join(differences)}. Set "
            "training.lora to the adapter's values, or `rondo merge` the adapter and start from the merged model"
        )


def target_layers(model: PreTrainedModel, lora: Mapping[str, Any]) -> set[str]:
    """The layers that the settings name, by the last part of their names, such as q_proj.

    "all-linear" means all linear layers except the head.

    Raises:
        ValueError: a name is not that of a linear layer, or it is that of the head. The head cannot be adapted, because
            `logprobs.py` uses its bare weight.
    """
    head = model.get_output_embeddings()
    linear = {
        _last_name(name.removesuffix(".base_layer"))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and ".lora_" not in name
    }
    targets = linear if lora["target_modules"] == "all-linear" else set(lora["target_modules"])
    if not targets <= linear:
        raise ValueError(
            f"training.lora.target_modules has {', '.join(sorted(targets - linear))}; the linear layers of "
            f"{type(model).__name__} are {', '.join(sorted(linear))} (the head cannot be adapted)"
        )
    return targets


def describe_adapter(state: Mapping[str, Tensor], lora: Mapping[str, Any], base: str) -> "LoraConfig":
    """Make the config of an adapter.

    Args:
        state: the adapter's tensors, named as in the model; other tensors are ignored.
        lora: the settings that the adapter was made from; see `attach_adapter`.
        base: path, URI or hub name of the adapter's base. It must mean the same on every node and in every folder.
    """
    return _config({**lora, "target_modules": sorted(adapted_layers(state)), "base_model_name_or_path": base})


def write_adapter(state: Mapping[str, Tensor], config: "LoraConfig", out: Path) -> None:
    """Write an adapter folder as PEFT does, for PEFT, vLLM and `restore_adapter`.

    Args:
        state: the adapter's tensors, named as in the model; other tensors are ignored.
        config: config of the adapter.
        out: the folder, which must exist.
    """
    tensors = {_to_peft_name(name): tensor.contiguous().cpu() for name, tensor in state.items() if ".lora_" in name}
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.save_pretrained(out)


@torch.no_grad()
def merge_into_base(model: PreTrainedModel) -> None:
    """Add the adapter to the weights of its base, in place, and remove it, which leaves a plain model.

    Each sum is computed in float32 and rounded once. In bf16 this loses changes smaller than the spacing of the
    weights.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]:
        dtype = layer.get_base_layer().weight.dtype
        layer.float()
        layer.merge(safe_merge=True)  # raises an error if a weight is not finite
        model.set_submodule(name, layer.get_base_layer().to(dtype))
    del model.peft_config


def _config(values: Mapping[str, Any]) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(**{name: values[name] for name in (*USED_FIELDS, "use_dora") if name in values})


def _last_name(name: str) -> str:
    return name.rpartition(".")[2]


def _to_model_name(name: str) -> str:
    """The name in a model that has an adapter called default, such as model.layers.0.q_proj.lora_A.default.weight."""
    module, _, letter = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    return f"{module}.{letter}.default.weight"


def _to_peft_name(name: str) -> str:
    """The name that PEFT writes and vLLM reads, such as base_model.model.model.layers.0.q_proj.lora_A.weight."""
    return "base_model.model." + name.replace(".default.", ".")
