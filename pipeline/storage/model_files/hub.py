"""Finds, checks and fetches models: folders by path or URI, or names on the Hugging Face hub.

Processes hand on a hub name or a URI unchanged; each machine that needs the model fetches it. A folder may also hold a
LoRA adapter, which names its base in the same way. Weights are loaded in `training/modeling/loading.py`.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from safetensors import safe_open

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.config.training import Lora
from pipeline.storage.files import open_location
from pipeline.storage.model_files import adapters, node_cache, validation
from pipeline.storage.model_files.shapes import UnknownShapes, read_shapes

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_FETCHED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles, no code


def locate(name: str) -> str:
    """A name that means the same in every process: the absolute path of a local folder, else the name as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


@functools.cache
def fetch(name: str) -> str:
    """Return a folder on this machine that holds a model. Fetch the model if it is at a URI or on the hub.

    The result is cached. After `fetch.cache_clear()`, a model at a URI is fetched again if it has changed.
    """
    if os.path.isdir(name):
        return name
    if "://" not in name:
        from huggingface_hub import snapshot_download

        return snapshot_download(name, allow_patterns=_FETCHED_FILES)
    fs, path = open_location(name)
    if isinstance(fs, pafs.LocalFileSystem):
        return path
    if not fetch.cache_info().currsize:  # the cache was cleared: earlier copies are no longer read
        node_cache.release_copies()
    return node_cache.local_copy(name, fs, path)


