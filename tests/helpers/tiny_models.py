"""Builds tiny models with random weights: two layers of width 16, where a test asks for nothing else."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny_config(family: str = "llama", **settings: Any) -> PreTrainedConfig:
    """A configuration of `family` (its `model_type` in transformers), with `settings` by their names there."""
    return AutoConfig.for_model(family, **SIZES | settings)


def tiny_model(config: PreTrainedConfig, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """A model in evaluation mode whose random weights depend on the configuration and the seed only."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def save_tiny_model(folder: Path, family: str = "llama", seed: int = 0, **settings: Any) -> Path:
    """Write such a model to `folder`, without a tokenizer."""
    tiny_model(tiny_config(family, **settings), seed).save_pretrained(folder)
    return folder
