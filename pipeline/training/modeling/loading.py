"""Reads model folders to train or score, writes trained ones, and computes the digest that names their weights.

A model folder holds a complete model, or a LoRA adapter that names its base. Weights are read from safetensors only;
nothing on disk is run or unpickled. `lora.py` handles adapters, and `storage/model_files/hub.py` finds the folder of a
name or URI.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from pipeline.storage.model_files.adapters import ADAPTER_CONFIG
from pipeline.training.modeling import last_layer, recurrent_layers, tree_attention
from pipeline.training.modeling.logprobs import UNSUPPORTED_REMEDY, check_supported
from pipeline.training.modeling.lora import (
    attach_adapter,
    check_adapter_settings,
    describe_adapter,
    fill_adapter,
    merge_into_base,
    read_adapter_config,
    restore_adapter,
    write_adapter,
)

# Files that are copied to the next model folder. They are listed by name, because a folder that Rondo wrote also holds
# records about its own weights, which would be wrong beside the next weights.
_OTHER_FILES = (
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


def load_model(
    model: str | Path,
    dtype: str | torch.dtype,
    *,
    article_tree: bool = True,
    load_in_4bit: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Load a causal LM to train or score, on the CPU, in eval mode, with every dropout at 0.

    It stays in eval mode during training too, because policy and reference must be the same function of their weights.
    If it is a base with an adapter, only the adapter will be trained.

    Args:
        model: path, URI or hub name of a Hugging Face model folder or of a LoRA adapter folder, with safetensors.
        dtype: dtype of all weights, such as "float32" or "bfloat16".
        article_tree: True uses attention on article trees; False uses the model's own attention, for single sequences.
        load_in_4bit: `config.training.FourBit` as a dict; None: the weights keep their dtype. Linear layers of the
            model, or of the base of an adapter, are quantized, except for the head. The adapter is not.
        device: where a model in 4 bits is loaded to, because it is quantized where it is used.

    Raises:
        ValueError: there is no model folder, it has no safetensors, its weights do not fill the model, the model cannot
            use article trees, or the adapter does not fit.
    """
    folder = _local_folder(model)
    base = _base_name(folder)
    if base is None:
        return _load_complete(folder, dtype, article_tree, load_in_4bit, device)
    loaded = _load_complete(_local_folder(base), dtype, article_tree, load_in_4bit, device)
    restore_adapter(loaded, folder)
    return loaded


