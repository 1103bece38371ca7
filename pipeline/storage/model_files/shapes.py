"""What a model is made of, as its config.json and the headers of its safetensors say: sizes, and no weights are read.

Of a folder on this machine, of a URI, or of a name on the hub, which gives headers without the files. Left out: what
it then takes of a GPU (`memory.py`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.config.sanitize import one_line
from pipeline.storage.files import open_location

Shapes = Mapping[str, tuple[int, ...]]


class UnknownShapes(Exception):
    """The hub did not say: offline, gated, or no such model. The message is why."""


@dataclass(frozen=True)
class ModelShapes:
    """A causal LM, or a LoRA adapter on one.

    Attributes:
        name: as the settings have it.
        shapes: of every tensor of the (base) model, by name.
        config: its config.json; of a model of several parts, that of the text decoder.
        adapted: parameters of the adapter; 0 for a complete model.
    """

    name: str
    shapes: Shapes
    config: Mapping[str, Any]
    adapted: int = 0

    @property
    def parameters(self) -> int:
        """Of the base, each weight once: a tied head is no second copy."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def size(self, *names: str, default: int | None = None) -> int:
        """A number in the config, by the first of its names that is there.

        Raises:
            Unknown: none is.
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
    def inner(self) -> int:
        """Width of the feed-forward network."""
        return self.size("intermediate_size", "n_inner", default=4 * self.hidden)

    @property
    def vocabulary(self) -> int:
        return self.size("vocab_size")

    @property
    def longest(self) -> int:
        """Tokens that it takes at most."""
        return self.size("max_position_embeddings", "n_positions")

    @property
    def embeddings(self) -> int:
        """Parameters that belong to no layer: embeddings, and a head that is not tied to them."""
        large = self.vocabulary * self.hidden
        return sum(n for n in (math.prod(shape) for shape in self.shapes.values()) if n >= large)

    @property
    def matrices(self) -> list[tuple[str, tuple[int, ...]]]:
        """The last name of its layer, such as q_proj, and the shape of each weight that is a matrix."""
        there = self.shapes.items()
        return [(name.split(".")[-2], shape) for name, shape in there if name.endswith(".weight") and len(shape) == 2]

    def lora(self, r: int, targets: str | tuple[str, ...]) -> int:
        """Parameters that an adapter of rank `r` would have: a row and a column of each linear layer it goes to."""
        return sum(
            r * sum(shape)
            for layer, shape in self.matrices
            if math.prod(shape) < self.vocabulary * self.hidden and (targets == "all-linear" or layer in targets)
        )


def read_shapes(name: str) -> ModelShapes:
    """Look at a model by folder, URI or hub name.

    Raises:
        UserError: a folder without config.json or safetensors, or with damaged ones.
        Unknown: a name that the hub does not tell us about now.
    """
    if "://" in name or _is_folder(name):
        config, shapes = _in_folder(name)
    else:
        config, shapes = _on_hub(name)
    if (base := config.get("base_model_name_or_path")) and "r" in config:
        found = read_shapes(base)
        return ModelShapes(name, found.shapes, found.config, sum(math.prod(shape) for shape in shapes.values()))
    return ModelShapes(name, shapes, config | (config.get("text_config") or {}))


def _is_folder(name: str) -> bool:
    fs, path = open_location(name)
    return fs.get_file_info(path).type == pafs.FileType.Directory


def _in_folder(place: str) -> tuple[dict[str, Any], Shapes]:
    fs, base = open_location(place)
    names = {info.base_name for info in fs.get_file_info(pafs.FileSelector(base)) if info.type == pafs.FileType.File}
    described = next((name for name in ("adapter_config.json", "config.json") if name in names), None)
    weights = _weights(names, adapter=described == "adapter_config.json")
    if described is None or not weights:
        raise UserError(f"{place} is no model folder: it should have config.json and *.safetensors")
    try:
        with fs.open_input_stream(f"{base}/{described}") as stream:
            config = json.loads(stream.read())
        shapes: dict[str, tuple[int, ...]] = {}
        for name in weights:
            with fs.open_input_file(f"{base}/{name}") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            shapes |= {key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: its config or the header of its weights cannot be read ({error})") from None
    return config, shapes


def _weights(names: set[str], adapter: bool) -> list[str]:
    """The files that a model is loaded from: beside its own shards a folder may have another format's."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    begins = "adapter_model" if adapter else "model"
    return [name for name in found if name.startswith(begins)] or found


def _on_hub(name: str) -> tuple[dict[str, Any], Shapes]:
    import huggingface_hub

    try:
        # What was fetched for a run is on this disk, also without a network.
        return _in_folder(huggingface_hub.snapshot_download(name, local_files_only=True))
    except (UserError, OSError, ValueError):  # not there, or not all of it
        pass
    try:
        with open(huggingface_hub.hf_hub_download(name, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        files = huggingface_hub.get_safetensors_metadata(name).files_metadata.values()
    except Exception as error:  # offline, gated, misspelt, no safetensors: a dozen classes, one meaning
        raise UnknownShapes(one_line(error, limit=160)) from None
    return config, {key: tuple(tensor.shape) for file in files for key, tensor in file.tensors.items()}
