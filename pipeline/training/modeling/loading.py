"""Model folders: read one to train or score, name its weights, write the next one. Safetensors only; nothing from
disk is run or unpickled.

A model folder is a complete one, or that of a LoRA adapter, which names its base. Left out: what an adapter is
(`adapters.py`), and where names and URIs lead (`pipeline/models.py`).
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.training.modeling import last_layer, tree_attention
from pipeline.training.modeling.logprobs import PLAIN
from pipeline.training.modeling.lora import (
    ADAPTER_CONFIG,
    attach_adapter,
    check_adapter_settings,
    describe_adapter,
    fill_adapter,
    merge_into_base,
    read_adapter_config,
    restore_adapter,
    write_adapter,
)

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


def load_model(model: str | Path, dtype: str | torch.dtype, *, article_tree: bool = True) -> PreTrainedModel:
    """A causal LM to train or score, on the CPU, in eval mode, with every dropout at 0.

    It stays in eval mode, in training too: policy and reference must be the same function of their weights. Of a base
    with its adapter, the adapter alone is to be trained.

    Args:
        model: path, URI or hub name of a Hugging Face model folder or a LoRA adapter's, with safetensors.
        dtype: of all weights, such as "float32" or "bfloat16".
        article_tree: with attention that takes article trees; else with what the model has for single sequences.

    Raises:
        ValueError: no folder, no safetensors, weights that do not fill the model, a model that takes no trees, or an
            adapter that does not fit.
    """
    folder = _here(model)
    base = _base(folder)
    if base is None:
        return _load(folder, dtype, article_tree)
    loaded = _load(_here(base), dtype, article_tree)
    restore_adapter(loaded, folder)
    return loaded


def load_policy(
    model: str | Path, dtype: str | torch.dtype, lora: Mapping[str, Any] | None, seed: int, *, article_tree: bool = True
) -> PreTrainedModel:
    """The model that a run trains: `load`, with a fresh adapter if LoRA is asked for and there is none yet.

    An adapter that is there is trained on. So the reference of a round is its base with that very adapter: "adapter
    off" would be the base, which is the reference only where the adapter is fresh.

    Args:
        lora: `learning.Lora` as a dict, or None: all weights are trained.
        seed: of a fresh adapter.

    Raises:
        ValueError: as `load`; or the model is an adapter, and `lora` is None or other than it.
    """
    loaded = load_model(model, dtype, article_tree=article_tree)
    adapted = _base(_here(model)) is not None
    if lora is not None and not adapted:
        attach_adapter(loaded, lora, seed)
    elif lora is not None:
        check_adapter_settings(loaded, lora)
    elif adapted:
        raise ValueError(
            f"{model} is a LoRA adapter, and training.lora is not set, which trains all weights: set training.lora, or "
            "`rondo merge` the adapter and start from the merged model"
        )
    return loaded


def _load(folder: Path, dtype: str | torch.dtype, article_tree: bool) -> PreTrainedModel:
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
        **({"attn_implementation": tree_attention.NAME} if article_tree else {}),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # they are told below, in one line with those that are missing
        output_loading_info=True,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(
            f"{folder} does not fill {type(model).__name__}: missing {sorted(info['missing_keys'])[:5]}, of another "
            f"shape {sorted(map(str, info['mismatched_keys']))[:5]}. The rest would be random; use a complete folder"
        )
    if article_tree:
        last_layer.skip_unread_tokens(model)
    return model.eval()


def weights_digest(model: str | Path) -> str:
    """What the weights are called: sha256 over their names, dtypes, shapes and bytes, in order of name.

    File names and sharding do not matter; any changed weight does. An adapter's covers its base and its scale too.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: no safetensors, a tensor that is there twice, or an adapter that cannot be used.
    """
    folder = _here(model)
    sha = hashlib.sha256()
    if (adapter := read_adapter_config(folder)) is not None:
        scale = f"r={adapter.r} lora_alpha={adapter.lora_alpha} use_rslora={adapter.use_rslora}"
        sha.update(f"{weights_digest(adapter.base_model_name_or_path)} {scale}\n".encode())
    where: dict[str, Path] = {}
    for path in _safetensors(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or damaged ({error}): fetch it again") from None
        for name in names:
            if name in where:
                raise ValueError(f"tensor {name} is in both {where[name].name} and {path.name}: remove one of them")
            where[name] = path
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as file:
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
    """Write a model folder that vLLM and `load` take: the weights given, and all else as in `source`.

    All else is the config (but for the dtype), tokenizer, chat template and generation settings.

    Args:
        model: the model, or its state dict, on any device: complete, or with LoRA that of the adapter.
        source: what `start` was given.
        out: made if it is not there.
        lora: as `start` was given it. With `merge` false an adapter folder is written, which names its base as
            `source` does; else the complete weights.

    Raises:
        ValueError: a state dict that is not of the model in `source`.
    """
    out, folder = Path(out), _here(source)
    out.mkdir(parents=True, exist_ok=True)
    if lora is not None and not lora["merge"]:
        state = model.state_dict() if isinstance(model, PreTrainedModel) else model
        write_adapter(state, read_adapter_config(folder) or describe_adapter(state, lora, _everywhere(source)), out)
        _copy(folder, out)
        return
    if not isinstance(model, PreTrainedModel):
        state, model = model, load_policy(source, next(iter(model.values())).dtype, lora, seed=0)
        if lora is not None:
            fill_adapter(model, state, source)
        else:
            _fill(model, state, source)
    if lora is not None:
        merge_into_base(model)
    _save(model, folder, out)


def merge_adapter(adapter: str | Path, out: str | Path) -> None:
    """Write the complete model that an adapter and its base make, in the dtype of the base.

    Args:
        adapter: path, URI or hub name of an adapter folder.
        out: made if it is not there.

    Raises:
        ValueError: it is no adapter, or cannot be used.
    """
    folder, out = _here(adapter), Path(out)
    base = _base(folder)
    if base is None:
        raise ValueError(f"{adapter} is no adapter: it has no {ADAPTER_CONFIG}")
    config = AutoConfig.from_pretrained(_folder(_here(base)), local_files_only=True, trust_remote_code=False)
    model = load_model(adapter, config.dtype or torch.float32)
    merge_into_base(model)
    out.mkdir(parents=True, exist_ok=True)
    _save(model, folder, out)


def _save(model: PreTrainedModel, folder: Path, out: Path) -> None:
    """The weights of a model, and all else from the folder that it was loaded from."""
    model.save_pretrained(out)
    base = _base(folder)
    complete = folder if base is None else _here(base)
    # `load` put the dropouts to 0; the folder is to say what the model's makers said.
    config = AutoConfig.from_pretrained(complete, local_files_only=True, trust_remote_code=False)
    config.dtype = model.dtype
    config.save_pretrained(out)
    for place in dict.fromkeys((complete, folder)):  # what an adapter has beside it goes before what its base has
        _copy(place, out)


def _copy(folder: Path, out: Path) -> None:
    for pattern in _COPIED:
        for path in folder.glob(pattern):
            shutil.copyfile(path, out / path.name)


def _fill(model: PreTrainedModel, state: Mapping[str, Tensor], source: str | Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of the model in {source}: {error}") from None


def _base(folder: Path) -> str | None:
    """What the adapter in a folder stands on; None for a folder with a complete model."""
    adapter = read_adapter_config(folder)
    if adapter is None:
        return None
    base: str = adapter.base_model_name_or_path
    if (_here(base) / ADAPTER_CONFIG).exists():
        raise ValueError(f"the base of the adapter {folder} is {base}, an adapter too: merge that one first")
    return base


def _here(model: str | Path) -> Path:
    """The folder on this machine."""
    if isinstance(model, Path) or os.path.isdir(model) or os.path.isabs(model):
        return Path(model)
    from pipeline.storage.model_files.hub import (
        fetch,  # not above: a bench trains local folders with torch, transformers and PEFT alone
    )

    return Path(fetch(model))


def _everywhere(model: str | Path) -> str:
    """A name that means the same in every folder and, where nodes share their files, on every node."""
    local = os.path.isdir(model) or str(model).startswith("file://")
    return os.path.abspath(_here(model)) if local else str(model)


def _folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json")
    return folder


def _safetensors(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} has no *.safetensors: convert the model, pickled weights are not read")
    return paths
