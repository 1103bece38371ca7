"""Parts of a table: Parquet files that are whole or not there, each of which says what is in it.

Whoever makes rows writes them, in whichever process. A part has the rows' counts in its footer, so that a table is
counted, and gone on with, from its files alone. Left out: which parts are a table's, and when it is finished
(`tables.py`).
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.config import UserError
from pipeline.config.sanitize import one_line
from pipeline.storage.files import open_location

MERGED = "merged"  # in a tally: how many rows went into this one, beside its own

SKIPPED = "skipped"  # the folder of the rows that were set aside
_SAYS = b"rondo"  # in a part's footer: its `Counts`, as JSON
_MANY = 16  # files looked at in one go: on an object store each is a round trip


@dataclass
class PartCounts:
    """What some rows are, added up.

    Attributes:
        kept: how many were kept.
        skipped: how many were not, by reason.
        tally: sums of what the rows tallied; of the kept ones also how many there are of each split.
        ids: by split, the sum of a hash of each row's article id, modulo 2**64, kept or not. Two tables of the same
            articles have the same sums, and a table in which one is lost and another doubled has not.
        kept_ids: the same, of the kept ones.
    """

    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    tally: Counter[str] = field(default_factory=Counter)
    ids: Counter[str] = field(default_factory=Counter)
    kept_ids: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return self.kept + self.skipped.total()

    def add(self, other: dict[str, Any]) -> None:
        self.kept += other["kept"]
        self.skipped.update(other["skipped"])
        self.tally.update(other["tally"])
        for mine, others in ((self.ids, other["ids"]), (self.kept_ids, other["kept_ids"])):
            for split, value in others.items():
                mine[split] = (mine[split] + value) % 2**64


def write_part(rows: pa.Table, uri: str, attempt: str) -> pa.Table:
    """Write rows as parts: those kept to `uri`, the others to `uri/skipped`.

    Ray runs a task again when what it made is lost with its node. What was written first is then the truth: a row
    that this attempt has written already is not written again, and comes back as it is on disk.

    Args:
        rows: with `article_id`, `split` and `skipped`, and perhaps `tally`.
        attempt: whose parts they are, a word without "-" that no other making of the table has.

    Returns:
        the kept rows, without `skipped` and `tally`: what the next stage is given.

    Raises:
        UserError: they cannot be written there.
    """
    fs, base = open_location(uri)
    try:
        name = _name(attempt, rows["article_id"])
        there = _read_back(fs, base, name)
        if there is None:
            return _write(rows, fs, base, name)
        written, kept = there
        left = rows.filter(pa.array([x not in written for x in rows["article_id"].to_pylist()], pa.bool_()))
        if left.num_rows:
            kept = [*kept, _write(left, fs, base, _name(attempt, left["article_id"]))]
        return pa.concat_tables(kept) if kept else _plain(rows.slice(0, 0))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise UserError(f"{uri} cannot be written: {reason}") from error


def _write(rows: pa.Table, fs: pafs.FileSystem, base: str, name: str) -> pa.Table:
    reasons = rows["skipped"]
    kept, left = rows.filter(reasons.is_null()), rows.filter(reasons.is_valid())
    # The skipped first: what is kept is then the last word on these rows.
    for some, folder in ((left, f"{base}/{SKIPPED}"), (kept, base)):
        if some.num_rows:
            fs.create_dir(folder)
            says = {_SAYS: json.dumps(_describe(some))}
            plain = _plain(some) if folder == base else some
            file, half = f"{folder}/{name}", f"{folder}/{name}.{uuid.uuid4().hex[:8]}.tmp"
            # Under a name of this writer's alone, which no reader takes for a part: never a half-written Parquet.
            try:
                pq.write_table(
                    plain.replace_schema_metadata(says),
                    half,
                    filesystem=fs,
                    compression="zstd",
                    write_page_checksum=True,
                )
            except OSError:
                with contextlib.suppress(OSError):
                    fs.delete_file(half)  # half a file on a full disk is room that others need
                raise
            fs.move(half, file)
    return _plain(kept)


def _plain(rows: pa.Table) -> pa.Table:
    return rows.drop_columns([name for name in ("skipped", "tally") if name in rows.column_names])


def _read_back(fs: pafs.FileSystem, base: str, name: str) -> tuple[set[str], list[pa.Table]] | None:
    """The ids that were written under this name, and the kept rows; None if none were."""
    files = fs.get_file_info([f"{base}/{name}", f"{base}/{SKIPPED}/{name}"])
    there = [info.path for info in files if info.type == pafs.FileType.File]
    if not there:
        return None
    tables = {path: pq.read_table(path, filesystem=fs, partitioning=None).replace_schema_metadata() for path in there}
    ids = {article for table in tables.values() for article in table["article_id"].to_pylist()}
    return ids, [table for path, table in tables.items() if not path.endswith(f"/{SKIPPED}/{name}")]


def _name(attempt: str, ids: pa.ChunkedArray) -> str:
    """The same rows have the same name, whoever writes them."""
    digest = hashlib.blake2b("\0".join(sorted(ids.to_pylist())).encode("utf-8", "surrogatepass"), digest_size=12)
    return f"part-{attempt}-{digest.hexdigest()}.parquet"


def _describe(rows: pa.Table) -> dict[str, Any]:
    reasons, splits = rows["skipped"].to_pylist(), rows["split"].to_pylist()
    hashes = [_hash(article) for article in rows["article_id"].to_pylist()]
    tally: Counter[str] = Counter()
    if "tally" in rows.column_names:
        for counts in rows["tally"].to_pylist():
            for entry in counts or []:
                tally[entry["what"]] += entry["count"]
    # A later stage that takes rows of one split then knows how many will come.
    tally.update(split for split, reason in zip(splits, reasons, strict=True) if reason is None)
    ids: dict[str, Counter[str]] = {"ids": Counter(), "kept_ids": Counter()}
    for value, split, reason in zip(hashes, splits, reasons, strict=True):
        for which in ("ids", "kept_ids") if reason is None else ("ids",):
            ids[which][split] = (ids[which][split] + value) % 2**64
    skipped = Counter(reason for reason in reasons if reason is not None)
    return {"kept": reasons.count(None), "skipped": dict(skipped), "tally": dict(tally), **ids}


def _hash(article_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(article_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def list_parts(uri: str) -> dict[str, list[str]]:
    """The files of a table's folder that are parts, and the `leavings` of writers that died, relative to `uri`.

    Returns:
        `parts` (those in skipped/ among them) and `leavings`, each in order of name.
    """
    fs, base = open_location(uri)
    found: dict[str, list[str]] = {"parts": [], "leavings": []}
    folders = [pafs.FileSelector(folder, allow_not_found=True) for folder in (base, f"{base}/{SKIPPED}")]
    for info in (info for folder in folders for info in fs.get_file_info(folder)):
        if info.type == pafs.FileType.File and info.base_name.startswith("part-"):
            kind = "parts" if info.base_name.endswith(".parquet") else "leavings"
            found[kind].append(info.path[len(base) + 1 :])
    return {kind: sorted(some) for kind, some in found.items()}


def is_from_attempt(name: str, attempt: str) -> bool:
    """Whether a part is of this attempt."""
    return name.rsplit("/", 1)[-1].startswith(f"part-{attempt}-")


def remove_parts(uri: str, some: Iterable[str]) -> None:
    """Remove parts, by the names that `names` gives."""
    fs, base = open_location(uri)
    try:
        for name in some:
            with contextlib.suppress(FileNotFoundError):  # a writer that is still alive has moved it into place
                fs.delete_file(f"{base}/{name}")
    except OSError as error:
        raise UserError(f"{uri} cannot be tidied: {one_line(error)}") from error


def count_rows(uri: str, some: Sequence[str]) -> PartCounts:
    """What the footers of parts say, added up.

    Raises:
        UserError: a part is damaged.
    """
    fs, base = open_location(uri)

    def footer(name: str) -> dict[str, Any]:
        try:
            return json.loads(pq.read_metadata(f"{base}/{name}", filesystem=fs).metadata[_SAYS])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise _damaged(uri, name, error) from None

    total = PartCounts()
    with ThreadPoolExecutor(_MANY) as pool:
        for said in pool.map(footer, some):
            total.add(said)
    return total


def read_part(uri: str, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one part.

    Raises:
        UserError: the part is damaged, or not there.
    """
    fs, base = open_location(uri)
    try:
        return read_parquet(fs, f"{base}/{name}", columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(uri, name, error) from None


def read_parquet(fs: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file and verify the checksums of its pages. `read_part` does this and words the errors.

    Raises:
        OSError: the file is missing or cannot be read, or a page is damaged.
        pa.ArrowException: it is not a Parquet file, or it lacks a column.
    """
    # No partitioning: a folder named "lr=0.1" is not a column.
    rows = pq.read_table(path, columns=columns, filesystem=fs, partitioning=None, page_checksum_verification=True)
    return rows.replace_schema_metadata()


def check_parts(
    uri: str, some: Sequence[str], within: pa.ChunkedArray | None = None
) -> tuple[list[str], pa.ChunkedArray, list[str]]:
    """Look through the parts of an unfinished table.

    Returns:
        the parts that can be used, the ids of their articles, and the parts that cannot: damaged, with an article
        that another part has, or with one that is not `within`.
    """
    known = None if within is None else set(within.to_pylist())
    good: list[str] = []
    bad: list[str] = []
    seen: set[str] = set()

    def look(name: str) -> list[str] | None:
        try:
            count_rows(uri, [name])
            return read_part(uri, name)["article_id"].to_pylist()
        except (UserError, KeyError):
            return None

    with ThreadPoolExecutor(_MANY) as pool:
        for name, ids in zip(some, pool.map(look, some), strict=True):
            if ids is None or not seen.isdisjoint(ids) or not (known is None or known.issuperset(ids)):
                bad.append(name)
            else:
                good.append(name)
                seen.update(ids)
    return good, pa.chunked_array([pa.array(sorted(seen), pa.string())]), bad


def _damaged(uri: str, name: str, error: Exception) -> UserError:
    table = uri.rstrip("/")
    return UserError(
        f"{table}/{name} is damaged or gone ({one_line(error)}): put the file back, or have the table made again "
        f"with --remake and its address in the run"
    )
