"""Reads rows from files of text: tables with a header (CSV, TSV), and folders in which each .txt file is an article.

All values are text. A row is in memory at a time, so a table of any size fits.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.data.json_rows import BYTE_ORDER_MARK, UNREADABLE

Row = dict[str, Any]

_LARGEST_CELL = 1 << 26  # characters; the csv module's own limit is shorter than a long article
_NOT_UTF8 = {UNREADABLE: "not UTF-8"}


def read_table(stream: BinaryIO, location: str, delimiter: str) -> Iterator[Row]:
    """Read a table whose first row names the columns, as RFC 4180 describes it.

    Raises:
        UserError: the columns are separated by another character, or two have the same name.
    """
    csv.field_size_limit(_LARGEST_CELL)
    # Bytes that are not UTF-8 become halves of surrogate pairs, which no UTF-8 text has, and only their row is lost.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    cells = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(cells, [])
    except csv.Error as error:
        raise UserError(f"{location} has a header that cannot be read: {error}") from None
    _check_header(header, location, delimiter)
    while True:
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            yield {UNREADABLE: f"not a row of a table: {error}"}
            continue
        if row:
            yield _as_row(header, row)


def _check_header(header: list[str], location: str, delimiter: str) -> None:
    others = [other for other in (",", ";", "\t") if other != delimiter]
    if len(header) == 1 and (other := next((other for other in others if other in header[0]), None)):
        kind = "tabs" if delimiter == "\t" else "commas"
        raise UserError(f"{location} has columns separated by {other!r}: save it with {kind}")
    if repeated := [name for i, name in enumerate(header) if name in header[:i]]:
        raise UserError(f"{location} has two columns called {repeated[0]!r}: rename one of them")


def _as_row(header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return {UNREADABLE: "not as many cells as the header has names"}
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return dict(_NOT_UTF8)
    return dict(zip(header, cells, strict=True))


def read_text_folder(fs: pafs.FileSystem, folder: str, location: str, setting: str) -> Iterator[Row]:
    """Read the .txt files of a folder, in the order of their names.

    Hidden files are ignored.

    Yields:
        `id`, the file's name without .txt, and `text`.

    Raises:
        UserError: the folder has no .txt file, or anything else beside them.
    """
    entries = sorted(fs.get_file_info(pafs.FileSelector(folder)), key=lambda entry: entry.base_name)
    entries = [entry for entry in entries if not entry.base_name.startswith(".")]
    files = [entry for entry in entries if entry.is_file and entry.base_name.lower().endswith(".txt")]
    if not files:
        raise UserError(f"{setting} is {location!r}, a folder: name one file in it, or a folder of .txt files")
    if others := [entry.base_name for entry in entries if entry not in files]:
        raise UserError(
            f"{setting} is {location!r}, a folder of .txt files that also has {', '.join(others[:3])}: name a folder "
            "that has only .txt files, one for each article, or name one file"
        )
    for file in files:
        yield {"id": file.base_name[: -len(".txt")]} | _read_text(fs, file.path)


def _read_text(fs: pafs.FileSystem, path: str) -> Row:
    try:
        with fs.open_input_stream(path, compression=None) as stream:
            content = stream.read()
    except (pa.ArrowException, OSError):
        return {UNREADABLE: "a file that cannot be read"}
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return {UNREADABLE: "UTF-16 text"}
    try:
        text = content.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError:
        return dict(_NOT_UTF8)
    return {"text": text.replace("\r\n", "\n")}
