"""Tables on disk: Parquet parts of kept rows, and `skipped/` with the others, each with its reason.

Parts are written where the rows are made, by whichever Ray worker has them; only counts come to the driver. Left out:
which table, and whether it is finished (`ledger.py`).
"""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray.data

from pipeline.ledger import Ledger


def write(rows: ray.data.Dataset | Iterable[pa.Table], uri: str, advance: Callable[[int], None]) -> dict[str, Any]:
    """Write rows as they come, kept and skipped apart.

    Args:
        rows: a dataset, or tables made in this process.
        uri: of the table.
        advance: called with the number of rows of each part that is written.

    Returns:
        counts `in`, `kept`, `skipped` by reason, and the sums of what the rows tallied.
    """
    kept = 0
    skipped: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    for part in _parts(rows, uri):
        kept += part["kept"]
        skipped.update(part["skipped"])
        tally.update(part["tally"])
        advance(part["kept"] + sum(part["skipped"].values()))
    return {
        "in": kept + sum(skipped.values()),
        "kept": kept,
        "skipped": dict(skipped.most_common()),
        "tally": dict(sorted(tally.items())),
    }


def _parts(rows: ray.data.Dataset | Iterable[pa.Table], uri: str) -> Iterator[dict[str, Any]]:
    if not isinstance(rows, ray.data.Dataset):
        yield from (write_part(table, uri) for table in rows)
        return
    parts = rows.map_batches(_part, fn_args=(uri,), batch_format="pyarrow", batch_size=None)
    yield from (json.loads(row["part"]) for row in parts.iter_rows())


def _part(table: pa.Table, uri: str) -> pa.Table:
    return pa.table({"part": [json.dumps(write_part(table, uri))]})


def write_part(table: pa.Table, uri: str) -> dict[str, Any]:
    """Write one part: kept rows to `uri`, the others to `uri/skipped`; says how many of each there are."""
    fs, base = pafs.FileSystem.from_uri(uri) if "://" in uri else (pafs.LocalFileSystem(), uri)
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
    # A later stage that takes rows of one split then knows how many will come.
    tally.update(kept["split"].to_pylist())
    skipped = Counter(reason for reason in reasons if reason is not None)
    return {"kept": kept.num_rows, "skipped": dict(skipped), "tally": dict(tally)}


def parts(ledger: Ledger, address: str) -> list[str]:
    """The parts of a table, as the ledger's file system names them, in order of name."""
    found = ledger.fs.get_file_info(pafs.FileSelector(ledger.path(address), allow_not_found=True))
    return sorted(info.path for info in found if info.path.endswith(".parquet"))


def rows(ledger: Ledger, address: str, split: str | None) -> ray.data.Dataset:
    """The kept rows of a table, of one split or all."""
    found = ray.data.read_parquet(parts(ledger, address), filesystem=ledger.fs)
    return found if split is None else found.filter(expr=f"split == '{split}'")


def read(ledger: Ledger, address: str) -> list[dict[str, Any]]:
    """The kept rows of a table in memory: for evaluations and a look, not for whole corpora."""
    return [row for part in parts(ledger, address) for row in pq.read_table(part, filesystem=ledger.fs).to_pylist()]
