"""Makes the tiny models and data sets that TRL's tests name, with random weights, in a folder like the Hub's cache.

A model has the architecture that its name says, in two small layers. All share one tokenizer, which is trained here on
the texts of the data sets.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

OWNER = "trl-internal-testing"
_REVISION = "0" * 40
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "tiny-Qwen2ForCausalLM-2.5": {"model_type": "qwen2"},
    "tiny-Cohere2ForCausalLM": {"model_type": "cohere2", "logit_scale": 0.0625},
    "tiny-Olmo3ForCausalLM": {"model_type": "olmo3"},
    "tiny-Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", "num_experts": 4, **EXPERTS},
    "tiny-GptOssForCausalLM": {"model_type": "gpt_oss", "num_local_experts": 4, **EXPERTS},
    "tiny-Glm4MoeForCausalLM": {
        "model_type": "glm4_moe",
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        **EXPERTS,
    },
    "tiny-Lfm2ForCausalLM": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "tiny-Lfm2ForCausalLM-2.5": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "tiny-NemotronHForCausalLM-nano": {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "M*",
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
    },
}
# A model with code of its own, which transformers runs only with trust_remote_code.
REMOTE_CONFIG = """from transformers import Qwen2Config


class RemoteConfig(Qwen2Config):
    model_type = "remote"
"""
REMOTE_MODEL = """from transformers import Qwen2ForCausalLM

from .configuration_remote import RemoteConfig


class RemoteForCausalLM(Qwen2ForCausalLM):
    config_class = RemoteConfig
"""
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['thinking'] %}{{ message['thinking'] }}\n{% endif %}{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{{ call | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PROMPTS = (
    "Beautiful is better than",
    "Explicit is better than",
    "Simple is better than",
    "Complex is better than",
    "Flat is better than",
    "Readability",
)
_ENDINGS = (
    " ugly.",
    " implicit.",
    " complex, by far.",
    " complicated, in the end.",
    " nested.",
    " counts.",
    " nothing.",
)


def make_hub(folder: Path) -> dict[str, str]:
    """Write all models. Returns those that this version of transformers cannot make, with the reason."""
    tokenizer = _train_tokenizer()
    missing = {}
    for name, settings in MODELS.items():
        try:
            _save(folder, name, settings, tokenizer)
        except Exception as error:  # each architecture fails in its own way
            missing[name] = f"{type(error).__name__}: {error}"
    remote = _save(folder, "tiny-RemoteForCausalLM", {"model_type": "qwen2"}, tokenizer)
    config = json.loads((remote / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_remote.RemoteConfig",
        "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
    }
    config |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"]}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "configuration_remote.py").write_text(REMOTE_CONFIG)
    (remote / "modeling_remote.py").write_text(REMOTE_MODEL)
    return missing


def _save(folder: Path, name: str, settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a model as a snapshot in the Hub's cache. Returns the snapshot's folder."""
    repository = folder / "hub" / f"models--{OWNER}--{name}"
    snapshot = repository / "snapshots" / _REVISION
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(_REVISION)
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    return snapshot


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, with a chat template like that of Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*_PROMPTS, *_ENDINGS), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def _pairs() -> list[dict[str, str]]:
    """Three pairs of each prompt, with the pairs of a prompt far apart."""
    return [
        {"prompt": prompt, "chosen": _ENDINGS[number], "rejected": _ENDINGS[(number + shift) % len(_ENDINGS)]}
        for shift in (1, 2, 3)
        for number, prompt in enumerate(_PROMPTS)
    ]


def _message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _conversations(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [_message("user", pair["prompt"])],
            "chosen": [_message("assistant", pair["chosen"], **more)],
            "rejected": [_message("assistant", pair["rejected"], **more)],
        }
        for pair in _pairs()
    ]


def _tool_calls() -> list[dict[str, Any]]:
    tool = {"type": "function", "function": {"name": "look_up", "description": "Look a word up.", "parameters": {
        "type": "object", "properties": {"word": {"type": "string"}}}}}  # fmt: skip
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "nested"}}}
    return [
        row | {"chosen": [_message("assistant", "", tool_calls=[call])], "tools": json.dumps([tool])}
        for row in _conversations(tool_calls=None)
    ]


def _implicit(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The prompt as the beginning of both sides."""
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def _unpaired() -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in _pairs()]


DATASETS: dict[tuple[str, str], Callable[[], list[dict[str, Any]]]] = {
    ("zen", "standard_preference"): _pairs,
    ("zen", "standard_implicit_prompt_preference"): lambda: _implicit(_pairs()),
    ("zen", "standard_unpaired_preference"): _unpaired,
    ("zen", "conversational_preference"): _conversations,
    ("zen", "conversational_implicit_prompt_preference"): lambda: _implicit(_conversations()),
    ("toolcall", "preference"): _tool_calls,
    ("harmony", "preference"): lambda: _conversations(thinking="Let me think."),
}


def load_local_dataset(path: str, name: str, split: str | None = None, streaming: bool = False) -> Any:
    """`datasets.load_dataset` for the data sets above: the last two rows are the split `test`."""
    rows = DATASETS[path.removeprefix(f"{OWNER}/"), name]()
    parts = DatasetDict({"train": Dataset.from_list(rows[:-2]), "test": Dataset.from_list(rows[-2:])})
    if streaming:
        parts = IterableDatasetDict({part: rows.to_iterable_dataset() for part, rows in parts.items()})
    return parts if split is None else parts[split]
