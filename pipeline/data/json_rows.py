"""Reads rows from JSON: one object per line, an array of objects, or an object with one list of objects.

Lines are read one by one, so a file of any size fits. An array, and an object over several lines, are read as a whole.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from pipeline.config import UserError
from pipeline.config.messages import one_line

UNREADABLE = "unreadable"  # the only key of a row that could not be read; its value is the reason
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Row = dict[str, Any]


def read_json_lines(lines: Iterable[bytes], location: str) -> Iterator[Row]:
    """Read one row from each line. Blank lines are no rows.

    A byte order mark may begin any line: files that were put together have one where each of them began.

    Raises:
        UserError: the first line begins an array, or an object over several lines.
    """
    is_first = True
    for line in lines:
        if not (line := line.removeprefix(BYTE_ORDER_MARK)).strip():
            continue
        row = _parse(line)
        is_array = isinstance(row, list) and row and isinstance(row[0], dict)
        if is_first and (is_array or line.strip() in (b"{", b"[")):
            raise UserError(
                f"{location} holds one JSON value, and not one object per line: give it a name that ends in .json"
            )
        is_first = False
        yield _as_row(row)


def read_json(stream: BinaryIO, location: str, is_row: Callable[[Row], bool]) -> Iterator[Row]:
    """Read an array of rows; an object with one list of rows, such as `{"data": [...]}`; or one row per line.

    Args:
        stream: the file, as bytes.
        location: the file's name, for messages.
        is_row: whether an object is a row itself, although one of its values is a list of objects.

    Raises:
        UserError: the file is not JSON, or its object has several lists of rows.
    """
    first_line = next((line for line in stream if line.strip()), b"")
    is_array = first_line.lstrip().startswith(b"[")
    row = None if is_array else _parse(first_line)
    second_line = next((line for line in stream if line.strip()), b"")
    if isinstance(row, dict) and UNREADABLE not in row and second_line:
        yield row
        yield from read_json_lines(itertools.chain([second_line], stream), location)
        return
    text = first_line + second_line + stream.read()
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        if not is_array and first_line.strip() != b"{":
            yield from read_json_lines(text.splitlines(), location)
            return
        reason = one_line(error, limit=300).rstrip(".")
        raise UserError(f"{location} cannot be read as JSON: {reason}; is it cut off or damaged?") from None
    if isinstance(value, dict):
        value = _rows_of_object(value, location, is_row)
    yield from map(_as_row, value if isinstance(value, list) else [value])


def _rows_of_object(value: Row, location: str, is_row: Callable[[Row], bool]) -> list[Row]:
    """The one list of objects that an object has; or the object itself, if it is a row or has no such list."""
    lists = {
        name: rows
        for name, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    }
    if not lists or is_row(value):
        return [value]
    if len(lists) > 1:
        raise UserError(
            f"{location} is an object with several lists of rows ({', '.join(lists)}): save one of them as a file"
        )
    return next(iter(lists.values()))


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return {UNREADABLE: "not UTF-8"}
    except ValueError:
        return {UNREADABLE: "not JSON"}
    except RecursionError:
        return {UNREADABLE: "nested too deep"}


def _as_row(value: Any) -> Row:
    return value if isinstance(value, dict) else {UNREADABLE: "not a JSON object"}
