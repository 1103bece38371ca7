"""Bad model folders, adapters and model names.

A case of a model folder is its name, a function that spoils a good folder, and the message. A case of an adapter is its
name, the content of adapter_config.json, a function that adds other files, and the message.
"""

import json
import os
import pickle

from safetensors.numpy import save_file

from tests.helpers.paths import POLICY_MODEL as POLICY


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def evil(path):
    """Write a pickle that leaves a mark if it is read."""
    path.write_bytes(pickle.dumps(Evil(path.parent / "PWNED")))


def set_json(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def code(folder):
    """Write a Python file that leaves a mark if it is imported. Returns an `auto_map` that names its classes."""
    (folder / "evil.py").write_text(
        f"open({str(folder / 'PWNED')!r}, 'w').close()\nclass Model: pass\nclass Config: pass\n"
    )
    return {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}


def cut(folder, name, size):
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def pickled(folder):
    (folder / "model.safetensors").unlink()
    evil(folder / "pytorch_model.bin")


_SAFE = "model.safetensors"

FOLDERS = [
    ("empty", lambda f: [path.unlink() for path in f.iterdir()], "a path without config.json or adapter_config.json"),
    ("no config", lambda f: (f / "config.json").unlink(), "a path without config.json or adapter_config.json"),
    ("config cut off", lambda f: cut(f, "config.json", 50), "its config.json cannot be read as JSON: "),
    (
        "config a list",
        lambda f: (f / "config.json").write_text("[]"),
        "its config.json should hold a JSON object, and holds '[]'",
    ),
    (
        "config of nothing",
        lambda f: (f / "config.json").write_text("{}"),
        "its model_type is None, which transformers does not support",
    ),
    (
        "unknown type",
        lambda f: set_json(f, "config.json", model_type="llama9"),
        "its model_type is 'llama9', which transformers does not support",
    ),
    (
        "code of its own",
        lambda f: set_json(f, "config.json", model_type="evil", auto_map=code(f)),
        "its model_type is 'evil', which needs the model's own code (['evil.Model', None], evil.Config, evil.Model). "
        "Such code is never run (trust_remote_code is off): choose a model that transformers supports itself",
    ),
    (
        "an encoder",
        lambda f: set_json(f, "config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        "it is a BertForMaskedLM, which does not generate text: choose a causal language model",
    ),
    (
        "quantized",
        lambda f: set_json(f, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "it is quantized by gptq, so it cannot be trained: choose the model that it was made from",
    ),
    ("no tokenizer", lambda f: [path.unlink() for path in f.glob("tok*")], "a model without a tokenizer: put its tok"),
    (
        "tokenizer cut off",
        lambda f: cut(f, "tokenizer.json", 500),
        "its tokenizer.json cannot be read: EOF while parsing",
    ),
    (
        "tokenizer of nothing",
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "its tokenizer.json cannot be read: ",
    ),
    (
        "another's tokenizer",
        lambda f: set_json(f, "config.json", vocab_size=100),
        "its tokenizer has 753 tokens, but the vocab_size in its config.json is 100: the tokenizer belongs to another",
    ),
    ("no weights", lambda f: (f / _SAFE).unlink(), "a folder without weights: it has no *.safetensors"),
    (
        "weights in GGUF",
        lambda f: (f / _SAFE).rename(f / "model-Q4_K_M.gguf"),
        "its weights are in GGUF, which vLLM does not load: choose a version in safetensors",
    ),
    (
        "pickled weights",
        pickled,
        "its weights are pickles (pytorch_model.bin), which can run code and are never read: if you trust them,",
    ),
    ("weights cut off", lambda f: cut(f, _SAFE, -1000), "its model.safetensors is cut off or damaged ("),
    ("weights of nothing", lambda f: cut(f, _SAFE, 0), "its model.safetensors is cut off or damaged ("),
    (
        "a damaged header",
        lambda f: (f / _SAFE).write_bytes(b"\xff" * 99),
        "its model.safetensors is cut off or damaged (",
    ),
    (
        "a shard missing",
        lambda f: (f / f"{_SAFE}.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}'),
        "1 files of its weights are missing, such as model-00002.safetensors",
    ),
]

# Problems that are only found when the weights are loaded.
UNLOADABLE = [
    (
        "another shape",
        lambda f: set_json(f, "config.json", hidden_size=64),
        "does not fill LlamaForCausalLM: missing [], of",
    ),
    (
        "more layers",
        lambda f: set_json(f, "config.json", num_hidden_layers=9),
        "does not fill LlamaForCausalLM: missing [",
    ),
    (
        "a tensor twice",
        lambda f: (f / "again.safetensors").write_bytes((f / _SAFE).read_bytes()),
        "is in both again.safetensors and model.safetensors: remove one of them",
    ),
]


def _weights(folder):
    save_file({}, folder / "adapter_model.safetensors")


_PLAIN = {"base_model_name_or_path": str(POLICY), "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}

ADAPTERS = [
    ("config cut off", "{", _weights, "is an adapter: its adapter_config.json cannot be read as JSON: "),
    (
        "config a list",
        [],
        _weights,
        "is an adapter: its adapter_config.json should hold a JSON object, and holds '[]'",
    ),
    ("no base", _PLAIN | {"base_model_name_or_path": None}, _weights, "an adapter that names no base: write the model"),
    (
        "a number for a base",
        _PLAIN | {"base_model_name_or_path": 5},
        _weights,
        "an adapter that names no base: write the model",
    ),
    (
        "no such base",
        _PLAIN | {"base_model_name_or_path": "/none"},
        _weights,
        "an adapter whose base is '/none': no such folder",
    ),
    (
        "itself for a base",
        _PLAIN | {"base_model_name_or_path": "{at}"},
        _weights,
        "which is an adapter too: merge that one first",
    ),
    (
        "a word for a rank",
        _PLAIN | {"r": "four"},
        _weights,
        "an adapter whose r is 'four': it should be a positive integer",
    ),
    ("no weights", _PLAIN, lambda f: None, "a folder without weights: it has no *.safetensors"),
    (
        "pickled weights",
        _PLAIN,
        lambda f: evil(f / "adapter_model.bin"),
        "its weights are pickles (adapter_model.bin), which can run code and are never read",
    ),
    (
        "weights cut off",
        _PLAIN,
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"abc"),
        "its adapter_model.safetensors is cut off or damaged (",
    ),
]

NAMES = [
    ("", "no such folder, and not a hub name (owner/name)"),
    ("/none", "no such folder, and not a hub name (owner/name)"),
    ("../none", "no such folder, and not a hub name (owner/name)"),
    ("a/b/c", "no such folder, and not a hub name (owner/name)"),
    ("$(touch pwned)", "no such folder, and not a hub name (owner/name)"),
    ("x" * 5000, "no such folder, and not a hub name (owner/name)"),
    ("http://host/v1", "the address of a server: it should be a folder, a URI such as s3://… or a hub name"),
    ("ftp://host/model", "its URI should begin with one of file://, s3://, gs://, gcs://, abfs://, abfss://, hdfs://"),
    ("file:///none", "no such folder, and not a hub name (owner/name)"),
    ("README.md", "a path without config.json or adapter_config.json"),
]