def adapter_config(folder: str) -> dict[str, Any] | None:
    """The settings of the LoRA adapter in a folder, by PEFT's names. None for a folder with a complete model.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(folder, "adapter_config.json")
    return validation.read_json(path, f"{folder} is an adapter") if path.is_file() else None


def check_model(setting: str, name: str) -> None:
    """Check that a model of the settings exists and is complete. For an adapter, check its base too.

    A model at a URI, other than file://, is checked where it is fetched; of an adapter, adapter_config.json is checked.

    Args:
        setting: the setting that names the model, such as policy.model.
        name: its path, URI or hub name.

    Raises:
        UserError: the model, or the base of an adapter, does not exist or cannot be used.
    """
    is_trained = setting.startswith("policy.")
    subject = f"{setting} is {name!r}"
    if name.startswith(("http://", "https://")):
        raise UserError(
            f"{subject}, the address of a server: it should be a folder, a URI such as s3://… or a hub name. A served "
            "model can be a judge (judge.served), or be compared with the policy (compare)"
        )
    scheme, _, rest = name.rpartition("://")
    if scheme and scheme not in _SCHEMES:
        known_schemes = ", ".join(f"{known}://" for known in _SCHEMES)
        raise UserError(f"{subject}: its URI should begin with one of {known_schemes}")
    if scheme and scheme != "file":
        _check_adapter_at_uri(subject, name, is_trained)
        return
    name = rest if scheme else name
    subject = f"{setting} is {name!r}"
    check_name(setting, name)
    folder = name if _exists(name) else _from_hub(setting, name)
    adapter = adapter_config(folder)
    if adapter is None and not Path(folder, "config.json").is_file():
        validation.refuse_gguf(subject, Path(folder))
        raise UserError(
            f"{subject}, a path without config.json or adapter_config.json: it should be the folder of a Hugging Face "
            "model or of a LoRA adapter"
        )
    if adapter is None:
        needs_tokenizer = setting.endswith(".model")  # the base of an adapter needs none: the adapter may have it
        validation.check_model_folder(subject, Path(folder), is_trained, needs_tokenizer)
        return
    validation.check_weights(subject, Path(folder))
    base = _check_adapter_config(subject, adapter, is_trained)
    if is_trained and not Path(folder, adapters.ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{subject}, an adapter without {adapters.ADAPTER_WEIGHTS}: give its weights this name")
    check_model(f"{subject}, an adapter whose base", base)


def check_reward_model(setting: str, name: str) -> None:
    """Check that a model gives one number for a text. `check_model` must have accepted it.

    A model at a URI is checked where it is loaded.

    Raises:
        UserError: it is another kind of model, or has several labels.
    """
    if "://" in name:
        return
    config = validation.read_json(Path(fetch(name), "config.json"), f"{setting} is {name!r}")
    architectures = ", ".join(map(str, config.get("architectures") or ())) or "model without architectures"
    if "ForSequenceClassification" not in architectures:
        raise UserError(
            f"{setting} is {name!r}, a {architectures}: a reward model should be a …ForSequenceClassification with one "
            "label"
        )
    labels = len(config.get("id2label") or "ab")  # transformers' default is two labels
    if labels != 1:
        raise UserError(f"{setting} is {name!r}, which has {labels} labels: a reward model should have one, the reward")


def _check_adapter_at_uri(subject: str, uri: str, is_trained: bool) -> None:
    """Check the adapter_config.json of an adapter at a URI, if it can be read. Raises UserError."""
    try:
        fs, folder = open_location(uri)
        with fs.open_input_stream(f"{folder}/{adapters.ADAPTER_CONFIG}") as stream:
            adapter = json.loads(stream.read())
    except Exception:  # not an adapter, or out of reach: pyarrow has no common class for these errors
        return
    if isinstance(adapter, dict):
        _check_adapter_config(subject, adapter, is_trained)


def _check_adapter_config(subject: str, adapter: dict[str, Any], is_trained: bool) -> str:
    """Check an adapter's kind, its rank and the name of its base. Returns that name. Raises UserError."""
    if unsupported := adapters.unsupported_fields(adapter, is_trained):
        use = "trained" if is_trained else "served"
        raise UserError(
            f"{subject}, an adapter whose {adapters.ADAPTER_CONFIG} has {adapters.describe_unsupported(unsupported)}, "
            f"so it cannot be {use}: merge it into its base with PEFT first (merge_and_unload), and name the merged "
            "model"
        )
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{subject}, an adapter that names no base: write the model it belongs to as base_model_name_or_path in "
            "its adapter_config.json"
        )
    if not isinstance(rank := adapter.get("r"), int) or rank < 1:
        raise UserError(f"{subject}, an adapter whose r is {rank!r}: it should be a positive integer")
    if os.path.isfile(os.path.join(base, "adapter_config.json")):
        raise UserError(f"{subject}, an adapter of {base!r}, which is an adapter too: merge that one first")
    if os.path.isdir(base) and not os.path.isabs(base):
        raise UserError(
            f"{subject}, an adapter of {base!r}, a relative path, which is wrong in any other folder: write "
            f"{os.path.abspath(base)!r} as base_model_name_or_path in its adapter_config.json"
        )
    return base


def base_folder(name: str) -> str | None:
    """The folder of a model, or of the base of an adapter; None if this base is at a URI.

    `check_model` must have accepted the model, which is not at a URI.
    """
    adapter = adapter_config(fetch(name))
    base = name if adapter is None else adapter["base_model_name_or_path"]
    return None if "://" in base else fetch(base)


def check_router_loss(name: str, router_aux_loss_coef: float) -> None:
    """Check that a policy has a router, if the settings want a loss for it.

    `check_model` must have accepted the policy. A model at a URI is checked where it is loaded.

    Raises:
        UserError: the policy is not a mixture of experts.
    """
    if not router_aux_loss_coef or "://" in name or (folder := base_folder(name)) is None:
        return
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not hasattr(config.get_text_config(decoder=True), "output_router_logits"):
        raise UserError(
            f"training.router_aux_loss_coef is {router_aux_loss_coef:g}, and policy.model is {name!r}, a "
            f"{config.model_type}, which is not a mixture of experts: leave router_aux_loss_coef out"
        )


