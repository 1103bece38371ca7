"""Begins, resumes and finishes tables, and decides which parts make up a table.

A table that was interrupted is resumed from the parts that exist. A table is finished when it has each expected article
exactly once. `parts.py` reads and writes single parts, `streams.py` moves rows between tables, and
`execution/runner.py` decides which tables are made.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config import UserError
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row, is_drawn


@dataclass(frozen=True)
class TableDraft:
    """A table that is being made.

    Attributes:
        uri: the table's folder.
        attempt: names the parts that this driver and its workers write. Workers may outlive a driver that was killed.
            Their parts have that driver's attempt in their names, so the next driver can tell them from its own.
        adopted: names of the parts of earlier attempts that the table keeps.
        ids: ids of the articles in the adopted parts.
        dropped: number of parts of earlier attempts that could not be used and were removed.
    """

    uri: str
    attempt: str
    adopted: tuple[str, ...] = ()
    ids: pa.ChunkedArray = field(default_factory=lambda: pa.chunked_array([], pa.string()))
    dropped: int = 0


def begin_table(uri: str, attempt: str, allowed_ids: pa.ChunkedArray | None = None) -> TableDraft:
    """Begin a table, or resume one that was interrupted.

    Parts that cannot be used are removed; their articles are processed again.

    Args:
        uri: the table's folder.
        attempt: a name for the parts of this attempt: a unique word without "-".
        allowed_ids: the article ids that the input table has so far, if it is being made at the same time. A part with
            other articles is removed, because the rows that it was made from no longer exist. None: all are allowed.
    """
    files = parts.list_parts(uri)
    usable, ids, unusable = parts.check_parts(uri, files["parts"], allowed_ids)
    parts.remove_parts(uri, [*files["leftovers"], *unusable])
    return TableDraft(uri, attempt, tuple(usable), ids, len(unusable))


def finish_table(table: TableDraft, expected: dict[str, int] | None) -> dict[str, Any] | None:
    """Check that a table is complete, and remove files that are not part of it.

    Args:
        table: the table.
        expected: the sums of article id hashes by split (`parts.PartCounts.ids`) in the input table; None: unknown.

    Returns:
        the fields for the table's record: counts `in`, `kept` and `skipped` (by reason); `tally`, the sums of the rows'
        tallies; `ids`, the sums of hashes of kept ids; `parts`, the names of the parts with kept rows; and
        `resumed`, the number of rows that earlier attempts had made. Rows that were merged into another row are tallied
        as `merged`, and `in` includes them. None if the table does not have each expected article exactly once.

    Raises:
        UserError: parts disappeared while the table was made.
    """
    files = parts.list_parts(table.uri)
    adopted = set(table.adopted)
    own = [name for name in files["parts"] if name in adopted or parts.is_from_attempt(name, table.attempt)]
    # Other files are from workers of a dead driver that wrote too late, or from tasks that died before they finished.
    foreign = sorted(set(files["parts"]) - set(own))
    parts.remove_parts(table.uri, [*files["leftovers"], *foreign])
    if missing := adopted - set(own):
        raise UserError(f"{len(missing)} parts of {table.uri} disappeared while the table was made: run it again")
    total = parts.count_rows(table.uri, own)
    if expected is not None and total.ids != Counter(expected):
        return None
    return {
        "in": total.rows + total.tally[parts.MERGED],
        "kept": total.kept,
        "skipped": dict(total.skipped.most_common()),
        "tally": dict(sorted(total.tally.items())),
        "ids": dict(sorted(total.kept_ids.items())),
        "parts": [name for name in own if not name.startswith(f"{parts.SKIPPED}/")],
        "resumed": parts.count_rows(table.uri, table.adopted).rows,
    }


def read_table(ledger: Ledger, table: Artifact) -> list[Row]:
    """Read the kept rows of a table into memory. For evaluations and for display, not for whole corpora.

    Raises:
        UserError: a part is damaged or missing.
    """
    return list(iterate_rows(ledger, table))


def iterate_rows(ledger: Ledger, table: Artifact) -> Iterator[Row]:
    """The kept rows of a table, of which one part is in memory. Raises UserError if a part is damaged or missing."""
    for name in table.record["parts"]:
        yield from parts.read_part(f"{ledger.root}/{table.address}", name).to_pylist()


def read_some_rows(ledger: Ledger, table: Artifact, most: int, fields: Sequence[str]) -> list[Row]:
    """Read about `most` kept rows of a table at most, and only some fields of them.

    A hash of the article id draws the rows, so that the same articles are drawn in every run.

    Args:
        fields: columns, or fields of the structs in a column of lists, such as `summaries.text`. Those that the table
            does not have are left out. `article_id` is always read.

    Raises:
        UserError: a part is damaged or missing.
    """
    uri, share = f"{ledger.root}/{table.address}", most / max(1, table.record["kept"])

    def read_drawn(name: str) -> list[Row]:
        rows = parts.read_fields(uri, name, ("article_id", *fields))
        drawn = [is_drawn(article_id, share) for article_id in rows["article_id"].to_pylist()]
        return rows.filter(pa.array(drawn, pa.bool_())).to_pylist()

    with ThreadPoolExecutor(parts.THREADS) as pool:
        return [row for rows in pool.map(read_drawn, table.record["parts"]) for row in rows]
