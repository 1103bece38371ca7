"""Model folders: read one to train or score, name its weights, write the next one. Safetensors only; nothing from
disk is run or unpickled.

Left out: adapters, and downloading (a folder is on disk before it gets here).
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.dpo import attention
from pipeline.dpo.logps import PLAIN

# What a model folder has beside its weights and config. By name, because a folder of ours also holds records of how
# its weights came about, which are not true of the next ones.
_COPIED = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)


def load(folder: str | Path, dtype: str | torch.dtype, *, article_tree: bool = True) -> PreTrainedModel:
    """A causal LM to train or score, on the CPU, in eval mode, with every dropout at 0.

    It stays in eval mode, in training too: policy and reference must be the same function of their weights.

    Args:
        folder: a Hugging Face model folder with safetensors.
        dtype: of all weights, such as "float32" or "bfloat16".
        article_tree: with attention that takes article trees; else with what the model has for single sequences.

    Raises:
        ValueError: no folder, no safetensors, weights that do not fill the model, or a model that takes no trees.
    """
    folder = _folder(folder)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text_config = config.get_text_config(decoder=True)
    for name, value in text_config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(text_config, name, 0.0)
    kind = AutoModelForCausalLM._model_mapping.get(type(config), PreTrainedModel)
    if article_tree and not kind._supports_attention_backend:
        raise ValueError(
            f"{kind.__name__} ({folder}) has attention code of its own, which cannot be given article trees: {PLAIN}"
        )
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        **({"attn_implementation": attention.NAME} if article_tree else {}),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(
            f"{folder} does not fill {type(model).__name__}: missing {sorted(info['missing_keys'])[:5]}, of another "
            f"shape {sorted(map(str, info['mismatched_keys']))[:5]}. The rest would be random; use a complete folder"
        )
    return model.eval()


def digest(folder: str | Path) -> str:
    """What the weights are called: sha256 over their names, dtypes, shapes and bytes, in order of name.

    File names and sharding do not matter; any changed weight does.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: no safetensors, or a tensor that is there twice.
    """
    where: dict[str, Path] = {}
    for path in _safetensors(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping: it has keys and no __iter__)
                if name in where:
                    raise ValueError(f"tensor {name} is in both {where[name].name} and {path.name}: remove one of them")
                where[name] = path
    sha = hashlib.sha256()
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


def save(model: PreTrainedModel | Mapping[str, Tensor], source: str | Path, out: str | Path) -> None:
    """Write a model folder that vLLM and `load` take: the weights given, and all else as in `source`.

    All else is the config (but for the dtype), tokenizer, chat template and generation settings.

    Args:
        model: the model, or its complete state dict, on any device.
        source: the folder the model was loaded from.
        out: made if it is not there.

    Raises:
        ValueError: a state dict that is not of the model in `source`.
    """
    source, out = _folder(source), Path(out)
    if not isinstance(model, PreTrainedModel):
        state, model = model, load(source, next(iter(model.values())).dtype)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the weights are not those of the model in {source}: {error}") from None
    model.save_pretrained(out)
    # `load` put the dropouts to 0; the folder is to say what the model's makers said.
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    config.dtype = model.dtype
    config.save_pretrained(out)
    for pattern in _COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, out / path.name)


def _folder(folder: str | Path) -> Path:
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json")
    return Path(folder)


def _safetensors(folder: str | Path) -> list[Path]:
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} has no *.safetensors: convert the model, pickled weights are not read")
    return paths
