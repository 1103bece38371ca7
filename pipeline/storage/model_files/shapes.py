"""Reads the sizes of a model from its config.json and the headers of its safetensors, without its weights.

The model may be in a folder, at a URI or on the hub, which serves headers without the files. How much GPU memory a
model takes is estimated in `execution/planning/gpu_memory.py`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.storage.files import open_location

Shapes = Mapping[str, tuple[int, ...]]


class UnknownShapes(Exception):
    """The sizes of a model cannot be read: the hub is offline, or the model is gated, missing or incomplete.

    The message says why.
    """


@dataclass(frozen=True)
class ModelShapes:
    """The sizes of a causal LM, or of a LoRA adapter on one.

    Attributes:
        name: the name of the model in the settings.
        shapes: the shape of each tensor of the (base) model, by tensor name.
        config: its config.json. For a model with several parts, the fields of the text decoder replace others.
        adapter_parameters: number of parameters of the adapter; 0 for a complete model.
    """

    name: str
    shapes: Shapes
    config: Mapping[str, Any]
    adapter_parameters: int = 0

    @property
    def parameters(self) -> int:
        """Number of parameters of the base. Tied weights count once."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def size(self, *names: str, default: int | None = None) -> int:
        """A number in the config.

        Args:
            names: keys of the config; the first that is present counts.
            default: the value if none is present.

        Raises:
            UnknownShapes: none is present, and there is no default.
        """
        for name in names:
            if isinstance(value := self.config.get(name), int):
                return value
        if default is None:
            raise UnknownShapes(f"its config.json has no {names[0]}")
        return default

    @property
    def layers(self) -> int:
        return self.size("num_hidden_layers", "n_layer")

    @property
    def hidden(self) -> int:
        return self.size("hidden_size", "n_embd")

    @property
    def heads(self) -> int:
        return self.size("num_attention_heads", "n_head")

    @property
    def kv_heads(self) -> int:
        return self.size("num_key_value_heads", default=self.heads)

    @property
    def head_size(self) -> int:
        return self.size("head_dim", default=self.hidden // self.heads)

    @property
    def feed_forward_size(self) -> int:
        """The width of the feed-forward network."""
        return self.size("intermediate_size", "n_inner", default=4 * self.hidden)

    @property
    def vocabulary(self) -> int:
        return self.size("vocab_size")

    @property
    def max_positions(self) -> int:
        """The maximum number of tokens in a sequence."""
        return self.size("max_position_embeddings", "n_positions")

    @property
    def embeddings(self) -> int:
        """Number of parameters outside the layers: the embeddings, and the LM head if it is not tied to them."""
        embedding_size = self.vocabulary * self.hidden
        tensor_sizes = (math.prod(shape) for shape in self.shapes.values())
        return sum(size for size in tensor_sizes if size >= embedding_size)

    @property
    def adaptable(self) -> list[tuple[str, tuple[int, ...]]]:
        """The layer name, such as q_proj, and the shape of each weight matrix in the model's numbered layers.

        The embeddings and the LM head are outside them. They cannot be adapted.
        """
        return [
            (parts[-2], shape)
            for parts, shape in ((name.split("."), shape) for name, shape in self.shapes.items())
            if parts[-1] == "weight" and len(shape) == 2 and any(part.isdigit() for part in parts)
        ]

    def lora(self, r: int, targets: str | tuple[str, ...]) -> int:
        """Number of parameters of a LoRA adapter: for each target layer, `r` times the sum of its two dimensions.

        Args:
            r: the rank of the adapter.
            targets: all-linear, or names of layers.
        """
        return sum(r * sum(shape) for layer, shape in self.adaptable if targets == "all-linear" or layer in targets)


def read_shapes(name: str) -> ModelShapes:
    """Read the sizes of a model.

    Args:
        name: its folder, URI or hub name.

    Raises:
        UserError: the folder has no config.json or no safetensors, or they are damaged.
        UnknownShapes: the hub does not answer, or does not have the model.
    """
    if "://" in name or _is_folder(name):
        config, shapes = _read_folder(name)
    else:
        config, shapes = _read_hub(name)
    if (base := config.get("base_model_name_or_path")) and "r" in config:
        base_model = read_shapes(base)
        adapter_parameters = sum(math.prod(shape) for shape in shapes.values())
        return ModelShapes(name, base_model.shapes, base_model.config, adapter_parameters)
    return ModelShapes(name, shapes, config | (config.get("text_config") or {}))


def _is_folder(name: str) -> bool:
    fs, path = open_location(name)
    return fs.get_file_info(path).type == pafs.FileType.Directory


def _read_folder(location: str) -> tuple[dict[str, Any], Shapes]:
    fs, base = open_location(location)
    infos = fs.get_file_info(pafs.FileSelector(base))
    names = {info.base_name for info in infos if info.type == pafs.FileType.File}
    config_name = next((name for name in ("adapter_config.json", "config.json") if name in names), None)
    weights = _weight_files(names, is_adapter=config_name == "adapter_config.json")
    if config_name is None or not weights:
        raise UserError(f"{location} is not a model folder: it should have config.json and *.safetensors")
    try:
        with fs.open_input_stream(f"{base}/{config_name}") as stream:
            config = json.loads(stream.read())
        shapes: dict[str, tuple[int, ...]] = {}
        for name in weights:
            with fs.open_input_file(f"{base}/{name}") as file:
                header_size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_size))
            shapes |= {key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{location}: its config or the header of its weights cannot be read ({error})") from None
    return config, shapes


def _weight_files(names: set[str], is_adapter: bool) -> list[str]:
    """The files that a model is loaded from. A folder may also have safetensors of another format."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    prefix = "adapter_model" if is_adapter else "model"
    return [name for name in files if name.startswith(prefix)] or files


def _read_hub(name: str) -> tuple[dict[str, Any], Shapes]:
    import huggingface_hub

    try:
        # A model that was fetched before is on this disk, and needs no network.
        return _read_folder(huggingface_hub.snapshot_download(name, local_files_only=True))
    except (UserError, OSError, ValueError):  # it was not fetched, or not completely
        pass
    try:
        with open(huggingface_hub.hf_hub_download(name, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        files = huggingface_hub.get_safetensors_metadata(name).files_metadata.values()
    except Exception as error:  # offline, gated, misspelt, no safetensors: a dozen error classes
        raise UnknownShapes(one_line(error, limit=160)) from None
    return config, {key: tuple(tensor.shape) for file in files for key, tensor in file.tensors.items()}
