"""Turns the ids and groups of articles, as files hold them, into text that is the same for every kind of file.

A column of integers with one null becomes floats in Arrow, pandas and JSON. If `0.0` were another id than `0`, every
article would get another id, and some held-out articles would become training ones.
"""

import re
from decimal import Decimal
from typing import Any
from uuid import UUID

_LARGEST_FLOAT = 2**53  # beyond it, several whole numbers have the same float
_UUID_BYTES = 16


class UnusableId(ValueError):
    """A value that cannot be an id. The message says why, as in "of a wrong type"."""


def id_text(value: Any, all_text: bool = False) -> str | None:
    """The text of an id, a group or a person's name.

    Text stays as it is. A whole number is its digits, as an integer, a float or a decimal: `0.0` is `0`. 16 bytes are a
    UUID. Fractions, dates and UUIDs are as Python writes them.

    Args:
        value: a cell of a table, or a value of a JSON object.
        all_text: the file has no numbers, only text (CSV). `0.0` is then a whole number too.

    Returns:
        the text; None for a missing value: null, NaN or empty text.

    Raises:
        UnusableId: it is a float that stands for several whole numbers, or not of a type that names something.

    >>> [id_text(value) for value in (7, 7.0, "7.0", 7.5, float("nan"))]
    ['7', '7', '7.0', '7.5', None]
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a scalar of numpy
    if value is None or value == "" or value != value:  # NaN, which is not equal to itself, is a missing number
        return None
    if isinstance(value, str):
        return value[:-2] if all_text and re.fullmatch(r"-?[0-9]+\.0", value) else value
    if isinstance(value, bytes) and len(value) == _UUID_BYTES:
        return str(UUID(bytes=value))
    if isinstance(value, bool | bytes | list | dict):
        raise UnusableId("of a wrong type")
    if (isinstance(value, float) and abs(value) > _LARGEST_FLOAT) or value in (Decimal("inf"), Decimal("-inf")):
        raise UnusableId("too large for a float: beyond 2**53 it stands for several whole numbers")
    if isinstance(value, float | Decimal) and value == int(value):
        return str(int(value))
    return str(value)
