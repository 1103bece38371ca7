"""What is inside a model's folder, looked at before anything starts: enough to be loaded, and nothing to be run.

Headers and small files only, so that a 100 GB model costs a moment.
Left out: whether the weights fill the model (`dpo/weights.py` and vLLM say so), and where a name leads (`models.py`).
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.config import UserError
from pipeline.config.sanitize import one_line

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Models that read and do not write. Many an encoder has a class that writes, untrained: what the folder says counts.
_NO_WRITER = re.compile(r"(?<!LMHead)Model|Encoder|\w+For(MaskedLM|PreTraining|\w*Classification|QuestionAnswering)")


def check_model_folder(said: str, folder: Path, trained: bool, speaks: bool) -> None:
    """See that a folder has a whole model in it.

    Args:
        said: what an error begins with, such as "policy.model is 'my-model'".
        folder: with a config.json.
        trained: whether it is to be trained, and not only served.
        speaks: whether its tokenizer is needed: an adapter may bring its own.

    Raises:
        UserError: no config, tokenizer or weights that can be used; weights that are pickled, cut off or quantized; a
            model that needs code of its own; a tokenizer with more tokens than the model.
    """
    config = read_json(folder / "config.json", said)
    check_weights(said, folder)
    if speaks and not any(any(folder.glob(name)) for name in _TOKENIZERS):
        raise UserError(f"{said}, a model without a tokenizer: put its {_TOKENIZERS[0]} beside config.json")
    vocabulary = _vocabulary(said, folder)
    if not trained:
        return
    if not _is_native(config):
        kind = f"{said}, whose model_type is {config.get('model_type')!r}"
        if config.get("auto_map"):
            raise UserError(
                f"{kind}, which needs code of its own ({_code(config)}). Code of a model's is never run "
                "(trust_remote_code is off): take a model that transformers has itself"
            )
        raise UserError(f"{kind}, which transformers does not have: take another model")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise UserError(f"{said}, quantized by {method}, which cannot be trained: take the model that it was made of")
    made = [str(name) for name in config.get("architectures") or ()]
    if made and all(map(_NO_WRITER.fullmatch, (re.sub(r"^.*?(?=Model$|Encoder$)", "", name) for name in made))):
        raise UserError(f"{said}, {', '.join(made)}, which writes no text: take a causal language model")
    size = (config.get("text_config") or config).get("vocab_size")
    if isinstance(size, int) and vocabulary > size:
        raise UserError(
            f"{said}, whose tokenizer has {vocabulary:,} tokens and whose config.json a vocab_size of {size:,}: "
            "the tokenizer is another model's"
        )


def check_weights(said: str, folder: Path) -> None:
    """See that there are safetensors, all of them, none cut off. Raises UserError."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        if not pickled:
            raise UserError(f"{said}, a folder without weights: it has no *.safetensors")
        raise UserError(
            f"{said}, whose weights are pickled ({', '.join(pickled[:3])}), which can run code and is never read: "
            "convert them to safetensors, with save_pretrained(…) where you trust them"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index, said).get("weight_map")
        files = {str(name) for name in named.values()} if isinstance(named, dict) else set()
        if missing := sorted(files - {path.name for path in paths}):
            raise UserError(f"{said}, of whose weights {len(missing)} files are missing, such as {missing[0]}")
    for path in paths:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{said}, whose {path.name} is cut off or damaged ({error}): fetch it again") from None


def read_json(path: Path, said: str) -> dict[str, Any]:
    """A JSON file that holds names and values. Raises UserError if it holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{said}, whose {path.name} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{said}, whose {path.name} holds no names and values, but {str(found)[:40]!r}")
    return found


def _vocabulary(said: str, folder: Path) -> int:
    """One more than the highest id of a tokenizer.json, added tokens aside; 0 where there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=False)
    except Exception as error:  # it raises Exception itself
        raise UserError(f"{said}, whose tokenizer.json cannot be read: {one_line(error)}") from None
    return max(vocabulary.values(), default=-1) + 1


def _is_native(config: dict[str, Any]) -> bool:
    """Whether transformers has the class: then its own code is used, whatever the folder brings."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _code(config: dict[str, Any]) -> str:
    found = config["auto_map"]
    return ", ".join(sorted(map(str, found.values()))) if isinstance(found, dict) else str(found)
