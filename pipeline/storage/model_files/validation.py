"""Checks that a model folder has everything that loading needs, and nothing that would run code.

It reads only headers and small files, so even a 100 GB model takes a moment. Whether the weights match the model is
checked when they are loaded (`training/modeling/loading.py`, vLLM).
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.config import UserError
from pipeline.config.messages import one_line

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken")
_PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Architectures that do not generate text. Many encoders have a class that generates, but with untrained weights, so the
# architecture in the folder's config counts.
_NOT_GENERATIVE = re.compile(
    r"(?<!LMHead)Model|Encoder|\w+For(MaskedLM|PreTraining|\w*Classification|QuestionAnswering)"
)


def check_model_folder(subject: str, folder: Path, is_trained: bool, needs_tokenizer: bool) -> None:
    """Check that a folder holds a complete model.

    Args:
        subject: the beginning of an error message, such as "policy.model is 'my-model'".
        folder: the folder; it has a config.json.
        is_trained: whether the model will be trained; else it is only served, and vLLM decides what it supports.
        needs_tokenizer: whether the folder must have a tokenizer. The base of an adapter need not have one.

    Raises:
        UserError: the config, the tokenizer or the weights are missing or damaged; the weights are pickled; or the
            model is to be trained and is quantized, generates no text, needs its own code, or has another model's
            tokenizer.
    """
    config = read_json(folder / "config.json", subject)
    check_weights(subject, folder)
    if needs_tokenizer and not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        raise UserError(f"{subject}, a model without a tokenizer: put its {_TOKENIZER_FILES[0]} beside config.json")
    tokenizer_size = _tokenizer_size(subject, folder)
    if is_trained:
        _check_trainable(subject, config, tokenizer_size)


def _check_trainable(subject: str, config: dict[str, Any], tokenizer_size: int) -> None:
    """Check that transformers can train a model without the model's own code. Raises UserError."""
    if not _is_native(config):
        kind = f"{subject}: its model_type is {config.get('model_type')!r}"
        if config.get("auto_map"):
            raise UserError(
                f"{kind}, which needs the model's own code ({_code_classes(config)}). Such code is never run "
                "(trust_remote_code is off): choose a model that transformers supports itself"
            )
        raise UserError(f"{kind}, which transformers does not support: choose another model")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise UserError(
            f"{subject}: it is quantized by {method}, so it cannot be trained: choose the model that it was made from"
        )
    architectures = [str(name) for name in config.get("architectures") or ()]
    if architectures and not any(map(_is_generative, architectures)):
        raise UserError(
            f"{subject}: it is a {', '.join(architectures)}, which does not generate text: choose a causal language "
            "model"
        )
    vocab_size = (config.get("text_config") or config).get("vocab_size")
    if isinstance(vocab_size, int) and tokenizer_size > vocab_size:
        raise UserError(
            f"{subject}: its tokenizer has {tokenizer_size:,} tokens, but the vocab_size in its config.json is "
            f"{vocab_size:,}: the tokenizer belongs to another model"
        )


def _is_generative(architecture: str) -> bool:
    kind = re.sub(r"^.*?(?=Model$|Encoder$)", "", architecture)
    return not _NOT_GENERATIVE.fullmatch(kind)


def check_weights(subject: str, folder: Path) -> None:
    """Check that a folder has all its safetensors, and that none is cut off. Raises UserError."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        refuse_gguf(subject, folder)
        pickles = sorted(path.name for pattern in _PICKLE_FILES for path in folder.glob(pattern))
        if not pickles:
            raise UserError(f"{subject}, a folder without weights: it has no *.safetensors")
        raise UserError(
            f"{subject}: its weights are pickles ({', '.join(pickles[:3])}), which can run code and are never read: "
            "if you trust them, convert them to safetensors with save_pretrained(…)"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index, subject).get("weight_map")
        indexed = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
        if missing := sorted(indexed - {path.name for path in paths}):
            raise UserError(f"{subject}: {len(missing)} files of its weights are missing, such as {missing[0]}")
    for path in paths:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{subject}: its {path.name} is cut off or damaged ({error}): fetch it again") from None


def refuse_gguf(subject: str, path: Path) -> None:
    """Raise UserError if a path is a GGUF file, or a folder that has one. vLLM loads them no longer."""
    if path.suffix == ".gguf" or any(path.glob("*.gguf")):
        raise UserError(
            f"{subject}: its weights are in GGUF, which vLLM does not load: choose a version in safetensors, which may "
            "be quantized by AWQ, GPTQ or to FP8"
        )


def read_json(path: Path, subject: str) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if the file cannot be read, or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{subject}: its {path.name} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{subject}: its {path.name} should hold a JSON object, and holds {str(content)[:40]!r}")
    return content


def _tokenizer_size(subject: str, folder: Path) -> int:
    """One more than the highest token id in tokenizer.json, without added tokens. 0 if there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=False)
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{subject}: its tokenizer.json cannot be read: {one_line(error)}") from None
    return max(vocabulary.values(), default=-1) + 1


def _is_native(config: dict[str, Any]) -> bool:
    """Whether transformers itself has the model's class. It then uses its own code, not the folder's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _code_classes(config: dict[str, Any]) -> str:
    auto_map = config["auto_map"]
    return ", ".join(sorted(map(str, auto_map.values()))) if isinstance(auto_map, dict) else str(auto_map)
