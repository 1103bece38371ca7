"""Rows of a file or a dataset, as they are: JSONL, a JSON array or Parquet by path or URI, or a Hugging Face dataset.

A line that cannot be read becomes a row that says so, and nothing else; a file that cannot be read is refused in one
line. Left out: which columns there should be, and what is in them (`articles.py`, `own_pairs.py`).
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
from pipeline.storage.files import open_location

UNREADABLE = "unreadable"  # the one key of a row that could not be read; its value is the reason
_ROWS = 1000  # rows of Parquet in memory at a time
_LINES = (".jsonl", ".jsonl.gz", ".ndjson")


def read_rows(place: str, setting: str, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file or dataset, in order.

    Args:
        place: a path or URI that ends in .jsonl, .json or .parquet; or `hf:OWNER/NAME[/CONFIG][:SPLIT]`.
        setting: which names the place: what an error calls it by.
        columns: the ones that are needed, where leaving out others saves reading; None: all.

    Yields:
        column name -> value; of a line that cannot be read, `UNREADABLE` -> reason.

    Raises:
        UserError: no such file or dataset, or one that cannot be read.
    """
    if place.startswith("hf:"):
        yield from _hugging_face(place[3:], setting)
        return
    try:
        fs, inner = open_location(place)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{setting} is {place!r:.200}, which cannot be opened: {_line(error)}") from None
    try:
        kind = fs.get_file_info(inner).type
        if kind == pafs.FileType.Directory:
            raise UserError(f"{setting} is {place!r}, a folder: name one file in it")
        if kind == pafs.FileType.Unknown:
            raise UserError(f"{setting} is {place!r}, which is no regular file")
        if kind != pafs.FileType.File:
            raise FileNotFoundError
        if place.endswith(_LINES):
            with fs.open_input_stream(inner) as stream:
                yield from _json_lines(_text(io.BufferedReader(stream), place))
        elif place.endswith(".json"):
            with fs.open_input_stream(inner) as stream:
                yield from _json(_text(io.BufferedReader(stream), place).read(), place)
        elif place.endswith(".parquet"):
            with fs.open_input_file(inner) as stream:
                yield from _parquet(pq.ParquetFile(stream), columns)
        else:
            raise UserError(f"{setting} is {place!r}: it should end in .jsonl, .json or .parquet, or begin with hf:")
    except FileNotFoundError:
        raise UserError(f"{setting} is {place!r}, and there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place:.200} cannot be read: {_line(error)}; is it cut off or damaged?") from None


def replace_surrogates(text: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 file can hold and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]


def _text(stream: io.BufferedReader, place: str) -> io.BufferedReader:
    """The stream at its first letter. What is no UTF-8 text by its first bytes would be a riddle line by line."""
    head = stream.peek(4)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{place} is UTF-16 text: save it as UTF-8")
    if head.startswith((b"\x1f\x8b", b"PAR1")):
        what, ending = ("compressed", ".jsonl.gz") if head.startswith(b"\x1f\x8b") else ("a Parquet file", ".parquet")
        raise UserError(f"{place} is {what}: give it a name that ends in {ending}")
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    return stream


def _json_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
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
            yield _object(row)


def _json(text: bytes, place: str) -> Iterator[dict[str, Any]]:
    """An array of rows; or one row a line, which many a .json file holds."""
    if not text.lstrip().startswith(b"["):
        yield from _json_lines(text.splitlines())
        return
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} cannot be read as JSON: {_line(error)}; is it cut off or damaged?") from None
    yield from map(_object, found)


def _object(row: Any) -> dict[str, Any]:
    return row if isinstance(row, dict) else {UNREADABLE: "not a JSON object"}


def _parquet(file: pq.ParquetFile, columns: Iterable[str] | None) -> Iterator[dict[str, Any]]:
    needed = None if columns is None else set(columns)
    # Where one is missing all are read: whoever says so also says which there are.
    if needed is not None and not needed <= set(file.schema_arrow.names):
        needed = None
    for batch in file.iter_batches(_ROWS, columns=None if needed is None else sorted(needed)):
        yield from batch.to_pylist()


def _hugging_face(name: str, setting: str) -> Iterator[dict[str, Any]]:
    """`NAME`, `NAME/CONFIG` (after an owner) and `:SPLIT`, as in `abisee/cnn_dailymail/3.0.0:train`.

    Never a folder here, for which the client would take the name first; nor a script, which it no longer runs.
    """
    path, _, split = name.partition(":")
    owner_and_name, config = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:]) or None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", owner_and_name, re.ASCII):
        raise UserError(
            f"{setting} is 'hf:{name}': it should be hf:OWNER/NAME, hf:OWNER/NAME/CONFIG, or these and :SPLIT"
        )
    if os.path.exists(owner_and_name):
        raise UserError(
            f"{setting} is 'hf:{name}', and {owner_and_name} is a folder here: name one file in it, without hf:"
        )
    from datasets import load_dataset

    try:
        yield from load_dataset(owner_and_name, config, split=split or "train", streaming=True)
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise UserError(f"{setting} is 'hf:{name}', which could not be loaded: {_line(error)}") from None