def load_policy(
    model: str | Path,
    dtype: str | torch.dtype,
    lora: Mapping[str, Any] | None,
    seed: int,
    *,
    article_tree: bool = True,
    load_in_4bit: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Load the model that a run trains, and add a fresh adapter if the settings have LoRA and there is none yet.

    If the model is an adapter, training continues with it. The reference of the round is then the base with this
    adapter. It is not the base with the adapter turned off, which equals the reference only if the adapter is fresh.

    Args:
        model, dtype, article_tree, load_in_4bit, device: see `load_model`.
        lora: `config.training.Lora` as a dict; None trains all weights.
        seed: seed of a fresh adapter.

    Raises:
        ValueError: see `load_model`. Or the model is an adapter, and `lora` is None or does not describe it.
    """
    loaded = load_model(model, dtype, article_tree=article_tree, load_in_4bit=load_in_4bit, device=device)
    is_adapter = _base_name(_local_folder(model)) is not None
    if lora is not None and not is_adapter:
        attach_adapter(loaded, lora, seed)
    elif lora is not None:
        check_adapter_settings(loaded, lora)
    elif is_adapter:
        raise ValueError(
            f"{model} is a LoRA adapter, and training.lora is not set, which trains all weights: set training.lora, or "
            "`rondo merge` the adapter and start from the merged model"
        )
    return loaded


def _load_complete(
    folder: Path,
    dtype: str | torch.dtype,
    article_tree: bool,
    load_in_4bit: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    _check_model_folder(folder)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text_config = config.get_text_config(decoder=True)
    for name, value in text_config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(text_config, name, 0.0)
    if article_tree:
        _check_attention(config)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        **({"attn_implementation": tree_attention.NAME} if article_tree else {}),
        **(_quantized(load_in_4bit, dtype, device) if load_in_4bit is not None else {}),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # reported below, together with missing weights
        output_loading_info=True,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(
            f"{folder} does not fill {type(model).__name__}: missing {sorted(info['missing_keys'])[:5]}, of another "
            f"shape {sorted(map(str, info['mismatched_keys']))[:5]}. The rest would be random; use a complete folder"
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes would compute in bfloat16 wherever no gradient is needed, so in the reference only.
            module.support_avx512bf16_for_cpu = False
    if article_tree:
        last_layer.skip_unread_tokens(model)
        recurrent_layers.reset_at_branches(model)
    return model.eval()


def _quantized(load_in_4bit: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """Arguments with which transformers quantizes a model while it loads it."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **load_in_4bit)
    return {"quantization_config": config, "device_map": {"": device}}


def check_article_tree(folder: str | Path) -> None:
    """Check, from its config alone, that a complete model can be scored on article trees. Nothing is loaded.

    Raises:
        ValueError: it cannot.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_attention(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=tree_attention.NAME, trust_remote_code=False
        )
    recurrent_layers.reset_at_branches(model)
    check_supported(model, longest=1)


def _check_attention(config: PreTrainedConfig) -> None:
    """Raise ValueError if a model does not call attention through transformers' `AttentionInterface`.

    Some do, and their `_supports_attention_backend` does not say so.
    """
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), PreTrainedModel)
    module = sys.modules[model_class.__module__]
    if not model_class._supports_attention_backend and not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        raise ValueError(
            f"{model_class.__name__} has attention code of its own, which cannot use article trees: "
            f"{UNSUPPORTED_REMEDY}"
        )


def weights_digest(model: str | Path) -> str:
    """Compute the digest that names a model's weights: sha256 over their names, dtypes, shapes and bytes, by name.

    File names and sharding do not change it; any changed weight does. An adapter's digest covers its base and its scale
    too.

    Args:
        model: path, URI or hub name of a model folder or an adapter folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: there are no safetensors, a tensor occurs twice, or the adapter cannot be used.
    """
    folder = _local_folder(model)
    sha = hashlib.sha256()
    if (adapter := read_adapter_config(folder)) is not None:
        scale = f"r={adapter.r} lora_alpha={adapter.lora_alpha} use_rslora={adapter.use_rslora}"
        sha.update(f"{weights_digest(adapter.base_model_name_or_path)} {scale}\n".encode())
    file_of: dict[str, Path] = {}
    for path in _safetensors(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or damaged ({error}): fetch it again") from None
        for name in names:
            if name in file_of:
                raise ValueError(f"tensor {name} is in both {file_of[name].name} and {path.name}: remove one of them")
            file_of[name] = path
    for name in sorted(file_of):
        with safe_open(file_of[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


def save_model(
    model: PreTrainedModel | Mapping[str, Tensor],
    source: str | Path,
    out: str | Path,
    lora: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder for vLLM and `load_model`: the given weights, and everything else as in `source`.

    Everything else is the config (except the dtype), tokenizer, chat template and generation settings.

    Args:
        model: the model or its state dict, on any device: complete, or with LoRA only the adapter's part of it.
        source: the `model` that `load_policy` got.
        out: the folder, which is made if it does not exist.
        lora: the `lora` that `load_policy` got. If its `merge` is false, this writes an adapter folder, which names its
            base as `source` does. Otherwise it writes the complete weights.

    Raises:
        ValueError: the state dict is not of the model in `source`.
    """
    out, folder = Path(out), _local_folder(source)
    out.mkdir(parents=True, exist_ok=True)
    if lora is not None and not lora["merge"]:
        state = model.state_dict() if isinstance(model, PreTrainedModel) else model
        write_adapter(state, read_adapter_config(folder) or describe_adapter(state, lora, _shared_name(source)), out)
        _copy_other_files(folder, out)
        return
    if not isinstance(model, PreTrainedModel):
        state, model = model, load_policy(source, next(iter(model.values())).dtype, lora, seed=0)
        if lora is not None:
            fill_adapter(model, state, source)
        else:
            _load_state(model, state, source)
    if lora is not None:
        merge_into_base(model)
    _save_complete(model, folder, out)


def merge_adapter(adapter: str | Path, out: str | Path) -> None:
    """Merge an adapter into its base, and write the complete model, in the dtype of the base.

    Args:
        adapter: path, URI or hub name of an adapter folder.
        out: the folder, which is made if it does not exist.

    Raises:
        ValueError: the folder is not that of an adapter, or the adapter cannot be used.
    """
    folder, out = _local_folder(adapter), Path(out)
    base = _base_name(folder)
    if base is None:
        raise ValueError(f"{adapter} is not an adapter: it has no {ADAPTER_CONFIG}")
    base_folder = _local_folder(base)
    _check_model_folder(base_folder)
    config = AutoConfig.from_pretrained(base_folder, local_files_only=True, trust_remote_code=False)
    model = load_model(adapter, config.dtype or torch.float32)
    merge_into_base(model)
    out.mkdir(parents=True, exist_ok=True)
    _save_complete(model, folder, out)


def _save_complete(model: PreTrainedModel, folder: Path, out: Path) -> None:
    """Write a complete model's weights, and everything else from the folder that it was loaded from."""
    model.save_pretrained(out)
    base = _base_name(folder)
    complete = folder if base is None else _local_folder(base)
    # The config on disk, because `load_model` has set the dropouts to 0 in the model's own.
    config = AutoConfig.from_pretrained(complete, local_files_only=True, trust_remote_code=False)
    config.dtype = model.dtype
    config.save_pretrained(out)
    for source in dict.fromkeys((complete, folder)):  # the adapter comes last: its files replace those of its base
        _copy_other_files(source, out)


def _copy_other_files(folder: Path, out: Path) -> None:
    for pattern in _OTHER_FILES:
        for path in folder.glob(pattern):
            shutil.copyfile(path, out / path.name)


def _load_state(model: PreTrainedModel, state: Mapping[str, Tensor], source: str | Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of the model in {source}: {error}") from None


def _base_name(folder: Path) -> str | None:
    """The base that the adapter in a folder names; None if the folder has a complete model."""
    adapter = read_adapter_config(folder)
    if adapter is None:
        return None
    base: str = adapter.base_model_name_or_path
    if (_local_folder(base) / ADAPTER_CONFIG).exists():
        raise ValueError(f"the base of the adapter {folder} is {base}, an adapter too: merge that one first")
    return base


def _local_folder(model: str | Path) -> Path:
    """The model's folder on this machine, fetched if it is elsewhere."""
    if isinstance(model, Path) or os.path.isdir(model) or os.path.isabs(model):
        return Path(model)
    # Imported here, because `bench/` trains local folders with torch, transformers and PEFT alone.
    from pipeline.storage.model_files.hub import fetch

    return Path(fetch(model))


def _shared_name(model: str | Path) -> str:
    """A name that means the same in every folder and, if nodes share their files, on every node."""
    is_local = os.path.isdir(model) or str(model).startswith("file://")
    return os.path.abspath(_local_folder(model)) if is_local else str(model)


def _check_model_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")


def _safetensors(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} has no *.safetensors: convert the model, because pickled weights are not read")
    return paths
