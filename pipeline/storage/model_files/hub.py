"""Where a model is: a folder by path or URI, or a name on the Hugging Face hub.

A name travels as it is and becomes a folder on the machine that needs it. A folder may be that of a LoRA adapter,
which names its base in the same way. Left out: reading weights (`dpo/weights.py`).
"""

import functools
import os
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.config.sanitize import one_line
from pipeline.config.training import Lora
from pipeline.storage.files import open_location
from pipeline.storage.model_files import node_cache, validation
from pipeline.storage.model_files.shapes import UnknownShapes, read_shapes

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles, no code


def locate(name: str) -> str:
    """A name that means the same in every process: a local folder by its full path."""
    return os.path.abspath(name) if os.path.isdir(name) else name


@functools.cache
def fetch(name: str) -> str:
    """A folder on this machine with the model: the path itself, or what a URI or the hub gives, fetched once.

    After `cache_clear`, a model at a URI is fetched again if it has changed.
    """
    if os.path.isdir(name):
        return name
    if "://" not in name:
        from huggingface_hub import snapshot_download

        return snapshot_download(name, allow_patterns=_FILES)
    fs, path = open_location(name)
    if isinstance(fs, pafs.LocalFileSystem):
        return path
    if not fetch.cache_info().currsize:  # cleared: of what was fetched before nothing is read any more
        node_cache.release_copies()
    return node_cache.local_copy(name, fs, path)


def adapter_config(folder: str) -> dict[str, Any] | None:
    """What the folder of a LoRA adapter says of it, in PEFT's words; None for a folder with a complete model.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(folder, "adapter_config.json")
    return validation.read_json(path, f"{folder} is an adapter") if path.is_file() else None


def check_model(setting: str, name: str) -> None:
    """See that a model that the settings name is there and whole, and for an adapter its base.

    Raises:
        UserError: a path that is not there or holds no model that can be used, a name that the hub does not give, or an
            adapter whose base is such.
    """
    trained = setting.startswith("policy.")
    if name.startswith(("http://", "https://")):
        raise UserError(
            f"{setting} is {name!r}, the address of a server: it should be a folder, a URI such as s3://… or a hub "
            "name. A served model may judge (judge.served) or be compared with (compare)"
        )
    scheme, _, rest = name.rpartition("://")
    if scheme and scheme not in _SCHEMES:
        raise UserError(f"{setting} is {name!r}: a URI begins with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    if scheme and scheme != "file":
        return  # fetched where it is needed
    name = rest if scheme else name
    check_name(setting, name)
    folder = name if _exists(name) else _from_hub(setting, name)
    adapter = adapter_config(folder)
    if adapter is None and not Path(folder, "config.json").is_file():
        raise UserError(
            f"{setting} is {name!r}, a path without config.json or adapter_config.json: it should be the folder of a "
            "Hugging Face model or of a LoRA adapter"
        )
    if adapter is not None:
        validation.check_weights(f"{setting} is {name!r}", Path(folder))
        base = adapter.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise UserError(
                f"{setting} is {name!r}, an adapter that names no base: write which model it belongs to as "
                "base_model_name_or_path in its adapter_config.json"
            )
        if not isinstance(rank := adapter.get("r"), int) or rank < 1:
            raise UserError(f"{setting} is {name!r}, an adapter whose r is {rank!r}: it should be a positive integer")
        if os.path.isfile(os.path.join(base, "adapter_config.json")):
            raise UserError(f"{setting} is {name!r}, an adapter of {base!r}, an adapter too: merge that one first")
        if os.path.isdir(base) and not os.path.isabs(base):
            raise UserError(
                f"{setting} is {name!r}, an adapter of {base!r}, a path that means nothing in another folder: write "
                f"{os.path.abspath(base)!r} as base_model_name_or_path in its adapter_config.json"
            )
        check_model(f"{setting} is {name!r}, an adapter whose base", base)
    else:
        validation.check_model_folder(
            f"{setting} is {name!r}", Path(folder), trained, speaks=setting.endswith(".model")
        )


def check_lora(name: str, lora: Lora | None) -> None:
    """See that a policy that `check` has let pass can be trained as the settings say: all of it, or an adapter.

    A model at a URI is fetched where it is needed, and looked at there.

    Raises:
        UserError: an adapter without `training.lora`, or with another; or names of layers that the model has not.
    """
    if "://" in name:
        return
    adapter = adapter_config(fetch(name))
    if adapter is not None and lora is None:
        raise UserError(
            f"policy.model is {name!r}, a LoRA adapter, and training.lora is not set, which trains all weights: set "
            "it, or `rondo merge` the adapter and start from the merged model"
        )
    if lora is None:
        return
    if adapter is not None:
        own = {
            "r": adapter["r"],
            "lora_alpha": adapter.get("lora_alpha", 8),  # PEFT's own
            "use_rslora": adapter.get("use_rslora", False),
        }
        if unlike := [f"{key} {value}" for key, value in own.items() if value != getattr(lora, key)]:
            raise UserError(
                f"policy.model is {name!r}, an adapter with {', '.join(unlike)}, which training.lora does not have: it "
                "is trained on as it is. Set training.lora so, or `rondo merge` it and start from the merged model"
            )
    elif lora.target_modules != "all-linear":
        try:
            there = {layer for layer, _ in read_shapes(name).matrices}
        except UnknownShapes:
            return
        if missing := sorted(set(lora.target_modules) - there):
            raise UserError(
                f"training.lora.target_modules has {', '.join(missing)}, and {name!r} has no such layers; "
                f"it has {', '.join(sorted(there))}"
            )


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long, or with a NUL in it: no path
        return False


def check_name(setting: str, name: str) -> None:
    """Raise UserError of a name that is no URI's, of no folder that is there, and can be of no model on the hub."""
    if "://" not in name and not _exists(name) and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError(f"{setting} is {name!r}: there is no such folder, and it is no name on the hub (owner/name)")


def _from_hub(setting: str, name: str) -> str:
    try:
        return fetch(name)
    except Exception as error:  # offline, gated, misspelt: a dozen classes, one meaning
        reason = one_line(error, limit=300)
        raise UserError(f"{setting} is {name!r}: no such folder, and the hub did not give it ({reason})") from None
