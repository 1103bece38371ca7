"""Tables on disk: Parquet parts of kept rows, and `skipped/` with the others, each with its reason.

Parts are written where the rows are made, by whichever Ray worker has them; only counts come to the driver. Left out:
which table, and whether it is finished (`ledger.py`).
"""

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray.data
import ray.exceptions

from pipeline.config import UserError
from pipeline.ledger import Artifact, Ledger, open_place


def write(rows: ray.data.Dataset | Iterable[pa.Table], uri: str, advance: Callable[[int], None]) -> dict[str, Any]:
    """Write rows as they come, kept and skipped apart.

    Args:
        rows: a dataset, or tables made in this process.
        uri: of the table.
        advance: called with the number of rows of each part that is written.

    Returns:
        counts `in`, `kept`, `skipped` by reason, the sums of what the rows tallied, and the names of the `parts` that
        are the table: a part that a task wrote before it died, and that another wrote again, is not among them.
        Rows that went into another row are tallied as `merged`, and counted by `in`.

    Raises:
        UserError: this process does not see what the workers wrote, or one was raised by a worker.
    """
    kept = 0
    names: list[str] = []
    skipped: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    for part in _parts(rows, uri):
        kept += part["kept"]
        names += part["parts"]
        skipped.update(part["skipped"])
        tally.update(part["tally"])
        advance(part["kept"] + sum(part["skipped"].values()))
    _settle(uri, names)
    return {
        "in": kept + sum(skipped.values()) + tally["merged"],
        "kept": kept,
        "skipped": dict(skipped.most_common()),
        "tally": dict(sorted(tally.items())),
        "parts": sorted(name for name in names if "/" not in name),
    }


def _settle(uri: str, names: list[str]) -> None:
    """See that every part is there, and remove what belongs to no row that was counted."""
    fs, base = open_place(uri)
    found = {
        info.path[len(base) + 1 :]: info.path
        for info in fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        if info.type == pafs.FileType.File
    }
    missing = set(names) - set(found)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} parts that workers wrote to {uri} cannot be seen from here: "
            "run= must be a folder that every node shares, or a URI such as s3://bucket/run"
        )
    for name in set(found) - set(names):
        fs.delete_file(found[name])


def _parts(rows: ray.data.Dataset | Iterable[pa.Table], uri: str) -> Iterator[dict[str, Any]]:
    if not isinstance(rows, ray.data.Dataset):
        yield from (write_part(table, uri) for table in rows)
        return
    parts = rows.map_batches(_part, fn_args=(uri,), batch_format="pyarrow", batch_size=None)
    try:
        yield from (json.loads(row["part"]) for row in parts.iter_rows())
    except ray.exceptions.RayError as error:
        # Of an error in a worker Ray Data brings the text alone.
        if told := re.search(rf"\b{UserError.__module__}\.UserError: (.+)", str(error)):
            raise UserError(told[1]) from None
        raise


def _part(table: pa.Table, uri: str) -> pa.Table:
    return pa.table({"part": [json.dumps(write_part(table, uri))]})


def write_part(table: pa.Table, uri: str) -> dict[str, Any]:
    """Write one part: kept rows to `uri`, the others to `uri/skipped`; says how many of each there are, and where."""
    fs, base = open_place(uri)
    parts = []
    reasons = table["skipped"].to_pylist()
    tally: Counter[str] = Counter()
    if "tally" in table.column_names:
        for counts in table["tally"].to_pylist():
            for entry in counts or []:
                tally[entry["what"]] += entry["count"]
        table = table.drop_columns(["tally"])
    kept = table.filter(pa.array([reason is None for reason in reasons], pa.bool_())).drop_columns(["skipped"])
    left = table.filter(pa.array([reason is not None for reason in reasons], pa.bool_()))
    for rows, folder in ((kept, base), (left, f"{base}/skipped")):
        if rows.num_rows:
            fs.create_dir(folder)
            # Written under a name that no reader takes for a part, then moved: never a half-written Parquet.
            name = f"part-{uuid.uuid4().hex}"
            pq.write_table(rows, f"{folder}/{name}.tmp", filesystem=fs, compression="zstd")
            fs.move(f"{folder}/{name}.tmp", f"{folder}/{name}.parquet")
            parts.append(f"{folder}/{name}.parquet"[len(base) + 1 :])
    # A later stage that takes rows of one split then knows how many will come.
    tally.update(kept["split"].to_pylist())
    skipped = Counter(reason for reason in reasons if reason is not None)
    return {"kept": kept.num_rows, "skipped": dict(skipped), "tally": dict(tally), "parts": parts}


def parts(ledger: Ledger, table: Artifact) -> list[str]:
    """The parts that a table's record names, as the ledger's file system names them."""
    return [ledger.path(f"{table.address}/{name}") for name in table.record["parts"]]


def rows(ledger: Ledger, table: Artifact, split: str | None) -> ray.data.Dataset:
    """The kept rows of a table, of one split or all."""
    found = ray.data.read_parquet(parts(ledger, table), filesystem=ledger.fs)
    return found if split is None else found.filter(expr=f"split == '{split}'")


def read(ledger: Ledger, table: Artifact) -> list[dict[str, Any]]:
    """The kept rows of a table in memory: for evaluations and a look, not for whole corpora."""
    return [row for part in parts(ledger, table) for row in pq.read_table(part, filesystem=ledger.fs).to_pylist()]
