"""Writes and reads the parts of a table: Parquet files that appear whole or not at all.

Any process that makes rows writes them as parts. The footer of each part holds counts of its rows, so a table can be
counted and resumed from its files alone. Which parts belong to a table, and when it is finished, is decided in
`tables.py`.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.storage.files import atomic_writer, open_location

MERGED = "merged"  # in a tally: how many rows went into this one, beside its own

SKIPPED = "skipped"  # the folder of rows that were set aside
_COUNTS_KEY = b"rondo"  # key in a part's footer; the value is its `PartCounts` as JSON
THREADS = 16  # files read at the same time: on an object store each one costs a round trip


@dataclass
class PartCounts:
    """Counts of some rows, summed over parts.

    Attributes:
        kept: number of kept rows.
        skipped: number of skipped rows, by reason.
        tally: sums of the rows' tallies. Also the number of kept rows of each split, under the split's name.
        ids: by split, the sum of the hashes of the article ids of all rows, modulo 2**64. Two tables of the same
            articles have equal sums. A table that lost one article and doubled another has not.
        kept_ids: the same sums over kept rows.
    """

    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    tally: Counter[str] = field(default_factory=Counter)
    ids: Counter[str] = field(default_factory=Counter)
    kept_ids: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Number of all rows, kept and skipped."""
        return self.kept + self.skipped.total()

    def add(self, footer: dict[str, Any]) -> None:
        """Add the counts from the footer of a part."""
        self.kept += footer["kept"]
        self.skipped.update(footer["skipped"])
        self.tally.update(footer["tally"])
        for sums, part_sums in ((self.ids, footer["ids"]), (self.kept_ids, footer["kept_ids"])):
            for split, value in part_sums.items():
                sums[split] = (sums[split] + value) % 2**64


def write_part(rows: pa.Table, uri: str, attempt: str) -> pa.Table:
    """Write rows as parts: kept rows to `uri`, skipped rows to `uri/skipped`.

    Ray repeats a task if its output is lost with its node. The rows that were written first then count: a row that this
    attempt has already written is not written again, and is returned as it is on disk.

    Args:
        rows: with columns `article_id`, `split` and `skipped`, and perhaps `tally`.
        uri: the table's folder.
        attempt: names the writer's attempt at the table: a unique word without "-".

    Returns:
        the kept rows, without `skipped` and `tally`: the input of the next stage.

    Raises:
        UserError: the rows cannot be written there.
    """
    fs, base = open_location(uri)
    try:
        name = _part_name(attempt, rows["article_id"])
        earlier = _read_back(fs, base, name)
        if earlier is None:
            return _write_kept_and_skipped(rows, fs, base, name)
        written_ids, kept = earlier
        is_missing = pa.array([article not in written_ids for article in rows["article_id"].to_pylist()], pa.bool_())
        missing = rows.filter(is_missing)
        if missing.num_rows:
            missing_name = _part_name(attempt, missing["article_id"])
            kept = [*kept, _write_kept_and_skipped(missing, fs, base, missing_name)]
        return pa.concat_tables(kept) if kept else _drop_outcome(rows.slice(0, 0))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise UserError(f"{uri} cannot be written: {reason}") from error


def _write_kept_and_skipped(rows: pa.Table, fs: pafs.FileSystem, base: str, name: str) -> pa.Table:
    reasons = rows["skipped"]
    kept, skipped = rows.filter(reasons.is_null()), rows.filter(reasons.is_valid())
    # Skipped rows first: once the kept rows exist, all rows of this call are written.
    if skipped.num_rows:
        _write_parquet(skipped, _footer(skipped), fs, f"{base}/{SKIPPED}", name)
    if kept.num_rows:
        _write_parquet(_drop_outcome(kept), _footer(kept), fs, base, name)
    return _drop_outcome(kept)


def _write_parquet(rows: pa.Table, footer: dict[str, Any], fs: pafs.FileSystem, folder: str, name: str) -> None:
    fs.create_dir(folder)
    with atomic_writer(fs, f"{folder}/{name}") as stream:
        pq.write_table(
            rows.replace_schema_metadata({_COUNTS_KEY: json.dumps(footer)}),
            stream,
            compression="zstd",
            write_page_checksum=True,
        )


def _drop_outcome(rows: pa.Table) -> pa.Table:
    return rows.drop_columns([name for name in ("skipped", "tally") if name in rows.column_names])


