"""Says which LoRA adapters Rondo can train on and serve, by their adapter_config.json and the names of their tensors.

Rondo trains plain LoRA on linear layers. vLLM also serves adapters whose layers have different ranks.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.storage.model_files.shapes import ModelShapes

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The fields of adapter_config.json that are used, and those that are ignored because they do not change the adapter's
# function: `fan_in_fan_out` follows from the layer. Dropout is off, so `lora_dropout` is ignored too.
USED_FIELDS = ("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules")
_IGNORED_FIELDS = ("auto_mapping", "inference_mode", "peft_version", "revision", "task_type", "fan_in_fan_out")
_ALLOWED_FIELDS = {*USED_FIELDS, *_IGNORED_FIELDS, "lora_dropout"}
# The values of other fields that mean plain LoRA, beside those that are empty. They are PEFT's defaults.
PLAIN_VALUES = {
    "peft_type": "LORA",
    "bias": "none",
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
# Fields that vLLM refuses too, and initializations that change the base, so that the adapter belongs to other weights.
_NEVER_SERVED = ("peft_type", "use_dora", "modules_to_save", "bias", "lora_bias", "init_lora_weights")


def lora_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `training.lora` that an adapter_config.json has, without `target_modules`.

    A field that it lacks has PEFT's default.
    """
    return {
        "r": config["r"],
        "lora_alpha": config.get("lora_alpha", 8),
        "use_rslora": config.get("use_rslora", False),
        "use_dora": config.get("use_dora", False),
    }


def unsupported_fields(config: Mapping[str, Any], is_trained: bool = True) -> dict[str, Any]:
    """The fields of an adapter_config.json whose values are not supported, with these values.

    Args:
        config: its content.
        is_trained: whether the adapter will be trained; else vLLM only serves it.
    """
    return {
        name: value
        for name, value in config.items()
        if value
        and name not in _ALLOWED_FIELDS
        and value != PLAIN_VALUES.get(name)
        and (is_trained or name in _NEVER_SERVED)
    }


def describe_unsupported(fields: Mapping[str, Any]) -> str:
    """Describe unsupported fields for a message, in JSON: what was found, and what was expected."""
    return ", ".join(
        f"{name} {json.dumps(value):.60} (expected {json.dumps(PLAIN_VALUES.get(name))})"
        for name, value in fields.items()
    )


def adapted_layers(tensors: Iterable[str]) -> set[str]:
    """The layers of an adapter, by the last part of their names, such as q_proj.

    Args:
        tensors: names of the adapter's tensors, as PEFT writes them.
    """
    return {name.partition(".lora_")[0].rpartition(".")[2] for name in tensors if ".lora_" in name}


def linear_layers(base: ModelShapes) -> set[str] | None:
    """The linear layers of a model's decoder layers, by the last part of their names, such as q_proj.

    Returns:
        the names; None for a mixture of experts or a model with several parts, such as an image encoder: their files do
        not tell which layers are linear, or trained.
    """
    if "text_config" in base.config or any("expert" in name for name in base.shapes):
        return None
    return {layer for layer, _ in base.adaptable}
