"""Reads the sizes of a model from its config.json and the headers of its safetensors, without its weights.

The model may be in a folder, at a URI or on the hub, which serves headers without the files. How much GPU memory a
model takes is estimated in `execution/planning/gpu_memory.py`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.storage.files import open_location

Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = ("F64", "F32", "F16", "BF16")  # an engine converts these to its own dtype
# Tensors of quantized weights that are no weights: scales, zero points, the order of groups, tables of values.
_AUXILIARY = re.compile(r"scale|zero|absmax|quant_map|quant_state|g_idx|weight_shape|nested")


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
        dtypes: the dtype of each tensor as safetensors name it, such as BF16, I32 or F8_E4M3.
    """

    name: str
    shapes: Shapes
    config: Mapping[str, Any]
    adapter_parameters: int = 0
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of parameters of the base. Tied weights count once, and quantized weights as what they stand for."""
        return int(sum(math.prod(shape) * self._packed(name) for name, shape in self.shapes.items()))

    @property
    def quantization(self) -> str | None:
        """The method by which its weights are quantized, such as awq; None if they are not."""
        quantization = self._quantization_config
        return str(quantization.get("quant_method", "some method")) if quantization else None

    def weight_bytes(self, size: int) -> int:
        """Bytes of the base's weights in an engine.

        Args:
            size: bytes of a number in the engine's dtype. Quantized weights keep the form that they have in the files.
        """
        bits = {name: 8 * size if dtype in _FLOATS else _bits(dtype) for name, dtype in self.dtypes.items()}
        return int(sum(math.prod(shape) * bits.get(name, 8 * size) / 8 for name, shape in self.shapes.items()))

    @property
    def _quantization_config(self) -> Mapping[str, Any]:
        return self.config.get("quantization_config") or self.config.get("compression_config") or {}

    def _packed(self, name: str) -> float:
        """How many weights a number of a tensor stands for. 0 if it is not one of the weights."""
        quantization = self._quantization_config
        if not quantization:
            return 1
        if _AUXILIARY.search(name.rpartition(".")[2]) or name.endswith(".qzeros"):
            return 0
        stored = self.dtypes.get(name, "F8")
        return 1 if stored in _FLOATS else _bits(stored) / _weight_bits(quantization)

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

    @property
    def parameters_in_4bit(self) -> int:
        """Number of parameters that bitsandbytes quantizes: those of the linear layers without the head.

        The experts of a mixture keep their dtype, because transformers has all of a layer in one tensor.
        """
        return sum(
            math.prod(shape)
            for name, shape in self.shapes.items()
            if name.endswith(".weight") and len(shape) == 2 and re.search(r"\.\d+\.", name) and ".experts." not in name
        )

    def lora(self, r: int, targets: str | tuple[str, ...]) -> int:
        """Number of parameters of a LoRA adapter: for each target layer, `r` times the sum of its two dimensions.

        Args:
            r: the rank of the adapter.
            targets: all-linear, or names of layers.
        """
        return sum(r * sum(shape) for layer, shape in self.adaptable if targets == "all-linear" or layer in targets)


def _bits(dtype: str) -> int:
    """Bits of a number, by the name of its dtype in safetensors."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8  # BOOL


def _weight_bits(quantization: Mapping[str, Any]) -> int:
    """Bits of a quantized weight, by the `quantization_config` of a model."""
    groups = quantization.get("config_groups") or {}
    weights: Mapping[str, Any] = next((group.get("weights") or {} for group in groups.values()), {})
    for bits in (quantization.get("bits"), quantization.get("w_bit"), weights.get("num_bits")):
        if isinstance(bits, int):
            return bits
    is_4_bit = quantization.get("load_in_4bit") or "fp4" in str(quantization.get("quant_method"))
    return 4 if is_4_bit else 8


def read_shapes(name: str) -> ModelShapes:
    """Read the sizes of a model.

    Args:
        name: its folder, URI or hub name.

    Raises:
        UserError: the folder has no config.json or no safetensors, or they are damaged.
        UnknownShapes: the hub does not answer, or does not have the model.
    """
    if "://" in name or _is_folder(name):
        config, shapes, dtypes = _read_folder(name)
    else:
        config, shapes, dtypes = _read_hub(name)
    if (base := config.get("base_model_name_or_path")) and "r" in config:
        base_model = read_shapes(base)
        adapter_parameters = sum(math.prod(shape) for shape in shapes.values())
        return ModelShapes(name, base_model.shapes, base_model.config, adapter_parameters, base_model.dtypes)
    return ModelShapes(name, shapes, config | (config.get("text_config") or {}), dtypes=dtypes)


def _is_folder(name: str) -> bool:
    fs, path = open_location(name)
    return fs.get_file_info(path).type == pafs.FileType.Directory


def _read_folder(location: str) -> tuple[dict[str, Any], Shapes, dict[str, str]]:
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
        dtypes: dict[str, str] = {}
        for name in weights:
            with fs.open_input_file(f"{base}/{name}") as file:
                header_size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_size))
            header.pop("__metadata__", None)
            shapes |= {key: tuple(value["shape"]) for key, value in header.items()}
            dtypes |= {key: str(value["dtype"]) for key, value in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{location}: its config or the header of its weights cannot be read ({error})") from None
    return config, shapes, dtypes


def _weight_files(names: set[str], is_adapter: bool) -> list[str]:
    """The files that a model is loaded from. A folder may also have safetensors of another format."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    prefix = "adapter_model" if is_adapter else "model"
    return [name for name in files if name.startswith(prefix)] or files


def _read_hub(name: str) -> tuple[dict[str, Any], Shapes, dict[str, str]]:
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
    tensors = {key: tensor for file in files for key, tensor in file.tensors.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return config, shapes, {key: str(tensor.dtype) for key, tensor in tensors.items()}