def _read_back(fs: pafs.FileSystem, base: str, name: str) -> tuple[set[str], list[pa.Table]] | None:
    """The ids that were written under a name, and the kept rows. None if no file has that name."""
    infos = fs.get_file_info([f"{base}/{name}", f"{base}/{SKIPPED}/{name}"])
    paths = [info.path for info in infos if info.type == pafs.FileType.File]
    if not paths:
        return None
    tables = {path: pq.read_table(path, filesystem=fs, partitioning=None).replace_schema_metadata() for path in paths}
    ids = {article for table in tables.values() for article in table["article_id"].to_pylist()}
    return ids, [table for path, table in tables.items() if not path.endswith(f"/{SKIPPED}/{name}")]


def _part_name(attempt: str, ids: pa.ChunkedArray) -> str:
    """The file name of a part. The same articles get the same name, whichever process writes them."""
    digest = hashlib.blake2b("\0".join(sorted(ids.to_pylist())).encode("utf-8", "surrogatepass"), digest_size=12)
    return f"part-{attempt}-{digest.hexdigest()}.parquet"


def _footer(rows: pa.Table) -> dict[str, Any]:
    """The counts of rows, as a part's footer stores them."""
    reasons, splits = rows["skipped"].to_pylist(), rows["split"].to_pylist()
    hashes = [_hash_id(article) for article in rows["article_id"].to_pylist()]
    tally = sum_tallies(rows)
    # The rows of each split: a later stage that reads one split then knows how many rows will come.
    tally.update(split for split, reason in zip(splits, reasons, strict=True) if reason is None)
    ids: Counter[str] = Counter()
    kept_ids: Counter[str] = Counter()
    for value, split, reason in zip(hashes, splits, reasons, strict=True):
        ids[split] = (ids[split] + value) % 2**64
        if reason is None:
            kept_ids[split] = (kept_ids[split] + value) % 2**64
    return {
        "kept": reasons.count(None),
        "skipped": dict(Counter(reason for reason in reasons if reason is not None)),
        "tally": dict(tally),
        "ids": ids,
        "kept_ids": kept_ids,
    }


def sum_tallies(rows: pa.Table) -> Counter[str]:
    """The sums of the rows' tallies."""
    tally: Counter[str] = Counter()
    if "tally" in rows.column_names:
        for counts in rows["tally"].to_pylist():
            for entry in counts or []:
                tally[entry["what"]] += entry["count"]
    return tally


