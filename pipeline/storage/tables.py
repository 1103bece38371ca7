"""Tables: how rows stream from one to the next, and when what is written is the whole table.

Rows are written where they are made, by whichever Ray worker has them; only counts come to the driver. A table that
was cut off is gone on with from the parts that are there. Left out: what a part is (`parts.py`), what a table is made
of, and when (`run.py`).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config import UserError
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row


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


def begin_table(uri: str, attempt: str, within: pa.ChunkedArray | None = None) -> Draft:
    """Begin a table, or go on with one that was cut off.

    Its damaged parts are removed, and their articles come again.

    Args:
        within: the ids that the table before has so far, if it is being made too. A part of other articles is removed:
            it was made of rows that are there no more.
    """
    found = parts.list_parts(uri)
    good, ids, bad = parts.check_parts(uri, found["parts"], within)
    parts.remove_parts(uri, [*found["leavings"], *bad])
    return Draft(uri, attempt, tuple(good), ids, len(bad))


def finish_table(table: Draft, expected: dict[str, int] | None) -> dict[str, Any] | None:
    """What the record of a finished table says; None if it has not each expected article exactly once.

    Args:
        expected: by split, the sum of the article ids' hashes (`parts.Counts.ids`) of the table that it is made
            from; None: not known.

    Returns:
        counts `in`, `kept`, `skipped` by reason, the sums of what the rows tallied, the `ids` of the kept ones as
        sums, the names of the `parts` that are the table, and `resumed`, how many rows earlier attempts had made.
        Rows that went into another row are tallied as `merged`, and counted by `in`.
    """
    found = parts.list_parts(table.uri)
    adopted = set(table.adopted)
    mine = [name for name in found["parts"] if name in adopted or parts.is_from_attempt(name, table.attempt)]
    # A part that a worker of a dead driver wrote too late, or that a task which died did not finish, is none of ours.
    parts.remove_parts(table.uri, [*found["leavings"], *sorted(set(found["parts"]) - set(mine))])
    if missing := adopted - set(mine):
        raise UserError(f"{len(missing)} parts of {table.uri} have vanished while it was made: run it again")
    total = parts.count_rows(table.uri, mine)
    if expected is not None and total.ids != Counter(expected):
        return None
    return {
        "in": total.rows + total.tally[parts.MERGED],
        "kept": total.kept,
        "skipped": dict(total.skipped.most_common()),
        "tally": dict(sorted(total.tally.items())),
        "ids": dict(sorted(total.kept_ids.items())),
        "parts": [name for name in mine if not name.startswith(f"{parts.SKIPPED}/")],
        "resumed": parts.count_rows(table.uri, table.adopted).rows,
    }


def read_table(ledger: Ledger, table: Artifact) -> list[Row]:
    """The kept rows of a table in memory: for evaluations and a look, not for whole corpora.

    Raises:
        UserError: a part is damaged, or not there.
    """
    uri = f"{ledger.root}/{table.address}"
    return [row for name in table.record["parts"] for row in parts.read_part(uri, name).to_pylist()]
