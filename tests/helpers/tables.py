"""Writes tables as a run does, and reads a run's tables and records back."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import streams, tables


def write_table(parts: Iterable[pa.Table], uri: str) -> dict:
    """Write Arrow tables as one table of a run; gives the fields that its record would have."""
    begun = tables.begin_table(uri, "written by a test")
    for _ in streams.write_rows(parts, begun):
        pass
    return tables.finish_table(begun, expected=None)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the Parquet files in a folder, in the order of the files' names."""
    parts = sorted(Path(folder).glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]


def read_records(run: Path) -> dict[str, dict[str, Any]]:
    """Each record.json of a run by its artifact's address."""
    return {str(path.parent.relative_to(run)): json.loads(path.read_text()) for path in run.rglob("record.json")}
