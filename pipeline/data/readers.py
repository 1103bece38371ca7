"""Reads rows as they are from a file, a folder of .txt files or a Hugging Face dataset, by path, URI or name.

`json_rows.py` reads JSON, and `text_rows.py` CSV, TSV and .txt files. Parquet and the hub are read here. A line that
cannot be read becomes a row that holds only the reason. A file that cannot be read raises a UserError of one line.
Which columns are needed, and what they must hold, is checked in `stages/articles.py` and `stages/external_pairs.py`.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.data.json_rows import UNREADABLE as UNREADABLE
from pipeline.data.json_rows import read_json, read_json_lines
from pipeline.data.text_rows import read_table, read_text_folder
from pipeline.storage.files import open_location

_PARQUET_BATCH = 1000  # rows in memory at a time
_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_FIRST_BYTES = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\x04\x22\x4d\x18": ".lz4"}
_KNOWN_KINDS = (
    "it should end in .jsonl, .ndjson, .json, .csv or .tsv, each with or without .gz, .zst, .bz2 or .lz4, or in "
    ".parquet; be a folder of .txt files; or begin with hf:"
)


def read_rows(
    location: str,
    setting: str,
    columns: Iterable[str] | None = None,
    is_row: Callable[[dict[str, Any]], bool] = lambda row: False,
) -> Iterator[dict[str, Any]]:
    """Read the rows of a file, a folder or a dataset, in order.

    Args:
        location: a path or URI of a kind that `_KNOWN_KINDS` lists; or `hf:OWNER/NAME[/CONFIG][:SPLIT]`.
        setting: name of the setting that holds the location, for error messages.
        columns: the needed columns, where reading only these saves time. None: all.
        is_row: whether a .json file that is one object is a row, and not an object with a list of rows.

    Yields:
        column name -> value. For a line that cannot be read: `UNREADABLE` -> reason.

    Raises:
        UserError: there is no such file or dataset, or it cannot be read.
    """
    if location.startswith("hf:"):
        yield from _read_hugging_face(location[3:], setting)
        return
    try:
        fs, path = open_location(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{setting} is {location!r:.200}, which cannot be opened: {_reason(error)}") from None
    try:
        yield from _read_file(fs, path, location, setting, columns, is_row)
    except FileNotFoundError:
        looked_at = "" if path == location or "://" in location else f" ({path})"
        raise UserError(f"{setting} is {location!r}: no such file{looked_at}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{location:.200} cannot be read: {_reason(error)}; is it cut off or damaged?") from None


def has_only_text(location: str) -> bool:
    """Whether all values of a file are text, so that a number has no type (CSV, TSV)."""
    return _kind(urlsplit(location).path if "://" in location else location)[0] in _DELIMITERS


def replace_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs by "?". JSON can hold them, but no UTF-8 file and no tokenizer can."""
    return text.encode("utf-8", "replace").decode()


def _reason(error: Exception) -> str:
    return one_line(error, limit=300).rstrip(".")


def _kind(location: str) -> tuple[str, str]:
    """The endings of a name that tell the kind of file and its compression, as in (".jsonl", ".gz"), in small letters.

    An ending that is missing is empty.
    """
    stem, ending = os.path.splitext(location.lower())
    return (os.path.splitext(stem)[1], ending) if ending in _COMPRESSIONS else (ending, "")


def _read_file(
    fs: pafs.FileSystem,
    path: str,
    location: str,
    setting: str,
    columns: Iterable[str] | None,
    is_row: Callable[[dict[str, Any]], bool],
) -> Iterator[dict[str, Any]]:
    file_type = fs.get_file_info(path).type
    if file_type == pafs.FileType.Directory:
        yield from read_text_folder(fs, path, location, setting)
        return
    if file_type == pafs.FileType.Unknown:
        raise UserError(f"{setting} is {location!r}, which is not a regular file: name a regular file")
    if file_type != pafs.FileType.File:
        raise FileNotFoundError
    kind, ending = _kind(path)
    if kind == ".parquet" and not ending:
        with fs.open_input_file(path) as stream:
            yield from _read_parquet(pq.ParquetFile(stream), columns)
        return
    if kind not in (*_JSON_LINES, ".json", *_DELIMITERS):
        raise UserError(f"{setting} is {location!r}: {_KNOWN_KINDS}")
    with fs.open_input_stream(path, compression=_COMPRESSIONS.get(ending)) as stream:
        content = _check_text(io.BufferedReader(stream), location, kind)
        if kind in _DELIMITERS:
            yield from read_table(content, location, _DELIMITERS[kind])
        elif kind == ".json":
            yield from read_json(content, location, is_row)
        else:
            yield from read_json_lines(content, location)


def _check_text(stream: io.BufferedReader, location: str, kind: str) -> io.BufferedReader:
    """Skip a byte order mark, and refuse a file that is not UTF-8 text by its first bytes.

    Such a file would otherwise give one unreadable row per line, which says nothing about the cause.
    """
    head = stream.peek(4)[:4]
    if ending := next((ending for first, ending in _FIRST_BYTES.items() if head.startswith(first)), None):
        raise UserError(f"{location} is compressed: give it a name that ends in {kind}{ending}")
    if head == b"PK\x03\x04":
        raise UserError(f"{location} is a zip archive, as a spreadsheet is: unpack it, or save it as CSV")
    if head == b"PAR1":
        raise UserError(f"{location} is a Parquet file: give it a name that ends in .parquet")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise UserError(f"{location} is UTF-16 text: save it as UTF-8")
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    return stream


def _read_parquet(file: pq.ParquetFile, columns: Iterable[str] | None) -> Iterator[dict[str, Any]]:
    needed = None if columns is None else set(columns)
    # If a needed column is missing, read all: the caller's error message then names the columns that exist.
    if needed is not None and not needed <= set(file.schema_arrow.names):
        needed = None
    for batch in file.iter_batches(_PARQUET_BATCH, columns=None if needed is None else sorted(needed)):
        yield from batch.to_pylist()


def _read_hugging_face(name: str, setting: str) -> Iterator[dict[str, Any]]:
    """Read `NAME`, `NAME/CONFIG` (if NAME has an owner) and `:SPLIT`, as in `abisee/cnn_dailymail/3.0.0:train`.

    A folder of that name here is refused, because the client would read the folder instead of the hub. Datasets with
    a loading script are refused by the client.
    """
    path, _, split = name.partition(":")
    owner_and_name, config = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:]) or None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", owner_and_name, re.ASCII):
        raise UserError(
            f"{setting} is 'hf:{name}': it should be hf:OWNER/NAME or hf:OWNER/NAME/CONFIG, and may end in :SPLIT"
        )
    if os.path.exists(owner_and_name):
        raise UserError(
            f"{setting} is 'hf:{name}', and {owner_and_name} is a folder here: name one file in it, without hf:"
        )
    from datasets import load_dataset

    try:
        yield from load_dataset(owner_and_name, config, split=split or "train", streaming=True)
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise UserError(f"{setting} is 'hf:{name}', which cannot be loaded: {_reason(error)}") from None
