"""Model folders: what is done to a good one, and the line. Adapters: what adapter_config.json holds, what is beside it.

`evil(path)` writes a pickle that leaves a mark when it is read.
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
    path.write_bytes(pickle.dumps(Evil(path.parent / "PWNED")))


def set_json(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def code(folder):
    """A file of code that leaves a mark when it is imported."""
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
    ("config cut off", lambda f: cut(f, "config.json", 50), "whose config.json cannot be read as JSON: "),
    (
        "config a list",
        lambda f: (f / "config.json").write_text("[]"),
        "whose config.json holds no names and values, but",
    ),
    (
        "config of nothing",
        lambda f: (f / "config.json").write_text("{}"),
        "model_type is None, which transformers does not",
    ),
    (
        "unknown type",
        lambda f: set_json(f, "config.json", model_type="llama9"),
        "whose model_type is 'llama9', which trans",
    ),
    (
        "code of its own",
        lambda f: set_json(f, "config.json", model_type="evil", auto_map=code(f)),
        "whose model_type is 'evil', which needs code of its own (['evil.Model', None], evil.Config, evil.Model). Code "
        "of a model's is never run (trust_remote_code is off): take a model that transformers has itself",
    ),
    (
        "an encoder",
        lambda f: set_json(f, "config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        "BertForMaskedLM, which writes no text: take a causal language model",
    ),
    (
        "quantized",
        lambda f: set_json(f, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantized by gptq, which cannot be trained: take the model that it was made of",
    ),
    ("no tokenizer", lambda f: [path.unlink() for path in f.glob("tok*")], "a model without a tokenizer: put its tok"),
    (
        "tokenizer cut off",
        lambda f: cut(f, "tokenizer.json", 500),
        "whose tokenizer.json cannot be read: EOF while parsing",
    ),
    (
        "tokenizer of nothing",
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "whose tokenizer.json cannot be read: ",
    ),
    (
        "another's tokenizer",
        lambda f: set_json(f, "config.json", vocab_size=100),
        "whose tokenizer has 753 tokens and whose config.json a vocab_size of 100: the tokenizer is another model's",
    ),
    ("no weights", lambda f: (f / _SAFE).unlink(), "a folder without weights: it has no *.safetensors"),
    (
        "pickled weights",
        pickled,
        "whose weights are pickled (pytorch_model.bin), which can run code and is never read: convert them to",
    ),
    ("weights cut off", lambda f: cut(f, _SAFE, -1000), "whose model.safetensors is cut off or damaged ("),
    ("weights of nothing", lambda f: cut(f, _SAFE, 0), "whose model.safetensors is cut off or damaged ("),
    (
        "a damaged header",
        lambda f: (f / _SAFE).write_bytes(b"\xff" * 99),
        "whose model.safetensors is cut off or damaged (",
    ),
    (
        "a shard missing",
        lambda f: (f / f"{_SAFE}.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}'),
        "of whose weights 1 files are missing, such as model-00002.safetensors",
    ),
]

# What only the weights tell, as they are loaded.
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
    ("config cut off", "{", _weights, "is an adapter, whose adapter_config.json cannot be read as JSON: "),
    ("config a list", [], _weights, "is an adapter, whose adapter_config.json holds no names and values, but '[]'"),
    ("no base", _PLAIN | {"base_model_name_or_path": None}, _weights, "an adapter that names no base: write which"),
    (
        "a number for a base",
        _PLAIN | {"base_model_name_or_path": 5},
        _weights,
        "an adapter that names no base: write which",
    ),
    (
        "no such base",
        _PLAIN | {"base_model_name_or_path": "/none"},
        _weights,
        "an adapter whose base is '/none': there is",
    ),
    (
        "itself for a base",
        _PLAIN | {"base_model_name_or_path": "{at}"},
        _weights,
        "an adapter too: merge that one first",
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
        "whose weights are pickled (adapter_model.bin), ",
    ),
    (
        "weights cut off",
        _PLAIN,
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"abc"),
        "whose adapter_model.safetensors is cut off or damaged (",
    ),
]

NAMES = [
    ("", "there is no such folder, and it is no name on the hub (owner/name)"),
    ("/none", "there is no such folder, and it is no name on the hub (owner/name)"),
    ("../none", "there is no such folder, and it is no name on the hub (owner/name)"),
    ("a/b/c", "there is no such folder, and it is no name on the hub (owner/name)"),
    ("$(touch pwned)", "there is no such folder, and it is no name on the hub (owner/name)"),
    ("x" * 5000, "there is no such folder, and it is no name on the hub (owner/name)"),
    ("http://host/v1", "the address of a server: it should be a folder, a URI such as s3://… or a hub name"),
    ("ftp://host/model", "a URI begins with one of file://, s3://, gs://, gcs://, abfs://, abfss://, hdfs://"),
    ("file:///none", "there is no such folder, and it is no name on the hub (owner/name)"),
    ("README.md", "a path without config.json or adapter_config.json"),
]
