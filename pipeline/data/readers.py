"""Reads rows as they are from a JSONL, JSON or Parquet file, by path or URI, or from a Hugging Face dataset.

A line that cannot be read becomes a row that holds only the reason. A file that cannot be read raises a UserError of
one line. Which columns are needed, and what they must hold, is checked in `stages/articles.py` and
`stages/external_pairs.py`.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.storage.files import open_location

UNREADABLE = "unreadable"  # the only key of a row that could not be read; its value is the reason
_PARQUET_BATCH = 1000  # rows in memory at a time
_JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson")


def read_rows(location: str, setting: str, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read the rows of a file or dataset, in order.

    Args:
        location: a path or URI that ends in .jsonl, .json or .parquet; or `hf:OWNER/NAME[/CONFIG][:SPLIT]`.
        setting: name of the setting that holds the location, for error messages.
        columns: the needed columns, where reading only these saves time. None: all.

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
        yield from _read_file(fs, path, location, setting, columns)
    except FileNotFoundError:
        raise UserError(f"{setting} is {location!r}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{location:.200} cannot be read: {_reason(error)}; is it cut off or damaged?") from None


def replace_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs by "?". JSON can hold them, but no UTF-8 file and no tokenizer can."""
    return text.encode("utf-8", "replace").decode()


def _reason(error: Exception) -> str:
    return one_line(error, limit=300).rstrip(".")


def _read_file(
    fs: pafs.FileSystem, path: str, location: str, setting: str, columns: Iterable[str] | None
) -> Iterator[dict[str, Any]]:
    file_type = fs.get_file_info(path).type
    if file_type == pafs.FileType.Directory:
        raise UserError(f"{setting} is {location!r}, a folder: name one file in it")
    if file_type == pafs.FileType.Unknown:
        raise UserError(f"{setting} is {location!r}, which is not a regular file: name a regular file")
    if file_type != pafs.FileType.File:
        raise FileNotFoundError
    if location.endswith(_JSON_LINES):
        with fs.open_input_stream(path) as stream:
            yield from _read_json_lines(_skip_bom(io.BufferedReader(stream), location))
    elif location.endswith(".json"):
        with fs.open_input_stream(path) as stream:
            yield from _read_json(_skip_bom(io.BufferedReader(stream), location).read(), location)
    elif location.endswith(".parquet"):
        with fs.open_input_file(path) as stream:
            yield from _read_parquet(pq.ParquetFile(stream), columns)
    else:
        raise UserError(f"{setting} is {location!r}: it should end in .jsonl, .json or .parquet, or begin with hf:")


def _skip_bom(stream: io.BufferedReader, location: str) -> io.BufferedReader:
    """Skip a byte order mark, and refuse a file that is not UTF-8 text by its first bytes.

    Such a file would otherwise give one unreadable row per line, which says nothing about the cause.
    """
    head = stream.peek(4)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{location} is UTF-16 text: save it as UTF-8")
    if head.startswith(b"\x1f\x8b"):
        raise UserError(f"{location} is compressed: give it a name that ends in .jsonl.gz")
    if head.startswith(b"PAR1"):
        raise UserError(f"{location} is a Parquet file: give it a name that ends in .parquet")
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    return stream


def _read_json_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.strip():
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError:
                row = {UNREADABLE: "not UTF-8"}
            except ValueError:
                row = {UNREADABLE: "not JSON"}
            except RecursionError:
                row = {UNREADABLE: "nested too deep"}
            yield _check_is_object(row)


def _read_json(text: bytes, location: str) -> Iterator[dict[str, Any]]:
    """Read an array of rows; or one row per line, as many files named .json hold."""
    if not text.lstrip().startswith(b"["):
        yield from _read_json_lines(text.splitlines())
        return
    try:
        rows = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location} cannot be read as JSON: {_reason(error)}; is it cut off or damaged?") from None
    yield from map(_check_is_object, rows)


def _check_is_object(row: Any) -> dict[str, Any]:
    return row if isinstance(row, dict) else {UNREADABLE: "not a JSON object"}


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
