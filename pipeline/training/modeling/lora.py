"""LoRA adapters by PEFT: made new, read from a folder, written to one, merged into the weights of their base.

An adapter goes into the model's own layers, so the model stays of its Hugging Face class, with its decoder and head
where `logps.py` finds them. Plain LoRA on linear layers, which PEFT and vLLM both read. Left out, and refused in a
folder that has them: DoRA, trained biases, whole modules beside the adapter, other ranks for other layers, and
initializations that change the base. Dropout is never on: policy and reference must be one function.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What a file is read for, and what says nothing of the function that it stands for. `fan_in_fan_out` is the layer's
# to say, and dropout is off.
_READ = ("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules")
_SAYS_NOTHING = ("auto_mapping", "inference_mode", "peft_version", "revision", "task_type", "fan_in_fan_out")
_ALLOWED = {*_READ, *_SAYS_NOTHING, "lora_dropout"}


def attach_adapter(model: PreTrainedModel, lora: Mapping[str, Any], seed: int) -> None:
    """Put a fresh adapter into a model, in place, in the model's dtype; nothing else is to be trained.

    Its B is 0, so the model is the same function as before. Its A is drawn from `seed` alone, and nobody else's draws
    are disturbed.

    Args:
        model: on the CPU, without an adapter.
        lora: `r`, `lora_alpha`, `use_rslora`, `target_modules` ("all-linear", or names of linear layers).

    Raises:
        ValueError: names that no linear layer has.
    """
    config = _config({**lora, "target_modules": sorted(target_layers(model, lora))})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators too
        inject_adapter_in_model(config, model)


def restore_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of a folder into its base, in place, in the base's dtype; nothing else is to be trained.

    Raises:
        ValueError: no plain LoRA, or not of this model.
    """
    config = read_adapter_config(folder)
    assert config is not None, f"{folder} is no adapter"
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}: convert the adapter, pickled weights are not read")
    state = {_inner(name): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    # By the names of its tensors, because target_modules may be a pattern.
    plain = {name.replace(".default.", "."): tensor for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, model, state_dict=plain)
    fill_adapter(model, state, folder)
    head = model.get_output_embeddings()
    if isinstance(head, LoraLayer) or isinstance(model.get_input_embeddings(), LoraLayer):
        raise ValueError(f"the adapter {folder} is on the embeddings or the head too: only other linear layers can be")


def fill_adapter(model: PreTrainedModel, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy an adapter's tensors, named as in the model, into the adapter that the model has.

    Raises:
        ValueError: they are not those of that adapter.
    """
    own = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    unlike = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    if unlike or own.keys() != state.keys():
        raise ValueError(
            f"the adapter {source} does not fit {type(model).__name__}: "
            f"missing {sorted(own.keys() - state.keys())[:5]}, "
            f"unknown {sorted(state.keys() - own.keys())[:5]}, of another shape {sorted(unlike)[:5]}. "
            f"Look at base_model_name_or_path in its {ADAPTER_CONFIG}: it must name the model that it was trained on"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def read_adapter_config(folder: Path) -> LoraConfig | None:
    """What an adapter folder says of itself; None for a folder that is none.

    Raises:
        ValueError: no plain LoRA, or no base named.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    raw = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    plain = LoraConfig().to_dict()
    odd = {name: value for name, value in raw.items() if name not in _ALLOWED and value and value != plain.get(name)}
    if odd:
        raise ValueError(
            f"the adapter {folder} is no plain LoRA: {ADAPTER_CONFIG} has {odd}. Merge it into its base with PEFT"
        )
    if not raw.get("base_model_name_or_path"):
        raise ValueError(
            f"{folder}/{ADAPTER_CONFIG} has no base_model_name_or_path: write there which model it belongs to"
        )
    return _config(raw)


def check_adapter_settings(model: PreTrainedModel, lora: Mapping[str, Any]) -> None:
    """See that the adapter of a model is what the settings ask for: it is trained on as it is.

    Raises:
        ValueError: it is another.
    """
    config = model.peft_config["default"]
    own = {name: getattr(config, name) for name in ("r", "lora_alpha", "use_rslora")}
    asked = {name: lora[name] for name in own} | {"target_modules": sorted(target_layers(model, lora))}
    adapted = {_leaf(name) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    own["target_modules"] = sorted(adapted)
    differing = [f"training.lora.{name} is {asked[name]}, its {own[name]}" for name in own if asked[name] != own[name]]
    if differing:
        raise ValueError(
            f"the policy is an adapter already, and is trained on as it is; {'; '.join(differing)}. Set training.lora "
            "as it has them, or `rondo merge` it and start from the merged model"
        )


def target_layers(model: PreTrainedModel, lora: Mapping[str, Any]) -> set[str]:
    """Last names of the layers that the settings mean, such as q_proj. "all-linear": all but the head.

    Raises:
        ValueError: names that no linear layer has, or the head's: log-probabilities are taken from its bare weight.
    """
    head = model.get_output_embeddings()
    linear = {
        _leaf(name.removesuffix(".base_layer"))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and ".lora_" not in name
    }
    wanted = linear if lora["target_modules"] == "all-linear" else set(lora["target_modules"])
    if not wanted <= linear:
        raise ValueError(
            f"training.lora.target_modules has {', '.join(sorted(wanted - linear))}; the linear layers of "
            f"{type(model).__name__} are {', '.join(sorted(linear))} (the head cannot be adapted)"
        )
    return wanted


def describe_adapter(state: Mapping[str, Tensor], lora: Mapping[str, Any], base: str) -> LoraConfig:
    """What the folder of an adapter is to say of it.

    Args:
        state: the adapter's tensors, named as in the model; there may be others.
        lora: as `attach` was given it.
        base: path, URI or hub name of the model that it belongs to, meaning the same everywhere.
    """
    names = sorted({_leaf(name.partition(".lora_")[0]) for name in state if ".lora_" in name})
    return _config({**lora, "target_modules": names, "base_model_name_or_path": base})


def write_adapter(state: Mapping[str, Tensor], config: LoraConfig, out: Path) -> None:
    """Write an adapter folder as PEFT does: for PEFT, vLLM and `restore`.

    Args:
        state: as of `describe`.
        config: of the adapter.
        out: is there.
    """
    tensors = {_outer(name): tensor.contiguous().cpu() for name, tensor in state.items() if ".lora_" in name}
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.save_pretrained(out)


@torch.no_grad()
def merge_into_base(model: PreTrainedModel) -> None:
    """Add the adapter to the weights of its base, in place, and take it out: the plain model again.

    Each sum is made in float32 and rounded once. In bf16 that loses what is smaller than the spacing of the weights.
    """
    for name, layer in [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]:
        dtype = layer.get_base_layer().weight.dtype
        layer.float()
        layer.merge(safe_merge=True)  # refuses what is not finite
        model.set_submodule(name, layer.get_base_layer().to(dtype))
    del model.peft_config


def _config(values: Mapping[str, Any]) -> LoraConfig:
    return LoraConfig(**{name: values[name] for name in _READ if name in values})


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _inner(name: str) -> str:
    """model.layers.0.q_proj.lora_A.default.weight, as PEFT names it in a model with an adapter called default."""
    module, _, letter = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    return f"{module}.{letter}.default.weight"


def _outer(name: str) -> str:
    """base_model.model.model.layers.0.q_proj.lora_A.weight, as PEFT writes it and vLLM reads it."""
    return "base_model.model." + name.replace(".default.", ".")
