"""Streams rows between tables."""

import gc
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data import Dataset

from pipeline.config import UserError
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row
from pipeline.storage.tables import Draft

_PARTS_A_TASK = 16  # read by one task, one after the other


def write_through(rows: Dataset, table: Draft, seen: Any = None) -> Dataset:
    """Write rows as they come, and pass on those that were kept, as they are on disk.

    Args:
        seen: a handle of `Seen`, which is told how many rows were written; None: nobody is.
    """
    return rows.map_batches(_tap, fn_args=(table.uri, table.attempt, seen), batch_format="pyarrow", batch_size=None)


def _tap(rows: pa.Table, uri: str, attempt: str, seen: Any) -> pa.Table:
    kept = parts.write_part(rows, uri, attempt)
    if seen is not None:
        seen.add.remote(uri, rows.num_rows)
    return kept


class WriteProgress:
    """How many rows of each table were written, for whoever shows it."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    def add(self, uri: str, count: int) -> None:
        self.rows[uri] += count

    def read(self) -> dict[str, int]:
        return dict(self.rows)


def write_rows(rows: Dataset | Iterable[pa.Table], table: Draft) -> Iterator[int]:
    """Write the rows of a table: those of a dataset where they are made, which makes its pipeline run, or tables.

    Yields:
        how many rows were written, part by part.

    Raises:
        UserError: one was raised by a worker.
    """
    if not isinstance(rows, Dataset):
        for some in rows:
            yield _write(some, table.uri, table.attempt)["rows"][0].as_py()
        return

    def counts() -> Iterator[Row]:
        how: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
        return rows.map_batches(_write, fn_args=(table.uri, table.attempt), **how).iter_rows()

    yield from (row["rows"] for row in _played(counts))


def materialize(rows: Dataset) -> Dataset:
    """The rows, all of them there, and the engines gone that made them. Raises UserError as `write` does."""
    return next(_played(lambda: iter([rows.materialize()])))


def _played(play: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What comes of a pipeline that `play` makes and runs, and its error without what keeps its engines.

    They go with the last reference to it, and an error that is kept keeps those of its frames.
    """
    try:
        yield from play()
        return
    except ray.exceptions.RayError as error:
        # Of an error in a worker Ray Data brings the text alone.
        told = re.search(rf"\b{UserError.__module__}\.UserError: (.+)", str(error))
        failed = UserError(told[1]) if told else error.with_traceback(None)
        error.__context__ = error.__cause__ = None
    del play
    gc.collect()
    raise failed


def _write(rows: pa.Table, uri: str, attempt: str) -> pa.Table:
    parts.write_part(rows, uri, attempt)
    return pa.table({"rows": [rows.num_rows]})


def stream_parts(
    uri: str, names: Sequence[str], split: str | None, but: pa.ChunkedArray | None = None
) -> Dataset | None:
    """The kept rows of some parts, of one split or all, without those of articles in `but`; None of no parts."""
    kept = [name for name in names if not name.startswith(f"{parts.SKIPPED}/")]
    if not kept:
        return None
    some = [{"parts": kept[i : i + _PARTS_A_TASK]} for i in range(0, len(kept), _PARTS_A_TASK)]
    without = ray.put(but) if but is not None and len(but) else None
    # One task a row: the parts of a table are of one size, more or less.
    return ray.data.from_items(some, override_num_blocks=len(some)).map_batches(
        _read, fn_args=(uri, split, without), batch_format="pyarrow", batch_size=None
    )


def _read(some: pa.Table, uri: str, split: str | None, without: ray.ObjectRef | None) -> Iterator[pa.Table]:
    but = None if without is None else ray.get(without)
    left = 0
    for name in (name for row in some["parts"].to_pylist() for name in row):
        table = filter_rows(parts.read_part(uri, name), split, but)
        left += table.num_rows
        if table.num_rows:
            yield table
    if not left:
        yield table  # of no rows: a task has to say what columns there are


def filter_rows(table: pa.Table, split: str | None, but: pa.ChunkedArray | None) -> pa.Table:
    """The rows of one split or all, without those of articles in `but`."""
    if split is not None:
        table = table.filter(pa.compute.equal(table["split"], split))
    if but is not None and len(but):
        table = table.filter(pa.compute.invert(pa.compute.is_in(table["article_id"], value_set=but)))
    return table


def stream_table(ledger: Ledger, table: Artifact, split: str | None = None) -> Dataset | None:
    """The kept rows of a finished table; None if there are none."""
    return stream_parts(f"{ledger.root}/{table.address}", table.record["parts"], split)