def check_lora(name: str, lora: Lora | None) -> None:
    """Check that a policy can be trained as `training.lora` says. `check_model` must have accepted the policy.

    A model at a URI is checked where it is fetched.

    Args:
        name: the policy's path, URI or hub name.
        lora: the adapter to train; None: all weights are trained.

    Raises:
        UserError: the policy is an adapter and `training.lora` is not set or does not match it, or the model does not
            have the target layers.
    """
    if "://" in name:
        return
    adapter = adapter_config(fetch(name))
    if adapter is not None and lora is None:
        raise UserError(
            f"policy.model is {name!r}, a LoRA adapter, but training.lora is not set, so all weights would be trained: "
            "set training.lora, or merge the adapter with `rondo merge` and start from the merged model"
        )
    if lora is None:
        return
    if adapter is not None:
        settings = adapters.lora_settings(adapter)
        if different := [f"{key} {value}" for key, value in settings.items() if value != getattr(lora, key)]:
            raise UserError(
                f"policy.model is {name!r}, an adapter with {', '.join(different)}, but training.lora has another "
                "value: set training.lora like the adapter, or merge it with `rondo merge` and start from the merged "
                "model"
            )
        _check_adapted_layers(name, lora)
    elif lora.target_modules != "all-linear":
        try:
            layers = {layer for layer, _ in read_shapes(name).adaptable}
        except UnknownShapes:
            return
        if missing := sorted(set(lora.target_modules) - layers):
            raise UserError(
                f"training.lora.target_modules has {', '.join(missing)}, but {name!r} has no such layers; "
                f"it has {', '.join(sorted(layers))} (the head cannot be adapted)"
            )


def _check_adapted_layers(name: str, lora: Lora) -> None:
    """Check that an adapter is on the layers that `training.lora.target_modules` names. Raises UserError."""
    with safe_open(Path(fetch(name), adapters.ADAPTER_WEIGHTS), framework="np") as weights:
        tensors = list(weights.keys())
    if other := [tensor for tensor in tensors if not tensor.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise UserError(
            f"policy.model is {name!r}, an adapter with the tensor {other[0]}, and only LoRA on linear layers can be "
            "trained: merge it into its base with PEFT first (merge_and_unload), and name the merged model"
        )
    layers = adapters.adapted_layers(tensors)
    try:
        linear = adapters.linear_layers(read_shapes(name))
    except UnknownShapes:
        return
    if linear is not None and (outside := sorted(layers - linear)):
        raise UserError(
            f"policy.model is {name!r}, an adapter on {', '.join(outside)}, and only linear layers without the head "
            f"can be adapted ({', '.join(sorted(linear))}): merge it into its base with PEFT first (merge_and_unload), "
            "and name the merged model"
        )
    is_all = lora.target_modules == "all-linear"
    expected = (linear or set()) | layers if is_all else set(lora.target_modules)
    if layers != expected:
        raise UserError(
            f"policy.model is {name!r}, an adapter on {', '.join(sorted(layers))}, but training.lora.target_modules "
            f"means {', '.join(sorted(expected))}: set training.lora.target_modules=[{', '.join(sorted(layers))}], or "
            "merge it with `rondo merge` and start from the merged model"
        )


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long, or contains a NUL: not a path
        return False


def check_name(setting: str, name: str) -> None:
    """Raise UserError if a name is not a URI, not an existing path, and cannot be a hub name.

    Args:
        setting: the setting that holds the name.
        name: the name to check.
    """
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if "://" not in name and not _exists(name) and not is_hub_name:
        raise UserError(f"{setting} is {name!r}: no such folder, and not a hub name (owner/name){_looked_at(name)}")


def _looked_at(name: str) -> str:
    """The end of a message: where a relative path was looked for."""
    return "" if not name or os.path.isabs(name) else f"; there is no {os.path.abspath(name):.300}"


def _from_hub(setting: str, name: str) -> str:
    try:
        return fetch(name)
    except Exception as error:  # offline, gated, misspelt: a dozen error classes with one meaning
        reason = one_line(error, limit=300)
        raise UserError(
            f"{setting} is {name!r}: no such folder, and it cannot be fetched from the hub ({reason}){_looked_at(name)}"
        ) from None
