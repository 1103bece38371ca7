"""Builds tiny models: random weights in two layers of width 16, and a model of the newsroom that can think."""

from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from tests.helpers.paths import POLICY_MODEL

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


# Chat templates like those of real models, over the newsroom's roles.
_TURNS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'].split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
)
SWITCH = _TURNS + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"  # Qwen3
ALWAYS_OPEN = _TURNS + "<think>\n{% endif %}"  # DeepSeek-R1
NO_SWITCH = _TURNS + "{% endif %}"  # the model itself decides whether it thinks


def save_thinking_model(folder: Path, template: str = SWITCH) -> Path:
    """Write the newsroom's policy with the tokens <think> and </think>, and with a chat template that mentions them.

    The model gives </think> the same probability as its stop token. So a thought ends in one of three ways: it is
    closed, the turn ends in the middle of it, or its budget is spent.
    """
    tokenizer = AutoTokenizer.from_pretrained(POLICY_MODEL)
    model = AutoModelForCausalLM.from_pretrained(POLICY_MODEL)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings = model.get_input_embeddings().weight.data
    embeddings[tokenizer.convert_tokens_to_ids("</think>")] = embeddings[tokenizer.eos_token_id]
    tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