def _hash_id(article_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(article_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def list_parts(uri: str) -> dict[str, list[str]]:
    """List the parts in a table's folder, and the temporary files that dead writers left.

    Returns:
        file names relative to `uri`, sorted: `parts` (those in skipped/ included) and `leftovers`, the temporary files.
    """
    fs, base = open_location(uri)
    names: dict[str, list[str]] = {"parts": [], "leftovers": []}
    for folder in (base, f"{base}/{SKIPPED}"):
        for info in fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
            if info.type == pafs.FileType.File and info.base_name.startswith("part-"):
                kind = "parts" if info.base_name.endswith(".parquet") else "leftovers"
                names[kind].append(info.path[len(base) + 1 :])
    return {kind: sorted(paths) for kind, paths in names.items()}


def is_from_attempt(name: str, attempt: str) -> bool:
    """Whether an attempt wrote the part of this name."""
    return name.rsplit("/", 1)[-1].startswith(f"part-{attempt}-")


def remove_parts(uri: str, names: Iterable[str]) -> None:
    """Remove files from a table's folder.

    Args:
        uri: the table's folder.
        names: names that `list_parts` returned.

    Raises:
        UserError: a file cannot be removed.
    """
    fs, base = open_location(uri)
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a writer that still lives has moved it to its final name
                fs.delete_file(f"{base}/{name}")
    except OSError as error:
        raise UserError(f"{uri} cannot be tidied: {one_line(error)}") from error


def count_rows(uri: str, names: Sequence[str]) -> PartCounts:
    """Sum the counts in the footers of parts.

    Raises:
        UserError: a part is damaged or missing.
    """
    fs, base = open_location(uri)

    def read_footer(name: str) -> dict[str, Any]:
        try:
            return json.loads(pq.read_metadata(f"{base}/{name}", filesystem=fs).metadata[_COUNTS_KEY])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise _damaged_part(uri, name, error) from None

    total = PartCounts()
    with ThreadPoolExecutor(THREADS) as pool:
        for footer in pool.map(read_footer, names):
            total.add(footer)
    return total


def read_part(uri: str, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of one part.

    Args:
        uri: the table's folder.
        name: the part's name, relative to `uri`.
        columns: the columns to read; None: all.

    Raises:
        UserError: the part is damaged or missing.
    """
    fs, base = open_location(uri)
    try:
        return read_parquet(fs, f"{base}/{name}", columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged_part(uri, name, error) from None


def read_fields(uri: str, name: str, fields: Sequence[str]) -> pa.Table:
    """Read some fields of the rows of one part. Fields that the part does not have are left out.

    Args:
        uri: the table's folder.
        name: the part's name, relative to `uri`.
        fields: columns, or fields of the structs in a column of lists, such as `summaries.text`.

    Raises:
        UserError: the part is damaged or missing.
    """
    fs, base = open_location(uri)
    try:
        with fs.open_input_file(f"{base}/{name}") as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            return file.read(columns=_leaves(file, fields)).replace_schema_metadata()
    except (OSError, pa.ArrowException) as error:
        raise _damaged_part(uri, name, error) from None


def iterate_fields(
    fs: pafs.FileSystem, path: str, fields: Sequence[str], rows_at_once: int
) -> Iterator[pa.RecordBatch]:
    """Read some fields of a Parquet file, `rows_at_once` rows at a time, and verify its checksums.

    Args:
        fs, path: the file.
        fields: see `read_fields`.
        rows_at_once: the most rows of a batch.

    Raises:
        OSError: the file is missing or cannot be read, or a page is damaged.
        pa.ArrowException: it is not a Parquet file.
    """
    with fs.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        yield from file.iter_batches(rows_at_once, columns=_leaves(file, fields))


def _leaves(file: pq.ParquetFile, fields: Sequence[str]) -> list[str]:
    """The paths of the columns in a file that these fields are made of."""
    # The path of such a field has two parts in between, whose names depend on the version that wrote them.
    paths = [file.schema.column(index).path for index in range(len(file.schema))]
    return [path for path in paths if not {path.split(".")[0], _field(path)}.isdisjoint(fields)]


def _field(path: str) -> str:
    """`summaries.text` for the path `summaries.list.element.text` of a leaf."""
    column, *inner = path.split(".")
    return ".".join((column, *inner[2:3]))


def read_parquet(fs: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file and verify the checksums of its pages. `read_part` does this and words the errors.

    Raises:
        OSError: the file is missing or cannot be read, or a page is damaged.
        pa.ArrowException: it is not a Parquet file, or it lacks a column.
    """
    names = None if columns is None else list(columns)  # pyarrow refuses a tuple
    # No partitioning: a folder named "lr=0.1" is not a column.
    rows = pq.read_table(path, columns=names, filesystem=fs, partitioning=None, page_checksum_verification=True)
    return rows.replace_schema_metadata()


def check_parts(
    uri: str, names: Sequence[str], allowed_ids: pa.ChunkedArray | None = None
) -> tuple[list[str], pa.ChunkedArray, list[str]]:
    """Check the parts of an unfinished table.

    A part is unusable if it is damaged, or has an article that an earlier part has, or one that is not allowed.

    Args:
        uri: the table's folder.
        names: the parts to check.
        allowed_ids: ids of the articles that the table may have; None: any.

    Returns:
        the usable parts, the ids of their articles, and the unusable parts.
    """
    allowed = None if allowed_ids is None else set(allowed_ids.to_pylist())
    usable: list[str] = []
    unusable: list[str] = []
    usable_ids: set[str] = set()

    def read_ids(name: str) -> list[str] | None:
        try:
            count_rows(uri, [name])
            return read_part(uri, name)["article_id"].to_pylist()
        except (UserError, KeyError):
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        for name, ids in zip(names, pool.map(read_ids, names), strict=True):
            is_allowed = ids is not None and (allowed is None or allowed.issuperset(ids))
            if ids is not None and is_allowed and usable_ids.isdisjoint(ids):
                usable.append(name)
                usable_ids.update(ids)
            else:
                unusable.append(name)
    return usable, pa.chunked_array([pa.array(sorted(usable_ids), pa.string())]), unusable


def _damaged_part(uri: str, name: str, error: Exception) -> UserError:
    table = uri.rstrip("/")
    return UserError(
        f"{table}/{name} is damaged or gone ({one_line(error)}): put the file back, or make the table again with "
        "--remake and its address in the run"
    )
