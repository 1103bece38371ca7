"""Tables: how rows stream from one to the next, and when what is written is the whole table.

Rows are written where they are made, by whichever Ray worker has them; only counts come to the driver. A table that
was cut off is gone on with from the parts that are there. Left out: what a part is (`parts.py`), what a table is made
of, and when (`run.py`).
"""

import gc
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

from pipeline import parts
from pipeline.config import UserError
from pipeline.ledger import Artifact, Ledger
from pipeline.rows import Row

_PARTS_A_TASK = 16  # read by one task, one after the other


@dataclass(frozen=True)
class Draft:
    """A table that is being made.

    Attributes:
        uri: of the table.
        attempt: names what this process and its workers write. Workers outlive a driver that was killed; what they
            still write is not among what its successor takes for its own.
        adopted: parts that earlier attempts wrote.
        ids: of the articles in those.
        dropped: how many of their parts could not be used, and were removed.
    """

    uri: str
    attempt: str
    adopted: tuple[str, ...] = ()
    ids: pa.ChunkedArray = field(default_factory=lambda: pa.chunked_array([], pa.string()))
    dropped: int = 0


def draft(uri: str, attempt: str, within: pa.ChunkedArray | None = None) -> Draft:
    """Begin a table, or go on with one that was cut off.

    Its damaged parts are removed, and their articles come again.

    Args:
        within: the ids that the table before has so far, if it is being made too. A part of other articles is removed:
            it was made of rows that are there no more.
    """
    found = parts.names(uri)
    good, ids, bad = parts.sound(uri, found["parts"], within)
    parts.remove(uri, [*found["leavings"], *bad])
    return Draft(uri, attempt, tuple(good), ids, len(bad))


def finish(table: Draft, expected: dict[str, int] | None) -> dict[str, Any] | None:
    """What the record of a finished table says; None if it has not each expected article exactly once.

    Args:
        expected: by split, the sum of the article ids' hashes (`parts.Counts.ids`) of the table that it is made
            from; None: not known.

    Returns:
        counts `in`, `kept`, `skipped` by reason, the sums of what the rows tallied, the `ids` of the kept ones as
        sums, the names of the `parts` that are the table, and `resumed`, how many rows earlier attempts had made.
        Rows that went into another row are tallied as `merged`, and counted by `in`.
    """
    found = parts.names(table.uri)
    adopted = set(table.adopted)
    mine = [name for name in found["parts"] if name in adopted or parts.is_of(name, table.attempt)]
    # A part that a worker of a dead driver wrote too late, or that a task which died did not finish, is none of ours.
    parts.remove(table.uri, [*found["leavings"], *sorted(set(found["parts"]) - set(mine))])
    if missing := adopted - set(mine):
        raise UserError(f"{len(missing)} parts of {table.uri} have vanished while it was made: run it again")
    total = parts.count(table.uri, mine)
    if expected is not None and total.ids != Counter(expected):
        return None
    return {
        "in": total.rows + total.tally["merged"],
        "kept": total.kept,
        "skipped": dict(total.skipped.most_common()),
        "tally": dict(sorted(total.tally.items())),
        "ids": dict(sorted(total.kept_ids.items())),
        "parts": [name for name in mine if not name.startswith(f"{parts.SKIPPED}/")],
        "resumed": parts.count(table.uri, table.adopted).rows,
    }


def tap(rows: Dataset, table: Draft, seen: Any = None) -> Dataset:
    """Write rows as they come, and pass on those that were kept, as they are on disk.

    Args:
        seen: a handle of `Seen`, which is told how many rows were written; None: nobody is.
    """
    return rows.map_batches(_tap, fn_args=(table.uri, table.attempt, seen), batch_format="pyarrow", batch_size=None)


def _tap(rows: pa.Table, uri: str, attempt: str, seen: Any) -> pa.Table:
    kept = parts.write(rows, uri, attempt)
    if seen is not None:
        seen.add.remote(uri, rows.num_rows)
    return kept


class Seen:
    """How many rows of each table were written, for whoever shows it."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    def add(self, uri: str, count: int) -> None:
        self.rows[uri] += count

    def read(self) -> dict[str, int]:
        return dict(self.rows)


def write(rows: Dataset | Iterable[pa.Table], table: Draft) -> Iterator[int]:
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


def made(rows: Dataset) -> Dataset:
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
    parts.write(rows, uri, attempt)
    return pa.table({"rows": [rows.num_rows]})


def rows(uri: str, names: Sequence[str], split: str | None, but: pa.ChunkedArray | None = None) -> Dataset | None:
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
        table = chosen(parts.read(uri, name), split, but)
        left += table.num_rows
        if table.num_rows:
            yield table
    if not left:
        yield table  # of no rows: a task has to say what columns there are


def chosen(table: pa.Table, split: str | None, but: pa.ChunkedArray | None) -> pa.Table:
    """The rows of one split or all, without those of articles in `but`."""
    if split is not None:
        table = table.filter(pa.compute.equal(table["split"], split))
    if but is not None and len(but):
        table = table.filter(pa.compute.invert(pa.compute.is_in(table["article_id"], value_set=but)))
    return table


def of(ledger: Ledger, table: Artifact, split: str | None = None) -> Dataset | None:
    """The kept rows of a finished table; None if there are none."""
    return rows(f"{ledger.root}/{table.address}", table.record["parts"], split)


def read(ledger: Ledger, table: Artifact) -> list[Row]:
    """The kept rows of a table in memory: for evaluations and a look, not for whole corpora.

    Raises:
        UserError: a part is damaged, or not there.
    """
    uri = f"{ledger.root}/{table.address}"
    return [row for name in table.record["parts"] for row in parts.read(uri, name).to_pylist()]
