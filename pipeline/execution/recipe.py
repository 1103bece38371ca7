"""What a path or a name holds, as a short fingerprint: a recipe that named files by path alone would miss their change.

Of a function of the user's, `module:function`, it is its module's file: what it calls there counts too.

Cheap on purpose: sizes, and the first and the last MiB of each file, so that a 100 GB model costs a few reads. The
trainer's own check of weights (`dpo/weights.digest`) reads every byte.
"""

import functools
import hashlib
import json
import re

import pyarrow.fs as pafs

from pipeline.judging.preference import source_file
from pipeline.storage.files import open_location

_MIB = 1 << 20


@functools.cache
def fingerprint(place: str | None) -> str | None:
    """16 hexadecimal digits of a file's or a folder's contents; None for a name on a hub, or for nothing."""
    if place is None or place.startswith("hf:"):
        return None
    if re.fullmatch(r"[\w.]+:\w+", place):
        return fingerprint(source_file(place))
    fs, path = open_location(place)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        return None
    files = [info] if info.type == pafs.FileType.File else fs.get_file_info(pafs.FileSelector(path))
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.base_name):
        if file.type == pafs.FileType.File and file.base_name != "record.json":
            digest.update(f"{file.base_name} {file.size}\n".encode())
            with fs.open_input_file(file.path) as stream:
                head = stream.read(_MIB)
                digest.update(head)
                stream.seek(max(0, file.size - _MIB))
                digest.update(stream.read(_MIB))
            if file.base_name == "adapter_config.json":  # an adapter is nothing without its base
                digest.update(f"{fingerprint(json.loads(head).get('base_model_name_or_path'))}\n".encode())
    return digest.hexdigest()[:16]
