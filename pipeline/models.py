"""Where a model is: a folder by path or URI, or a name on the Hugging Face hub.

A name travels as it is and becomes a folder on the machine that needs it. Left out: reading weights (`dpo/weights.py`).
"""

import functools
import os
import tempfile
from pathlib import Path

import pyarrow.fs as pafs

from pipeline.config import UserError

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles, no code


def locate(name: str) -> str:
    """A name that means the same in every process: a local folder by its full path."""
    return os.path.abspath(name) if os.path.isdir(name) else name


@functools.cache
def fetch(name: str) -> str:
    """A folder on this machine with the model: the path itself, or what a URI or the hub gives, fetched once."""
    if os.path.isdir(name):
        return name
    if "://" not in name:
        from huggingface_hub import snapshot_download

        return snapshot_download(name, allow_patterns=_FILES)
    fs, path = pafs.FileSystem.from_uri(name)
    if isinstance(fs, pafs.LocalFileSystem):
        return path
    folder = tempfile.mkdtemp(prefix="rondo-")
    pafs.copy_files(path, folder, source_filesystem=fs)
    return folder


def check(setting: str, name: str) -> None:
    """See that a model that the settings name is there.

    Raises:
        UserError: a path that is not there or holds no model, or a name that the hub does not give.
    """
    if "://" in name or Path(name, "config.json").is_file():
        return
    if Path(name).exists():
        raise UserError(f"{setting} is {name!r}, a path without config.json: it should be a Hugging Face model folder")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{setting} is {name!r}: there is no such folder, and it is no name on the hub (owner/name)")
    try:
        fetch(name)
    except Exception as error:  # offline, gated, misspelt: a dozen classes, one meaning
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{setting} is {name!r}: no such folder, and the hub did not give it ({reason})") from None
