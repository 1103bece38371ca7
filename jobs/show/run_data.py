"""Answers what the page of `rondo view` asks about a run: its figures, lists of articles, one article, its progress.

The index of the articles is made in the background, and kept in the user's cache folder until a table of the run
changes. Until it is there, the list shows the first articles of the run without a filter.
"""

import calendar
import hashlib
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Alignment, Config, UserError
from pipeline.config.messages import one_line
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.report.page.articles import ArticleReader
from pipeline.evaluation.report.page.index import (
    FILTERS,
    ArticleIndex,
    RunTables,
    build_index,
    count_parts,
    find_tables,
    search_articles,
)
from pipeline.evaluation.report.page.overview import collect_overview, read_metrics
from pipeline.storage import parts
from pipeline.storage.files import RunFiles
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import PROGRESS

_SECONDS_BETWEEN_LOOKS = 5.0  # at the records of the run
_SILENT_AFTER = 60.0  # seconds without a new progress.json
_SEARCHES_IN_MEMORY = 32
_PREVIEW = 50  # articles
_DIGEST = b"rondo"  # key in the saved index; the value names the builds of its tables


class RunData:
    """The data of a run's page. All methods may be called from several threads.

    Args:
        config: the settings of the run.
        ledger: the run folder, which is only read.
        cache: a folder for the index.
    """

    def __init__(self, config: Config | Alignment, ledger: Ledger, cache: Path):
        self.config, self.ledger = config, ledger
        self.saved = cache / f"{hashlib.sha256(ledger.root.encode()).hexdigest()[:24]}.parquet"
        self.lock = threading.RLock()
        self.ready = threading.Event()
        self.tables = RunTables()  # of the newest records
        self.reader: ArticleReader | None = None  # None: no index yet
        self.failure: UserError | None = None
        self.building: threading.Thread | None = None
        self.looked = float("-inf")
        self.parts_read = 0
        self.searches: dict[str, np.ndarray] = {}
        self.heard, self.last_progress = time.monotonic(), ""

    def overview(self) -> dict[str, Any]:
        """The figures of the run, as they are now."""
        return collect_overview(read_metrics(self.ledger), self.config, self.ledger)

    def rounds(self) -> dict[str, Any]:
        """The numbers of the rounds that there is something to look at of, and the number of articles."""
        self.look()
        return {"rounds": list(self.tables.rounds), "total": sum(table.record["kept"] for table in self.tables.asked)}

    def articles(self, only: str, number: int, split: str, text: str, offset: int, limit: int) -> dict[str, Any]:
        """A part of the list.

        `counts` says how many articles pass each filter; None while nothing can be filtered yet. Then `progress` is the
        share of the index that is made, else None.
        """
        self.look()
        reader = self.reader
        if reader is None:
            if self.failure is not None:
                raise self.failure
            return self._preview(split)
        among = self._search(reader, text) if text else None
        by_filter = {name: reader.index.select(name, number, split or None, among) for name in FILTERS}
        items = [reader.index.item(int(i), number) for i in by_filter[only][offset : offset + limit]]
        counts = {name: len(found) for name, found in by_filter.items()}
        return {"items": items, "total": counts[only], "counts": counts, "progress": None}

    def article(self, article_id: str) -> dict[str, Any] | None:
        """Everything about an article; None if the run does not have it. Waits for the index."""
        self.look()
        self.ready.wait()
        if self.reader is None:
            raise self.failure or UserError("the run has no articles yet")
        with self.lock:
            i = self.reader.index.find(article_id)
            return None if i is None else self.reader.read(i)

    def progress(self) -> dict[str, Any]:
        """What the run is doing, as its driver wrote it. `made` changes when an artifact is finished."""
        try:
            text = self.ledger.read(PROGRESS) or ""
            progress = json.loads(text) if text else None
        except (UserError, ValueError):  # it is replaced at this moment, or the store is away
            text, progress = "", None
        if text != self.last_progress:
            self.last_progress, self.heard = text, time.monotonic()
        if progress is None:
            return {"progress": None, "made": 0}
        if progress["state"] == "running" and self._is_silent(progress["updated"]):
            progress["state"] = "silent"
        return {"progress": progress, "made": sum(stage["state"] == "made" for stage in progress["stages"])}

    def _is_silent(self, updated: str) -> bool:
        """Whether the driver has not been heard of. The clock of another machine may differ by some minutes."""
        age = time.time() - calendar.timegm(time.strptime(updated, "%Y-%m-%dT%H:%M:%SZ"))
        return time.monotonic() - self.heard > _SILENT_AFTER or age > 10 * _SILENT_AFTER

    # The index

    def look(self) -> None:
        """Look at the records again, if the last look is old. Begin a new index if a table has changed."""
        with self.lock:
            if time.monotonic() - self.looked < _SECONDS_BETWEEN_LOOKS or not isinstance(self.config, Config):
                return
            tables = find_tables(self.ledger)
            self.looked = time.monotonic()
            is_building = self.building is not None and self.building.is_alive()
            if is_building or (self.tables.digest == tables.digest and self.building is not None):
                return
            self.tables, self.parts_read = tables, 0
            self.building = threading.Thread(target=self._build, args=(tables,), name="index", daemon=True)
            self.building.start()

    def _build(self, tables: RunTables) -> None:
        assert isinstance(self.config, Config), "only a run of rounds has articles"
        try:
            index = _load(self.saved, tables.digest)
            if index is None:
                counting = CountingSettings.from_config(self.config)
                index = build_index(self.ledger, tables, counting, self._count_part)
                _save(index, self.saved, tables.digest)
            with self.lock:
                self.reader, self.searches = ArticleReader(self.config, self.ledger, tables, index), {}
        except Exception as error:  # shown on the page: this thread has nobody else to tell
            self.failure = UserError(f"the index of the articles cannot be made: {one_line(error)}")
        finally:
            self.ready.set()

    def _count_part(self) -> None:
        self.parts_read += 1

    def _search(self, reader: ArticleReader, text: str) -> np.ndarray:
        with self.lock:
            if text not in self.searches:
                while len(self.searches) >= _SEARCHES_IN_MEMORY:
                    del self.searches[next(iter(self.searches))]
                self.searches[text] = search_articles(self.ledger, reader.tables, reader.index, text)
            return self.searches[text]

    def _preview(self, split: str) -> dict[str, Any]:
        """The first articles of the run, in the order of its first table."""
        progress = min(1.0, self.parts_read / max(1, count_parts(self.tables)))
        items: list[dict[str, Any]] = []
        for table in self.tables.asked:
            for name in table.record["parts"]:
                rows = parts.read_fields(table.uri, name, ("article_id", "split", "article")).slice(0, 10 * _PREVIEW)
                for row in rows.to_pylist():
                    if row["split"] == split or (not split and row["split"] != "test"):
                        title = " ".join(row["article"][:160].split())
                        line = {"id": row["article_id"], "split": row["split"], "title": title}
                        items.append({**line, "verdict": None, "values": None, "words": None, "flags": []})
                if len(items) >= _PREVIEW:
                    return {"items": items[:_PREVIEW], "total": _PREVIEW, "counts": None, "progress": progress}
        return {"items": items[:_PREVIEW], "total": len(items), "counts": None, "progress": progress}


def cache_folder() -> Path:
    """The folder for indexes: `rondo/view` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rondo" / "view"


def _load(path: Path, digest: str) -> ArticleIndex | None:
    """The saved index, if it is of these builds."""
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException):
        return None
    is_current = (table.schema.metadata or {}).get(_DIGEST) == digest.encode()
    return ArticleIndex.from_table(table) if is_current else None


def _save(index: ArticleIndex, path: Path, digest: str) -> None:
    """Save the index for the next `rondo view`. Without a place for it, the next one makes it again."""
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sink = pa.BufferOutputStream()
        pq.write_table(index.to_table().replace_schema_metadata({_DIGEST: digest}), sink, compression="zstd")
        RunFiles(str(path.parent)).write(path.name, sink.getvalue().to_pybytes())
        path.chmod(0o600)  # it has the beginnings of articles
