"""Moves rows between tables with Ray Data, without bringing them to the driver.

Rows are written by the worker that made them; only counts reach the driver.
"""

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data import Dataset

from pipeline.config import UserError
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.tables import TableDraft

_PARTS_PER_TASK = 16  # parts that one task reads, one after the other


@dataclass(frozen=True)
class Written:
    """What was written to a table.

    Attributes:
        rows: number of rows, kept and skipped.
        tally: sums of the rows' tallies.
    """

    rows: int = 0
    tally: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Written") -> "Written":
        return Written(self.rows + other.rows, self.tally + other.tally)


def write_through(rows: Dataset, table: TableDraft, progress: Any = None) -> Dataset:
    """Write rows as they come, and pass on the kept ones as they are on disk.

    Args:
        rows: the rows of the table.
        table: the table to write.
        progress: a Ray handle of a `WriteProgress`, which counts the rows written; or None.
    """
    return rows.map_batches(
        _write_and_return, fn_args=(table.uri, table.attempt, progress), batch_format="pyarrow", batch_size=None
    )


def _write_and_return(rows: pa.Table, uri: str, attempt: str, progress: Any) -> pa.Table:
    kept = parts.write_part(rows, uri, attempt)
    if progress is not None:
        progress.add.remote(attempt, Written(rows.num_rows, parts.sum_tallies(rows)))
    return kept


class WriteProgress:
    """Counts what is written to the tables of a run, for a progress display. Runs as a Ray actor."""

    def __init__(self) -> None:
        self.written: dict[str, Written] = {}

    def add(self, attempt: str, written: Written) -> None:
        """Add rows that an attempt at a table (`TableDraft.attempt`) has written."""
        self.written[attempt] = self.written.get(attempt, Written()) + written

    def read(self, attempts: Sequence[str]) -> list[Written]:
        """What each of these attempts has written so far."""
        return [self.written.get(attempt, Written()) for attempt in attempts]


def write_rows(rows: Dataset | Iterable[pa.Table], table: TableDraft) -> Iterator[Written]:
    """Write the rows of a table.

    Args:
        rows: Arrow tables, which this process writes; or a dataset, whose pipeline then runs, and whose workers write
            the rows that they make.
        table: the table to write.

    Yields:
        what each part written holds.

    Raises:
        UserError: a worker raised one.
    """
    if not isinstance(rows, Dataset):
        for batch in rows:
            parts.write_part(batch, table.uri, table.attempt)
            yield Written(batch.num_rows, parts.sum_tallies(batch))
        return

    def run_pipeline() -> Iterator[dict[str, Any]]:
        counts = rows.map_batches(
            _write_and_count, fn_args=(table.uri, table.attempt), batch_format="pyarrow", batch_size=None
        )
        return counts.iter_rows()

    yield from (Written(row["rows"], Counter(json.loads(row["tally"]))) for row in _run_and_release(run_pipeline))


def _write_and_count(rows: pa.Table, uri: str, attempt: str) -> pa.Table:
    parts.write_part(rows, uri, attempt)
    return pa.table({"rows": [rows.num_rows], "tally": [json.dumps(parts.sum_tallies(rows))]})


def materialize(rows: Dataset) -> Dataset:
    """Run a dataset's pipeline to its end, so that its engines are free. Raises UserError as `write_rows` does."""
    return next(_run_and_release(lambda: iter([rows.materialize()])))


def _run_and_release(run_pipeline: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield what a pipeline yields. If it fails, release its engines, even if the caller keeps the exception.

    Engines end with the last reference to their pipeline. An exception that is kept would hold such references: its
    traceback refers to the frames it passed through, and it refers to the exceptions that caused it.

    Args:
        run_pipeline: makes a pipeline and runs it. The pipeline must have no other owner.
    """
    try:
        yield from run_pipeline()
        return
    except ray.exceptions.RayError as ray_error:
        error = _worker_user_error(ray_error) or ray_error.with_traceback(None)
        ray_error.__context__ = ray_error.__cause__ = None
    del run_pipeline
    gc.collect()
    raise error


def _worker_user_error(ray_error: ray.exceptions.RayError) -> UserError | None:
    """The UserError that a worker raised, if any. Ray Data only keeps its text."""
    match = re.search(rf"\b{UserError.__module__}\.UserError: (.+)", str(ray_error))
    return UserError(match[1]) if match else None


def stream_parts(
    uri: str, names: Sequence[str], splits: Sequence[str] = (), excluded_ids: pa.ChunkedArray | None = None
) -> Dataset | None:
    """Stream the kept rows of parts.

    Args:
        uri: the table's folder.
        names: the parts. Those of skipped rows are left out.
        splits: the splits to stream; empty: all.
        excluded_ids: ids of articles to leave out.

    Returns:
        a dataset, or None if no part has kept rows.
    """
    kept_names = [name for name in names if not name.startswith(f"{parts.SKIPPED}/")]
    if not kept_names:
        return None
    tasks = [{"parts": kept_names[i : i + _PARTS_PER_TASK]} for i in range(0, len(kept_names), _PARTS_PER_TASK)]
    excluded_ref = ray.put(excluded_ids) if excluded_ids is not None and len(excluded_ids) else None
    # One block per task, so that each task is one list of parts. Parts of a table have about the same size.
    return ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _read_parts, fn_args=(uri, splits, excluded_ref), batch_format="pyarrow", batch_size=None
    )


def _read_parts(
    tasks: pa.Table, uri: str, splits: Sequence[str], excluded_ref: ray.ObjectRef | None
) -> Iterator[pa.Table]:
    excluded_ids = None if excluded_ref is None else ray.get(excluded_ref)
    has_rows = False
    for name in (name for task in tasks["parts"].to_pylist() for name in task):
        table = filter_rows(parts.read_part(uri, name), splits, excluded_ids)
        if table.num_rows:
            has_rows = True
            yield table
    if not has_rows:
        yield table  # empty, but it tells Ray Data the columns


def filter_rows(table: pa.Table, splits: Sequence[str], excluded_ids: pa.ChunkedArray | None) -> pa.Table:
    """The rows of some splits (empty: of all), without those of the excluded articles."""
    if splits:
        table = table.filter(pa.compute.is_in(table["split"], value_set=pa.array(splits)))
    if excluded_ids is not None and len(excluded_ids):
        table = table.filter(pa.compute.invert(pa.compute.is_in(table["article_id"], value_set=excluded_ids)))
    return table


def stream_table(ledger: Ledger, table: Artifact) -> Dataset | None:
    """Stream the kept rows of a finished table. Returns None if it has no kept rows."""
    return stream_parts(f"{ledger.root}/{table.address}", table.record["parts"])
