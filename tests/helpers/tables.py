"""Writes tables as a run does, and reads a run's tables and records back."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import streams, tables
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import COLUMNS


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


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a stage would hand them on: with those columns of a run's tables that the first row has."""
    names = [name for name in COLUMNS if name in rows[0]] if rows else ["article_id", "split"]
    names = [*dict.fromkeys([*names, "skipped"])]
    return pa.table({name: pa.array([row.get(name) for row in rows], COLUMNS[name]) for name in names})


def add_table(ledger: Ledger, address: str, rows: list[dict[str, Any]], build: str = "build-1") -> Artifact:
    """Write rows as a finished artifact of a run."""
    counts = write_table([as_table(rows)], f"{ledger.root}/{address}")
    return ledger.finish(address, {"build": build, "recipe": {}, **counts})


def row_with_pairs(writer: str, count: int, pairs: Iterable[tuple[int, int]], article: str = "a") -> dict[str, Any]:
    """A row with `count` scored summaries and with pairs (chosen, rejected). A summary's text: its writer and index."""
    return {
        "article_id": article,
        "article": "Text.",
        "split": "train",
        "writer": writer,
        "prompt_ids": [1, 2, 3],
        "summaries": [
            {"text": f"{writer} {i}", "token_ids": [i + 1, 0], "finish_reason": "stop", "logp": -1.0}
            for i in range(count)
        ],
        "scores": [{"answers": [], "correct": i, "unread": 0, "words": 9, "invalid_chars": 0} for i in range(count)],
        "pairs": [{"chosen": c, "rejected": r, "reason": writer, "weight": 1.0} for c, r in pairs],
    }
